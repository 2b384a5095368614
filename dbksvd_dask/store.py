"""Zarr stores that are written whole or not at all, and opened only if they are what they should be."""

import os
import shutil
import warnings
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import numpy as np
import xarray as xr
import zarr

FORMAT_VERSION = 1
_FORMAT = "dbksvd_dask "


def write_store(dataset: xr.Dataset, path: str | os.PathLike[str], kind: str, *, overwrite: bool = False) -> None:
    """Write a Dataset as a zarr store, atomically: under `path` there is the whole store or what was there before.

    The store is written beside its place, under a hidden name, and renamed when it is complete. A killed write leaves
    ``.NAME.*.partial`` behind, which nothing opens by accident and anybody may delete.

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
    target = _local_path(path)
    if target.exists() or target.is_symlink():
        if not overwrite:
            raise FileExistsError(f"{target} exists: choose another path, or pass overwrite=True")
        open_store(target, kind).close()  # replaces only what it could have written
    partial = target.with_name(f".{target.name}.{uuid4().hex[:8]}.partial")
    # zarr 3 has no specified data type for NumPy's fixed-length strings.
    text = {
        name: dataset[name].astype(np.dtypes.StringDType())
        for name in dataset.variables
        if dataset[name].dtype.kind == "U"
    }
    stamped = dataset.assign(text).assign_attrs(
        dataset.attrs, format=_FORMAT + kind, format_version=FORMAT_VERSION, written_by=_package_version()
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with warnings.catch_warnings():
            # Not in the zarr 3 specification yet; but without it xarray warns at every opening.
            warnings.filterwarnings("ignore", "Consolidated metadata")
            stamped.to_zarr(partial, mode="w", zarr_format=3, consolidated=True)
        if target.exists():
            replaced = target.with_name(f".{target.name}.{uuid4().hex[:8]}.replaced")
            target.rename(replaced)
            partial.rename(target)
            shutil.rmtree(replaced)
        else:
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def open_store(path: str | os.PathLike[str], kind: str) -> xr.Dataset:
    """Open a store that `write_store` has written, lazily.

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
        dataset = xr.open_zarr(target, consolidated=True)
    except Exception as error:  # zarr and xarray let through whatever their parsers raise
        raise ValueError(f"{target} is not a zarr store, or was only half written: {error}") from error
    found = dataset.attrs.get("format", "")
    if found != _FORMAT + kind:
        raise ValueError(f"{target} is not a {kind} store of dbksvd_dask: its format attribute is {found!r}")
    if dataset.attrs["format_version"] > FORMAT_VERSION:
        raise ValueError(f"{target} was written by {dataset.attrs['written_by']}: upgrade dbksvd_dask to open it")
    return dataset


def store_kind(path: str | os.PathLike[str]) -> str | None:
    """What kind of store `write_store` has written at `path`; None where it has not."""
    try:
        found = zarr.open_group(_local_path(path), mode="r").attrs.get("format", "")
    except Exception:  # whatever lies there is not ours
        return None
    return found.removeprefix(_FORMAT) if isinstance(found, str) and found.startswith(_FORMAT) else None


def _local_path(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if "://" in text:
        raise ValueError(f"{text} is a URL: stores are written to local folders; copy the folder afterwards")
    return Path(text)


def _package_version() -> str:
    return f"dbksvd_dask {version('dbksvd-dask')}"
