"""Arrays inside ``.npy``, ``.npz`` and ``.safetensors`` files: where each lies, so that a task can read its rows."""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
from typing import IO, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from dbksvd_dask.embeddings.checks import BFLOAT16, choose_array, dtype_error
from dbksvd_dask.embeddings.stored import StoredArray


def npy_array(path: str) -> StoredArray:
    """Describe the array of a ``.npy`` file."""
    with open(path, "rb") as stream:
        try:
            shape, order, dtype = _read_npy_header(stream)
        except ValueError as error:
            raise ValueError(f"{path} is not a readable .npy file: {error}") from error
        offset = stream.tell()
    expected = offset + dtype.itemsize * math.prod(shape)
    actual = os.path.getsize(path)
    if actual < expected:
        raise ValueError(
            f"{path} is cut off: with shape {shape} and dtype {dtype} it has {expected} bytes, but there are {actual}; "
            "was it still being written or copied?"
        )
    return StoredArray(path, offset, shape, dtype, order)


def npz_array(path: str, name: str | None) -> tuple[str, StoredArray]:
    """Choose a member of an ``.npz`` file, and describe it; refuse a compressed one, which cannot be mapped."""
    members = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    with archive.open(info) as stream:
                        members[info.filename.removesuffix(".npy")] = (info, _read_npy_header(stream), stream.tell())
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a readable .npz file: {error}; was it still being written or copied?"
        ) from error

    chosen = str(
        choose_array({key: (len(shape), dtype) for key, (_, (shape, _, dtype), _) in members.items()}, name, path)
    )
    info, (shape, order, dtype), header_size = members[chosen]
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(
            f"{path} holds {chosen!r} compressed, so that no part of it can be read alone: save it uncompressed "
            f"with numpy.savez, as a .npy file with numpy.save, or as zarr"
        )
    if info.file_size < header_size + dtype.itemsize * math.prod(shape):
        raise ValueError(
            f"{path} ({chosen!r}) is cut off: it has fewer bytes than shape {shape} and dtype {dtype} need; "
            "was it still being written or copied?"
        )
    # The zip directory says where the member's local header is, but only that header says how long it is itself.
    with open(path, "rb") as stream:
        stream.seek(info.header_offset + 26)
        name_size, extra_size = struct.unpack("<HH", stream.read(4))
    offset = info.header_offset + 30 + name_size + extra_size + header_size
    return chosen, StoredArray(path, offset, shape, dtype, order)


_SAFETENSORS_DTYPES = {"F16": np.dtype("<f2"), "BF16": BFLOAT16, "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


def safetensors_array(path: str, name: str | None) -> tuple[str, StoredArray]:
    """Choose a tensor of a ``.safetensors`` file, and describe it."""
    try:
        with safe_open(path, "np"):  # reads the header, and checks it against the size of the file
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable .safetensors file: {error}; was it still being written or copied?"
        ) from error
    with open(path, "rb") as stream:
        (header_size,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(header_size))
    header.pop("__metadata__", None)

    dtypes = {key: _SAFETENSORS_DTYPES.get(tensor["dtype"], tensor["dtype"]) for key, tensor in header.items()}
    shapes = {key: tuple(tensor["shape"]) for key, tensor in header.items()}
    chosen = str(choose_array({key: (len(shapes[key]), dtypes[key]) for key in header}, name, path))
    if not isinstance(dtypes[chosen], np.dtype):
        raise dtype_error(dtypes[chosen], f"{path} ({chosen!r})")
    offset = 8 + header_size + header[chosen]["data_offsets"][0]
    return chosen, StoredArray(path, offset, shapes[chosen], dtypes[chosen])


def _read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype]:
    """Read shape, order and dtype, leaving ``stream`` at the first element."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"format version {version[0]}.{version[1]}, which is for structured dtypes")
    return shape, "F" if fortran else "C", dtype
