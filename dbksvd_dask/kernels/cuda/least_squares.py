"""Least squares on the support of each row, on a device: a triangular factor that grows atom by atom."""

import math
from typing import Any

import cupy
import numpy as np
from numba import cuda

from dbksvd_dask.kernels.cpu.least_squares import pivot_limit
from dbksvd_dask.kernels.cuda import launching
from dbksvd_dask.kernels.cuda.blocks import threads_for

MOST_BLOCKS = 4096
"""That solve at the same time, each in its own scratch: more than any device holds."""

SCRATCH_BYTES = 2**28
"""For all of them together, unless a single one needs more."""


def refit_least_squares(residual_products: Any, gram: Any, indices: Any, values: Any) -> None:
    """Replace the coefficients of each row by the least-squares ones, as `kernels.cpu.refit_least_squares`.

    Parameters
    ----------
    residual_products : (n, k) floats
        ``⟨r, d_j⟩`` for the atom in each slot, with r the residual of the coefficients given.
    gram : (m, m) floats
    indices, values : (n, k) int32 and floats
        `values` are overwritten; a row whose support is linearly dependent keeps its own.
    """
    scratch = empty_scratch(*indices.shape)
    arguments = residual_products, gram, pivot_limit(gram), indices, values, *scratch
    launching.launch(_refit_least_squares, len(scratch[0]), *arguments, threads=threads_for(indices.shape[1]))


def empty_scratch(n_rows: int, n_slots: int) -> tuple[Any, Any]:
    """What blocks need to solve least squares on supports, one row after the other.

    Returns
    -------
    factors : (blocks, 2, k, k) float64
    vectors : (blocks, 3, k) float64
    """
    n_blocks = min(n_rows, _most_blocks(n_slots))
    return cupy.empty((n_blocks, 2, n_slots, n_slots)), cupy.empty((n_blocks, 3, n_slots))


def scratch_bytes(n_slots: int) -> int:
    """Bytes of `empty_scratch` for many rows."""
    return _most_blocks(n_slots) * (2 * n_slots + 3) * n_slots * 8


def _most_blocks(n_slots: int) -> int:
    return min(MOST_BLOCKS, max(1, SCRATCH_BYTES // (2 * n_slots * n_slots * 8)))


@cuda.jit(cache=True)
def _refit_least_squares(
    residual_products: Any, gram: Any, limit: float, indices: Any, values: Any, factors: Any, vectors: Any
) -> None:
    factor = factors[cuda.blockIdx.x]
    work = vectors[cuda.blockIdx.x]
    step = work[2]
    for i in range(cuda.blockIdx.x, indices.shape[0], cuda.gridDim.x):
        size = np.uint64(0)
        independent = True
        while independent and size < np.uint64(indices.shape[1]) and indices[i, size] >= 0:
            right = residual_products[i, size]
            pivot, _ = extend_solution(factor, work, size, gram, indices[i], indices[i, size], right, limit)
            independent = pivot > limit
            size += np.uint64(1)
        # The correction G_II δ = ⟨r, d_I⟩ is small where the pursuit was good, so it loses fewer digits than x itself.
        slot = np.uint64(cuda.threadIdx.x)
        while independent and slot < size:
            values[i, slot] += step[slot]
            slot += np.uint64(cuda.blockDim.x)


@cuda.jit(device=True)
def extend_solution(
    factor: Any, work: Any, size: Any, gram: Any, support: Any, atom: int, right: float, limit: float
) -> tuple[float, float]:
    """Go from the solution of ``G_II x = b`` for the first `size` atoms of a support to that with one atom more.

    With L the Cholesky factor of ``G_II``, its inverse M is kept instead: substitution with L is a sequence of as many
    steps as there are atoms, products with M are not. For ``g = G_I,atom``: ``l = M g`` is the new row of L but for
    the pivot, ``u = Mᵀ l = G_II⁻¹ g``, and ``(−u, 1)`` over the root of the pivot is the new row of M.

    Parameters
    ----------
    factor : (2, k, k) float64
        M by rows and by columns, so that neighbouring threads find neighbouring numbers both ways.
    work : (3, k) float64
        g, l and the solution x. A thread owns every blockDim-th slot of them: it may read those of x when this ends,
        all others after a barrier.
    size : int
    gram : (m, m) floats
    support : (k,) int32
        Its first `size` atoms are meant.
    atom : int
    right : float
        The new entry of b.
    limit : float
        Of the pivot: the atom depends on those before where it is not exceeded, and all is left as it was.

    Returns
    -------
    pivot, x_atom : float
        ``‖r‖²`` falls by ``pivot x_atom²``.
    """
    t = np.uint64(cuda.threadIdx.x)
    n_threads = np.uint64(cuda.blockDim.x)
    rows, columns = factor[0], factor[1]
    g, l, x = work[0], work[1], work[2]  # noqa: E741
    own = t
    while own < size:
        g[own] = gram[atom, support[own]]
        own += n_threads
    # Barrier: g is complete, and so is what the extension before this one wrote last, x and M.
    cuda.syncthreads()
    own = t
    while own < size:
        total = 0.0
        for column in range(own + np.uint64(1)):
            total += columns[column, own] * g[column]
        l[own] = total
        own += n_threads
    last = np.float64(right)
    for slot in range(size):
        last -= g[slot] * x[slot]
    # Barrier: l is complete, and everybody has read x.
    cuda.syncthreads()
    pivot = np.float64(gram[atom, atom])
    for slot in range(size):
        pivot -= l[slot] * l[slot]
    if pivot > limit:
        last /= pivot
        scale = 1 / math.sqrt(pivot)
        own = t
        while own < size:
            u = 0.0
            for row in range(own, size):
                u += rows[row, own] * l[row]
            x[own] -= last * u
            rows[size, own] = -u * scale
            columns[own, size] = -u * scale
            own += n_threads
        if own == size:  # the new slot is of this thread
            x[size] = last
            rows[size, size] = scale
            columns[size, size] = scale
    return pivot, last
