"""Files of tensors and of JSON, read with errors that name what is wrong with them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dbksvd_dask.embeddings.checks import BFLOAT16, is_floating


def write_tensors(tensors: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file; a full disk is an OSError, which the library's own writing does not tell."""
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    path.write_bytes(save(contiguous, dict(metadata) if metadata else None))


def read_tensors(path: Path, names: Mapping[str, int]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Some tensors of a safetensors file, in at least float32, and its metadata.

    Parameters
    ----------
    path : Path
    names : mapping of name to number of dimensions
        Those that are wanted; which are not there are left out.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no whole safetensors file, or a tensor has other dimensions, or is not floating.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in names if name in set(file.keys())}
    except (SafetensorError, AttributeError) as error:  # the latter for a dtype that NumPy does not have
        raise ValueError(
            f"{path} is not a readable .safetensors file: {error}; was it still being written or copied?"
        ) from error
    for name, tensor in tensors.items():
        if tensor.ndim != names[name] or not is_floating(tensor.dtype):
            raise ValueError(
                f"{path}: {name!r} has shape {tensor.shape} and dtype {tensor.dtype}, but it has to be floating with "
                f"{names[name]} dimensions"
            )
    return {
        name: tensor.astype(np.float32) if tensor.dtype == BFLOAT16 else tensor for name, tensor in tensors.items()
    }, metadata


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it does not hold one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return json_object(path.read_bytes(), str(path))


def json_object(text: str | bytes, source: str) -> dict[str, Any]:
    """A JSON object, or an error that names where it is from.

    Examples
    --------
    >>> json_object("[1, 2]", "cfg.json")
    Traceback (most recent call last):
    ...
    ValueError: cfg.json holds no JSON object, but list
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is no JSON ({error}): was it still being written or copied?") from error
    if not isinstance(document, dict):
        raise ValueError(f"{source} holds no JSON object, but {type(document).__name__}")
    return document
