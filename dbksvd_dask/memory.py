"""What a fit will hold in memory: a plan before it starts, and what to change where it does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
from dask.base import get_scheduler
from dask.system import CPU_COUNT
from dask.utils import format_bytes
from distributed.system import MEMORY_LIMIT

from dbksvd_dask.batches import OuterBatches, tasks_of
from dbksvd_dask.graph import active_client
from dbksvd_dask.kernels.backend import backend_of, on_device
from dbksvd_dask.kernels.costs import memory_of_process
from dbksvd_dask.kernels.pursuit import Pursuit
from dbksvd_dask.memory_sizes import COMPILATION, DEVICE_LIBRARIES, WORKER_PROCESS, Sizes
from dbksvd_dask.reprs import plan_html

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Worker

    from dbksvd_dask.training import Training


@dataclass(frozen=True, repr=False)
class MemoryPlan:
    """What a fit will hold in memory at its worst moment; `plan_memory` makes it."""

    worker: Mapping[str, int]
    """What a worker holds, bytes each; where threads of this process compute, that is this process."""
    per_task: int
    """Bytes that a task takes while it runs, besides what it is given and what it leaves."""
    driver: int
    """Bytes of this process."""
    limit: int | None
    """Bytes that a worker may hold before Dask spills or pauses it; None where it has no limit."""
    advice: str
    """What to change so that it fits; empty where it does."""

    @property
    def per_worker(self) -> int:
        """Bytes of a worker."""
        return sum(self.worker.values())

    @property
    def fits(self) -> bool:
        """Whether no worker will be spilled or paused."""
        return self.limit is None or self.per_worker <= self.limit

    def rows(self) -> list[tuple[str, str]]:
        """As a table: what, and how much."""
        limit = "none" if self.limit is None else format_bytes(self.limit)
        parts = [(what, format_bytes(size)) for what, size in self.worker.items()]
        whole = ("a worker in all", format_bytes(self.per_worker))
        return [*parts, whole, ("it may hold", limit), ("the driver", format_bytes(self.driver))]

    def __repr__(self) -> str:
        """A line for each part, the verdict, and the advice."""
        width = max(len(what) for what, _ in self.rows())
        lines = [f"{what:<{width}}  {size:>11}" for what, size in self.rows()]
        return "\n".join([f"MemoryPlan: {'fits' if self.fits else 'DOES NOT FIT'}", *lines, *self.advice.splitlines()])

    def _repr_html_(self) -> str:
        """The same as a table."""
        return plan_html(self)


def plan_memory(
    batches: OuterBatches,
    validation: xr.DataArray | None,
    training: Training,
    n_atoms: int,
    dtype: np.dtype,
) -> MemoryPlan:
    """Plan what a fit will hold in memory, on the active cluster or in threads of this process.

    Nothing is read or computed. The plan is an upper bound for every process and all iterations, with the tasks spread
    evenly over the workers; it does not know what a worker holds of other computations. On a cluster it is compared
    with the share of ``memory_limit`` at which the workers begin to spill or pause, by the settings they were started
    with.

    Parameters
    ----------
    batches : OuterBatches
        Of the embeddings. Where these are on a device, the memory is that of the devices.
    validation : xarray.DataArray or None
        Held-out embeddings.
    training : Training
    n_atoms : int
    dtype : dtype
        Precision of the computation.

    Returns
    -------
    MemoryPlan

    Raises
    ------
    ValueError
        If the cluster has no workers yet.
    """
    data = batches.embeddings
    held_out = da.empty((0, 0), data.dtype) if validation is None else validation.data
    pursuit, update = training.pursuit, training.update
    group_sizes = pursuit.group_sizes or (n_atoms,)
    inner_batch_size = update.inner_batch_size or n_atoms
    graph = dict(data.dask)
    resident = memory_of_process().resident
    n_threads, all_threads, limit = _resources(batches.device)
    on_cluster = active_client() is not None
    ops = backend_of(data)
    sizes = Sizes(
        n_samples=len(data),
        n_features=data.shape[1],
        n_atoms=n_atoms,
        n_nonzero_coefs=pursuit.n_nonzero_coefs,
        group_sizes=group_sizes,
        batch_size=-(-len(data) // batches.n_batches),
        chunk_rows=max(data.chunks[0]),
        itemsize=data.dtype.itemsize,
        dtype=np.dtype(dtype),
        in_graph=any(map(_is_array, graph.values())),
        in_memory=_is_array(graph[data.name, 0, 0]),
        shuffle=batches.shuffle is not None,
        centers=training.mean is not None,
        updated_at_once=n_atoms if inner_batch_size >= max(group_sizes) else inner_batch_size,
        replaces_by_residuals=update.replace_unused == "residual",
        n_passes=update.n_passes,
        max_coherence=training.max_coherence is not None,
        validation_rows=len(held_out),
        validation_chunk_rows=max(held_out.chunks[0]),
        validation_itemsize=held_out.dtype.itemsize,
        n_threads=n_threads,
        all_threads=all_threads,
        on_cluster=on_cluster,
        process=_process(batches.device, on_cluster),
        device=batches.device,
        rows_per_block=ops.rows_per_block(max(group_sizes), np.dtype(dtype).itemsize),
        krylov_block=ops.KRYLOV_BLOCK,
        scratch=_scratch(pursuit) if batches.device else 0,
        reading_threads=_threads(),
    )
    plan = MemoryPlan(sizes.worker(), sizes.per_task, sizes.driver(resident), limit, advice="")
    return plan if plan.fits else replace(plan, advice=_advice(sizes, plan.per_worker, limit))


@contextmanager
def advising(
    batches: OuterBatches, validation: xr.DataArray | None, training: Training, n_atoms: int, dtype: np.dtype
) -> Iterator[None]:
    """Where a fit runs out of a device's memory, say what would fit; parameters are those of `plan_memory`."""
    try:
        yield
    except MemoryError as error:
        if not batches.device:
            raise
        plan = plan_memory(batches, validation, training, n_atoms, dtype)
        fits = f"By the plan it fits, which is wrong: try batch_size={batches.size(0) // 2}.\n{plan}"
        raise MemoryError(f"{error}\n{plan.advice or fits}") from error


def _is_array(node: Any) -> bool:
    """Whether a node of a Dask graph is rows that are in memory."""
    value = getattr(node, "value", node)
    return (isinstance(value, np.ndarray) or on_device(value)) and value.ndim == 2


def _process(device: bool, on_cluster: bool) -> int:
    """Bytes of a worker without data; in this process, what it holds already and what a first fit adds."""
    if not device:
        return WORKER_PROCESS if on_cluster else memory_of_process().resident + COMPILATION
    if on_cluster:
        return DEVICE_LIBRARIES
    import cupy  # is there, where its arrays are

    return DEVICE_LIBRARIES + int(cupy.get_default_memory_pool().used_bytes())


def _resources(device: bool) -> tuple[int, int, int | None]:
    """Threads of a worker, those of all, and the bytes that a worker may hold before Dask spills or pauses it.

    On devices one task of a process computes at a time, and the bytes are those of the device.
    """
    client = active_client()
    if client is None and device:
        return 1, 1, _device_memory()
    if client is None:
        return _threads(), _threads(), int(MEMORY_LIMIT)
    threads = client.nthreads().values()
    if not threads:
        raise ValueError("the cluster has no workers yet: wait for them with client.wait_for_workers(1)")
    if device:
        return 1, len(threads), min(client.run(_device_memory).values())
    limits = [limit for limit in client.run(_before_spilling).values() if limit is not None]
    return max(threads), sum(threads), min(limits, default=None)


def _threads() -> int:
    """Those of this process that Dask uses where there is no cluster."""
    return 1 if get_scheduler() is dask.get else dask.config.get("num_workers", None) or CPU_COUNT


def _scratch(pursuit: Pursuit) -> int:
    """Bytes that least squares on supports takes on a device."""
    from dbksvd_dask.kernels.cuda.least_squares import scratch_bytes

    solves = pursuit.encoder == "omp" or pursuit.refit == "lstsq"
    return scratch_bytes(pursuit.n_nonzero_coefs) if solves else 0


def _device_memory() -> int:
    """Bytes of its device that this process may have: what nobody else has, or all where it has a pool of its own."""
    import cupy

    free, total = cupy.cuda.runtime.memGetInfo()
    pool = cupy.get_default_memory_pool()
    return free + pool.total_bytes() if cupy.cuda.get_allocator() == pool.malloc else total


def _before_spilling(dask_worker: Worker) -> int | None:
    """Bytes that a worker may hold before Dask spills or pauses it, by its own settings."""
    memory = dask_worker.memory_manager
    if memory.memory_limit is None:
        return None
    whole = int(memory.memory_limit * min(memory.memory_spill_fraction or 1, memory.memory_pause_fraction or 1))
    target = memory.memory_target_fraction  # of data only
    return min(whole, int(memory.memory_limit * target) + WORKER_PROCESS) if target else whole


def _advice(sizes: Sizes, needed: int, limit: int | None) -> str:
    """What would make it fit, each by itself; a line each."""
    assert limit is not None

    def fits(**changed: Any) -> bool:
        return replace(sizes, **changed).per_worker <= limit

    def most(name: str, largest: int) -> int:
        """The most that fits, 0 where nothing does."""
        low, high = 0, largest
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(**{name: middle}) else (low, middle - 1)
        return low

    lines = []
    if batch_size := most("batch_size", sizes.batch_size):
        lines.append(f"batch_size={batch_size}, the largest that fits")
    n_workers = sizes.all_threads // sizes.n_threads
    worker, workers = ("a device", "devices") if sizes.device else ("a worker", "workers")
    most_workers = tasks_of(sizes.batch_size, sizes.device)
    more = (n for n in range(n_workers + 1, most_workers + 1) if fits(all_threads=n * sizes.n_threads))
    if sizes.on_cluster and (enough := next(more, None)):
        lines.append(f"{enough} {workers} rather than {n_workers}, as large as these")
    fewer = (n for n in range(sizes.n_threads - 1, 0, -1) if fits(n_threads=n, all_threads=n * n_workers))
    if n_threads := next(fewer, None):
        where = "threads_per_worker" if sizes.on_cluster else "dask.config.set(num_workers=…):"
        lines.append(f"{where} {n_threads} rather than {sizes.n_threads}")
    if sizes.dtype == np.float64 and fits(dtype=np.dtype(np.float32)):
        lines.append('dtype="float32"')
    if held_out := most("validation_rows", sizes.validation_rows):
        lines.append(f"{held_out} held-out samples rather than {sizes.validation_rows}")
    if rows := most("chunk_rows", sizes.chunk_rows):
        lines.append(f"chunks of at most {rows} rows in the store rather than {sizes.chunk_rows}")
    head = f"{worker.capitalize()} needs {format_bytes(needed)}, but may hold {format_bytes(limit)}. "
    if not lines:
        return head + f"No single change is enough: give {workers} more memory, or learn fewer atoms (n_components)."
    return "\n".join([head + "Any of these is enough, as is more memory:", *lines])
