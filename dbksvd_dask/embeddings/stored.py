"""Rows that lie in files: descriptions that tasks carry, and by which they read, whatever the format."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import ModuleType
from typing import IO, Any, ClassVar, Literal

import numpy as np

from dbksvd_dask.embeddings.rows import bounds, unreadable
from dbksvd_dask.retry import retrying

MOST_CHUNKS_WHOLE = 16
"""What is stored together, as row groups and chunks are, is read as one up to so many chunks of ours, else in parts."""


class StoredRows:
    """An array in one or several files: where it lies, not what it holds.

    Indexing reads the file, so that what a Dask graph carries is this description; a ``numpy.memmap`` in its place
    would be pickled with all its data. It would also be the end of the process (SIGBUS) where a mapped file is cut off,
    or its disk fails, while rows of it are in use.
    """

    path: str
    """Absolute, for workers that run in another folder."""
    shape: tuple[int, ...]
    dtype: np.dtype
    first_row: int = 0
    """Of the whole array, where this is a part of one: errors count rows from there."""

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def unit(self) -> int:
        """Rows that are stored together: chunks of as many, or a multiple, read nothing twice."""
        return 1

    def __getitem__(self, index: Any) -> np.ndarray:
        """Read the rows that ``index`` selects, and those between them; raises ValueError if that cannot be done."""
        rows, *rest = index if isinstance(index, tuple) else (index,)
        first, last = bounds(rows, self.shape[0])
        try:
            block = retrying(partial(self._attempt, first, last + 1), f"reading {self.path}")
        except Exception as error:
            raise unreadable(self.path, (self.first_row + first, self.first_row + last), error) from error
        if isinstance(rows, slice):
            rows = range(self.shape[0])[rows]
            rows = np.s_[:] if rows.step == 1 else np.asarray(rows) - first
        else:
            rows = np.arange(self.shape[0])[rows] - first
        return block[(rows, *rest)]

    def transposed(self) -> StoredRows:
        """The same array with rows for columns; raises ValueError where that would be read whole for every row."""
        raise ValueError(f"{self.path} is a table, whose rows are the samples: leave orientation out")

    def _attempt(self, start: int, stop: int) -> np.ndarray:
        try:
            return self._read(start, stop)
        except OSError as error:
            if error.errno is None:  # how HDF5 and Arrow say that a file is damaged, which does not pass
                raise ValueError(str(error)) from error
            raise

    def _read(self, start: int, stop: int) -> np.ndarray:
        """Rows from ``start`` up to ``stop``."""
        raise NotImplementedError


class StoredTable(StoredRows):
    """Rows in units, as batches and row groups are, that the description of each chunk names alone."""

    def boundaries(self, rows: int) -> list[int]:
        """Where chunks begin and end, from 0 to the number of rows, of about as many ``rows`` each."""
        raise NotImplementedError

    def part(self, start: int, stop: int) -> StoredTable:
        """The description of these rows alone."""
        raise NotImplementedError

    def paths(self) -> list[str]:
        """The files in which the rows are."""
        return [self.path]


@dataclass(frozen=True)
class StoredArray(StoredRows):
    """An array whose elements lie side by side in a file."""

    path: str
    offset: int
    """Bytes before the first element."""
    shape: tuple[int, ...]
    dtype: np.dtype
    order: Literal["C", "F"] = "C"

    def transposed(self) -> StoredArray:
        """The same bytes with rows for columns."""
        return replace(self, shape=self.shape[::-1], order="F" if self.order == "C" else "C")

    def _read(self, start: int, stop: int) -> np.ndarray:
        """Rows from ``start`` up to ``stop``, of an array with one or two dimensions."""
        shape = (stop - start, *self.shape[1:])
        with open(self.path, "rb") as stream:
            if self.order == "C" or self.ndim == 1:
                first = self.offset + start * self.dtype.itemsize * (shape[1] if shape[1:] else 1)
                return read_elements(stream, first, shape, self.dtype)
            columns = np.empty(shape[::-1], self.dtype)
            for i, column in enumerate(columns):
                first = self.offset + (i * self.shape[0] + start) * self.dtype.itemsize
                column[:] = read_elements(stream, first, column.shape, self.dtype)
            return np.ascontiguousarray(columns.T)


@dataclass(frozen=True)
class StoredEmbeddings:
    """What a file holds: the embeddings, and what it tells of each sample."""

    rows: StoredRows
    name: str | None = None
    window: int | None = None
    """Samples a window, where the file holds windows of them."""
    coords: Mapping[str, StoredRows] = field(default_factory=dict)
    """Integers, one a sample."""
    dims: ClassVar[tuple[str, str]] = ("row", "column")

    def transposed(self) -> StoredEmbeddings:
        """With rows for columns; raises ValueError where the rows can only be samples."""
        if self.window is not None:
            raise ValueError(f"{self.rows.path} holds windows of samples: leave orientation out")
        return replace(self, rows=self.rows.transposed(), coords={})


def read_elements(stream: IO[bytes], offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Elements from ``offset`` on; raises EOFError where the file ends before they do."""
    elements = np.empty(shape, dtype)
    stream.seek(offset)
    if stream.readinto(elements.reshape(-1).view(np.uint8)) < elements.nbytes:  # type: ignore[attr-defined]
        raise EOFError(f"{os.path.basename(stream.name)} is cut off")
    return elements


def needed(module: str, extra: str, path: str) -> ModuleType:
    """Import a package that only some formats need.

    Raises
    ------
    ImportError
        That names the extra which brings it, if it is not installed.

    Examples
    --------
    >>> needed("no_such_package", "formats", "rows.h5")
    Traceback (most recent call last):
    ...
    ImportError: rows.h5 needs no_such_package to be read, which is missing: pip install "dbksvd-dask[formats]"
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f'{path} needs {package} to be read, which is missing: pip install "dbksvd-dask[{extra}]"'
        ) from error
