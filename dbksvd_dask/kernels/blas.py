"""One BLAS thread inside a task: the parallelism is Dask's, over chunks."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from threadpoolctl import threadpool_info, threadpool_limits

from dbksvd_dask.shared_setting import SharedSetting


def single_threaded() -> SharedSetting:
    """Limit BLAS to one thread while anybody in this process is inside; the last one out restores what was before.

    Examples
    --------
    >>> import numpy as np
    >>> with single_threaded():
    ...     product = np.ones((2, 3)) @ np.ones((3, 2))
    """
    return _one_thread


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
    return lambda: None


def _in_a_thread_that_ends(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


def _here(function: Callable[[], Any]) -> Any:
    return function()


_one_thread = SharedSetting(_limit)
