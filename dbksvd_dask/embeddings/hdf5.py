"""Embeddings in HDF5 files: datasets where they lie, or chunk by chunk where they are compressed."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from dbksvd_dask.embeddings.checks import check_embeddings, choose_array
from dbksvd_dask.embeddings.stored import StoredArray, StoredEmbeddings, StoredRows, needed

_FILTERS = {
    **{1: "deflate", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset", 32000: "lzf"},
    **{32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32015: "zstd", 32026: "blosc2"},
}
"""Those known to do nothing but compress and check, by their registered number."""


@dataclass(frozen=True)
class HDF5Rows(StoredRows):
    """A dataset in chunks, which HDF5 decodes."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    name: str
    chunk: tuple[int, int]
    turned: bool = False
    """Whether its columns are the rows."""

    @property
    def unit(self) -> int:
        """Rows of a chunk."""
        return self.chunk[0]

    def transposed(self) -> HDF5Rows:
        """The same dataset with rows for columns."""
        return replace(self, shape=self.shape[::-1], chunk=self.chunk[::-1], turned=not self.turned)

    def _read(self, start: int, stop: int) -> np.ndarray:
        with _h5py(self.path).File(self.path, "r") as file:
            dataset = file[self.name]
            if self.turned:
                return np.ascontiguousarray(dataset[:, start:stop].T)
            return dataset[start:stop]


def hdf5_embeddings(path: str, name: str | None) -> StoredEmbeddings:
    """Choose a dataset of an HDF5 file, and describe it."""
    h5py = _h5py(path)
    try:
        with h5py.File(path, "r") as file:
            datasets: dict[Hashable, Any] = {}

            def collect(key: str, node: Any) -> None:  # a link that leads elsewhere is not followed
                if isinstance(node, h5py.Dataset):
                    datasets[key] = node

            file.visititems(collect)
            arrays = {key: (len(dataset.shape or ()), dataset.dtype) for key, dataset in datasets.items()}
            chosen = str(choose_array(arrays, name, path))
            return StoredEmbeddings(_rows(h5py, datasets[chosen], path, chosen), chosen)
    except BlockingIOError as error:
        raise ValueError(f"{path} is locked: another program has it open for writing; close it there first") from error
    except (OSError, RuntimeError, KeyError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(
            f"{path} is not a readable HDF5 file: {error}; was it still being written or copied?"
        ) from error


def _rows(h5py: ModuleType, dataset: Any, path: str, name: str) -> StoredRows:
    where = f"{path} ({name!r})"
    if dataset.shape is None:  # which HDF5 has beside datasets of no elements
        raise ValueError(f"{where} is empty: it has no shape")
    check_embeddings(dataset, where)
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{where} lies in other files: open those, as one, or copy it into a file of its own")
    if dataset.chunks is None:
        # How many bytes are set aside, not what offset there is: that of a dataset without any means nothing.
        if dataset.id.get_storage_size() < dataset.nbytes:
            raise ValueError(f"{where} has no data: was its writing interrupted?")
        offset = dataset.id.get_offset()
        if offset is not None:
            return StoredArray(path, offset, dataset.shape, dataset.dtype)
        return HDF5Rows(path, dataset.shape, dataset.dtype, name, dataset.shape)
    _check_filters(h5py, dataset, where)
    stored = int(np.prod([-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True)]))
    missing = stored - dataset.id.get_num_chunks()
    if missing > 0:
        raise ValueError(f"{where} has no data in {missing} of its {stored} chunks: was its writing interrupted?")
    return HDF5Rows(path, dataset.shape, dataset.dtype, name, dataset.chunks)


def _check_filters(h5py: ModuleType, dataset: Any, where: str) -> None:
    """Refuse filters that are unknown, which HDF5 would look for among libraries, or missing here."""
    properties = dataset.id.get_create_plist()
    for number, *_ in (properties.get_filter(i) for i in range(properties.get_nfilters())):
        if number not in _FILTERS:
            raise ValueError(
                f"{where} uses the HDF5 filter {number}, which is not among those that are known to run no code when "
                "data are read: if you trust the file, open it yourself and write the dataset anew, without that"
            )
        if not h5py.h5z.filter_avail(number):
            raise ValueError(
                f"{where} is compressed with {_FILTERS[number]}, which h5py does not have here: write it anew with "
                'compression="gzip", or without any'
            )


def _h5py(path: str) -> ModuleType:
    return needed("h5py", "formats", path)
