"""One BLAS thread inside a task: the parallelism is Dask's, over chunks."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any

from threadpoolctl import threadpool_info, threadpool_limits

_lock = Lock()
_holders = 0


def _nothing() -> None: ...


_restore: Callable[[], Any] = _nothing


@contextmanager
def single_threaded() -> Iterator[None]:
    """Limit BLAS to one thread while anybody in this process is inside; the last one out restores what was before.

    The number of BLAS threads belongs to the process. If every task saved and restored it for itself, overlapping
    tasks would restore each other's limit and leave it at one for ever.

    Examples
    --------
    >>> import numpy as np
    >>> with single_threaded():
    ...     product = np.ones((2, 3)) @ np.ones((3, 2))
    """
    global _holders, _restore
    with _lock:
        if _holders == 0:
            _restore = _limit()
        _holders += 1
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if _holders == 0:
                _restore()


def _limit() -> Callable[[], Any]:
    """Limit BLAS to one thread, and return what undoes it.

    threadpoolctl heeds the thread that set a limit first and ignores all others, as long as that thread lives or until
    it has restored. So the limit is set in a thread that ends, or, where the caller holds a limit of its own, in the
    caller's.
    """
    for call in (_in_a_thread_that_ends, _here):
        limits = call(lambda: threadpool_limits(limits=1, user_api="blas"))
        if all(library["num_threads"] == 1 for library in threadpool_info() if library["user_api"] == "blas"):
            return lambda call=call, limits=limits: call(limits.restore_original_limits)  # type: ignore[misc]
        call(limits.restore_original_limits)
    return _nothing


def _in_a_thread_that_ends(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


def _here(function: Callable[[], Any]) -> Any:
    return function()
