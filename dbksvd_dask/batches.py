"""Outer batches: which rows of the embeddings each iteration sees, as Dask tasks that read them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import dask.array as da
import numpy as np
from dask.delayed import Delayed

from dbksvd_dask.graph import Inner, beside, delayed_of, homes, inner_calls, task
from dbksvd_dask.kernels.backend import backend_of, on_device

ROWS_PER_TASK = 8192
"""Rows of one task. More would leave cores idle; fewer would spend the time on adding up (m, d) sums."""

FEWEST_ROWS_PER_TASK = 1024
TASKS_OF_SMALL_BATCHES = 8

ROWS_PER_DEVICE_TASK = 32_768
"""The same on a device, which would wait for Python between shorter tasks; a batch keeps as many devices busy."""


def tasks_of(n_rows: int, device: bool = False) -> int:
    """Tasks that a batch of so many rows is dealt out to, on CPUs or on devices."""
    if device:
        return max(-(-n_rows // ROWS_PER_DEVICE_TASK), 1)
    return max(-(-n_rows // ROWS_PER_TASK), min(TASKS_OF_SMALL_BATCHES, n_rows // FEWEST_ROWS_PER_TASK), 1)


class Segment(NamedTuple):
    """Rows of one chunk of the embeddings."""

    chunk: int
    """Which chunk."""
    first_row: int
    """Row of the embeddings that its first row is."""
    rows: slice | np.ndarray
    """Rows within the chunk."""
    shape: tuple[int, int]
    """Of the whole chunk, as its dask array says."""


class OuterBatches:
    """Outer batches of an epoch after epoch walk through the rows; each row once an epoch.

    An epoch is dealt out evenly: every batch has `batch_size` rows or a few less.

    Parameters
    ----------
    embeddings : dask.array.Array
        (n, d), one chunk of features.
    batch_size : int
        Most rows of a batch.
    shuffle : "chunks" or None
        Permute chunks, and rows within chunks, anew in every epoch; or storage order.
    seed : int
    first_iteration : int
        The iteration that the first epoch begins with.
    name : str
        What errors call the embeddings.

    Examples
    --------
    >>> import dask, dask.array as da
    >>> batches = OuterBatches(da.arange(10, chunks=4, dtype="f8")[:, None], batch_size=5, shuffle=None, seed=0)
    >>> [[piece.ravel().tolist() for piece in pieces] for pieces in dask.compute(*batches.read(3))]
    [[[5.0, 6.0, 7.0], [8.0, 9.0]]]
    """

    def __init__(
        self,
        embeddings: da.Array,
        batch_size: int,
        shuffle: Literal["chunks"] | None,
        seed: int,
        first_iteration: int = 0,
        name: str = "Y",
    ) -> None:
        self.name = name
        self.first_iteration = first_iteration
        self.embeddings = embeddings
        self.shuffle = shuffle
        self.seed = seed
        self.device = on_device(embeddings)
        self.n_batches = -(-len(embeddings) // batch_size)
        self._sizes = np.array(embeddings.chunks[0])
        self._starts = np.cumsum(self._sizes) - self._sizes

    def size(self, iteration: int) -> int:
        """Rows of the batch of an iteration."""
        first, last = self._bounds(iteration)
        return last - first

    def read(self, iteration: int) -> list[Any]:
        """Tasks that read the rows of the batch of an iteration.

        Each returns a list of (…, d) arrays in the embeddings' own dtype: the rows of one task, in the pieces that the
        chunks of the embeddings hold of them.

        Raises
        ------
        ValueError
            When computed, if a row is not finite: names the chunk and the row.
        """
        return delayed_of(*beside(_read_pieces(self.embeddings, self._pieces(iteration), self.name)))

    def row_numbers(self, iteration: int) -> list[np.ndarray]:
        """Which rows of the embeddings each task of `read` returns, in that order.

        Examples
        --------
        >>> import dask.array as da
        >>> OuterBatches(da.zeros((10, 1), chunks=(4, 1)), batch_size=5, shuffle=None, seed=0).row_numbers(1)
        [array([5, 6, 7, 8, 9])]
        """
        return [
            np.concatenate([first_row + np.arange(shape[0])[rows] for _, first_row, rows, shape in piece])
            for piece in self._pieces(iteration)
        ]

    def _pieces(self, iteration: int) -> list[list[Segment]]:
        """Which rows the tasks of the batch of an iteration have."""
        # An epoch is numbered by the iteration that it began with: so it is another one in the next partial_fit.
        epoch = iteration - (iteration - self.first_iteration) % self.n_batches
        order = np.arange(len(self._sizes))
        if self.shuffle == "chunks":
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        first, last = self._bounds(iteration)
        n_rows = last - first
        n_tasks = tasks_of(n_rows, self.device)
        bounds = [first + n_rows * i // n_tasks for i in range(n_tasks + 1)]
        return [self._segments(a, b, order, epoch) for a, b in pairwise(bounds)]

    def _bounds(self, iteration: int) -> tuple[int, int]:
        """Positions in the epoch's row order at which the batch begins and ends."""
        number, n_rows = (iteration - self.first_iteration) % self.n_batches, len(self.embeddings)
        return n_rows * number // self.n_batches, n_rows * (number + 1) // self.n_batches

    def _segments(self, first: int, last: int, order: np.ndarray, epoch: int) -> list[Segment]:
        """Positions `first` … `last` of the epoch's row order, chunk by chunk."""
        segments = []
        ends = np.cumsum(self._sizes[order])
        for place in range(np.searchsorted(ends, first, side="right"), np.searchsorted(ends, last, side="left") + 1):
            chunk = int(order[place])
            size = int(self._sizes[chunk])
            begin = int(ends[place]) - size
            rows: slice | np.ndarray = slice(max(first - begin, 0), min(last - begin, size))
            if self.shuffle == "chunks":
                rows = np.random.default_rng([self.seed, epoch, chunk]).permutation(size)[rows]
            segments.append(Segment(chunk, int(self._starts[chunk]), rows, (size, self.embeddings.shape[1])))
        return segments


def read_in_order(embeddings: da.Array, name: str = "Y") -> list[tuple[int, Inner]]:
    """Calls that read all rows in storage order, for tasks to make them inside; before each how many rows.

    Each reads whole chunks: as many as make up the rows of a task, or one larger one. So no task but the one that needs
    them holds them in memory.

    Raises
    ------
    ValueError
        When computed, if a row is not finite: names the chunk and the row.
    """
    most = ROWS_PER_DEVICE_TASK if on_device(embeddings) else ROWS_PER_TASK
    pieces: list[list[Segment]] = []
    n_rows: list[int] = []
    first_row = 0
    for chunk, size in enumerate(embeddings.chunks[0]):
        if not pieces or n_rows[-1] + size > most:
            pieces.append([])
            n_rows.append(0)
        pieces[-1].append(Segment(chunk, first_row, slice(0, size), (size, embeddings.shape[1])))
        n_rows[-1] += size
        first_row += size
    return list(zip(n_rows, _read_pieces(embeddings, pieces, name), strict=True))


def _read_pieces(embeddings: da.Array, pieces: list[list[Segment]], name: str) -> list[Inner]:
    """One call a piece; a chunk that several pieces need is read once, by a task of its own."""
    keys = {segment.chunk: (embeddings.name, segment.chunk, 0) for piece in pieces for segment in piece}
    # Not optimised: that would lose the futures of persisted embeddings, and with them their data.
    graph = dict(embeddings.dask.cull(set(keys.values())))
    blocks = {chunk: Delayed(key, graph) for chunk, key in keys.items()}
    calls = []
    for piece, home in zip(pieces, homes(len(pieces)), strict=True):
        wanted = [blocks[segment.chunk] for segment in piece]
        calls.append(task(_read_rows, wanted, tuple(piece), name, on_device(embeddings), home=home))
    return inner_calls(*calls)


def _read_rows(blocks: list[np.ndarray], segments: tuple[Segment, ...], name: str, device: bool) -> list[np.ndarray]:
    for block, segment in zip(blocks, segments, strict=True):
        if block.shape != segment.shape:
            raise ValueError(
                f"chunk {segment.chunk} of {name} has shape {block.shape}, but its dask array says {segment.shape}: "
                "give map_blocks (or whatever made it) the chunks that its function returns"
            )
        if on_device(block) != device:
            said, found = ("cupy", "numpy") if device else ("numpy", "cupy")
            raise ValueError(
                f"chunk {segment.chunk} of {name} is a {found} array, but its dask array says {said}: have all chunks "
                f"in one place, and give map_blocks (or whatever made it) meta={found}.empty((0, 0), dtype)"
            )
    rows = [block[segment.rows] for block, segment in zip(blocks, segments, strict=True)]
    check_finite(rows, segments, name)
    return rows


def check_finite(rows: Sequence[np.ndarray], segments: Sequence[Segment], name: str) -> None:
    """Raise a ValueError that names the first row that is not finite among those of some segments."""
    bad = backend_of(rows[0]).first_nonfinite_row(*rows)
    if bad < 0:
        return
    ends = np.cumsum([len(piece) for piece in rows])
    piece = int(np.searchsorted(ends, bad, side="right"))
    segment, row = segments[piece], bad - (int(ends[piece]) - len(rows[piece]))
    place = range(segment.shape[0])[segment.rows][row] if isinstance(segment.rows, slice) else segment.rows[row]
    raise ValueError(
        f"{name} contains NaN or infinity: row {segment.first_row + place}, in chunk {segment.chunk}, is the "
        "first found. Drop such rows or repair them."
    )
