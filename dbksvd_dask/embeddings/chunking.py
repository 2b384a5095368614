"""Embeddings on Dask chunks of rows: those they have, or else of a size that suits many tasks."""

from __future__ import annotations

import math
import os
import uuid
from itertools import pairwise

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize

from dbksvd_dask.embeddings.checks import BFLOAT16
from dbksvd_dask.embeddings.stored import MOST_CHUNKS_WHOLE, StoredEmbeddings, StoredRows, StoredTable
from dbksvd_dask.kernels.backend import on_device
from dbksvd_dask.warning import warn_caller

CHUNK_BYTES = 8 * 2**20
"""Most bytes of a chunk where the source has none, as stored: small, so that most chunks belong to one task only."""


def lazy_embeddings(stored: StoredEmbeddings) -> xr.DataArray:
    """Embeddings in files, and the coordinates there, on dask arrays whose tasks each read their own rows."""
    rows = _rows_per_chunk(stored.rows.shape, stored.rows.dtype)
    data = _in_rows(stored.rows, _boundaries(stored.rows, rows))
    boundaries = [0, *np.cumsum(data.chunks[0]).tolist()]
    coords = {name: _in_rows(column, boundaries) for name, column in stored.coords.items()}
    if stored.window is not None:
        places = da.arange(len(data), chunks=data.chunks[:1])
        coords |= {"context": places // stored.window, "position": places % stored.window}
    return xr.DataArray(
        data,
        dims=("sample", "feature"),
        coords={name: ("sample", values) for name, values in coords.items()},
        name=stored.name,
    ).rename(stored.name)  # xarray would make up a name from that of the dask graph


def on_dask(array: xr.DataArray) -> da.Array:
    """The data as a dask array, with the chunks it has, or else by rows."""
    if array.chunks is not None:
        return array.data
    # xarray has no public way to ask, and .data would load what it opened without chunks.
    if array._in_memory or on_device(array.variable._data):
        return _view_rows(array.data)
    return array.chunk(sample=_rows_per_chunk(array.shape, array.dtype), feature=-1).data


def whole_rows(data: da.Array) -> da.Array:
    """Put all features in one chunk, drop empty chunks of rows, and make the dtype one that NumPy computes with."""
    rows, features = data.chunks
    chunks = (tuple(size for size in rows if size), (sum(features),))
    if data.chunks != chunks:
        # A row chunk is joined in place: peer-to-peer rechunking would tie it to the workers of the moment.
        data = data.rechunk(chunks, method="tasks")
    dtype = np.dtype("float32") if data.dtype == BFLOAT16 else data.dtype.newbyteorder("=")
    return data if data.dtype == dtype else data.astype(dtype)


def uploaded(data: da.Array) -> da.Array:
    """The same with CuPy arrays for chunks, on the current GPU, where each is moved by the task that reads it."""
    if on_device(data):
        return data
    import cupy

    from dbksvd_dask.kernels.cuda.transfers import upload

    return data.map_blocks(upload, dtype=data.dtype, meta=cupy.empty((0, 0), data.dtype))


def _in_rows(stored: StoredRows, boundaries: list[int]) -> da.Array:
    """Make an array in files a dask array whose tasks each read their own rows."""
    paths = stored.paths() if isinstance(stored, StoredTable) else [stored.path]
    # The time of the last change keeps a rewritten file apart from what a cluster may still hold of the old one.
    token = f"embeddings-{tokenize(stored, boundaries, [os.stat(path).st_mtime_ns for path in paths])}"
    chunks = (tuple(stop - start for start, stop in pairwise(boundaries)), *((size,) for size in stored.shape[1:]))
    if isinstance(stored, StoredTable):
        rest = (0,) * (stored.ndim - 1)
        parts = [stored.part(start, stop) for start, stop in pairwise(boundaries)]
        graph = {(token, i, *rest): (_read, part) for i, part in enumerate(parts)}
        return da.Array(graph, token, chunks, dtype=stored.dtype)
    meta = np.empty((0,) * stored.ndim, stored.dtype)
    return da.from_array(stored, chunks, name=token, inline_array=True, meta=meta)


def _read(part: StoredRows) -> np.ndarray:
    return part[:]


def _boundaries(stored: StoredRows, rows: int) -> list[int]:
    if isinstance(stored, StoredTable):
        return stored.boundaries(rows)
    most = MOST_CHUNKS_WHOLE * rows
    if stored.unit > most:
        warn_caller(
            f"{stored.path} has chunks of {stored.unit} samples, all of which together are larger than a task should "
            f"read; each is decoded again for every {most} samples: write it with chunks of fewer, e.g. {rows}"
        )
    step = max(min(stored.unit, most), rows // stored.unit * stored.unit)
    return [*range(0, stored.shape[0], step), stored.shape[0]]


def _view_rows(array: np.ndarray) -> da.Array:
    """Wrap a NumPy or CuPy array without copying or hashing it, as dask.array.from_array would."""
    token = f"embeddings-{uuid.uuid4().hex}"
    rows = _rows_per_chunk(array.shape, array.dtype)
    chunks = [array[start : start + rows] for start in range(0, len(array), rows)]
    graph = {(token, i, 0): chunk for i, chunk in enumerate(chunks)}
    return da.Array(graph, token, (tuple(map(len, chunks)), (array.shape[1],)), meta=array[:0].copy())


def _rows_per_chunk(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """A power of two: so tasks of as many rows hold whole chunks."""
    rows = max(1, CHUNK_BYTES // max(1, dtype.itemsize * math.prod(shape[1:])))
    return 1 << (rows.bit_length() - 1)
