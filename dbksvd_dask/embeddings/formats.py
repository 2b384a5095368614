"""What lies at a path: its format, by suffix or by what is in the folder, and the arrays in it."""

from __future__ import annotations

import os
from collections.abc import Callable

import dask.array as da
import numpy as np
import xarray as xr
import zarr

from dbksvd_dask.embeddings.arrow import arrow_embeddings
from dbksvd_dask.embeddings.checks import choose_variable, refuse_name
from dbksvd_dask.embeddings.dataset_folders import dataset_embeddings, is_dataset
from dbksvd_dask.embeddings.files import npy_array, npz_array, safetensors_array
from dbksvd_dask.embeddings.groups import (
    check_complete,
    dimensions,
    open_group,
    open_node,
    refuse_other_store,
    require_if_complete,
)
from dbksvd_dask.embeddings.hdf5 import hdf5_embeddings
from dbksvd_dask.embeddings.parquet import parquet_embeddings
from dbksvd_dask.embeddings.places import is_url
from dbksvd_dask.embeddings.rows import in_named_chunks, read_named
from dbksvd_dask.embeddings.stored import StoredEmbeddings
from dbksvd_dask.embeddings.torch_files import torch_embeddings


def stored_embeddings(path: str, name: str | None) -> StoredEmbeddings | None:
    """Describe what a file holds, or a folder of Arrow files; None of what may be a zarr store."""
    suffix = os.path.splitext(path)[1].lower()
    if is_url(path):
        if suffix in _FILES:
            raise ValueError(
                f"{path} is a remote {suffix} file, of which no rows can be read alone: copy it to where all workers "
                "see it and open that, or write it as a zarr store and open its URL"
            )
        return None
    if os.path.isdir(path):
        return _folder(path, name)
    if suffix in _FILES:
        return _FILES[suffix](path, name)
    if suffix == ".zarr":
        raise ValueError(f"{path} is a file, but a zarr store is a folder: unpack it first, if it is an archive")
    known = ", ".join(_FILES)
    raise ValueError(
        f"{path} has an unknown suffix {suffix!r}: embeddings are read from {known} and zarr; "
        "load anything else yourself and pass the array, or save it once with numpy.save"
    )


def open_zarr(place: str, name: str | None) -> xr.DataArray:
    """Open a zarr group as xarray writes it, or a single zarr array, whatever its shape and dtype."""
    node = open_node(place)
    if isinstance(node, zarr.Array):
        refuse_name(name, place)
        check_complete(node, place)
        array = unnamed(read_named(node, da.from_zarr(node).chunks, place))
        dims = dimensions(node)
        return array if dims is None or None in dims else array.rename(dict(zip(array.dims, dims, strict=True)))
    if name is None:
        refuse_other_store(node.attrs, place)
    array = choose_variable(open_group(node, place), name, place)
    check_complete(node[str(array.name)], f"{place} ({array.name!r})")
    for coordinate in array.coords:
        require_if_complete(node[str(coordinate)])
    return in_named_chunks(array.to_dataset(name=array.name), place)[array.name]


def unnamed(data: da.Array | np.ndarray) -> xr.DataArray:
    """Wrap an array that has no name; xarray would make up one from the name of its dask graph."""
    return xr.DataArray(data).rename(None)


def _folder(path: str, name: str | None) -> StoredEmbeddings | None:
    if is_dataset(path):
        return dataset_embeddings(path, name)
    names = os.listdir(path)
    suffixes = {os.path.splitext(name)[1].lower() for name in names} & _FILES.keys()
    if suffixes and not any(name in ("zarr.json", ".zgroup", ".zarray") for name in names):
        patterns = " or ".join(repr(os.path.join(path, f"*{suffix}")) for suffix in sorted(suffixes))
        raise ValueError(f"{path} is a folder of files, not a zarr store: open them as one by {patterns}")
    return None


def _npy(path: str, name: str | None) -> StoredEmbeddings:
    refuse_name(name, path)
    return StoredEmbeddings(npy_array(path))


def _npz(path: str, name: str | None) -> StoredEmbeddings:
    chosen, stored = npz_array(path, name)
    return StoredEmbeddings(stored, chosen)


def _safetensors(path: str, name: str | None) -> StoredEmbeddings:
    chosen, stored = safetensors_array(path, name)
    return StoredEmbeddings(stored, chosen)


_FILES: dict[str, Callable[[str, str | None], StoredEmbeddings]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".pt": torch_embeddings,
    ".h5": hdf5_embeddings,
    ".hdf5": hdf5_embeddings,
    ".parquet": parquet_embeddings,
    ".arrow": arrow_embeddings,
    ".arrows": arrow_embeddings,
    ".ipc": arrow_embeddings,
    ".feather": arrow_embeddings,
}
