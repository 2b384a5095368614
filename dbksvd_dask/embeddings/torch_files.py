"""Tensors in ``.pt`` files, as SAEBench stores them: read where they lie, and no code is run that comes with them."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Hashable, Mapping
from pickle import UnpicklingError
from typing import Any

import ml_dtypes
import numpy as np

from dbksvd_dask.embeddings.checks import choose_array
from dbksvd_dask.embeddings.stored import StoredArray, StoredEmbeddings, needed
from dbksvd_dask.embeddings.tables import coordinate_name
from dbksvd_dask.embeddings.untrusted import RefusedStoreError
from dbksvd_dask.warning import warn_caller


def torch_embeddings(path: str, name: str | None) -> StoredEmbeddings:
    """Choose a tensor of a ``.pt`` file, and describe it."""
    loaded = _load(path)
    tensors = {str(key): value for key, value in loaded.items()} if isinstance(loaded, Mapping) else {"": loaded}
    arrays = {key: _array(tensor) for key, tensor in tensors.items() if _is_dense(tensor)}
    if not arrays:
        raise ValueError(
            f"{path} holds a {type(loaded).__name__} without tensors directly in it: embeddings are a tensor, or one "
            "of a dict; load it, and save the tensor alone with torch.save"
        )
    described: dict[Hashable, tuple[int, object]] = {key: (len(shape), kind) for key, (shape, kind) in arrays.items()}
    alone = "" in arrays and name is None
    chosen = "" if alone else str(choose_array(described, name, path, windows=True))
    where = f"{path} ({chosen!r})" if chosen else path
    shape, _ = arrays[chosen]
    rows = _stored(path, tensors[chosen], where)
    window = shape[1] if len(shape) == 3 else None
    if window is not None:
        rows = StoredArray(path, rows.offset, (shape[0] * window, shape[2]), rows.dtype)
    coords = {}
    for key, (found, dtype) in arrays.items():
        called = coordinate_name(key, dtype, found, shape[:-1])
        if called is not None and not tensors[key].is_contiguous():
            warn_caller(
                f"{path}: {key!r} is a view of a larger tensor, with gaps, or is turned, and left out: save "
                "tensor.contiguous() to have it as a coordinate"
            )
        elif called is not None:
            column = _stored(path, tensors[key], f"{path} ({key!r})")
            coords[called] = StoredArray(path, column.offset, (rows.shape[0],), column.dtype)
    return StoredEmbeddings(rows, chosen or None, window, coords)


def _load(path: str) -> Any:
    """What the file holds, with tensors that tell where in the file they are and hold nothing."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as stream:
            begin = stream.read(2)
        if begin[:1] == b"\x80":
            raise RefusedStoreError(
                f"{path} is a plain pickle, which may run code when it is read: it is not opened. If you trust it, "
                "load its tensors yourself and save them with torch.save"
            )
        what = "it is empty" if not begin else "its directory, at the end, is missing"
        raise ValueError(f"{path} is not a readable .pt file: {what}; was it still being written or copied?")
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
            order = [archive.read(name) for name in archive.namelist() if name.endswith("/byteorder")]
    except (zipfile.BadZipFile, EOFError, RuntimeError) as error:
        raise ValueError(
            f"{path} is not a readable .pt file: {error}; was it still being written or copied?"
        ) from error
    if packed or order not in ([], [b"little"]):
        raise ValueError(f"{path} is compressed, or of the other byte order: load it, and save it with torch.save")
    torch = needed("torch", "harvest", path)
    fake = needed("torch._subclasses.fake_tensor", "harvest", path)
    try:
        with fake.FakeTensorMode():  # tensors then have a place in the file instead of elements
            return torch.load(path, weights_only=True, map_location="cpu")
    except UnpicklingError as error:
        raise RefusedStoreError(
            f"{path} holds something else than tensors, which may run code when it is read: it is not opened. If you "
            f"trust it, load its tensors yourself and save them alone with torch.save. ({str(error).splitlines()[-1]})"
        ) from error
    except Exception as error:  # torch lets through whatever its parsers raise
        raise ValueError(
            f"{path} is not a readable .pt file: {error}; was it still being written or copied?"
        ) from error


def _is_dense(tensor: Any) -> bool:
    return str(getattr(tensor, "layout", None)) == "torch.strided" and not tensor.is_quantized


def _array(tensor: Any) -> tuple[tuple[int, ...], object]:
    name = str(tensor.dtype).removeprefix("torch.")
    try:
        dtype: object = np.dtype(getattr(ml_dtypes, name, name))
    except TypeError:  # one that only torch has
        dtype = name
    return tuple(tensor.shape), dtype


def _stored(path: str, tensor: Any, where: str) -> StoredArray:
    shape, dtype = _array(tensor)
    storage = tensor.untyped_storage()
    if not isinstance(dtype, np.dtype):
        raise ValueError(f"{where} has dtype {dtype}")
    contiguous, turned = tensor.is_contiguous(), tensor.ndim == 2 and tensor.T.is_contiguous()
    if not contiguous and not turned:
        raise ValueError(f"{where} is a view of a larger tensor, with gaps: save tensor.contiguous() instead")
    begin = tensor.storage_offset() * dtype.itemsize
    end = begin + math.prod(shape) * dtype.itemsize
    if end > storage.nbytes() or storage._checkpoint_offset + end > os.path.getsize(path):
        raise ValueError(f"{where} is damaged: its elements lie outside of what is stored")
    return StoredArray(path, storage._checkpoint_offset + begin, shape, dtype, "C" if contiguous else "F")
