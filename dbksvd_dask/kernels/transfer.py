"""What tasks hand to each other, possibly from worker to worker."""

import sys
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from dbksvd_dask.kernels.backend import on_device


@dataclass(frozen=True, eq=False)
class Transferable:
    """Base of dataclasses of arrays and tuples of arrays that tasks return: aligned on arrival, and of known size.

    A worker reads what it receives into one buffer, in which arrays begin at any byte. NumPy then copies them for each
    matrix product, and numba compiles every kernel once more. So they are moved once, on arrival. On a device each
    array has memory of its own.
    """

    def __reduce__(self) -> tuple:
        """Pickle by fields."""
        return _receive, (type(self), *(getattr(self, field.name) for field in fields(self)))

    def __sizeof__(self) -> int:
        """Bytes of the arrays, by which Dask decides where tasks run."""
        return sum(_size(getattr(self, field.name)) for field in fields(self))


def _size(value: Any) -> int:
    if isinstance(value, tuple):
        return sum(map(_size, value))
    return int(value.nbytes) if isinstance(value, np.ndarray) or on_device(value) else sys.getsizeof(value)


def _receive(cls: type[Transferable], *values: Any) -> Transferable:
    return cls(*map(_aligned, values))


def _aligned(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_aligned, value))
    return np.require(value, requirements="A") if isinstance(value, np.ndarray) else value
