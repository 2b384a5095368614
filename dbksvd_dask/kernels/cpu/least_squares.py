"""Least squares on the support of each row, by a Cholesky factor of its part of the Gram matrix."""

from typing import Any

import numpy as np

from dbksvd_dask.kernels.cpu.vector import compiled


def refit_least_squares(
    residual_products: np.ndarray, gram: np.ndarray, indices: np.ndarray, values: np.ndarray
) -> None:
    """Replace the coefficients of each row by the least-squares ones on the same support.

    Parameters
    ----------
    residual_products : (n, k) floats
        ``⟨r, d_j⟩`` for the atom in each slot, with r the residual of the coefficients given.
    gram : (m, m) floats
    indices, values : (n, k) int32 and floats
        `values` are overwritten; a row whose support is linearly dependent keeps its own.
    """
    n_slots = indices.shape[1]
    scratch = np.empty((n_slots, n_slots)), np.empty(n_slots)
    _refit_least_squares(residual_products, gram, pivot_limit(gram), indices, values, *scratch)


@compiled
def _refit_least_squares(
    residual_products: Any, gram: Any, limit: float, indices: Any, values: Any, lower: Any, step: Any
) -> None:
    for i in range(indices.shape[0]):
        size = 0
        independent = True
        while independent and size < indices.shape[1] and indices[i, size] >= 0:
            independent = extend_cholesky(lower, size, gram, indices[i], indices[i, size], limit)
            step[size] = residual_products[i, size]
            size += 1
        if not independent:
            continue
        # The correction G_II δ = ⟨r, d_I⟩ is small where the pursuit was good, so it loses fewer digits than x itself.
        forward_substitute(lower, size, step)
        backward_substitute(lower, size, step)
        for slot in range(size):
            values[i, slot] += step[slot]


def pivot_limit(gram: np.ndarray) -> float:
    """What the pivot of an atom in a Cholesky factor must exceed: it depends on those before if it does not."""
    return 16 * float(np.finfo(gram.dtype).eps)


@compiled
def extend_cholesky(lower: Any, size: int, gram: Any, support: Any, atom: int, limit: float) -> bool:
    """Append `atom` to the Cholesky factor of ``G[support, support]``; False when it depends on the support."""
    for column in range(size):
        lower[size, column] = gram[atom, support[column]]
    forward_substitute(lower, size, lower[size])
    pivot = float(gram[atom, atom])
    for column in range(size):
        pivot -= lower[size, column] * lower[size, column]
    lower[size, size] = np.sqrt(max(pivot, 0.0))
    return pivot > limit


@compiled
def forward_substitute(lower: Any, size: int, right: Any) -> None:
    """Solve ``L z = right`` in place for the leading `size` rows of the lower triangular L."""
    for row in range(size):
        for column in range(row):
            right[row] -= lower[row, column] * right[column]
        right[row] /= lower[row, row]


@compiled
def backward_substitute(lower: Any, size: int, right: Any) -> None:
    """Solve ``Lᵀ z = right`` in place for the leading `size` rows of the lower triangular L."""
    for row in range(size - 1, -1, -1):
        for column in range(row + 1, size):
            right[row] -= lower[column, row] * right[column]
        right[row] /= lower[row, row]
