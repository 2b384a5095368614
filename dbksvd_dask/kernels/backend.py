"""Where arrays are, and which kernels compute there: numba's on NumPy arrays, numba.cuda's on CuPy arrays."""

from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np


def backend_of(array: Any) -> ModuleType:
    """The kernels for an array, or for the chunks of a dask array: `kernels.cpu` or `kernels.cuda`, alike in functions.

    Examples
    --------
    >>> import numpy as np
    >>> backend_of(np.zeros(3)).__name__
    'dbksvd_dask.kernels.cpu'
    """
    return import_module(f"dbksvd_dask.kernels.{'cuda' if on_device(array) else 'cpu'}")


def on_device(array: Any) -> bool:
    """Whether an array is a CuPy array, or a dask array of such; CuPy is not imported for that.

    Examples
    --------
    >>> import numpy as np
    >>> on_device(np.zeros(3))
    False
    """
    block = getattr(array, "_meta", array)
    return any(kind.__module__.partition(".")[0] == "cupy" for kind in type(block).__mro__)


def to_host(array: Any) -> np.ndarray:
    """An array as a NumPy array; one that is on the host is handed on as it is."""
    return array.get() if on_device(array) else array


def placed(array: Any, device: bool) -> Any:
    """An array as a CuPy array or as a NumPy array; one that is there already is handed on as it is."""
    if on_device(array) == device:
        return array
    if not device:
        return array.get()
    from dbksvd_dask.kernels import cuda

    return cuda.xp.asarray(array)
