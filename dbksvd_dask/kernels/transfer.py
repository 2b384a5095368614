"""What tasks hand to each other, possibly from worker to worker."""

import sys
from dataclasses import dataclass, fields
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Transferable:
    """Base of dataclasses of arrays that tasks return: arrays arrive aligned, and their size is known.

    A worker reads what it receives into one buffer, in which arrays begin at any byte. NumPy then copies them for each
    matrix product, and numba compiles every kernel once more. So they are moved once, on arrival.
    """

    def __reduce__(self) -> tuple:
        """Pickle by fields."""
        return _receive, (type(self), *(getattr(self, field.name) for field in fields(self)))

    def __sizeof__(self) -> int:
        """Bytes of the arrays, by which Dask decides where tasks run."""
        values = [getattr(self, field.name) for field in fields(self)]
        return sum(value.nbytes if isinstance(value, np.ndarray) else sys.getsizeof(value) for value in values)


def _receive(cls: type[Transferable], *values: Any) -> Transferable:
    return cls(*(np.require(value, requirements="A") if isinstance(value, np.ndarray) else value for value in values))
