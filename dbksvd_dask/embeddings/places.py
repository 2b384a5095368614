"""Where stores lie: local folders, and URLs of the file systems that fsspec knows."""

import os
import re
from functools import partial
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dbksvd_dask.retry import ATTEMPTS, may_pass, retrying

_URL = re.compile(r"[a-z][a-z0-9+.-]*(::[a-z][a-z0-9+.-]*)*://", re.IGNORECASE)


def is_url(path: object) -> bool:
    """Tell a URL from the name of a local file, which may have colons, too.

    Examples
    --------
    >>> is_url("s3://bucket/rows.zarr"), is_url("12:30/rows.zarr"), is_url("~/rows #1.zarr")
    (True, False, False)
    """
    return _URL.match(str(path)) is not None


def placed(path: str | os.PathLike[str]) -> str:
    """A path made absolute, for workers in another folder, with the home folder for ``~``; a URL as it is.

    Raises
    ------
    ValueError
        If `path` is empty, or a URL without a path.

    Examples
    --------
    >>> placed("file:///data/rows.zarr/"), placed("s3://bucket/rows.zarr/")
    ('/data/rows.zarr', 's3://bucket/rows.zarr')
    """
    text = os.fspath(path)
    if not text:
        raise ValueError("the path is empty: name a folder or a file")
    if is_url(text) and not text.partition("://")[2].strip("/"):
        raise ValueError(f"{text} names no place: put a path behind it")
    if is_url(text) and text.partition("://")[0].lower() not in ("file", "local"):
        return text.rstrip("/")
    local = Path(LocalFileSystem._strip_protocol(text) if is_url(text) else text)
    return str(local.expanduser().absolute())  # with its "..", whose meaning may depend on links


def file_system(place: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URL, and the path there.

    Raises
    ------
    ImportError
        If the package for this kind of URL is not installed.
    ValueError
        If fsspec knows no such URLs.
    """
    if not is_url(place):
        return LocalFileSystem(), place
    try:
        return fsspec.url_to_fs(place)
    except ImportError as error:
        raise ImportError(f"{place} cannot be opened: {error}, here and on the workers") from error
    except ValueError as error:
        raise ValueError(f"{place} cannot be opened: {error}") from error


def exists(place: str) -> bool:
    """Whether anything is at a path or URL.

    Raises
    ------
    OSError
        If that cannot be found out: the place cannot be reached, or may not be read.
    """
    files, path = file_system(place)
    files.invalidate_cache()  # another process may have written since
    try:
        retrying(partial(files.info, path), f"looking for {place}")  # its own `exists` takes any failure for a no
    except (FileNotFoundError, NotADirectoryError):
        return False
    except Exception as error:
        raise unreachable(place, error) from error
    return True


def unreachable(place: str, error: Exception) -> Exception:
    """The error for a place that cannot be reached or may not be read, with what to do; any other error as it is."""
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return PermissionError(f"{place} may not be read ({error}): are the credentials there, and for this?")
    if may_pass(error):
        return ConnectionError(
            f"{place} cannot be reached, tried {ATTEMPTS} times ({str(error) or type(error).__name__}): "
            "do the same again when it can"
        )
    return error
