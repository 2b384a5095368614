"""Tasks that compute: each takes one core, or one device."""

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from threading import RLock
from typing import Any

from dbksvd_dask.kernels.backend import on_device
from dbksvd_dask.kernels.blas import single_threaded
from dbksvd_dask.kernels.transfer import Transferable

_device = RLock()


def computing(function: Callable) -> Callable:
    """Make a task of a function that computes on arrays.

    BLAS takes one thread: the parallelism is Dask's. On a device the tasks of a process take turns, so that what a task
    needs while it runs is there once; and a task ends when the device has done its work: only then may memory that it
    reads be used for something else, as for rows that another stream brings.

    Examples
    --------
    >>> import numpy as np
    >>> @computing
    ... def twice(array):
    ...     return 2 * array
    >>> twice(np.ones(3))
    array([2., 2., 2.])
    """

    @wraps(function)
    def compute(*arguments: Any) -> Any:
        with single_threaded():
            if not _any_on_device(arguments):
                return function(*arguments)
            from dbksvd_dask.kernels import cuda  # which is there, where its arrays are
            from dbksvd_dask.kernels.cuda.out_of_memory import explained_memory_errors

            rows = arguments[0] if isinstance(arguments[0], list) else []
            pieces = [piece for piece in rows if on_device(piece)]
            n_rows, n_bytes = sum(map(len, pieces)), sum(piece.nbytes for piece in pieces)
            with _device, explained_memory_errors(n_rows, n_bytes // max(n_rows, 1)):
                result = function(*arguments)
                cuda.clock()
                return result

    return compute


def _any_on_device(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_any_on_device, value))
    if isinstance(value, Transferable):
        return any(_any_on_device(getattr(value, field.name)) for field in fields(value))
    return on_device(value)
