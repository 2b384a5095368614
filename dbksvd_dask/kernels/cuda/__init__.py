"""Numerics on one chunk in the memory of a GPU: numba.cuda on CuPy arrays.

The functions are those of `kernels.cpu`, with the same shapes and meanings: what they return is the same to rounding,
and the same bits run after run on one device. Whole-array operations, sorts and matrix products are CuPy's. Nothing
waits for the device except what hands a number to the host.
"""

from time import perf_counter

import cupy as xp

from dbksvd_dask.kernels.costs import ProcessMemory
from dbksvd_dask.kernels.cuda.least_squares import refit_least_squares
from dbksvd_dask.kernels.cuda.pursuit import (
    matching_pursuit,
    orthogonal_matching_pursuit,
    subtract_reconstruction,
)
from dbksvd_dask.kernels.cuda.update import (
    accumulate_residual,
    normal_products,
    project_in_turn,
    sum_by_atom,
    support_entries,
    support_products,
)
from dbksvd_dask.kernels.cuda.vector import (
    add_multiples,
    feature_moments,
    first_nonfinite_row,
    long_dots,
    squared_row_norms,
)

__all__ = [
    "GRAM_TILE",
    "KRYLOV_BLOCK",
    "accumulate_residual",
    "add_multiples",
    "clock",
    "feature_moments",
    "first_nonfinite_row",
    "long_dots",
    "matching_pursuit",
    "memory",
    "normal_products",
    "orthogonal_matching_pursuit",
    "project_in_turn",
    "refit_least_squares",
    "rows_per_block",
    "squared_row_norms",
    "subtract_reconstruction",
    "sum_by_atom",
    "support_entries",
    "support_products",
    "xp",
]

GRAM_TILE = 8192
"""Atoms of the Gram matrix taken at a time: a device wants much to do at once, and its caches are no reason to stop."""

KRYLOV_BLOCK = 8192
"""Atoms updated at a time: what is computed of them in float64 takes 150 MB for each vector of 2304 features."""

_BYTES_OF_PRODUCTS = 512 * 2**20
_FEWEST_ROWS = 1024


def rows_per_block(n_atoms: int, itemsize: int) -> int:
    """Rows whose products with all atoms are formed at a time: in at most 512 MiB, but no less than 1024."""
    return max(_BYTES_OF_PRODUCTS // (n_atoms * itemsize), _FEWEST_ROWS)


def clock() -> float:
    """Seconds, when what was started on the current stream is done."""
    xp.cuda.get_current_stream().synchronize()
    return perf_counter()


def memory() -> ProcessMemory:
    """What is taken of the device's memory, by whomever; pools keep what was taken, so that it is the peak as well."""
    free, total = xp.cuda.runtime.memGetInfo()
    return ProcessMemory(total - free, total - free)
