"""What a worker holds at each moment of a fit, from the sizes of what there is."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, log

import numpy as np

from dbksvd_dask.batches import ROWS_PER_DEVICE_TASK, ROWS_PER_TASK, tasks_of
from dbksvd_dask.graph import FAN_IN, READS_AT_ONCE
from dbksvd_dask.kernels.cpu.vector import FEATURES_PER_TILE
from dbksvd_dask.kernels.gram import ATOMS_PER_PANEL, panel_starts

WORKER_PROCESS = 380 * 2**20
"""Bytes of a worker without data: interpreter, libraries and kernels, while they are compiled. 350 were measured."""

COMPILATION = 130 * 2**20
"""Bytes that libraries and kernels add to the process of the user in a first fit."""

DEVICE_LIBRARIES = 1024 * 2**20
"""Bytes of a device that a process takes for its context, kernels and cuBLAS. An upper bound, not measured yet."""

READING_COPIES = 2
"""A chunk that is being read is there as it is stored and as it is decoded."""

INT32, INT64, FLOAT64 = 4, 8, 8


@dataclass(frozen=True)
class Sizes:
    """All that memory follows from."""

    n_samples: int
    n_features: int
    n_atoms: int
    n_nonzero_coefs: int
    group_sizes: tuple[int, ...]
    """Of the Matryoshka groups; one of all atoms where there are none."""
    batch_size: int
    chunk_rows: int
    """Of the largest chunk of the embeddings."""
    itemsize: int
    """Bytes of a number as it is stored."""
    dtype: np.dtype
    """Precision of the computation."""
    in_graph: bool
    """Whether the graph of the embeddings holds rows, with which it travels."""
    in_memory: bool
    """Whether its rows are those of the embeddings, as with a NumPy array."""
    shuffle: bool
    centers: bool
    updated_at_once: int
    """Atoms of an inner batch; all of them, where there are none."""
    replaces_by_residuals: bool
    n_passes: int
    max_coherence: bool
    validation_rows: int
    validation_chunk_rows: int
    validation_itemsize: int
    n_threads: int
    """Of the worker that has most."""
    all_threads: int
    """Of all workers."""
    on_cluster: bool
    process: int
    """Bytes of a worker without data."""
    device: bool
    """Whether rows are on devices, whose memory this is about."""
    rows_per_block: int
    """Rows whose products are formed at a time."""
    krylov_block: int
    """Atoms of which new ones are computed at a time."""
    scratch: int
    """Bytes of a device that least squares on the supports of many rows takes."""
    reading_threads: int
    """Of this process, where it reads for a device; one task at a time computes there, but all threads read."""

    @property
    def atoms(self) -> int:
        """Bytes of one vector for each atom."""
        return self.n_atoms * self.n_features * self.dtype.itemsize

    @property
    def in_inner_batches(self) -> bool:
        """Whether atoms are updated some at a time."""
        return self.updated_at_once < self.n_atoms

    @property
    def vectors(self) -> int:
        """Bytes of one vector for each atom that is updated at a time."""
        return self.updated_at_once * self.n_features * self.dtype.itemsize

    @property
    def gram(self) -> int:
        """Bytes of ``D Dᵀ``, of each group."""
        return sum(size * size for size in self.group_sizes) * self.dtype.itemsize

    @property
    def rows_of_task(self) -> int:
        """Rows of one task."""
        return -(-self.batch_size // tasks_of(self.batch_size, self.device))

    def _tasks_here(self, n_tasks: int) -> int:
        """The most tasks on neighbouring chunks that come to one worker."""
        return -(-n_tasks * self.n_threads // self.all_threads)

    @property
    def n_tasks(self) -> int:
        """Tasks of a batch on a worker."""
        return self._tasks_here(tasks_of(self.batch_size, self.device))

    def _rows(self, n_samples: int, n_total: int, chunk_rows: int, itemsize: int) -> int:
        """Bytes on a worker of the rows of a batch: in storage order they are views of chunks, which stay whole."""
        n_tasks = tasks_of(n_samples, self.device)
        here = self._tasks_here(n_tasks) * -(-n_samples // n_tasks)
        kept = here if self.shuffle else min(here + 2 * (chunk_rows - 1), n_total)
        return kept * self.n_features * itemsize

    @property
    def batch_rows(self) -> int:
        """Bytes of the rows of a batch on a worker."""
        if self.in_memory and not self.on_cluster and not self.shuffle:
            return 0  # views of what is there
        return self._rows(self.batch_size, self.n_samples, self.chunk_rows, self.itemsize)

    @property
    def held_out(self) -> int:
        """Bytes of the held-out rows on a worker."""
        if self.validation_rows == 0:
            return 0
        return self._rows(
            self.validation_rows, self.validation_rows, self.validation_chunk_rows, self.validation_itemsize
        )

    @property
    def reading(self) -> int:
        """Bytes of chunks that are being read."""
        n_readers = READS_AT_ONCE if self.on_cluster else self.reading_threads if self.device else self.n_threads
        n_chunks = self.n_tasks * self.rows_of_task // self.chunk_rows + 2
        copies = 1 if self.device else READING_COPIES  # a device gets it decoded
        rows = copies * self.chunk_rows + (self.rows_of_task if self.shuffle else 0)
        if self.device and not self.shuffle:
            rows = 0  # what is moved there is what is kept
        return min(n_readers, self.n_tasks, n_chunks) * rows * self.n_features * self.itemsize

    @property
    def rows_for_the_mean(self) -> int:
        """Bytes of what tasks read that add up all rows."""
        if self.device:
            n_readers = self.n_threads if self.on_cluster else self.reading_threads
            rows = min(n_readers * max(ROWS_PER_DEVICE_TASK, self.chunk_rows), self.n_samples)
            rows = 0 if self.in_memory else rows
        else:
            rows = self.n_threads * (max(ROWS_PER_TASK, self.chunk_rows) + self.chunk_rows)
        return rows * self.n_features * self.itemsize

    @property
    def encoded(self) -> int:
        """Bytes of the encoded chunks of a batch on a worker."""
        n_chunks = self.n_tasks
        if self.in_inner_batches:  # the next state of a chunk beside the last one; the first for replacing atoms
            n_chunks += self.n_threads + (self.n_tasks if self.replaces_by_residuals else 0)
        return n_chunks * self.rows_of_task * self._encoded_row

    @property
    def _encoded_row(self) -> int:
        return self.n_features * self.dtype.itemsize + self.n_nonzero_coefs * (INT32 + self.dtype.itemsize)

    @property
    def evaluated(self) -> int:
        """Bytes of a task that encodes held-out rows, and drops what it has found."""
        rows = -(-self.validation_rows // tasks_of(self.validation_rows, self.device))
        return rows * self._encoded_row + self._pursuit(rows)

    @property
    def sums(self) -> int:
        """Bytes of sums over chunks that wait to be added up, and of those that are on their way."""
        levels = max(ceil(log(self.n_tasks, FAN_IN)), 1)
        arriving = FAN_IN if self.n_threads < self.all_threads else 1
        return (min(self.n_tasks, levels * FAN_IN) + arriving) * self.vectors

    @property
    def per_task(self) -> int:
        """Bytes that a task takes while it runs."""
        entries = self.rows_of_task * self.n_nonzero_coefs
        support = entries * (3 * INT32 + 3 * self.dtype.itemsize + 2 * FLOAT64)
        if self.device:  # entries are put in the order of their atoms, and all atoms solved for at once in float64
            support += entries * (INT32 + 3 * INT64)
            tile = 4 * min(self.updated_at_once, self.krylov_block) * self.n_features * FLOAT64
        else:
            tile = self._tile
        copy = self.rows_of_task * self.n_features * self.dtype.itemsize if len(self.group_sizes) > 1 else 0
        update = support + tile + copy + self.vectors
        return max(update, self._pursuit(self.rows_of_task))

    def _pursuit(self, n_rows: int) -> int:
        """Bytes that encoding so many rows takes for a moment."""
        products = min(self.rows_per_block, n_rows) * max(self.group_sizes) * self.dtype.itemsize
        if not self.device:
            return products + self._tile
        return products + self.scratch + n_rows * self.n_nonzero_coefs * (INT32 + 3 * self.dtype.itemsize + INT64)

    @property
    def _tile(self) -> int:
        return self.n_atoms * FEATURES_PER_TILE * self.dtype.itemsize

    @property
    def assembling(self) -> int:
        """Bytes of ``D Dᵀ`` while it is put together of its panels."""
        panels = [
            min(ATOMS_PER_PANEL, self.n_atoms - start) * (self.n_atoms - start) for start in panel_starts(self.n_atoms)
        ]
        whole = (sum(panels) + self.n_atoms**2) * self.dtype.itemsize
        near = self.n_threads * panels[0] * (2 * self.dtype.itemsize + 1) if self.max_coherence else 0
        return whole + near + (self.gram if len(self.group_sizes) > 1 else 0)

    def worker(self) -> dict[str, int]:
        """What a worker holds at its worst moment, bytes each."""
        return max(self._moments(), key=lambda parts: sum(parts.values()))

    def _moments(self) -> Iterator[dict[str, int]]:
        stays = {
            "process": self.process,
            "rows of the batch": self.batch_rows,
            "rows of the next batch": self.batch_rows,
            "held-out rows": self.held_out,
            "dictionary": self.atoms if self.on_cluster else 3 * self.atoms,
        }
        if self.centers:
            yield {"process": self.process, "rows for the mean": self.rows_for_the_mean}
        tasks = {"tasks": self.n_threads * self.per_task, "reading": self.reading}
        yield stays | {"Gram matrix and its panels": self.assembling, "reading": self.reading}
        if self.n_threads < self.all_threads:  # it is moved as it arrives, to where arrays may begin
            yield stays | {"Gram matrix, received": 2 * self.gram, "reading": self.reading}
        if self.validation_rows:
            tasks_of_held_out = {"tasks": self.n_threads * self.evaluated, "reading": self.reading}
            yield stays | {"Gram matrix": self.gram} | tasks_of_held_out
        encoded = stays | {"encoded chunks": self.encoded}
        yield encoded | {"Gram matrix": self.gram, "sums over chunks": self.sums} | tasks
        done = self.atoms if self.in_inner_batches else 0  # new atoms wait until all are there, and are put together
        krylov = 2 * (self.n_passes - 1) * self.vectors + done
        yield encoded | {"Krylov vectors": krylov, "sums over chunks": self.sums} | tasks
        last = (2 * self.n_passes + 1) * self.vectors
        step = 3 * self.n_features * max(self.group_sizes) * FLOAT64  # of all atoms at once, against overshooting
        yield encoded | {"Krylov vectors": last + (2 * done or step), "reading": self.reading}

    @property
    def per_worker(self) -> int:
        """Bytes of a worker at that moment."""
        return sum(self.worker().values())

    def driver(self, process: int) -> int:
        """Bytes of this process, which holds so many now."""
        if not self.on_cluster:
            return process + COMPILATION if self.device else self.per_worker
        # The first rows, or the dictionary before and after an iteration, its average, and copies that travel.
        vectors = 9 * self.atoms + 2 * self.n_atoms * self.n_features * self.itemsize
        graphs = 3 * self.batch_size * self.n_features * self.itemsize if self.in_graph else 0
        return process + COMPILATION + vectors + graphs
