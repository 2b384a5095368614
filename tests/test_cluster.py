"""One line makes a client; its processes have the settings, listen on loopback only, and end with it."""

import gc
import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from time import sleep, time
from types import SimpleNamespace

import dask
import numpy as np
import psutil
import pytest
from distributed import Client, Security
from distributed.scheduler import NoWorkerError

from dbksvd_dask import DBKSVD, cluster, cluster_gpus, open_embeddings

ONE_PROCESS = {"n_workers": 1, "threads_per_worker": 1}
PAUSE = "distributed.worker.memory.pause"
PROFILE = "distributed.worker.profile.enabled"
PATIENCE = "distributed.scheduler.no-workers-timeout"
LONG = 20.0
"""Seconds, on a busy machine: less than the 30 of Dask, which a timeout that is not heeded would take."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("embeddings") / "rows.npy"
    np.save(path, np.random.default_rng(0).standard_normal((40_000, 24), dtype=np.float32))
    return path


def fitted(rows, **parameters):
    parameters = {"max_iter": 3, "batch_size": 40_000, "random_state": 0} | parameters
    return DBKSVD(48, 4, **parameters).fit(rows).components_


@pytest.fixture(scope="module")
def expected(rows):
    with dask.config.set(scheduler="synchronous"):
        return {n: fitted(rows, max_iter=n) for n in (3, 4)}


@pytest.fixture(scope="module")
def client():
    with cluster.local(**ONE_PROCESS) as client:
        yield client


def wait_until(happens):
    deadline = time() + 60
    while not happens():
        assert time() < deadline
        sleep(0.05)


def in_workers(client, key):
    return set(client.run(dask.config.get, key).values())


def assert_workers_have_the_settings(client, n_workers):
    client.wait_for_workers(n_workers, timeout=60)
    assert {key: in_workers(client, key) for key in cluster.SETTINGS} == {
        key: {value} for key, value in cluster.SETTINGS.items()
    }
    assert len(client.nthreads()) == n_workers
    assert set(client.nthreads().values()) == {1}


def fractions(dask_worker):
    memory = dask_worker.memory_manager
    return memory.memory_target_fraction, memory.memory_spill_fraction, memory.memory_pause_fraction


def test_workers_have_the_settings_and_go_by_them(client):
    assert_workers_have_the_settings(client, 1)
    assert set(client.run(fractions).values()) == {(0.6, 0.7, 0.85)}
    assert client.run(lambda dask_worker: [n for n in dask_worker.periodic_callbacks if "profile" in n]) == {
        address: [] for address in client.nthreads()
    }


def test_so_does_the_scheduler(client):
    scheduler = client.cluster.scheduler
    assert (scheduler.worker_ttl, scheduler.no_workers_timeout) == (60, 300)


def test_so_does_a_worker_that_was_killed_and_started_anew(client):
    (before,) = client.run(os.getpid).values()
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: [*client.run(os.getpid, on_error="ignore").values()] not in ([], [before]))
    assert_workers_have_the_settings(client, 1)


def test_so_does_a_worker_that_is_added_later(client):
    client.cluster.scale(2)
    assert_workers_have_the_settings(client, 2)
    client.cluster.scale(1)


@pytest.mark.usefixtures("client")
def test_the_configuration_of_this_process_stays_as_it_was():
    defaults = dask.config.merge(*dask.config.defaults)
    assert all(dask.config.get(key) == dask.config.get(key, config=defaults) for key in cluster.SETTINGS)


def variable(key, settings=None):
    return cluster.environment(settings)["DASK_" + key.replace(".", "__").replace("-", "_").upper()]


def test_the_environment_is_what_dask_reads_as_the_settings():
    read = dask.config.collect(paths=[], env=cluster.environment())
    assert {key: dask.config.get(key, config=read) for key in cluster.SETTINGS} == cluster.SETTINGS


def test_what_the_user_has_set_wins():
    with dask.config.set({PAUSE: 0.5}):
        assert (variable(PAUSE), variable(PROFILE)) == ("0.5", "False")


def test_it_wins_from_the_environment_too_even_where_it_is_the_default_of_dask(monkeypatch):
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED", "True")
    assert variable(PROFILE) == "True"


def test_the_argument_wins_over_all():
    spill = "distributed.worker.memory.max-spill"
    with dask.config.set({PAUSE: 0.5, "distributed.worker.memory.target": 0.4}):
        assert variable(PAUSE, {PAUSE: 0.8}) == "0.8"
        client = cluster.local(**ONE_PROCESS, settings={PAUSE: 0.8, PROFILE: True, spill: 10**9})
    with client:
        assert set(client.run(fractions).values()) == {(0.4, 0.7, 0.8)}
        assert in_workers(client, PROFILE) == {True}
        assert in_workers(client, spill) == {10**9}


def test_a_setting_that_dask_does_not_have_is_an_error():
    with pytest.raises(ValueError, match=r"settings names 'distributed.worker.memory.paws', which is no setting"):
        cluster.local(settings={"distributed.worker.memory.paws": 0.9})


def processes_below(process):
    """Those of Dask; Python has one of its own that counts resources."""
    return [child for child in process.children(recursive=True) if "resource_tracker" not in " ".join(child.cmdline())]


def test_what_listens_listens_on_loopback_and_ends_with_the_client():
    before = set(processes_below(psutil.Process()))
    with cluster.local(n_workers=2, threads_per_worker=1) as client:
        pids = set(client.run(os.getpid).values())
        ours = set(processes_below(psutil.Process())) - before
        assert pids <= {process.pid for process in ours}
        listening = [
            connection.laddr.ip
            for process in [psutil.Process(), *ours]
            for connection in process.net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]
        assert len(listening) >= 1 + 2 * 2  # the scheduler; both workers, and the HTTP server of each
        assert set(listening) == {"127.0.0.1"}
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert client.cluster.status.name == "closed"


@pytest.fixture
def made(monkeypatch):
    """What a LocalCluster is asked for on a machine of 8 cores."""
    options = {}
    monkeypatch.setattr(cluster, "LocalCluster", lambda **given: options.update(given))
    monkeypatch.setattr(cluster, "_owner", lambda cluster: None)
    monkeypatch.setattr(cluster, "CPU_COUNT", 8)
    return options


@pytest.mark.parametrize(("n_workers", "n_threads"), [(1, 8), (3, 2), (8, 1), (20, 1)])
def test_processes_share_the_cores_with_a_thread_for_each(made, n_workers, n_threads):
    cluster.local(n_workers)
    assert made["threads_per_worker"] == n_threads


@pytest.mark.parametrize(("limit", "passed"), [("800 MB", 8 * 10**8), (10**9, 10**9), (0.25, 0.25), (None, None)])
def test_a_memory_limit_is_that_of_each_process(made, limit, passed):
    cluster.local(memory_limit=limit)
    assert made["memory_limit"] == passed


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_workers": 0}, ValueError, "n_workers=0 must be at least 1"),
        ({"n_workers": -2}, ValueError, "n_workers=-2 must be at least 1"),
        ({"n_workers": 1.5}, TypeError, "n_workers=1.5 must be a whole number"),
        ({"n_workers": True}, TypeError, "n_workers=True must be a whole number"),
        ({"processes": False}, ValueError, "processes=False: threads of this process compute where there is no client"),
        ({"settings": [1]}, TypeError, r"settings=\[1\] must be a mapping"),
        ({"settings": {"distributed": {"comm": 1}}}, TypeError, "settings names 'distributed': write names in full"),
        ({"security": False}, TypeError, "security=False must be a distributed.Security"),
        ({"threads_per_worker": 0}, ValueError, "threads_per_worker=0 must be at least 1"),
        ({"memory_limit": "lots"}, ValueError, "memory_limit='lots' must be bytes, as '4 GB'"),
        ({"memory_limit": [1]}, ValueError, r"memory_limit=\[1\] must be bytes"),
        ({"memory_limit": float("nan")}, ValueError, "memory_limit=nan must be bytes"),
        ({"memory_limit": -1}, ValueError, "memory_limit=-1 is too little"),
        ({"memory_limit": 4}, ValueError, "memory_limit=4 is too little: .* takes nearly 286.10 MiB"),
        ({"security": "tls"}, TypeError, "security='tls' must be a distributed.Security"),
    ],
)
def test_bad_arguments_of_local_are_named(options, error, message):
    with pytest.raises(error, match=message):
        cluster.local(**options)


# What joins while a fit runs


class Joining:
    """Has workers join after an iteration, and tells who has computed since."""

    def __init__(self, client, join):
        self.client, self.join = client, join
        self.first = set(client.nthreads())
        client.get_task_stream()  # which tasks are kept from now on

    def __call__(self, model, iteration):
        if iteration.iteration == 1:
            self.join()
            self.client.wait_for_workers(2, timeout=60)
            self.since = time()

    def who_computed(self):
        return {task["worker"] for task in self.client.get_task_stream(start=self.since)}


@pytest.mark.parametrize(
    "join",
    [
        lambda cluster: cluster.scale(2),
        lambda cluster: cluster.adapt(minimum=2, maximum=3, interval="100ms", target_duration="100ms"),
    ],
    ids=["scaled by hand", "adaptive"],
)
def test_workers_that_join_a_fit_compute_with_it(client, rows, expected, join):
    client.cluster.scale(1)
    wait_until(lambda: len(client.nthreads()) == 1)
    joining = Joining(client, lambda: join(client.cluster))
    np.testing.assert_array_equal(fitted(rows, max_iter=4, callbacks=[joining]), expected[4])
    assert joining.first < joining.who_computed()
    client.cluster.scale(1)


def test_when_all_workers_are_gone_for_good_a_computation_ends_with_an_error():
    with cluster.local(**ONE_PROCESS, settings={PATIENCE: "1s"}) as client:
        client.cluster.scale(0)
        with pytest.raises(NoWorkerError, match="without any running workers"):
            dask.delayed(sum)([1, 2]).compute()


# Certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Two authorities, each of which has signed itself: what is of one is not believed by the other."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("ours", "theirs"):
        pem = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"]
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=dask", *pem],
            check=True,
            capture_output=True,
        )
    return {name: security(folder / f"{name}.pem", folder / f"{name}.key") for name in ("ours", "theirs")}


def security(certificate, key):
    roles = {
        f"tls_{role}_{what}": str(path)
        for role in ("client", "scheduler", "worker")
        for what, path in (("cert", certificate), ("key", key))
    }
    return Security(tls_ca_file=str(certificate), require_encryption=True, **roles)


@pytest.fixture(scope="module")
def encrypted(certificates):
    with cluster.local(**ONE_PROCESS, security=certificates["ours"]) as client:
        yield client


def test_a_fit_over_tls_gives_the_same_bits(encrypted, certificates, rows, expected):
    assert encrypted.scheduler.address.startswith("tls://")
    assert all(address.startswith("tls://") for address in encrypted.nthreads())
    with cluster.connect(encrypted.scheduler.address, security=certificates["ours"]):
        np.testing.assert_array_equal(fitted(rows), expected[3])


@pytest.mark.parametrize(("scheme", "whose"), [("tls", "theirs"), ("tls", None), ("tcp", None)])
def test_a_client_without_the_certificate_is_refused(encrypted, certificates, scheme, whose):
    address = encrypted.scheduler.address.replace("tls", scheme)
    start = time()
    with pytest.raises(
        ConnectionError, match=r"connect to tls:// with security=distributed.Security\(...\) of the same"
    ):
        cluster.connect(address, security=certificates.get(whose), timeout="2s")
    assert time() - start < LONG


# Schedulers that run already


def test_connect_uses_a_scheduler_that_runs_and_leaves_it_there(client, rows, expected):
    client.wait_for_workers(1)
    with cluster.connect(client.scheduler.address):
        np.testing.assert_array_equal(fitted(rows), expected[3])
    assert client.submit(sum, [1, 2]).result() == 3


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        (8786, TypeError, "address=8786 must be a string, as 'tcp://scheduler:8786'"),
        ("", ValueError, "address='' must name a host and a port"),
        ("tcp://scheduler", ValueError, "address='tcp://scheduler' must name a host and a port"),
        ("scheduler:http", ValueError, "address='scheduler:http' must name a host and a port"),
        (
            "http://127.0.0.1:8787/status",
            ValueError,
            "must begin with tcp:// or tls://, not with that of the dashboard",
        ),
        ("ftp://scheduler:8786", ValueError, "address='ftp://scheduler:8786' must begin with tcp:// or tls://"),
    ],
)
def test_bad_addresses_are_named(address, error, message):
    with pytest.raises(error, match=message):
        cluster.connect(address)


@pytest.mark.parametrize("timeout", ["soon", None, -1, 0, float("nan"), [1]])
def test_a_bad_timeout_is_named(timeout):
    with pytest.raises(ValueError, match=rf"timeout={re.escape(repr(timeout))} must be"):
        cluster.connect("tcp://127.0.0.1:1", timeout=timeout)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nobody.invalid:8786"])
def test_where_nobody_listens_there_is_an_error_within_seconds(address):
    start = time()
    with pytest.raises(ConnectionError, match=f"no Dask scheduler answers at {address} within 1s: is it running"):
        cluster.connect(address, timeout="1s")
    assert time() - start < LONG


def test_what_answers_has_to_be_a_scheduler(client):
    worker, *_ = client.nthreads()
    with pytest.raises(ConnectionError, match=f"no Dask scheduler answers at {worker}"):
        cluster.connect(worker, timeout="2s")
    assert not [found for found in gc.get_objects() if type(found) is Client and found.status == "connecting"]


PRETEND = """
import importlib.metadata as metadata

def version(package, real=metadata.version):
    if package == {package!r}:
        {then}
    return real(package)

version.__module__, version.__qualname__ = "importlib.metadata", "version"
metadata.version = version
"""


PRETEND_PROCESSOR = """
from dbksvd_dask import fit_state

def this_cpu():
    return "abacus"

def dask_setup(worker):
    if worker.name == 0:
        this_cpu.__module__ = fit_state.__name__
        fit_state.this_cpu = this_cpu
"""


def other_workers(folder, pretend, n_workers=1):
    preload = folder / "pretend.py"
    preload.write_text(pretend)
    return cluster.local(n_workers, 1, preload=[str(preload)])


def other_worker(folder, package, then):
    return other_workers(folder, PRETEND.format(package=package, then=then))


def test_a_worker_with_another_version_of_this_package_is_an_error(tmp_path):
    with (
        other_worker(tmp_path, "dbksvd-dask", "return '0.0.7'") as client,
        pytest.raises(
            RuntimeError, match=r"worker tcp://127.* has dbksvd_dask 0.0.7: pip install dbksvd-dask==.* there"
        ),
    ):
        cluster.connect(client.scheduler.address)


def test_a_worker_without_this_package_is_an_error(tmp_path):
    with (
        other_worker(tmp_path, "dbksvd-dask", "raise metadata.PackageNotFoundError(package)") as client,
        pytest.raises(RuntimeError, match=r"worker tcp://127.* has no dbksvd_dask: pip install dbksvd-dask=="),
    ):
        cluster.connect(client.scheduler.address)


def test_a_worker_with_another_numba_is_warned_of(tmp_path):
    with other_worker(tmp_path, "numba", "return '0.1'") as client:
        with pytest.warns(UserWarning, match=r"workers have numba 0.1, and .*: results may differ in their last bits"):
            connected = cluster.connect(client.scheduler.address)
        connected.close()


def test_workers_with_different_processors_are_warned_of(tmp_path):
    with other_workers(tmp_path, PRETEND_PROCESSOR, n_workers=2) as client:
        with pytest.warns(UserWarning, match=r"workers have different processors, abacus, .*: results may differ"):
            connected = cluster.connect(client.scheduler.address)
        connected.close()


# SLURM

SBATCH = """#!{python}
import subprocess, sys
with open(sys.argv[-1]) as file:
    script = file.read()  # the file is gone when the job begins
with open({log!r}, "w") as log:
    job = subprocess.Popen(["bash", "-c", script], stdout=log, stderr=log, start_new_session=True)
print("Submitted batch job", job.pid)
"""

SCANCEL = """#!{python}
import os, signal, sys
os.killpg(int(sys.argv[-1]), signal.SIGTERM)
"""


@pytest.fixture
def slurm_of_this_machine(tmp_path, monkeypatch):
    """The commands that dask-jobqueue calls: jobs are processes."""
    if find_spec("dask_jobqueue") is None:
        pytest.skip("dask_jobqueue is not installed: pip install 'dbksvd-dask[slurm]'")
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (tmp_path / name).write_text(text.format(python=sys.executable, log=str(tmp_path / "job.log")))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.mark.usefixtures("slurm_of_this_machine")
def test_the_job_script_has_threads_memory_and_settings():
    options = {"walltime": "02:00:00", "queue": "long", "job_script_prologue": ["module load cuda"]}
    settings = {PAUSE: 0.9}
    with cluster.slurm(0, cores=12, memory="48 GiB", processes=3, settings=settings, **options) as client:
        script = client.cluster.job_script().splitlines()
        assert client.cluster.scheduler.no_workers_timeout == 3600
    for line in ("#SBATCH --cpus-per-task=12", "#SBATCH --mem=48G", "#SBATCH -t 02:00:00", "#SBATCH -p long"):
        assert line in script
    assert script[-1].startswith(f"{sys.executable} -m distributed.cli.dask_worker tcp://")
    for option in ("--nthreads 4", "--memory-limit 16.00GiB", "--nworkers 3", "--nanny"):
        assert option in script[-1]
    exports = dict(line.removeprefix("export ").split("=", 1) for line in script if line.startswith("export "))
    read = dask.config.collect(paths=[], env={name: value.strip("'") for name, value in exports.items()})
    assert {key: dask.config.get(key, config=read) for key in cluster.SETTINGS} == cluster.SLURM_SETTINGS | settings
    assert script.index("module load cuda") > max(map(script.index, (f"export {k}={v}" for k, v in exports.items())))


def test_jobs_compute_with_the_settings_and_end_with_the_client(slurm_of_this_machine, rows, expected):
    options = {"cores": 2, "memory": "2 GB", "processes": 2, "interface": "lo"}
    with cluster.slurm(1, **options, local_directory=str(slurm_of_this_machine)) as client:
        client.wait_for_workers(2, timeout=60)
        assert set(client.nthreads().values()) == {1}
        assert in_workers(client, PROFILE) == {False}
        assert in_workers(client, PAUSE) == {0.85}
        pids = client.run(os.getpid).values()
        np.testing.assert_array_equal(fitted(rows), expected[3])
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


@pytest.mark.usefixtures("slurm_of_this_machine")
def test_ctrl_c_stays_what_it_was():
    """dask-jobqueue has it end the process, as soon as it is imported."""
    script = """
import signal
from dbksvd_dask import cluster
with cluster.slurm(0, cores=1, memory="1 GB"):
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.usefixtures("slurm_of_this_machine")
def test_a_thread_that_may_not_import_it_is_told_so():
    script = """
from concurrent.futures import ThreadPoolExecutor
from dbksvd_dask import cluster
with ThreadPoolExecutor(1) as thread:
    error = thread.submit(cluster.slurm, 0, cores=1, memory="1 GB").exception()
assert isinstance(error, RuntimeError) and "import it in the main thread first" in str(error), error
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.usefixtures("slurm_of_this_machine")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_jobs": -1}, "n_jobs=-1 must be at least 0"),
        ({"cores": 0}, "cores=0 must be at least 1"),
        ({"cores": 2, "memory": "lots"}, "memory='lots' must be bytes, as '4 GB'"),
    ],
)
def test_bad_arguments_of_slurm_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        cluster.slurm(**options)


@pytest.mark.usefixtures("slurm_of_this_machine")
def test_without_sbatch_there_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(RuntimeError, match="this machine has no sbatch"):
        cluster.slurm(1, cores=1, memory="1 GB")


# GPUs


class NVMLError(Exception):
    """What a driver says that does not answer."""


@pytest.fixture
def machine(monkeypatch):
    """One of four GPUs: what dask-cuda's LocalCUDACluster is asked for there, and what it finds of Dask's settings."""
    seen = SimpleNamespace(n_gpus=4, packages=set())

    class LocalCUDACluster:
        def __init__(self, **options):
            seen.options, seen.pause = options, dask.config.get(PAUSE)
            self.new_spec = {"options": {"config": {"distributed.comm.ucx": None}}}

    modules = {
        "dask_cuda": SimpleNamespace(LocalCUDACluster=LocalCUDACluster),
        "dbksvd_dask.device_transfers": SimpleNamespace(),
        "pynvml": SimpleNamespace(nvmlInit=int, nvmlDeviceGetCount=lambda: seen.n_gpus, NVMLError=NVMLError),
        "rmm": SimpleNamespace(),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(cluster, "check_gpu", lambda: None)
    monkeypatch.setattr(cluster_gpus, "find_spec", lambda name: name if name in seen.packages else None)
    monkeypatch.setattr(cluster, "_owner", lambda cluster: cluster)
    return seen


def test_each_gpu_has_a_worker_which_listens_on_loopback(machine):
    cluster.cuda()
    assert (machine.options["n_workers"], machine.options["CUDA_VISIBLE_DEVICES"]) == (4, [0, 1, 2, 3])
    assert machine.options["dashboard_address"] == "127.0.0.1:0"
    assert machine.options["protocol"] is None


@pytest.mark.parametrize(
    ("n_workers", "argument", "variable", "expected"),
    [
        (2, None, None, (2, [0, 1, 2, 3])),
        (None, [3, 1], None, (2, [3, 1])),
        (None, "GPU-1f, MIG-2e", None, (2, ["GPU-1f", "MIG-2e"])),
        (None, None, "2,0", (2, [2, 0])),
        (1, [1], "2,0", (1, [1])),
    ],
)
def test_which_gpus_they_have(machine, monkeypatch, n_workers, argument, variable, expected):
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    cluster.cuda(n_workers, argument)
    assert (machine.options["n_workers"], machine.options["CUDA_VISIBLE_DEVICES"]) == expected


def test_the_settings_are_those_of_its_workers_and_of_such_as_are_added_later(machine):
    made = cluster.cuda(settings={PAUSE: 0.77})
    assert machine.pause == 0.77
    assert made.new_spec["options"]["config"] == {"distributed.comm.ucx": None} | cluster.SETTINGS | {PAUSE: 0.77}
    assert dask.config.get(PAUSE) != 0.77


@pytest.mark.parametrize("given", [None, "torch,rmm", ["torch", "rmm"]])
def test_workers_know_how_what_tasks_hand_on_is_moved(machine, given):
    cluster.cuda(pre_import=given)
    assert machine.options["pre_import"] == [*(["torch", "rmm"] if given else []), "dbksvd_dask.device_transfers"]


@pytest.mark.parametrize(
    ("options", "libraries"),
    [
        ({}, None),
        ({"rmm_pool_size": None, "rmm_async": False}, None),
        ({"rmm_pool_size": "20 GB"}, "cupy"),
        ({"rmm_async": True}, "cupy"),
        ({"rmm_managed_memory": True}, "cupy"),
        ({"rmm_async": True, "rmm_allocator_external_lib_list": "torch,cupy"}, "torch,cupy"),
    ],
)
def test_cupy_takes_its_memory_from_the_pool_that_there_is(machine, options, libraries):
    cluster.cuda(**options)
    assert machine.options.get("rmm_allocator_external_lib_list") == libraries


@pytest.mark.parametrize(
    ("options", "protocol"),
    [
        ({}, "ucx"),
        ({"n_workers": 1}, None),
        ({"n_workers": 1, "enable_nvlink": True}, "ucx"),
        ({"protocol": "tcp"}, "tcp"),
        ({"security": True}, None),
    ],
)
def test_several_gpus_speak_ucx_where_it_is_there(machine, options, protocol):
    machine.packages.add("distributed_ucxx")
    cluster.cuda(**options)
    assert machine.options["protocol"] == protocol


def test_ucx_does_not_encrypt(machine):
    machine.packages.add("distributed_ucxx")
    with pytest.raises(ValueError, match="security: UCX does not encrypt"):
        cluster.cuda(protocol="ucx", security=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_workers": 0}, ValueError, "n_workers=0 must be at least 1"),
        ({"n_workers": 5}, ValueError, "n_workers=5 exceeds the number of GPUs, 4"),
        ({"CUDA_VISIBLE_DEVICES": 1}, TypeError, r"CUDA_VISIBLE_DEVICES=1 must be a list, as \[0, 1\]"),
        ({"CUDA_VISIBLE_DEVICES": []}, ValueError, r"CUDA_VISIBLE_DEVICES=\[\] names no GPU"),
        ({"CUDA_VISIBLE_DEVICES": ""}, ValueError, "names GPU '', which is neither .* an empty text hides all GPUs"),
        ({"CUDA_VISIBLE_DEVICES": [4]}, ValueError, "names GPU 4, but this machine has 4, from 0 on"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ValueError, "names GPU -1, but this machine has 4"),
        ({"CUDA_VISIBLE_DEVICES": "0,1,0"}, ValueError, "names GPU 0 more than once, .*: dask cuda worker"),
        ({"security": "tls"}, TypeError, "security='tls' must be a distributed.Security"),
        ({"settings": [1]}, TypeError, r"settings=\[1\] must be a mapping"),
        ({"protocol": "ucx"}, ImportError, "UCX needs distributed-ucxx: pip install distributed-ucxx-cu13, or -cu12"),
        ({"enable_infiniband": True}, ImportError, "UCX needs distributed-ucxx"),
    ],
)
def test_bad_arguments_of_cuda_are_named_before_anything_starts(machine, options, error, message):
    with pytest.raises(error, match=message):
        cluster.cuda(**options)
    assert not hasattr(machine, "options")


def test_a_pool_needs_rmm(machine, monkeypatch):
    monkeypatch.setitem(sys.modules, "rmm", None)
    with pytest.raises(ImportError, match=r"rmm cannot be imported .* pip install 'dbksvd-dask\[cuda13\]', or"):
        cluster.cuda(rmm_pool_size=0.5)
    assert not hasattr(machine, "options")


def test_a_gpu_that_cannot_be_used_is_an_error_before_anything_starts(machine, monkeypatch):
    def refuse():
        raise OSError("there is no NVIDIA driver here")

    monkeypatch.setattr(cluster, "check_gpu", refuse)
    with pytest.raises(OSError, match="there is no NVIDIA driver here"):
        cluster.cuda()
    assert not hasattr(machine, "options")


def test_a_driver_that_does_not_list_gpus_is_an_error(machine, monkeypatch):
    def refuse():
        raise NVMLError("NVML Shared Library Not Found")

    monkeypatch.setattr(sys.modules["pynvml"], "nvmlInit", refuse)
    with pytest.raises(OSError, match=r"does not tell its GPUs \(NVML Shared Library Not Found\): nvidia-smi has to"):
        cluster.cuda()


@pytest.mark.usefixtures("gpu")
def test_a_gpu_gives_the_same_bits_to_one_process_to_one_worker_and_to_two(rows, tmp_path):
    def fitted_there():
        return fitted(open_embeddings(rows, device="cuda"))

    expected = fitted_there()
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    with cluster.cuda(1) as client:
        assert_workers_have_the_settings(client, 1)
        np.testing.assert_array_equal(fitted_there(), expected)
        # What is asked of those who want two on one GPU.
        command = [sys.executable, "-m", "dask", "cuda", "worker", client.scheduler.address, "--host", "127.0.0.1"]
        command += ["--pre-import", "dbksvd_dask.device_transfers", "--local-directory", str(tmp_path)]
        variables = os.environ | cluster.environment() | {"CUDA_VISIBLE_DEVICES": first}
        with subprocess.Popen(command, env=variables) as worker:
            assert_workers_have_the_settings(client, 2)
            client.get_task_stream()  # which tasks are kept from now on
            np.testing.assert_array_equal(fitted_there(), expected)
            assert {task["worker"] for task in client.get_task_stream()} == set(client.nthreads())
            worker.terminate()


# What is not installed


@pytest.mark.parametrize(
    ("module", "function", "extras"),
    [
        ("dask_cuda", cluster.cuda, "'dbksvd-dask[cuda13]', or 'dbksvd-dask[cuda12]'"),
        ("dask_jobqueue", cluster.slurm, "'dbksvd-dask[slurm]'"),
    ],
)
def test_what_is_missing_names_the_extra(module, function, extras, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{module} cannot be imported .* pip install {re.escape(extras)}$"):
        function()
