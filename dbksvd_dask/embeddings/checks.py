"""What an array must be to serve as embeddings, and which array of a container is meant."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Protocol

import ml_dtypes
import numpy as np
import xarray as xr

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FORMAT = "dbksvd_dask "
"""The attribute "format" of stores that this package writes begins so."""
_MOST_LISTED = 20


class Shaped(Protocol):
    """What has a shape and a dtype, whether it is in memory, on disk or yet to be computed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each dimension."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the elements."""


def check_embeddings(array: Shaped, source: str) -> None:
    """Raise, in the user's words, unless ``array`` is ``(n, d)``, floating, not empty and of known shape.

    Parameters
    ----------
    array : xarray.DataArray, or whatever else has a shape and a dtype
        Nothing is computed.
    source : str
        Where it comes from, as the error messages name it.

    Examples
    --------
    >>> check_embeddings(np.ones(3), "the array")
    Traceback (most recent call last):
    ...
    ValueError: the array has shape (3,): embeddings are two-dimensional, (samples, features)
    """
    if len(array.shape) != 2:
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


def choose_array(
    arrays: Mapping[Hashable, tuple[int, object]], name: str | None, source: str, *, windows: bool = False
) -> Hashable:
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
    windows : bool
        Whether it may hold windows of samples: then a three-dimensional array will do as well.

    Examples
    --------
    >>> choose_array({"tokens": (1, np.dtype(int)), "layer3": (2, np.dtype("f4"))}, None, "the store")
    'layer3'
    """
    listing = ", ".join(f"{key!r} ({ndim}-D {dtype})" for key, (ndim, dtype) in [*arrays.items()][:_MOST_LISTED])
    listing = listing + ", …" * (len(arrays) > _MOST_LISTED) or "nothing"
    if name is not None:
        if name not in arrays:
            raise ValueError(f"{source} has no array {name!r}; it holds {listing}")
        return name
    if "embeddings" in arrays:
        return "embeddings"
    n_dims, wanted = ((2, 3), "two- or three-dimensional") if windows else ((2,), "two-dimensional")
    candidates = [key for key, (ndim, dtype) in arrays.items() if ndim in n_dims and is_floating(dtype)]
    if not candidates:
        raise ValueError(f"{source} has no {wanted} floating array; it holds {listing}")
    if len(candidates) > 1:
        choices = ", ".join(f"name={key!r}" for key in candidates)
        raise ValueError(f"{source} has several {wanted} floating arrays; choose one with {choices}")
    return candidates[0]


def choose_variable(dataset: xr.Dataset, name: str | None, source: str) -> xr.DataArray:
    """Choose the array of a Dataset as `choose_array` does."""
    return dataset[choose_array({key: (v.ndim, v.dtype) for key, v in dataset.data_vars.items()}, name, source)]


def refuse_name(name: str | None, source: str) -> None:
    """Raise if a ``name`` was given for a source that is one array."""
    if name is not None:
        raise ValueError(f"name={name!r} was given, but {source} is a single array; leave name out")
