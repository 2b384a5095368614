"""``open_embeddings``: whatever holds the embeddings, as one lazy ``(sample, feature)`` array on Dask chunks."""

from __future__ import annotations

import math
import os
import uuid
import warnings
from typing import TypeAlias

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from dask.base import tokenize

from dbksvd_dask.embeddings.checks import BFLOAT16, check_embeddings, choose_array, refuse_name
from dbksvd_dask.embeddings.files import StoredArray, npy_array, npz_array, safetensors_array
from dbksvd_dask.embeddings.groups import (
    check_complete,
    open_group,
    open_node,
    refuse_other_store,
    require_if_complete,
)
from dbksvd_dask.embeddings.places import is_url, placed
from dbksvd_dask.embeddings.rows import in_named_chunks, read_named

CHUNK_BYTES = 8 * 2**20
"""Most bytes of a chunk where the source has none, as stored: small, so that most chunks belong to one task only."""

Source: TypeAlias = str | os.PathLike[str] | np.ndarray | da.Array | xr.DataArray | xr.Dataset


def open_embeddings(source: Source, *, name: str | None = None) -> xr.DataArray:
    """Open embeddings lazily: metadata is read and checked, the embeddings are not.

    Parameters
    ----------
    source : path, array, xarray.DataArray or xarray.Dataset
        One of:

        * the path or URL of a zarr group as xarray writes it, or of a single zarr array. Each task reads its chunks
          straight from there. URLs are those of fsspec (``s3://``, ``gs://``, ``https://``, …), which needs a package
          for most of them, and has a configuration for credentials, endpoints and timeouts;
        * the path of a ``.npy``, ``.npz`` (uncompressed) or ``.safetensors`` file. Each task reads the rows it needs,
          so on a cluster every worker must see the file under the same path;
        * a dask array, a NumPy array (not copied; on a cluster its rows travel with every graph, which a ``.npy`` file
          avoids), an xarray.DataArray or an xarray.Dataset.

        The first dimension is the samples, the second the features, unless the dimensions of an xarray object are
        called "feature" and "sample" the other way round.
    name : str, optional
        Which array of a zarr group, Dataset, ``.npz`` or ``.safetensors``. By default the one called "embeddings", or
        else the only two-dimensional floating one.

    Returns
    -------
    xarray.DataArray
        Dimensions ``("sample", "feature")``, on a dask array with all the features in one chunk, and with the
        coordinates and attributes of the source, and its path, if there is one, as ``encoding["source"]``. Zarr stores
        and dask arrays keep their own chunks of rows; files and NumPy arrays get chunks of at most 8 MiB. float16,
        float32 and float64 stay as they are. bfloat16, which neither zarr nor numba knows, becomes float32 chunk by
        chunk.

    Raises
    ------
    FileNotFoundError
        If there is nothing at the path.
    TypeError
        If ``source`` is none of the above, or its dtype is not floating.
    ValueError
        If ``source`` is not two-dimensional, is empty, has chunks of unknown size, is of an unknown format, cannot be
        read or was only half written, or if ``name`` does not say which array is meant.

    Warns
    -----
    UserWarning
        If the features of a zarr store or dask array are split over chunks, and have to be put together.

    Examples
    --------
    >>> import numpy as np
    >>> from dbksvd_dask.embeddings import open_embeddings
    >>> Y = open_embeddings(np.ones((100_000, 384), dtype="float16"))
    >>> Y.dims, Y.shape, Y.dtype
    (('sample', 'feature'), (100000, 384), dtype('float16'))
    >>> Y.chunks
    ((8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192, 1696), (384,))

    From a file, nothing is read until it is needed:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/embeddings.npy", np.eye(3, dtype="float32"))
    ...     Y = open_embeddings(f"{folder}/embeddings.npy")
    ...     Y[1].values
    array([0., 1., 0.], dtype=float32)
    """
    kind = type(source)
    where = f"the {kind.__module__.partition('.')[0]} {kind.__name__}"
    array: xr.DataArray
    if isinstance(source, str | os.PathLike):
        where = placed(source)
        if not is_url(where) and not os.path.exists(where):
            raise FileNotFoundError(f"there is nothing at {where}")
        array = _open_path(where, name)
        array.encoding["source"] = where  # xarray's place for it: survives selection, is not written with the array
    elif isinstance(source, xr.Dataset):
        array = _choose_variable(source, name, where)
    elif isinstance(source, xr.DataArray):
        refuse_name(name, where)
        array = source
    elif isinstance(source, da.Array | np.ndarray) and not isinstance(source, np.ma.MaskedArray):
        refuse_name(name, where)
        array = _unnamed(source)
    else:
        raise TypeError(
            f"embeddings cannot be opened from a {kind.__module__}.{kind.__qualname__}: pass a path, a NumPy or dask "
            "array, an xarray.DataArray or an xarray.Dataset"
        )

    if array.name is not None:
        where = f"{where} ({array.name!r})"
    check_embeddings(array, where)
    array = _name_dims(array)
    data = _on_dask(array)
    if data.numblocks[1] > 1:
        warnings.warn(
            f"the features of {where} are split over {data.numblocks[1]} chunks; each sample is needed whole, so they "
            "are put together again and again as they are read. Avoid it by storing all the features in one chunk "
            f"(zarr: chunks=(rows, {data.shape[1]}); dask: .rechunk({{1: -1}}))",
            UserWarning,
            stacklevel=2,
        )
    return array.copy(deep=False, data=_whole_rows(data)).rename(array.name or "embeddings")


def _open_path(path: str, name: str | None) -> xr.DataArray:
    """Open what lies at ``path``, whatever its shape and dtype."""
    suffix = os.path.splitext(path)[1]
    if is_url(path) and suffix in (".npy", ".npz", ".safetensors"):
        raise ValueError(
            f"{path} is a remote {suffix} file, of which no rows can be read alone: copy it to where all workers see "
            "it and open that, or write it as a zarr store and open its URL"
        )
    if is_url(path) or os.path.isdir(path):
        return _open_zarr(path, name)
    if suffix == ".zarr":
        raise ValueError(f"{path} is a file, but a zarr store is a folder: unpack it first, if it is an archive")
    if suffix == ".npy":
        refuse_name(name, path)
        return _unnamed(_in_rows(npy_array(path)))
    if suffix in (".npz", ".safetensors"):
        chosen, stored = npz_array(path, name) if suffix == ".npz" else safetensors_array(path, name)
        return xr.DataArray(_in_rows(stored), name=chosen)
    raise ValueError(
        f"{path} has an unknown suffix {suffix!r}: embeddings are read from .npy, .npz, .safetensors and zarr; "
        "load anything else yourself and pass the array, or save it once with numpy.save"
    )


def _open_zarr(place: str, name: str | None) -> xr.DataArray:
    """Open a zarr group as xarray writes it, or a single zarr array."""
    node = open_node(place)
    if isinstance(node, zarr.Array):
        refuse_name(name, place)
        check_complete(node, place)
        return _unnamed(read_named(node, da.from_zarr(node).chunks, place))
    if name is None:
        refuse_other_store(node.attrs, place)
    array = _choose_variable(open_group(node, place), name, place)
    check_complete(node[str(array.name)], f"{place} ({array.name!r})")
    for coordinate in array.coords:
        require_if_complete(node[str(coordinate)])
    return in_named_chunks(array.to_dataset(name=array.name), place)[array.name]


def _choose_variable(dataset: xr.Dataset, name: str | None, where: str) -> xr.DataArray:
    return dataset[choose_array({key: (v.ndim, v.dtype) for key, v in dataset.data_vars.items()}, name, where)]


def _unnamed(data: da.Array | np.ndarray) -> xr.DataArray:
    """Wrap an array that has no name; xarray would make up one from the name of its dask graph."""
    return xr.DataArray(data).rename(None)


def _name_dims(array: xr.DataArray) -> xr.DataArray:
    """Call the dimensions "sample" and "feature", in this order; coordinates keep their names."""
    if array.dims[0] == "feature" or array.dims[1] == "sample":
        array = array.T
    return array.swap_dims({old: new for old, new in zip(array.dims, ("sample", "feature"), strict=True) if old != new})


def _on_dask(array: xr.DataArray) -> da.Array:
    """Return the data as a dask array, with the chunks it has, or else by rows."""
    if array.chunks is not None:
        return array.data
    if array._in_memory:  # xarray has no public way to ask, and .data would load what it opened without chunks
        return _view_rows(array.data)
    return array.chunk(sample=_rows_per_chunk(array.shape, array.dtype), feature=-1).data


def _view_rows(array: np.ndarray) -> da.Array:
    """Wrap a NumPy array without copying or hashing it, as dask.array.from_array would."""
    token = f"embeddings-{uuid.uuid4().hex}"
    rows = _rows_per_chunk(array.shape, array.dtype)
    chunks = [array[start : start + rows] for start in range(0, len(array), rows)]
    graph = {(token, i, 0): chunk for i, chunk in enumerate(chunks)}
    return da.Array(graph, token, (tuple(map(len, chunks)), (array.shape[1],)), dtype=array.dtype)


def _in_rows(stored: StoredArray) -> da.Array:
    """Make an array in a file a dask array whose tasks each read their own rows."""
    chunks = (_rows_per_chunk(stored.shape, stored.dtype), *stored.shape[1:])[: stored.ndim]
    # The time of the last change keeps a rewritten file apart from what a cluster may still hold of the old one.
    token = tokenize(stored, os.stat(stored.path).st_mtime_ns)
    meta = np.empty((0,) * stored.ndim, stored.dtype)
    return da.from_array(stored, chunks, name=f"embeddings-{token}", inline_array=True, meta=meta)


def _rows_per_chunk(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """A power of two: so tasks of as many rows hold whole chunks."""
    rows = max(1, CHUNK_BYTES // max(1, dtype.itemsize * math.prod(shape[1:])))
    return 1 << (rows.bit_length() - 1)


def _whole_rows(data: da.Array) -> da.Array:
    """Put all features in one chunk, drop empty chunks of rows, and make the dtype one that NumPy computes with."""
    rows, features = data.chunks
    chunks = (tuple(size for size in rows if size), (sum(features),))
    if data.chunks != chunks:
        # A row chunk is joined in place: peer-to-peer rechunking would tie it to the workers of the moment.
        data = data.rechunk(chunks, method="tasks")
    dtype = np.dtype("float32") if data.dtype == BFLOAT16 else data.dtype.newbyteorder("=")
    return data if data.dtype == dtype else data.astype(dtype)
