"""New atoms from the passes over the residual: the largest Ritz vector of each atom's Krylov space (Lanczos)."""

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement

import numpy as np

from dbksvd_dask.kernels.backend import backend_of


def next_direction(basis: Sequence[np.ndarray], products: Sequence[np.ndarray], tol: float) -> np.ndarray:
    """Lanczos: what the last product adds to the Krylov basis of each atom.

    Parameters
    ----------
    basis : sequence of (w, d) floats
        Orthonormal vectors q_1 … q_t of each atom.
    products : sequence of (w, d) floats
        ``E_jᵀ E_j q_s`` for each of them.
    tol : float
        An atom is done when ``‖E_jᵀE_j v − θ v‖ ≤ tol θ`` for its Ritz vector v of the largest Ritz value θ.

    Returns
    -------
    (w, d) floats
        q_{t+1}; zero where the atom is done or its Krylov space exhausted.
    """
    ops = backend_of(basis[0])
    xp, long_dots = ops.xp, ops.long_dots
    direction = xp.empty_like(basis[0])
    exhausted = 16 * float(np.finfo(direction.dtype).eps)
    for block, *krylov in _blocks_of_atoms(basis, products):
        q = krylov[1][-1].astype(np.float64)
        lengths = xp.sqrt(long_dots(q, q))
        for _repeat in range(2):  # twice is enough for orthogonality to rounding (Kahan, Parlett)
            for vectors in krylov[0]:
                ops.add_multiples(q, -long_dots(q, vectors), vectors)
        norms = xp.sqrt(long_dots(q, q))
        done = norms <= exhausted * lengths
        if tol > 0:
            values, ritz = xp.linalg.eigh(_projections(*krylov))
            # EᵀE takes the Krylov space out of itself by q only: ‖EᵀE v − θ v‖ = ‖q‖ |last entry of the Ritz vector|
            done |= norms * xp.abs(ritz[:, -1, -1]) <= tol * values[:, -1]
        q /= xp.where(done, np.inf, norms)[:, np.newaxis]
        direction[block] = q
    return direction


def ritz_vectors(basis: Sequence[np.ndarray], products: Sequence[np.ndarray], old: np.ndarray) -> np.ndarray:
    """New atoms: the best direction in each atom's Krylov space, taken through ``E_jᵀE_j`` once more.

    With one basis vector this is a power step.

    Parameters
    ----------
    basis : sequence of (w, d) floats
        q_1 … q_t of each atom.
    products : sequence of (w, d) floats
        ``E_jᵀ E_j q_s`` for each of them.
    old : (w, d) floats
        The atoms so far: they give the sign, and stay where ``E_j`` is zero.

    Returns
    -------
    (w, d) floats
        Unit rows with ``⟨new, old⟩ ≥ 0``.
    """
    ops = backend_of(old)
    xp, long_dots = ops.xp, ops.long_dots
    new = xp.empty_like(old)
    for block, *krylov in _blocks_of_atoms(basis, products):
        weights = xp.linalg.eigh(_projections(*krylov))[1][:, :, -1]
        v = xp.zeros(krylov[1][0].shape)
        for factors, vectors in zip(xp.ascontiguousarray(weights.T), krylov[1], strict=True):
            ops.add_multiples(v, factors, vectors)
        norms = xp.sqrt(long_dots(v, v))
        side = xp.where(long_dots(v, old[block]) < 0, -1, 1)
        stays = norms == 0
        v /= xp.where(stays, 1, side * norms)[:, np.newaxis]
        new[block] = xp.where(stays[:, np.newaxis], old[block], v)
    return new


def _blocks_of_atoms(
    basis: Sequence[np.ndarray], products: Sequence[np.ndarray]
) -> Iterator[tuple[slice, list[np.ndarray], list[np.ndarray]]]:
    """Some atoms at a time, with their vectors and products."""
    size = backend_of(basis[0]).KRYLOV_BLOCK
    for start in range(0, len(basis[0]), size):
        block = slice(start, start + size)
        yield block, [q[block] for q in basis], [product[block] for product in products]


def _projections(basis: Sequence[np.ndarray], products: Sequence[np.ndarray]) -> np.ndarray:
    """``q_s E_jᵀE_j q_tᵀ`` of t vectors and products, each (w, d): (w, t, t) float64."""
    ops, size = backend_of(basis[0]), len(basis)
    projected = ops.xp.empty((len(basis[0]), size, size))
    for s, t in combinations_with_replacement(range(size), 2):
        projected[:, s, t] = projected[:, t, s] = ops.long_dots(basis[s], products[t])
    return projected
