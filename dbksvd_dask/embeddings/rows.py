"""Rows of zarr arrays that, where they cannot be read, say which rows of what is damaged."""

import uuid
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr

from dbksvd_dask.retry import ATTEMPTS, may_pass


def in_named_chunks(dataset: xr.Dataset, place: str) -> xr.Dataset:
    """A Dataset of a zarr store on dask arrays that, where they cannot be read, say which rows of what is damaged.

    Parameters
    ----------
    dataset : xarray.Dataset
        The store as ``xarray.open_zarr(…, chunks=None)`` opens it.
    place : str
        What errors call it.
    """
    data: dict[Hashable, xr.Variable] = {}
    coords: dict[Hashable, xr.Variable] = {}
    for name, variable in dataset.variables.items():
        if "preferred_chunks" in variable.encoding and name not in dataset.indexes:
            preferred = tuple(variable.encoding["preferred_chunks"][dim] for dim in variable.dims)
            chunks = da.core.normalize_chunks(preferred, variable.shape, dtype=variable.dtype)
            rows = read_named(variable, chunks, f"{place} ({name!r})")
            (coords if name in dataset.coords else data)[name] = variable.copy(deep=False, data=rows)
    return dataset.assign(data).assign_coords(coords)


def read_named(array: zarr.Array | xr.Variable, chunks: tuple[tuple[int, ...], ...], where: str) -> da.Array:
    """The same of one array."""
    meta = np.empty((0,) * array.ndim, array.dtype)
    name = f"embeddings-{uuid.uuid4().hex}"
    return da.from_array(_NamedRows(array, where), chunks, name=name, inline_array=True, meta=meta)


def bounds(index: Any, n_rows: int) -> tuple[int, int]:
    """The first and the last row that an index of rows selects, negative ones counted from the end.

    Examples
    --------
    >>> bounds(slice(2, 8), 10), bounds(slice(None, None, -3), 10), bounds([4, -1], 10), bounds(3, 10)
    ((2, 7), (0, 9), (4, 9), (3, 3))
    """
    if isinstance(index, slice):
        rows = range(n_rows)[index]
        return (min(rows[0], rows[-1]), max(rows[0], rows[-1])) if rows else (0, -1)
    chosen = np.atleast_1d(index)
    chosen = np.flatnonzero(chosen) if chosen.dtype == bool else np.where(chosen < 0, chosen + n_rows, chosen)
    return (int(chosen.min()), int(chosen.max())) if chosen.size else (0, -1)


def unreadable(where: str, rows: tuple[int, int], error: Exception) -> ValueError:
    """The error for rows that cannot be read, with what to do about it."""
    if may_pass(error):
        advice = f"tried {ATTEMPTS} times; do the same again when the store can be reached"
    elif isinstance(error, PermissionError):
        advice = "you may not read them: are the credentials there, and for this?"
    elif isinstance(error, MemoryError):
        advice = "the worker has too little memory for one chunk: store it in smaller ones"
    else:
        advice = "is the store damaged, was it only half written, or deleted or moved?"
    return ValueError(
        f"{where}: rows {rows[0]} to {rows[1]} cannot be read ({error or type(error).__name__}): {advice}"
    )


@dataclass(frozen=True)
class _NamedRows:
    array: zarr.Array | xr.Variable
    where: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def ndim(self) -> int:
        return self.array.ndim

    def __getitem__(self, index: Any) -> np.ndarray:
        try:
            return np.asarray(self.array[index])
        except Exception as error:  # zarr lets through whatever its codecs and stores raise
            raise unreadable(self.where, bounds(index[0], self.shape[0]), error) from error
