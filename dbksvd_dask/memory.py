"""What a fit will hold in memory: a plan before it starts, and what to change where it does not fit."""

from __future__ import annotations

from collections.abc import Mapping
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
from dbksvd_dask.kernels.costs import memory_of_process
from dbksvd_dask.memory_sizes import COMPILATION, WORKER_PROCESS, Sizes
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
    embeddings: xr.DataArray,
    validation: xr.DataArray | None,
    training: Training,
    batches: OuterBatches,
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
    embeddings : xarray.DataArray
        (n, d), lazy.
    validation : xarray.DataArray or None
        Held-out ones.
    training : Training
    batches : OuterBatches
        Of the embeddings.
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
    data = embeddings.data
    held_out = da.empty((0, 0), data.dtype) if validation is None else validation.data
    pursuit, update = training.pursuit, training.update
    group_sizes = pursuit.group_sizes or (n_atoms,)
    inner_batch_size = update.inner_batch_size or n_atoms
    graph = dict(data.dask)
    resident = memory_of_process().resident
    n_threads, all_threads, limit = _resources()
    on_cluster = active_client() is not None
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
        process=WORKER_PROCESS if on_cluster else resident + COMPILATION,
    )
    plan = MemoryPlan(sizes.worker(), sizes.per_task, sizes.driver(resident), limit, advice="")
    return plan if plan.fits else replace(plan, advice=_advice(sizes, plan.per_worker, limit))


def _is_array(node: Any) -> bool:
    """Whether a node of a Dask graph is rows that are in memory."""
    value = getattr(node, "value", node)
    return isinstance(value, np.ndarray) and value.ndim == 2


def _resources() -> tuple[int, int, int | None]:
    """Threads of a worker, those of all, and the bytes that a worker may hold before Dask spills or pauses it."""
    client = active_client()
    if client is None:
        n_threads = 1 if get_scheduler() is dask.get else dask.config.get("num_workers", None) or CPU_COUNT
        return n_threads, n_threads, int(MEMORY_LIMIT)
    threads = client.nthreads().values()
    if not threads:
        raise ValueError("the cluster has no workers yet: wait for them with client.wait_for_workers(1)")
    limits = [limit for limit in client.run(_before_spilling).values() if limit is not None]
    return max(threads), sum(threads), min(limits, default=None)


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
    more = (n for n in range(n_workers + 1, tasks_of(sizes.batch_size) + 1) if fits(all_threads=n * sizes.n_threads))
    if sizes.on_cluster and (enough := next(more, None)):
        lines.append(f"{enough} workers rather than {n_workers}, as large as these")
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
    head = f"A worker needs {format_bytes(needed)}, but may hold {format_bytes(limit)}. "
    if not lines:
        return head + "No single change is enough: give workers more memory, or learn fewer atoms (n_components)."
    return "\n".join([head + "Any of these is enough, as is more memory:", *lines])
