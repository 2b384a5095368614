"""Rows that come in some order, put into a random one on disk: any number of them, a bounded number in memory.

Rows are scattered: each goes into one of some files, drawn at random for it alone. Then the files are read one after
the other, each is permuted in memory, and what results is the order. All orders are equally likely (Rao 1961 and
Sandelius 1962 shuffled so): of which rows a file consists, and how it is permuted, is uniform, whatever its size. A
file that turns out larger than memory shall hold is scattered again.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

N_FILES = 64
"""Into which rows are scattered, unless told otherwise."""

_SCATTER, _PERMUTE, _SCATTER_AGAIN = range(3)
"""Kinds of random numbers, so that none are drawn twice."""


class Scattered:
    """Rows in files of a folder, while they are added.

    What is random follows from the seed and from the numbers of the parts in which rows are added, not from what was
    drawn before. So it can go on after a crash from what `sizes` was: what was written later is cut off.

    Parameters
    ----------
    folder : path
        Of its own, which may exist.
    dtype : numpy.dtype
        Of a row: a structured one, with a field for all that belongs to it.
    seed : int
    sizes : sequence of int, optional
        Rows in each file: those that count, when going on. As many files as there are sizes.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Scattered(folder, np.dtype("i4"), seed=0) as scattered:
    ...         scattered.add(np.arange(5, dtype="i4"), part=0)
    ...         scattered.add(np.arange(5, 10, dtype="i4"), part=1)
    ...     parts = [rows[order] for _, rows, order in permuted(scattered, most_rows=4)]
    >>> sorted(np.concatenate(parts).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(
        self, folder: str | os.PathLike[str], dtype: np.dtype, seed: int, sizes: Sequence[int] = (0,) * N_FILES
    ) -> None:
        self.folder = Path(folder)
        self.dtype = dtype
        self.seed = seed
        self.sizes = list(sizes)
        self._files: list[BinaryIO] = []
        self.folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Scattered:
        """Open the files, and cut off what was not counted; raises ValueError if rows that were are gone."""
        for i, size in enumerate(self.sizes):
            self._files.append(open(self.path(i), "ab"))
            if self._files[i].tell() < size * self.dtype.itemsize:
                self.__exit__()
                raise _cut_off(self.path(i))
            self._files[i].truncate(size * self.dtype.itemsize)
        return self

    def __exit__(self, *error: object) -> None:
        """Close the files; raises OSError if the last rows find no room."""
        files, self._files = self._files, []
        try:
            for file in files:
                file.flush()
        finally:
            for file in files:
                with suppress(OSError):  # a full disk was told of by the flush; a second time it would hide that
                    file.close()

    def path(self, file: int) -> Path:
        """Of a file."""
        return self.folder / f"{file:02d}.rows"

    def add(self, rows: np.ndarray, part: int, *, again: Sequence[int] = ()) -> None:
        """Scatter rows.

        Parameters
        ----------
        rows : (r,) array
            Of the dtype.
        part : int
            Which part of all rows these are; no two may have one number.
        again : sequence of int
            Numbers of the files that they were in before.
        """
        kind = (_SCATTER_AGAIN, *again) if again else (_SCATTER,)
        file_of = _random(self.seed, *kind, part).integers(len(self.sizes), size=len(rows))
        rows = rows[np.argsort(file_of, kind="stable")]
        ends = np.cumsum(np.bincount(file_of, minlength=len(self.sizes)))
        for i, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            self._files[i].write(rows[start:end].view(np.uint8).data)
            self.sizes[i] += int(end - start)

    def flush(self) -> None:
        """Let the files hold all that was added, also when this process is killed."""
        for file in self._files:
            file.flush()


def permuted(
    scattered: Scattered, most_rows: int, first: int = 0, again: Sequence[int] = ()
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Rows in random order, as many at a time as memory shall hold.

    Parameters
    ----------
    scattered : Scattered
        After all rows were added. The files stay.
    most_rows : int
        Rows in memory at a time.
    first : int
        File to begin with.

    Yields
    ------
    file : int
        All rows of the files before it came already.
    rows : (r,) array
    order : (r,) array of int
        ``rows[order]`` is what comes next. To hold no more, forget both before asking for the next.

    Raises
    ------
    ValueError
        If rows that were added are not in the files any more.
    """
    for file, last in _together(scattered.sizes, first, most_rows):
        size, path = sum(scattered.sizes[file:last]), scattered.path(file)
        if size <= most_rows:
            rows, order, at = np.empty(size, scattered.dtype), np.empty(size, np.int64), 0
            for each in range(file, last):
                end = at + scattered.sizes[each]
                _read_into(rows[at:end], scattered.path(each))
                order[at:end] = at + _random(scattered.seed, _PERMUTE, *again, each).permutation(end - at)
                at = end
            yield file, rows, order
            del rows, order  # before the next ones are read
            continue
        folder = path.with_suffix("")
        numbers = [*again, file]
        n_files = min(2 * math.ceil(size / most_rows), N_FILES)  # so that few of them are too large again
        with Scattered(folder, scattered.dtype, scattered.seed, (0,) * n_files) as finer:
            at_once = max(1, most_rows // 2)  # beside a copy of them
            for part, start in enumerate(range(0, size, at_once)):
                offset = start * scattered.dtype.itemsize
                rows = np.empty(min(at_once, size - start), scattered.dtype)
                _read_into(rows, path, offset)
                finer.add(rows, part, again=numbers)
                del rows
        for _, rows, order in permuted(finer, most_rows, again=numbers):
            yield file, rows, order
            del rows, order
        shutil.rmtree(folder)


def _together(sizes: Sequence[int], first: int, most_rows: int) -> Iterator[tuple[int, int]]:
    """Runs of files that memory holds at a time, each as its first and the one behind its last; or a file alone."""
    while first < len(sizes):
        last = first + 1
        while last < len(sizes) and sum(sizes[first : last + 1]) <= most_rows:
            last += 1
        yield first, last
        first = last


def _read_into(rows: np.ndarray, path: Path, offset: int = 0) -> None:
    with open(path, "rb") as stream:
        stream.seek(offset)
        if stream.readinto(rows.view(np.uint8).data) < rows.nbytes:
            raise _cut_off(path)


def _cut_off(path: Path) -> ValueError:
    return ValueError(
        f"{path} is cut off: rows that were put there are gone; delete the hidden folder it is in to begin anew"
    )


def _random(seed: int, *numbers: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=numbers))
