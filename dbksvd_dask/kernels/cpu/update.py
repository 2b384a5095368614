"""Dictionary update: the rank-1 updates of an inner batch of atoms, matrix-free.

For atom j, ``E_j = R_Ω + x_j d_jᵀ``; the new atom is its first right singular vector. ``E_jᵀE_j`` is never formed: one
pass over the residual applies it to one vector of every atom, and Lanczos needs two or three passes.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from dbksvd_dask.kernels.cpu.vector import FEATURES_PER_TILE, compiled, compiled_sum, empty_tile, load_tile, long_dots

ATOMS_PER_BLOCK = 128
"""Atoms updated at a time, so that what is computed of them in float64 stays in cache."""


def support_entries(indices: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The entries of the codes that use an atom of the inner batch, row by row.

    Parameters
    ----------
    indices : (n, k) int32
    position : (m,) int32
        Place of each atom in the inner batch, −1 for atoms outside it.

    Returns
    -------
    rows, slots, atoms : three (entries,) int32
        `atoms` counts within the inner batch.
    """
    rows, slots, atoms = np.empty((3, _count_entries(indices, position)), np.int32)
    _find_entries(indices, position, rows, slots, atoms)
    return rows, slots, atoms


@compiled
def _count_entries(indices: Any, position: Any) -> int:
    n_entries = 0
    for i in range(indices.shape[0]):
        for slot in range(indices.shape[1]):
            if indices[i, slot] >= 0 and position[indices[i, slot]] >= 0:
                n_entries += 1
    return n_entries


@compiled
def _find_entries(indices: Any, position: Any, rows: Any, slots: Any, atoms: Any) -> None:
    entry = 0
    for i in range(indices.shape[0]):
        for slot in range(indices.shape[1]):
            atom = indices[i, slot]
            if atom >= 0 and position[atom] >= 0:
                rows[entry] = i
                slots[entry] = slot
                atoms[entry] = position[atom]
                entry += 1


def support_products(residual: np.ndarray, vectors: np.ndarray, rows: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """``⟨r_i, v_j⟩`` for each entry (i, j), one tile of features at a time.

    Parameters
    ----------
    residual : (n, d) floats
    vectors : (w, d) floats
    rows, atoms : (entries,) int32

    Returns
    -------
    (entries,) floats
    """
    products = np.zeros(len(rows), residual.dtype)
    _add_products(residual, vectors, rows, atoms, products, empty_tile(vectors))
    return products


@compiled_sum
def _add_products(residual: Any, vectors: Any, rows: Any, atoms: Any, products: Any, tile: Any) -> None:
    for first in range(0, residual.shape[1], FEATURES_PER_TILE):
        width = np.uint64(load_tile(vectors, first, tile))
        offset = np.uint64(first)
        for entry in range(rows.size):
            i = rows[entry]
            j = atoms[entry]
            product = residual.dtype.type(0)
            for f in range(width):
                product += residual[i, offset + f] * tile[j, f]
            products[entry] += product


def accumulate_residual(
    residual: np.ndarray, rows: np.ndarray, atoms: np.ndarray, weights: np.ndarray, sums: np.ndarray
) -> None:
    """``sums_j += Σ_i weight_ij r_i`` over the entries (i, j), one tile of features at a time.

    Parameters
    ----------
    residual : (n, d) floats
    rows, atoms : (entries,) int32
    weights : (entries,) floats
    sums : (w, d) floats
    """
    _accumulate_residual(residual, rows, atoms, weights, sums, empty_tile(sums))


@compiled
def _accumulate_residual(residual: Any, rows: Any, atoms: Any, weights: Any, sums: Any, tile: Any) -> None:
    for first in range(0, residual.shape[1], FEATURES_PER_TILE):
        width = np.uint64(load_tile(sums, first, tile))
        offset = np.uint64(first)
        for entry in range(rows.size):
            i = rows[entry]
            j = atoms[entry]
            weight = weights[entry]
            for f in range(width):
                tile[j, f] += weight * residual[i, offset + f]
        for j in range(sums.shape[0]):
            for f in range(width):
                sums[j, offset + f] = tile[j, f]


@compiled
def project_in_turn(
    residual: Any, values: Any, rows: Any, slots: Any, atoms: Any, old: Any, new: Any, nonnegative: bool
) -> None:
    """Bring residual and coefficients up to date with the new atoms of an inner batch, sample by sample.

    For each sample: take out the old contributions of the batch's atoms, then project what is left on each new atom
    in turn (Gauss-Seidel). Coefficients computed independently would overshoot where a sample uses several atoms of
    the batch.

    Parameters
    ----------
    residual : (n, d) floats
        Overwritten.
    values : (n, k) floats
        Overwritten.
    rows, slots, atoms : (entries,) int32
        From `support_entries`.
    old, new : (w, d) floats
    nonnegative : bool
        Clip coefficients at zero.
    """
    width = np.uint64(residual.shape[1])
    first = 0
    while first < rows.size:
        i = rows[first]
        last = first
        while last < rows.size and rows[last] == i:
            x = values[i, slots[last]]
            for f in range(width):
                residual[i, f] += x * old[atoms[last], f]
            last += 1
        for entry in range(first, last):
            x = _dot(residual, i, new, atoms[entry])
            if nonnegative:
                x = max(x, residual.dtype.type(0))
            values[i, slots[entry]] = x
            for f in range(width):
                residual[i, f] -= x * new[atoms[entry], f]
        first = last


@compiled_sum
def _dot(a: Any, i: int, b: Any, j: int) -> float:
    """``⟨a_i, b_j⟩`` in the arrays' own precision."""
    total = a.dtype.type(0)
    for f in range(np.uint64(a.shape[1])):
        total += a[i, f] * b[j, f]
    return total


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
    direction = np.empty_like(basis[0])
    exhausted = 16 * float(np.finfo(direction.dtype).eps)
    for block, *krylov in _blocks_of_atoms(basis, products):
        q = krylov[1][-1].astype(np.float64)
        lengths = np.sqrt(long_dots(q, q))
        for _repeat in range(2):  # twice is enough for orthogonality to rounding (Kahan, Parlett)
            for vectors in krylov[0]:
                _add_multiples(q, -long_dots(q, vectors), vectors)
        norms = np.sqrt(long_dots(q, q))
        done = norms <= exhausted * lengths
        if tol > 0:
            values, ritz = np.linalg.eigh(_projections(*krylov))
            # EᵀE takes the Krylov space out of itself by q only: ‖EᵀE v − θ v‖ = ‖q‖ |last entry of the Ritz vector|
            done |= norms * np.abs(ritz[:, -1, -1]) <= tol * values[:, -1]
        q /= np.where(done, 1, norms)[:, np.newaxis]
        q[done] = 0
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
    new = np.empty_like(old)
    for block, *krylov in _blocks_of_atoms(basis, products):
        weights = np.linalg.eigh(_projections(*krylov))[1][:, :, -1]
        v = np.zeros(krylov[1][0].shape)
        for factors, vectors in zip(np.ascontiguousarray(weights.T), krylov[1], strict=True):
            _add_multiples(v, factors, vectors)
        norms = np.sqrt(long_dots(v, v))
        norms[long_dots(v, old[block]) < 0] *= -1
        stays = norms == 0
        v /= np.where(stays, 1, norms)[:, np.newaxis]
        v[stays] = old[block][stays]
        new[block] = v
    return new


def _blocks_of_atoms(
    basis: Sequence[np.ndarray], products: Sequence[np.ndarray]
) -> Iterator[tuple[slice, list[np.ndarray], list[np.ndarray]]]:
    """Some atoms at a time, with their vectors and products."""
    for start in range(0, len(basis[0]), ATOMS_PER_BLOCK):
        block = slice(start, start + ATOMS_PER_BLOCK)
        yield block, [q[block] for q in basis], [product[block] for product in products]


def _projections(basis: Sequence[np.ndarray], products: Sequence[np.ndarray]) -> np.ndarray:
    """``q_s E_jᵀE_j q_tᵀ`` of t vectors and products, each (w, d): (w, t, t) float64."""
    size = len(basis)
    projected = np.empty((len(basis[0]), size, size))
    for s, t in combinations_with_replacement(range(size), 2):
        projected[:, s, t] = projected[:, t, s] = long_dots(basis[s], products[t])
    return projected


@compiled
def _add_multiples(totals: Any, factors: Any, vectors: Any) -> None:
    """``totals_i += factor_i * vector_i``, in the precision of the totals."""
    for i in range(totals.shape[0]):
        factor = factors[i]
        for f in range(np.uint64(totals.shape[1])):
            totals[i, f] += factor * vectors[i, f]
