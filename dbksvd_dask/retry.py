"""What fails in passing, as networks and object stores do, is tried again, a little later each time."""

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Iterator
from random import Random
from time import sleep
from typing import TypeVar

ATTEMPTS = 8
FIRST_PAUSE = 0.05
"""Seconds; doubled each time: some six seconds in all."""

T = TypeVar("T")

_log = logging.getLogger(__name__)
_jitter = Random()  # its own: a seeded global generator must not notice

_LASTING = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a disk that is full, a quota that is used up, a file that may not grow."""
_LASTING_NUMBERS = {*DISK_FULL, errno.EROFS, errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.EXDEV}
# The base classes, by package, of what clients of object stores raise beside OSError; not imported for this.
_CLIENT_ERRORS = {
    "aiohttp": {"ClientError"},
    "azure": {"ServiceRequestError", "ServiceResponseError", "HttpResponseError"},
    "botocore": {"HTTPClientError", "ClientError"},
    "gcsfs": {"HttpError"},
    "google": {"TransportError", "ServerError"},
    "requests": {"RequestException"},
    "urllib3": {"HTTPError"},
}
_PASSING_STATUS = {408, 425, 429}


def retrying(call: Callable[[], T], what: str) -> T:
    """Call until it succeeds, up to `ATTEMPTS` times, while it fails with errors that may pass.

    Parameters
    ----------
    call : callable
        Without arguments; must not mind being called again.
    what : str
        What the log calls it, e.g. "reading s3://bucket/rows.zarr".

    Raises
    ------
    Exception
        The last error of `call`, unchanged: one that does not pass, or still there in the end.

    Examples
    --------
    >>> answers = iter([TimeoutError("too slow"), "rows"])
    >>> def read():
    ...     answer = next(answers)
    ...     if isinstance(answer, Exception):
    ...         raise answer
    ...     return answer
    >>> retrying(read, "reading the rows")
    'rows'
    """
    pauses = _pauses()
    while True:
        try:
            return call()
        except Exception as error:
            sleep(_pause_after(error, pauses, what))


async def retrying_async(call: Callable[[], Awaitable[T]], what: str) -> T:
    """The same of a coroutine function, for the event loop in which zarr reads."""
    pauses = _pauses()
    while True:
        try:
            return await call()
        except Exception as error:
            await asyncio.sleep(_pause_after(error, pauses, what))


def may_pass(error: BaseException) -> bool:
    """Whether what failed so may succeed a little later.

    Examples
    --------
    >>> may_pass(ConnectionResetError()), may_pass(PermissionError()), may_pass(ValueError())
    (True, False, False)
    """
    if isinstance(error, OSError):
        lasting = isinstance(error, _LASTING) or error.errno in _LASTING_NUMBERS
        return not lasting and not _refused(error)
    classes = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__}
    return any(name in _CLIENT_ERRORS.get(package, ()) for package, name in classes) and not _refused(error)


def _refused(error: BaseException) -> bool:
    """Whether a server has answered that this request is wrong, rather than that it could not serve it."""
    answers = (getattr(error, name, None) for name in ("status", "status_code", "code"))
    return any(isinstance(n, int) and 400 <= n < 500 and n not in _PASSING_STATUS for n in answers)


def _pauses() -> Iterator[float]:
    # Workers that were refused together do not come back together.
    return (FIRST_PAUSE * 2**i * _jitter.uniform(0.5, 1.5) for i in range(ATTEMPTS - 1))


def _pause_after(error: Exception, pauses: Iterator[float], what: str) -> float:
    """Seconds to wait before the next attempt; raises the error where there is none."""
    pause = next(pauses, None) if may_pass(error) else None
    if pause is None:
        raise error
    _log.warning("%s failed (%s: %s): tried again in %.2g s", what, type(error).__name__, error, pause)
    return pause
