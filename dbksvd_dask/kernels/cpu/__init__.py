"""Numerics on one chunk in memory, compiled by numba.

Every kernel is serial and releases the GIL: parallelism is Dask's, over chunks. The formulas are those of the DB-KSVD
paper (Valentin, Katz, Vanhoucke, Kochenderfer, arXiv 2505.18441) with samples as rows; the literal float64
transcription that these kernels are tested against is ``tests/oracle.py``.

`kernels.cuda` has the same names, for arrays on a device; `kernels.backend` says whose turn it is.
"""

from time import perf_counter as clock

import numpy as xp

from dbksvd_dask.kernels.costs import memory_of_process as memory
from dbksvd_dask.kernels.cpu.least_squares import refit_least_squares
from dbksvd_dask.kernels.cpu.pursuit import matching_pursuit, orthogonal_matching_pursuit, subtract_reconstruction
from dbksvd_dask.kernels.cpu.update import (
    accumulate_residual,
    normal_products,
    project_in_turn,
    sum_by_atom,
    support_entries,
    support_products,
)
from dbksvd_dask.kernels.cpu.vector import (
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

GRAM_TILE = 64
"""Rows, or rows and columns, of the Gram matrix taken at a time: what is read and what is written stay in cache."""

KRYLOV_BLOCK = 128
"""Atoms solved for at a time, so that what is computed of them in float64 stays in cache."""


def rows_per_block(n_atoms: int, itemsize: int) -> int:
    """Rows whose products with the atoms are formed at a time, whatever the atoms.

    Enough for BLAS, few enough to stay in cache for the pursuit.
    """
    return 1024
