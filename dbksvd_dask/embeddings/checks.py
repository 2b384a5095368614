"""What an array must be to serve as embeddings, and which array of a container is meant."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import ml_dtypes
import numpy as np
import xarray as xr

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FORMAT = "dbksvd_dask "
"""The attribute "format" of stores that this package writes begins so."""


def check_embeddings(array: xr.DataArray, source: str) -> None:
    """Raise, in the user's words, unless ``array`` is ``(n, d)``, floating, not empty and of known shape.

    Parameters
    ----------
    array : xarray.DataArray
        Looked at for its shape and dtype only: nothing is computed.
    source : str
        Where it comes from, as the error messages name it.

    Examples
    --------
    >>> check_embeddings(xr.DataArray(np.ones(3)), "the array")
    Traceback (most recent call last):
    ...
    ValueError: the array has shape (3,): embeddings are two-dimensional, (samples, features)
    """
    if array.ndim != 2:
        raise ValueError(f"{source} has shape {array.shape}: embeddings are two-dimensional, (samples, features)")
    if not is_floating(array.dtype):
        raise dtype_error(array.dtype, source)
    if np.isnan(array.shape).any():
        raise ValueError(
            f"{source} has chunks of unknown size, shape {array.shape}: "
            "call compute_chunk_sizes() on the dask array first"
        )
    if 0 in array.shape:
        raise ValueError(f"{source} is empty: shape {array.shape}")


def is_floating(dtype: object) -> bool:
    """Tell whether embeddings can have this dtype: float16, bfloat16, float32 or float64, in any byte order."""
    return isinstance(dtype, np.dtype) and (dtype == BFLOAT16 or (dtype.kind == "f" and dtype.itemsize <= 8))


def dtype_error(dtype: object, source: str) -> TypeError:
    """Build the error for embeddings that are not floating."""
    return TypeError(
        f"{source} has dtype {dtype}: embeddings are float16, bfloat16, float32 or float64; "
        'convert them with .astype("float32")'
    )


def choose_array(arrays: Mapping[Hashable, tuple[int, object]], name: str | None, source: str) -> Hashable:
    """Choose the array of a container that holds the embeddings.

    Parameters
    ----------
    arrays : mapping of name to (number of dimensions, dtype)
        What the container holds.
    name : str or None
        The array the user asked for. None means the one called "embeddings", or else the only two-dimensional
        floating one.
    source : str
        The container, as the error messages name it.

    Examples
    --------
    >>> choose_array({"tokens": (1, np.dtype(int)), "layer3": (2, np.dtype("f4"))}, None, "the store")
    'layer3'
    """
    listing = ", ".join(f"{key!r} ({ndim}-D {dtype})" for key, (ndim, dtype) in arrays.items()) or "nothing"
    if name is not None:
        if name not in arrays:
            raise ValueError(f"{source} has no array {name!r}; it holds {listing}")
        return name
    if "embeddings" in arrays:
        return "embeddings"
    candidates = [key for key, (ndim, dtype) in arrays.items() if ndim == 2 and is_floating(dtype)]
    if not candidates:
        raise ValueError(f"{source} has no two-dimensional floating array; it holds {listing}")
    if len(candidates) > 1:
        choices = ", ".join(f"name={key!r}" for key in candidates)
        raise ValueError(f"{source} has several two-dimensional floating arrays; choose one with {choices}")
    return candidates[0]


def refuse_name(name: str | None, source: str) -> None:
    """Raise if a ``name`` was given for a source that is one array."""
    if name is not None:
        raise ValueError(f"name={name!r} was given, but {source} is a single array; leave name out")
