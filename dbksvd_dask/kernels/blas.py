"""One BLAS thread inside a task: the parallelism is Dask's, over chunks."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any

from threadpoolctl import threadpool_limits

_lock = Lock()
_holders = 0
_limits: threadpool_limits | None = None


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
    global _holders, _limits
    with _lock:
        if _holders == 0:
            _limits = _in_own_thread(partial(threadpool_limits, limits=1, user_api="blas"))
        _holders += 1
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if _holders == 0 and _limits is not None:
                _in_own_thread(_limits.restore_original_limits)
                _limits = None


def _in_own_thread(function: Callable[[], Any]) -> Any:
    """Call `function` in a thread that ends: threadpoolctl ignores all threads but the first, as long as that lives."""
    with ThreadPoolExecutor(1) as own:
        return own.submit(function).result()
