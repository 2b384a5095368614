"""Checkpoints as they lie on a disk or in an object store: a folder with a dictionary for each of the last two.

Each of them is a whole store or none at all, so the newest one that opens is what counts, at any time.
"""

import os
import re
import warnings
from pathlib import Path

import xarray as xr

from dbksvd_dask.embeddings.places import is_url, placed
from dbksvd_dask.store import ROOT, check_target, child_names, open_store, publish_store, remove_store, store_kind

KIND = "checkpoint"
"""What `store_kind` says of the folder; what is in it are dictionaries."""

NEEDED = ("atoms", "n_averaged", "checkpoint", "provenance")

KEPT = 2

_NAME = re.compile(r"iteration-\d{6,}")
_DEBRIS = re.compile(r"\.iteration-\d{6,}\.\w+\.partial")


def checkpoint_place(path: str | os.PathLike[str]) -> str:
    """Where checkpoints lie: an absolute path, that which a link leads to, or a URL."""
    place = placed(path)
    return str(Path(place).resolve()) if os.path.islink(place) else place


def check_new_checkpoint(path: str | os.PathLike[str]) -> None:
    """Refuse a place for checkpoints where there is something else, or the checkpoint of an earlier fit.

    Raises
    ------
    FileExistsError
    """
    ours, names = store_kind(path) == KIND, _names(path)
    if ours and names:
        raise FileExistsError(
            f"there is a checkpoint of {_number(names[-1])} iterations at {os.fspath(path)}: go on with it by "
            "DBKSVD.resume(checkpoint, Y), or delete it, or choose another path to fit anew"
        )
    if not ours and (child_names(path) or os.path.isfile(path)):
        raise FileExistsError(f"{os.fspath(path)} is no checkpoint, so it is not written to: choose another path")
    place = checkpoint_place(path)
    if not ours and not is_url(place):
        check_target(f"{place}/{ROOT}" if os.path.isdir(place) else place, KIND, overwrite=False)


def write_checkpoint(dataset: xr.Dataset, path: str | os.PathLike[str], n_iter: int) -> None:
    """Add a checkpoint, and keep besides only the one before.

    Parameters
    ----------
    dataset : xarray.Dataset
        With the variables and attributes `NEEDED`, and all that a dictionary has.
    path : path or URL
        As `checkpoint_place` gives it.
    n_iter : int
        Iterations that it is of.
    """
    there = child_names(path)
    if ROOT not in there:
        if os.path.isdir(path):
            os.rmdir(path)  # an empty one, which the store takes the place of
        publish_store(xr.Dataset(), path, KIND)
    name = f"iteration-{n_iter:06d}"
    if name in there:  # damaged, or the fit was resumed from the one before
        remove_store(_child(path, name))
    publish_store(dataset, _child(path, name), "dictionary")
    before = sorted((other for other in there if _NAME.fullmatch(other) and _number(other) < n_iter), key=_number)
    kept = {name, *before[-KEPT + 1 :]}
    for other in there:
        if (_NAME.fullmatch(other) and other not in kept) or _DEBRIS.fullmatch(other):
            remove_store(_child(path, other))


def open_checkpoint(path: str | os.PathLike[str]) -> xr.Dataset:
    """The newest checkpoint that opens, in memory.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If none opens.

    Warns
    -----
    UserWarning
        If it is not the newest of all.
    """
    names = _names(path)
    while names:
        failures: list[Exception] = []
        dataset = None
        for name in reversed(names):
            try:
                dataset = open_store(_child(path, name), "dictionary", NEEDED).load()
                break
            except Exception as error:  # whatever a damaged store makes zarr raise
                if ROOT in child_names(_child(path, name)):
                    failures.append(error)
        present = _names(path)
        if dataset is not None:
            if failures and names[-1] in present:
                warnings.warn(f"{failures[0]}. The checkpoint before it is used: {name}", UserWarning, stacklevel=2)
            return dataset
        if present == names:
            if failures:
                raise ValueError(f"no checkpoint at {os.fspath(path)} can be read: {failures[0]}") from failures[0]
            break
        names = present  # a fit that goes on has replaced them meanwhile
    raise FileNotFoundError(f"there is no checkpoint at {os.fspath(path)}")


def _names(path: str | os.PathLike[str]) -> list[str]:
    """Of the checkpoints in a folder, oldest first."""
    return sorted((name for name in child_names(path) if _NAME.fullmatch(name)), key=_number)


def _child(path: str | os.PathLike[str], name: str) -> str:
    return f"{os.fspath(path).rstrip('/')}/{name}"


def _number(name: str) -> int:
    return int(name.removeprefix("iteration-"))
