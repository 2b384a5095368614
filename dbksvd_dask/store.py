"""Zarr stores that are written whole or not at all, and opened only if they are what they should be."""

import ctypes
import os
import shutil
import warnings
from collections.abc import Hashable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from time import sleep
from typing import Any
from uuid import uuid4

import numpy as np
import xarray as xr
import zarr

from dbksvd_dask.embeddings.checks import FORMAT
from dbksvd_dask.embeddings.opening import check_complete, in_named_chunks

FORMAT_VERSION = 1


def write_store(dataset: xr.Dataset, path: str | os.PathLike[str], kind: str, *, overwrite: bool = False) -> None:
    """Write a Dataset as a zarr store, atomically: under `path` there is the whole store or what was there before.

    The store is written beside its place, under a hidden name, and renamed when it is complete. A killed write leaves
    ``.NAME.*.partial`` behind, which nothing opens by accident and anybody may delete. Each write has an identity of
    its own in the store's attributes, by which what is derived from a store is known to be of it.

    Parameters
    ----------
    dataset : xarray.Dataset
        Dask arrays are computed and written chunk by chunk.
    path : path
        Local folder.
    kind : str
        What the store is, for `open_store`: kept in its attributes with the format version.
    overwrite : bool
        Replace a store of the same kind.

    Raises
    ------
    FileExistsError
        If there is something at `path` that may not be replaced.
    ValueError
        If `path` is a URL.
    """
    target = check_target(path, kind, overwrite=overwrite)
    partial = target.with_name(f".{target.name}.{uuid4().hex[:8]}.partial")
    stamped = _storable(dataset).assign_attrs(
        dataset.attrs,
        format=FORMAT + kind,
        format_version=FORMAT_VERSION,
        written_by=_package_version(),
        identity=uuid4().hex,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with warnings.catch_warnings():
            # Not in the zarr 3 specification yet; but without it xarray warns at every opening.
            warnings.filterwarnings("ignore", "Consolidated metadata")
            # Empty chunks too, so that a missing one tells of a damaged store.
            stamped.to_zarr(partial, mode="w", zarr_format=3, consolidated=True, write_empty_chunks=True)
        if target.exists():
            _exchange(partial, target)
        else:
            partial.rename(target)
    finally:
        _remove(partial)


def check_target(path: str | os.PathLike[str], kind: str, *, overwrite: bool) -> Path:
    """The folder that `write_store` would write; raises as it would, without writing."""
    target = _local_path(path)
    if target.exists() or target.is_symlink():
        if not overwrite:
            raise FileExistsError(f"{target} exists: choose another path, or pass overwrite=True (--overwrite)")
        if store_kind(target) != kind:
            raise FileExistsError(f"{target} is not a {kind} store of dbksvd_dask, so it is not overwritten")
        return target.resolve()
    for parent in target.absolute().parents:
        if parent.exists():
            if not parent.is_dir():
                raise NotADirectoryError(f"{parent} is not a folder: {target} cannot be written")
            if not os.access(parent, os.W_OK | os.X_OK):
                raise PermissionError(f"you may not write to {parent}: choose another path than {target}")
            break
    return target


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


def _exchange(first: Path, second: Path) -> None:
    """Let two folders change places, in one step where the system can (Linux)."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of <linux/fs.h>
    if renameat2 and renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0:
        return
    aside = first.with_suffix(".replaced")
    second.rename(aside)
    first.rename(second)
    aside.rename(first)


def _remove(folder: Path) -> None:
    """Remove a folder into which tasks of a failed write may still be writing."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        sleep(0.05)


def open_store(path: str | os.PathLike[str], kind: str, needed: Sequence[str]) -> xr.Dataset:
    """Open a store that `write_store` has written, lazily.

    Parameters
    ----------
    path : path
        Local folder.
    kind : str
        As it was written.
    needed : sequence of str
        Variables and attributes without which it is not one.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    ValueError
        If it is not a store of this kind, or was written by a newer version.
    """
    target = _local_path(path)
    if not target.exists():
        raise FileNotFoundError(f"there is no {kind} store at {target}")
    try:
        node = zarr.open(target, mode="r")
        found = node.attrs.get("format", "")
        dataset = xr.open_zarr(target, consolidated=True, chunks=None) if found == FORMAT + kind else xr.Dataset()
    except Exception as error:  # zarr and xarray let through whatever their parsers raise
        raise ValueError(f"{target} is not a zarr store, or was only half written: {error}") from error
    if found != FORMAT + kind:
        raise ValueError(f"{target} is not a {kind} store of dbksvd_dask: its format attribute is {found!r}")
    missing = {"format_version", *needed}.difference(dataset.variables, dataset.attrs)
    if missing:
        raise ValueError(f"{target} is not a complete {kind} store: it has no {', '.join(sorted(missing))}")
    if dataset.attrs["format_version"] > FORMAT_VERSION:
        raise ValueError(f"{target} was written by {dataset.attrs['written_by']}: upgrade dbksvd_dask to open it")
    for name, array in node.arrays():
        check_complete(array, f"{target} ({name!r})")
    return in_named_chunks(dataset, target)


def store_kind(path: str | os.PathLike[str]) -> str | None:
    """What kind of store `write_store` has written at `path`; None where it has not."""
    found = _attributes(path).get("format", "")
    return found.removeprefix(FORMAT) if isinstance(found, str) and found.startswith(FORMAT) else None


def store_identity(path: str | os.PathLike[str]) -> str | None:
    """Which write it is that `write_store` has left at `path`; None where there is none."""
    return _attributes(path).get("identity")


def _attributes(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    try:
        return zarr.open_group(_local_path(path), mode="r").attrs
    except Exception:  # whatever lies there is not ours
        return {}


def _local_path(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if "://" in text:
        raise ValueError(f"{text} is a URL: stores are written to local folders; copy the folder afterwards")
    return Path(text).expanduser()


def _package_version() -> str:
    return f"dbksvd_dask {version('dbksvd-dask')}"
