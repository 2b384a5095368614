"""Numerics on one chunk in memory, compiled by numba.

Every kernel is serial and releases the GIL: parallelism is Dask's, over chunks. The formulas are those of the DB-KSVD
paper (Valentin, Katz, Vanhoucke, Kochenderfer, arXiv 2505.18441) with samples as rows; the literal float64
transcription that these kernels are tested against is ``tests/oracle.py``.
"""

from dbksvd_dask.kernels.cpu.least_squares import refit_least_squares
from dbksvd_dask.kernels.cpu.pursuit import matching_pursuit, orthogonal_matching_pursuit, subtract_reconstruction
from dbksvd_dask.kernels.cpu.update import (
    accumulate_residual,
    next_direction,
    project_in_turn,
    ritz_vectors,
    support_entries,
    support_products,
)
from dbksvd_dask.kernels.cpu.vector import feature_moments, first_nonfinite_row, squared_row_norms

__all__ = [
    "accumulate_residual",
    "feature_moments",
    "first_nonfinite_row",
    "matching_pursuit",
    "next_direction",
    "orthogonal_matching_pursuit",
    "project_in_turn",
    "refit_least_squares",
    "ritz_vectors",
    "squared_row_norms",
    "subtract_reconstruction",
    "support_entries",
    "support_products",
]
