"""Clients of Dask clusters, with the settings that a fit wants."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from shlex import quote
from shutil import which
from typing import Any

import dask
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, Security

from dbksvd_dask.cluster_arguments import check_address, check_count, check_security, check_timeout, checked_bytes
from dbksvd_dask.cluster_gpus import checked_gpus, checked_protocol, wants_pool
from dbksvd_dask.cluster_settings import SETTINGS, SLURM_SETTINGS, chosen, environment, variables
from dbksvd_dask.cluster_versions import check_versions
from dbksvd_dask.device import check_gpu

__all__ = ["SETTINGS", "SLURM_SETTINGS", "connect", "cuda", "environment", "local", "slurm"]

_LOOPBACK = "127.0.0.1:0"  # Dask takes ":0" for every network of the machine
_DEVICE_TRANSFERS = "dbksvd_dask.device_transfers"


def local(
    n_workers: int | None = None,
    threads_per_worker: int | None = None,
    memory_limit: str | float | None = "auto",
    *,
    security: Security | bool | None = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Client:
    """Use processes of this machine.

    They listen on the loopback interface only, the dashboard as well. Closing the client ends them. A script has to
    call this under ``if __name__ == "__main__":``, since the processes import it.

    Parameters
    ----------
    n_workers : int, optional
        Processes; by default as many as use all cores with a few threads each.
    threads_per_worker : int, optional
        By default the cores are dealt out among the processes: a task keeps one busy.
    memory_limit : str, float or None
        Of each process: as ``"4 GB"``, bytes, or a part of the machine's memory such as 0.25. None is no limit, and
        "auto" deals out all memory.
    security : distributed.Security or bool, optional
        Certificates for TLS; True makes temporary ones, with the package ``cryptography``.
    settings : mapping, optional
        Dask settings that win over `SETTINGS`, and over those that you have made elsewhere.
    **options
        For `distributed.LocalCluster`, as ``dashboard_address="127.0.0.1:8787"``.

    Returns
    -------
    distributed.Client
        ``client.cluster.scale(4)`` and ``client.cluster.adapt(minimum=1, maximum=4)`` change the number of processes.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.

    Examples
    --------
    >>> import numpy as np
    >>> import dbksvd_dask as dbk
    >>> with dbk.cluster.local(n_workers=1, threads_per_worker=1) as client:
    ...     dbk.DBKSVD(12, 3, max_iter=2).fit(np.random.default_rng(0).standard_normal((500, 8))).n_iter_
    2
    """
    check_count("n_workers", n_workers, 1)
    check_count("threads_per_worker", threads_per_worker, 1)
    check_security(security)
    if n_workers is not None and threads_per_worker is None:
        threads_per_worker = max(1, CPU_COUNT // n_workers)
    if memory_limit != "auto":
        is_part = isinstance(memory_limit, float) and 0 < memory_limit <= 1
        options["memory_limit"] = (
            memory_limit if is_part or memory_limit is None else checked_bytes("memory_limit", memory_limit)
        )
    in_force = chosen(SETTINGS, settings)
    options = {"dashboard_address": _LOOPBACK, "security": security, "config": in_force} | options
    if not options.pop("processes", True):
        raise ValueError("processes=False: threads of this process compute where there is no client at all")
    with dask.config.set(in_force), _explained_start("LocalCluster"):
        cluster = LocalCluster(n_workers=n_workers, threads_per_worker=threads_per_worker, **options)
    return _owner(cluster)


def connect(address: str, *, security: Security | None = None, timeout: float | str = "10s", **options: Any) -> Client:
    """Use a scheduler that runs already, and the workers that it has.

    They have their settings from where they were started: give them those of `environment`. Closing the client leaves
    them as they are.

    Parameters
    ----------
    address : str
        As ``"tcp://scheduler:8786"``, or ``"tls://scheduler:8786"`` with `security`.
    security : distributed.Security, optional
        Certificates for TLS.
    timeout : float or str
        How long to wait for an answer: seconds, or as ``"1 minute"``.
    **options
        For `distributed.Client`.

    Raises
    ------
    TypeError, ValueError
        If `address` is not that of a scheduler.
    ConnectionError
        If no scheduler answers there.
    RuntimeError
        If a worker has no dbksvd_dask, or another version of it.

    Warns
    -----
    UserWarning
        If workers have other versions of NumPy, SciPy or numba than this process, or processors of several kinds, which
        may compute other last bits.

    Examples
    --------
    >>> connect("tcp://127.0.0.1:1", timeout="1s")
    Traceback (most recent call last):
    ...
    ConnectionError: no Dask scheduler answers at tcp://127.0.0.1:1 within 1s: is it running, ...
    """
    check_address(address)
    check_security(security)
    check_timeout(timeout)
    # A client that cannot connect must be closed here: left to the garbage collector, which may come while the loop of
    # another one is being started, it would wait for a lock that this thread holds, for ever.
    client = Client.__new__(Client)
    try:
        Client.__init__(client, address, security=security, timeout=timeout, **options)
    except (OSError, TypeError) as error:  # Dask has a TypeError for missing certificates, and for a worker's answer
        client.close()
        raise ConnectionError(
            f"no Dask scheduler answers at {address} within {timeout}: is it running, and the port open from here? "
            "If it speaks TLS, connect to tls:// with security=distributed.Security(...) of the same authority"
        ) from error
    try:
        check_versions(client)
    except BaseException:
        client.close()
        raise
    return client


def cuda(
    n_workers: int | None = None,
    CUDA_VISIBLE_DEVICES: str | Sequence[int | str] | None = None,
    *,
    protocol: str | None = None,
    security: Security | bool | None = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Client:
    """Use the GPUs of this machine, with one process and one thread for each.

    The processes listen on the loopback interface only. Closing the client ends them. A script has to call this under
    ``if __name__ == "__main__":``.

    Parameters
    ----------
    n_workers : int, optional
        Processes to begin with, each with a GPU of its own; by default as many as there are GPUs.
    CUDA_VISIBLE_DEVICES : str or sequence of int and str, optional
        The GPUs, as ``[0, 2]``; by default what the environment variable of that name says, or all.
    protocol : str, optional
        "ucx", by which arrays go from GPU to GPU, over NVLink where there is one, or "tcp", by which they go through
        the host. By default UCX between several GPUs if the package distributed-ucxx is there, and no `security`.
    security, settings
        As for `local`.
    **options
        For `dask_cuda.LocalCUDACluster`, as ``device_memory_limit=0.8``, beyond which a process moves what it holds to
        the memory of the host, or ``rmm_pool_size=0.9`` for a pool from which CuPy takes device memory then.

    Returns
    -------
    distributed.Client

    Raises
    ------
    ImportError
        If dask-cuda or CuPy is not installed, or what an option needs.
    OSError
        If there is no GPU, or no driver that CuPy can use.
    TypeError, ValueError
        If an argument is not as above.

    Examples
    --------
    >>> client = cuda()  # doctest: +SKIP
    >>> client = cuda(2, rmm_pool_size=0.9)  # doctest: +SKIP
    """
    check_count("n_workers", n_workers, 1)
    check_security(security)
    in_force = chosen(SETTINGS, settings)
    make = _imported("dask_cuda", "cuda13", "cuda12").LocalCUDACluster
    check_gpu()
    gpus = checked_gpus(n_workers, CUDA_VISIBLE_DEVICES)
    n_workers = n_workers or len(gpus)
    protocol = checked_protocol(protocol, n_workers, security, options)
    if wants_pool(options):
        _imported("rmm", "cuda13", "cuda12")
        options = {"rmm_allocator_external_lib_list": "cupy"} | options
    wanted = options.get("pre_import") or []
    options["pre_import"] = [*(wanted.split(",") if isinstance(wanted, str) else wanted), _DEVICE_TRANSFERS]
    import_module(_DEVICE_TRANSFERS)  # here as well as there, for what comes here
    options = {"dashboard_address": _LOOPBACK, "security": security, "protocol": protocol} | options
    with dask.config.set(in_force), _explained_start("LocalCUDACluster"):
        cluster = make(n_workers=n_workers, CUDA_VISIBLE_DEVICES=gpus, **options)
    # For workers that are added later: it takes no settings itself.
    cluster.new_spec["options"].setdefault("config", {}).update(in_force)
    return _owner(cluster)


def slurm(
    n_jobs: int = 1,
    *,
    cores: int | None = None,
    memory: str | None = None,
    security: Security | bool | None = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Client:
    """Use workers that are jobs of a SLURM cluster, submitted from here. Closing the client cancels them.

    The scheduler is in this process, and listens on the networks of this machine: see `security`. The client is
    returned before the jobs run; ``client.wait_for_workers(1)`` waits for the first.

    Parameters
    ----------
    n_jobs : int
        Jobs to submit; 0 for those that ``client.cluster.adapt(maximum_jobs=8)`` submits when there is work.
    cores : int
        Of a job: one thread each, in one or more processes. By default that of dask-jobqueue's configuration.
    memory : str
        Of a job, shared by its processes, as ``"64 GB"``. By default that of dask-jobqueue's configuration.
    security : distributed.Security or bool, optional
        Certificates for TLS; True makes temporary ones. Without, whoever reaches this machine's ports can run code as
        you. Then `shared_temp_directory` must be a folder that the jobs see.
    settings : mapping, optional
        Dask settings that win over `SLURM_SETTINGS`, and over those that you have made elsewhere.
    **options
        For `dask_jobqueue.SLURMCluster`, as ``queue="gpu"``, ``account="me"``, ``walltime="02:00:00"``,
        ``processes=1``, ``interface="ib0"``, ``local_directory="/scratch"``.

    Raises
    ------
    ImportError
        If dask-jobqueue is not installed.
    TypeError, ValueError
        If an argument is not as above.
    RuntimeError
        If this machine has no ``sbatch`` to submit jobs with.

    Examples
    --------
    >>> client = slurm(4, cores=8, memory="32 GB", walltime="02:00:00")  # doctest: +SKIP
    >>> print(client.cluster.job_script())  # doctest: +SKIP
    """
    make = _imported("dask_jobqueue", "slurm").SLURMCluster
    check_count("n_jobs", n_jobs, 0)
    check_count("cores", cores, 1)
    check_security(security)
    if memory is not None:
        checked_bytes("memory", memory)
    if n_jobs and which("sbatch") is None:
        raise RuntimeError(
            "this machine has no sbatch: call slurm() where SLURM jobs are submitted, as on a login node"
        )
    # What is given here would replace what stands in dask-jobqueue's configuration.
    prologue = options.pop("job_script_prologue", dask.config.get("jobqueue.slurm.job-script-prologue"))
    scheduler = options.pop("scheduler_options", dask.config.get("jobqueue.slurm.scheduler-options"))
    in_force = chosen(SLURM_SETTINGS, settings)
    exports = [f"export {name}={quote(value)}" for name, value in variables(in_force).items()]
    with dask.config.set(in_force):
        client = _owner(
            make(
                cores=cores,
                memory=memory,
                security=security,
                job_script_prologue=[*exports, *prologue],
                scheduler_options={"dashboard_address": _LOOPBACK} | scheduler,
                **options,
            )
        )
    client.cluster.scale(jobs=n_jobs)
    return client


@contextmanager
def _explained_start(of: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"the processes did not start ({error}): in a script the client is made under "
            f'if __name__ == "__main__", since they import the script; and options are those of {of}'
        ) from error


def _owner(cluster: Any) -> Client:
    """A client that closes the cluster when it is closed, as one does that has made its cluster itself."""
    try:
        client = Client(cluster)
    except BaseException:
        cluster.close()
        raise
    client._start_arg = None  # by this a client knows that it has made its cluster
    return client


def _imported(module: str, *extras: str) -> Any:
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        return import_module(module)
    except ImportError as error:
        install = ", or ".join(f"'dbksvd-dask[{extra}]'" for extra in extras)
        raise ImportError(f"{module} cannot be imported ({error}): pip install {install}") from error
    except ValueError as error:  # dask-jobqueue sets a handler of signals, which only the main thread may
        raise RuntimeError(f"{module} cannot be imported in this thread: import it in the main thread first") from error
    finally:  # dask-jobqueue takes Ctrl-C for itself, with which a fit ends and leaves a model
        if signal.getsignal(signal.SIGINT) is not interrupt:
            signal.signal(signal.SIGINT, interrupt)
