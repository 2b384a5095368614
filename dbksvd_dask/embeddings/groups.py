"""Zarr groups as xarray writes them, with errors that say which is unreadable and why."""

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

import xarray as xr
import zarr
from zarr.abc.store import RangeByteRequest
from zarr.core.sync import sync

from dbksvd_dask.embeddings.checks import FORMAT
from dbksvd_dask.embeddings.guarded import guarded
from dbksvd_dask.embeddings.places import exists, unreachable
from dbksvd_dask.embeddings.untrusted import RefusedStoreError

_MOST_CHUNKS = 2**24
"""Of one array: Dask could not handle more, and what declares more is damaged or means harm."""
_MOST_INDEX_BYTES = 2**32
"""xarray loads indexes whole when it opens a group."""


def open_node(place: str) -> zarr.Array | zarr.Group:
    """Open what zarr finds at a path or URL; raises ValueError if that is nothing it can read."""
    try:
        node = zarr.open(guarded(place), mode="r")
        if isinstance(node, zarr.Group):
            list(node.array_keys())  # reads the metadata of all of them
    except (RefusedStoreError, ImportError):
        raise
    except Exception as error:  # zarr lets through whatever its parsers and file systems raise
        named = unreachable(place, error)
        if named is not error:
            raise named from error
        if not exists(place):
            raise FileNotFoundError(f"there is nothing at {place}") from error
        raise ValueError(
            f"{place} is not a readable zarr store ({str(error) or type(error).__name__}): its metadata (zarr.json, "
            ".zgroup or .zarray) is missing or broken; was it only half written?"
        ) from error
    return node


def open_group(node: zarr.Group, place: str) -> xr.Dataset:
    """Open a zarr group as xarray does, without dask chunks; raises ValueError if xarray cannot read it."""
    for name, array in node.arrays():
        _check_size(array, f"{place} ({name!r})")
        if dimensions(array) == (name,):
            _check_index(array, f"{place} ({name!r})")
    try:
        # Not asking for consolidated metadata that is not there: xarray would warn about it.
        return xr.open_zarr(node.store, consolidated=node.metadata.consolidated_metadata is not None, chunks=None)
    except RefusedStoreError:
        raise
    except Exception as error:  # xarray, too, lets through whatever decoding raises
        raise ValueError(
            f"xarray cannot read the zarr group {place} ({error}); if its arrays have no dimension names, open one of "
            f"them by its own path: {', '.join(f'{place}/{key}' for key in sorted(node.array_keys()))}"
        ) from error


def dimensions(array: zarr.Array) -> tuple[str, ...] | None:
    """Names of the dimensions, as zarr 3 has them or as xarray keeps them in zarr 2; None where they have none."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    return tuple(names) if names else None


def check_complete(array: zarr.Array, where: str) -> None:
    """Raise if chunks are missing: zarr would read them as its fill value, be it that of an interrupted writer.

    And from now on raise where one is missing that was there.
    """
    _check_size(array, where)
    missing = _missing(array)
    if missing:
        raise ValueError(
            f"{where} has no data in {missing} of its {_n_stored(array)} chunks: was its writing interrupted? If they "
            f"are meant to be {array.fill_value}, open it with xarray.open_zarr or dask.array.from_zarr and pass that"
        )
    array.store.require(array.path)


def require_if_complete(array: zarr.Array) -> None:
    """The same of an array some of whose chunks may be left out, as those of coordinates that are all zeros."""
    if _missing(array) == 0:
        array.store.require(array.path)


def refuse_other_store(attrs: Mapping[str, Any], place: str) -> None:
    """Raise if the attributes of a zarr group say that it is a store of this package."""
    kind = str(attrs.get("format", ""))
    if kind.startswith(FORMAT):
        raise ValueError(f"{place} is a {kind.removeprefix(FORMAT)} store of dbksvd_dask: it does not hold embeddings")


def _n_stored(array: zarr.Array) -> int:
    return math.prod(_grid(array))


def _grid(array: zarr.Array) -> tuple[int, ...]:
    """Along each dimension, the number of chunks, or shards, that are stored as one object."""
    return tuple(-(-size // stored) for size, stored in zip(array.shape, array.shards or array.chunks, strict=True))


def _missing(array: zarr.Array) -> int | None:
    """How many of the objects that hold the chunks, or shards, are not there; None where that cannot be found out."""
    if _n_stored(array) == 0:
        return 0
    return sync(_count_missing(array))


async def _count_missing(array: zarr.Array) -> int | None:
    folder = f"{array.path}/" if array.path else ""
    there = {key async for key in array.store.list_prefix(array.path)}
    keys = (folder + array.metadata.encode_chunk_key(position) for position in product(*map(range, _grid(array))))
    missing = [key for key in keys if key not in there]
    # Some file systems cannot list, and fsspec leaves out of some listings what could not be listed.
    listed = not missing or await array.store.get(missing[0], byte_range=RangeByteRequest(0, 1)) is None
    return len(missing) if listed else None


def _check_size(array: zarr.Array, where: str) -> None:
    if _n_stored(array) > _MOST_CHUNKS:
        raise ValueError(
            f"{where} declares shape {array.shape} in {_n_stored(array)} chunks, more than {_MOST_CHUNKS}: is its "
            "metadata damaged? If not, rechunk it"
        )


def _check_index(array: zarr.Array, where: str) -> None:
    if array.nbytes > _MOST_INDEX_BYTES:
        raise ValueError(
            f"{where} is an index of {array.nbytes / 2**30:.3g} GiB, which xarray would load at once: is its metadata "
            "damaged? If not, open the array of the embeddings by its own path"
        )
    require_if_complete(array)
