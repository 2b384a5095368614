"""One BLAS thread inside a task: the parallelism is Dask's, over chunks."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from threadpoolctl import ThreadpoolController

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
    blas = _libraries(len(sys.modules))
    if _is_single_threaded(blas):  # as on Dask's workers, whose tasks then need not wait for a thread to start
        return lambda: None
    for call in (_in_a_thread_that_ends, _here):
        limits = call(lambda: blas.limit(limits=1))
        if _is_single_threaded(blas):
            return lambda call=call, limits=limits: call(limits.restore_original_limits)  # type: ignore[misc]
        call(limits.restore_original_limits)
    return lambda: None


@lru_cache(maxsize=1)
def _libraries(n_modules: int) -> ThreadpoolController:
    """The BLAS libraries of this process, when so many modules have been imported: only an import brings another one.

    To look for them takes milliseconds, which tasks on workers would each spend.
    """
    return ThreadpoolController().select(user_api="blas")


def _is_single_threaded(blas: ThreadpoolController) -> bool:
    return all(library.num_threads == 1 for library in blas.lib_controllers)


def _in_a_thread_that_ends(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


def _here(function: Callable[[], Any]) -> Any:
    return function()


_one_thread = SharedSetting(_limit)
