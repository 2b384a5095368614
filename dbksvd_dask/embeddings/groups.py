"""Zarr groups as xarray writes them, with errors that say which is unreadable and why."""

from collections.abc import Mapping
from typing import Any

import xarray as xr
import zarr

from dbksvd_dask.embeddings.checks import FORMAT


def open_node(path: str) -> zarr.Array | zarr.Group:
    """Open what zarr finds at ``path``; raises ValueError if that is nothing it can read."""
    try:
        node = zarr.open(path, mode="r")
        if isinstance(node, zarr.Group):
            list(node.array_keys())  # reads the metadata of all of them
    except Exception as error:  # zarr lets through whatever its parsers raise
        raise ValueError(
            f"{path} is not a readable zarr store ({error or type(error).__name__}): its metadata (zarr.json, "
            ".zgroup or .zarray) is missing or broken; was it only half written?"
        ) from error
    return node


def open_group(node: zarr.Group, path: str) -> xr.Dataset:
    """Open a zarr group as xarray does, without dask chunks; raises ValueError if xarray cannot read it."""
    try:
        # Not asking for consolidated metadata that is not there: xarray would warn about it.
        return xr.open_zarr(path, consolidated=node.metadata.consolidated_metadata is not None, chunks=None)
    except Exception as error:  # xarray, too, lets through whatever decoding raises
        raise ValueError(
            f"xarray cannot read the zarr group {path} ({error}); if its arrays have no dimension names, open one of "
            f"them by its own path: {', '.join(f'{path}/{key}' for key in sorted(node.array_keys()))}"
        ) from error


def refuse_other_store(attrs: Mapping[str, Any], path: str) -> None:
    """Raise if the attributes of a zarr group say that it is a store of this package."""
    kind = str(attrs.get("format", ""))
    if kind.startswith(FORMAT):
        raise ValueError(f"{path} is a {kind.removeprefix(FORMAT)} store of dbksvd_dask: it does not hold embeddings")
