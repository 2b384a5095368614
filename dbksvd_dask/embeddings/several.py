"""Several files as one array: lists of them, and patterns."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Hashable, Sequence
from typing import Any, TypeGuard

import dask.array as da
import numpy as np
import xarray as xr

from dbksvd_dask.embeddings.places import is_url, placed


def is_pattern(path: str) -> bool:
    """Whether a path has wildcards, and is not itself there."""
    return glob.has_magic(path) and not is_url(path) and not os.path.exists(placed(path))


def are_paths(source: object) -> TypeGuard[Sequence[str | os.PathLike[str]]]:
    """Whether it is a list of paths, and nothing else.

    Examples
    --------
    >>> are_paths(["a.npy", "b.npy"]), are_paths("a.npy"), are_paths([[1.0, 2.0]])
    (True, False, False)
    """
    return isinstance(source, list | tuple) and all(isinstance(path, str | os.PathLike) for path in source)


def matching(pattern: str) -> list[str]:
    """The files and folders that match a pattern, with numbers in their names in numerical order.

    Raises
    ------
    FileNotFoundError
        If there are none.
    """
    paths = glob.glob(placed(pattern), recursive=True)
    if not paths:
        raise FileNotFoundError(f"there is nothing that matches {placed(pattern)}")
    return sorted(paths, key=_natural)


def joined(arrays: Sequence[xr.DataArray], paths: Sequence[str]) -> xr.DataArray:
    """One array after the other, with the coordinates that all of them have, and "file", which counts them.

    Parameters
    ----------
    arrays : sequence of xarray.DataArray
        Over ("sample", "feature"), on dask arrays.
    paths : sequence of str
        Where each is from: the attribute "files" of the result.

    Raises
    ------
    ValueError
        If they are of different widths.
    """
    for array, path in zip(arrays, paths, strict=True):
        if array.shape[1] != arrays[0].shape[1]:
            raise ValueError(
                f"{path} has {array.shape[1]} features, but {paths[0]} has {arrays[0].shape[1]}: "
                "files that are opened as one have the same features"
            )
    first = arrays[0]
    coords: dict[Hashable, Any] = {}
    for name, coord in first.coords.items():
        if coord.dims == ("sample",) and all(name in a.coords and a[name].dims == ("sample",) for a in arrays):
            coords[name] = ("sample", _concatenated([array[name] for array in arrays]))
        elif coord.dims != ("sample",) and all(name in a.coords and a[name].identical(coord) for a in arrays):
            coords[name] = coord
    chunks = [da.full(len(array), i, dtype="int32", chunks=array.data.chunks[:1]) for i, array in enumerate(arrays)]
    coords["file"] = ("sample", da.concatenate(chunks))
    data = da.concatenate([array.data for array in arrays])
    names = {array.name for array in arrays}
    name = first.name if len(names) == 1 else "embeddings"
    return xr.DataArray(data, coords, ("sample", "feature"), name, {**first.attrs, "files": list(paths)})


def _concatenated(coords: Sequence[xr.DataArray]) -> Any:
    if any(coord.chunks is not None for coord in coords):
        return da.concatenate([coord.data for coord in coords])
    return np.concatenate([coord.values for coord in coords])


def _natural(path: str) -> list[tuple[int, str]]:
    """Orders "part_2" before "part_10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path)]
