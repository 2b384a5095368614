"""Zarr stores that are written whole or not at all, and opened only if they are what they should be."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import xarray as xr
import zarr
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore, MemoryStore

from dbksvd_dask.draft import ROOT, Draft, write_zarr
from dbksvd_dask.embeddings.checks import FORMAT
from dbksvd_dask.embeddings.groups import check_complete, open_group
from dbksvd_dask.embeddings.guarded import guarded
from dbksvd_dask.embeddings.places import exists, file_system, is_url, placed, unreachable
from dbksvd_dask.embeddings.rows import in_named_chunks
from dbksvd_dask.embeddings.untrusted import RefusedStoreError
from dbksvd_dask.retry import DISK_FULL, retrying
from dbksvd_dask.whole import check_place, disk_full, written_whole

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
    OSError
        If there is no room: nothing is left of what was written.
    ValueError
        If `path` is a URL.
    """
    with written_whole(check_target(path, kind, overwrite=overwrite)) as beside:
        write_zarr(_stamped(dataset, kind), Draft(LocalStore(beside), str(path)))


def publish_store(dataset: xr.Dataset, target: str | os.PathLike[str], kind: str) -> None:
    """Write a Dataset that is in memory to wherever fsspec can write, so that it opens only when it is whole.

    A local folder is written as by `write_store`. On an object store, where no folder can be renamed, everything is
    uploaded but the root metadata, and these last: a killed write leaves objects that nothing opens, and that the
    next write of the same target replaces.

    Parameters
    ----------
    dataset : xarray.Dataset
        As for `write_store`.
    target : path or URL
        Local folder, or any URL of fsspec.
    kind : str
        As for `write_store`.

    Raises
    ------
    FileExistsError
        If there is a store at `target`, or anything at all where it is local.
    OSError
        If it cannot be written: nothing is left of it, as far as that can be deleted.
    ImportError
        If the package for this kind of URL is not installed.

    Examples
    --------
    >>> publish_store(xr.Dataset({"x": ("i", [1.0, 2.0])}), "memory://bucket/x.zarr", "example")
    >>> open_store("memory://bucket/x.zarr", "example", ["x"]).x.values
    array([1., 2.])
    """
    place = placed(target)
    if not is_url(place):
        write_store(dataset, place, kind)
        return
    files, root = file_system(place)
    if exists(f"{place}/{ROOT}"):
        raise FileExistsError(f"{place} exists: choose another URL, or delete it")
    objects: dict[str, Buffer] = {}
    write_zarr(_stamped(dataset, kind), MemoryStore(objects))
    written = []
    try:
        for key in sorted(objects, key=ROOT.__eq__):  # the root last
            written.append(f"{root}/{key}")
            retrying(partial(_upload, files, written[-1], objects[key].to_bytes()), f"writing {place}/{key}")
    except BaseException as error:
        for path in written:
            with suppress(Exception):
                files.rm_file(path)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise disk_full(place, error) from error
        raise


def remove_store(target: str | os.PathLike[str]) -> None:
    """Delete what `publish_store` has written or left half written, so that at no moment a part of it opens.

    Nothing happens if nothing is there.
    """
    place = placed(target)
    files, root = file_system(place)
    if exists(f"{place}/{ROOT}"):
        retrying(partial(files.rm_file, f"{root}/{ROOT}"), f"deleting {place}/{ROOT}")
    if exists(place):
        retrying(partial(files.rm, root, recursive=True), f"deleting {place}")


def child_names(target: str | os.PathLike[str]) -> list[str]:
    """Names of what lies in a folder, local or of a URL, sorted; none where nothing is there."""
    files, root = file_system(placed(target))
    files.invalidate_cache()  # another process may have written since
    try:
        paths = retrying(partial(files.ls, root, detail=False), f"listing {target}")
    except (FileNotFoundError, NotADirectoryError):
        return []
    # An object store may list the folder itself.
    return sorted({path.rstrip("/").rpartition("/")[2] for path in paths if path.rstrip("/") != root.rstrip("/")})


def check_target(path: str | os.PathLike[str], kind: str, *, overwrite: bool) -> Path:
    """The folder that `write_store` would write; raises as it would, without writing."""
    what = f"a {kind} store of dbksvd_dask"
    return check_place(path, what, lambda target: store_kind(target) == kind, overwrite=overwrite)


def _upload(files: fsspec.AbstractFileSystem, path: str, content: bytes) -> None:
    try:
        files.pipe_file(path, content)
    except FileNotFoundError:  # it has real folders
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        files.pipe_file(path, content)


def _stamped(dataset: xr.Dataset, kind: str) -> xr.Dataset:
    return dataset.assign_attrs(
        format=FORMAT + kind,
        format_version=FORMAT_VERSION,
        written_by=_package_version(),
        identity=uuid4().hex,
    )


def open_store(path: str | os.PathLike[str], kind: str, needed: Sequence[str]) -> xr.Dataset:
    """Open a store that `write_store` has written, lazily.

    Parameters
    ----------
    path : path or URL
        Local folder, or any URL of fsspec.
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
    target = placed(path)
    try:
        node = zarr.open_group(guarded(target), mode="r")
        found = node.attrs.get("format", "")
        dataset = open_group(node, target) if found == FORMAT + kind else xr.Dataset()
    except (RefusedStoreError, ImportError):
        raise
    except Exception as error:  # zarr and xarray let through whatever their parsers raise
        named = unreachable(target, error)
        if named is not error:
            raise named from error
        if not exists(target):
            raise FileNotFoundError(f"there is no {kind} store at {target}") from error
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
        return zarr.open_group(guarded(placed(path)), mode="r").attrs
    except Exception:  # whatever lies there is not ours
        return {}


def _package_version() -> str:
    return f"dbksvd_dask {version('dbksvd-dask')}"
