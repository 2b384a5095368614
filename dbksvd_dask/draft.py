"""Zarr stores while they are written."""

import shutil
import warnings
from collections.abc import Hashable
from typing import cast

import numpy as np
import xarray as xr
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from dbksvd_dask.embeddings.guarded import GuardedStore

ROOT = "zarr.json"
"""Without it there is no store, whatever else lies in a folder: written last, deleted first."""


class Draft(GuardedStore):
    """A local store that is being written: what a task writes after the writing was given up does not bring it back."""

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object, unless the store was removed meanwhile."""
        if key.rpartition("/")[2] == ROOT:
            await super().set(key, value)
            return
        await self._check_there()
        await super().set(key, value)
        await self._check_there()  # it may have been removed between the two

    async def _check_there(self) -> None:
        if await self.exists(ROOT):
            return
        shutil.rmtree(
            cast(LocalStore, self._store).root, ignore_errors=True
        )  # what this task, or another one, has brought back
        raise FileNotFoundError(f"the writing of {self._place} was given up")


def write_zarr(dataset: xr.Dataset, store: Store) -> None:
    """Write a Dataset, dask arrays chunk by chunk, as `dbksvd_dask.store` keeps it.

    Parameters
    ----------
    dataset : xarray.Dataset
    store : zarr.abc.store.Store
        Where, replacing whatever is there.
    """
    stored = _storable(dataset)
    with warnings.catch_warnings():
        # Not in the zarr 3 specification yet; but without it xarray warns at every opening.
        warnings.filterwarnings("ignore", "Consolidated metadata")
        # Empty chunks too, so that a missing one tells of a damaged store; and checksums, so that a flipped bit does.
        encoding = {name: {"compressors": [ZstdCodec(checksum=True)]} for name in stored.variables}
        stored.to_zarr(store, mode="w", zarr_format=3, consolidated=True, write_empty_chunks=True, encoding=encoding)


def _storable(dataset: xr.Dataset) -> xr.Dataset:
    """The Dataset in chunks and data types that zarr 3 has, free of how its variables were stored elsewhere."""
    # Zarr has no form for a pandas MultiIndex: its levels stay, as coordinates of their own.
    dataset = dataset.reset_index(
        [name for name, i in dataset.indexes.items() if i.nlevels > 1 and name in dataset.dims]
    )
    # zarr 3 has no specified data type for NumPy's fixed-length strings, nor for objects.
    names = [name for name, variable in dataset.variables.items() if variable.dtype.kind in "UO"]
    stored = dataset.assign({name: dataset[name].astype(np.dtypes.StringDType()) for name in names}).drop_encoding()
    chunks: dict[Hashable, int] = {}
    # Coordinates follow the data: stores keep embeddings in many chunks and their small coordinates in one.
    for array in [*stored.coords.values(), *stored.data_vars.values()]:
        chunks |= {dim: max(sizes) for dim, sizes in array.variable.chunksizes.items()}
    return stored.chunk(chunks) if chunks else stored
