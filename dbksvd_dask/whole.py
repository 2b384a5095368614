"""Files and folders that are written whole or not at all."""

import ctypes
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from uuid import uuid4

from dbksvd_dask.embeddings.places import is_url, placed
from dbksvd_dask.retry import DISK_FULL


def check_place(path: str | os.PathLike[str], what: str, is_one: Callable[[Path], bool], *, overwrite: bool) -> Path:
    """The local path where something may be written; nothing is.

    Parameters
    ----------
    path : path
    what : str
        What is to be written, as the errors call it.
    is_one : callable of a path
        Whether what is there already is one, and so may be replaced.
    overwrite : bool
        Replace one that is there.

    Raises
    ------
    FileExistsError
        If there is something at `path` that may not be replaced.
    NotADirectoryError, PermissionError
        If nothing can be written there.
    ValueError
        If `path` is a URL.
    """
    target = _local_path(path)
    if target.exists() or target.is_symlink():
        if not overwrite:
            raise FileExistsError(f"{target} exists: choose another path, or pass overwrite=True (--overwrite)")
        if not is_one(target):
            raise FileExistsError(f"{target} is not {what}, so it is not overwritten")
        return target.resolve()
    for parent in target.absolute().parents:
        if parent.exists():
            if not parent.is_dir():
                raise NotADirectoryError(f"{parent} is not a folder: {target} cannot be written")
            if not os.access(parent, os.W_OK | os.X_OK):
                raise PermissionError(f"you may not write to {parent}: choose another path than {target}")
            break
    return target


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A hidden place beside a folder or file, where that is to be written: it takes its place when the block ends.

    That is one step. Where the block fails nothing is left of what it wrote, and `target` is as it was.

    Raises
    ------
    OSError
        If there is no room, with what to do about it.
    """
    beside = target.with_name(f".{target.name}.{uuid4().hex[:8]}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        if target.exists():
            exchange(beside, target)
        else:
            beside.rename(target)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise disk_full(target, error) from error
        raise
    finally:
        _remove(beside)


def disk_full(target: Path | str, error: OSError) -> OSError:
    """The error of a full disk, with what to do about it."""
    return OSError(
        error.errno,
        f"{target} cannot be written ({error.strerror}); what was there before is unchanged: make room there, or "
        "choose a path on another disk",
    )


def _local_path(path: str | os.PathLike[str]) -> Path:
    place = placed(path)
    if is_url(place):
        raise ValueError(f"{place} is a URL: stores are written to local folders; copy the folder afterwards")
    return Path(place)


def exchange(first: Path, second: Path) -> None:
    """Let two folders or files change places, in one step where the system can (Linux)."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of <linux/fs.h>
    if renameat2 and renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0:
        return
    aside = first.with_suffix(".replaced")
    second.rename(aside)
    first.rename(second)
    aside.rename(first)


def _remove(place: Path) -> None:
    """Remove a file, or a folder into which tasks of a failed write may still be writing."""
    if place.is_file():
        place.unlink()
        return
    for _ in range(100):
        if not place.exists():
            return
        shutil.rmtree(place, ignore_errors=True)
        sleep(0.05)  # what a task is writing at this moment comes back
