"""Dictionary update: the rank-1 updates of an inner batch of atoms, matrix-free.

For atom j, ``E_j = R_Ω + x_j d_jᵀ``; the new atom is its first right singular vector. ``E_jᵀE_j`` is never formed: one
pass over the residual applies it to one vector of every atom, and Lanczos needs two or three passes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dbksvd_dask.kernels.cpu.vector import FEATURES_PER_TILE, compiled, compiled_sum, dot, load_tile, long_dot

ATOMS_PER_BLOCK = 256
"""Atoms whose Krylov vectors are put into one array at a time."""


@compiled
def support_entries(indices: Any, position: Any) -> Any:
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
    n_samples, n_slots = indices.shape
    n_entries = 0
    for i in range(n_samples):
        for slot in range(n_slots):
            if indices[i, slot] >= 0 and position[indices[i, slot]] >= 0:
                n_entries += 1
    rows = np.empty(n_entries, np.int32)
    slots = np.empty(n_entries, np.int32)
    atoms = np.empty(n_entries, np.int32)
    entry = 0
    for i in range(n_samples):
        for slot in range(n_slots):
            if indices[i, slot] >= 0 and position[indices[i, slot]] >= 0:
                rows[entry] = i
                slots[entry] = slot
                atoms[entry] = position[indices[i, slot]]
                entry += 1
    return rows, slots, atoms


@compiled_sum
def support_products(residual: Any, vectors: Any, rows: Any, atoms: Any) -> Any:
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
    products = np.zeros(rows.size, residual.dtype)
    tile = np.empty((vectors.shape[0], FEATURES_PER_TILE), vectors.dtype)
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
    return products


@compiled
def accumulate_residual(residual: Any, rows: Any, atoms: Any, weights: Any, sums: Any) -> None:
    """``sums_j += Σ_i weight_ij r_i`` over the entries (i, j), one tile of features at a time.

    Parameters
    ----------
    residual : (n, d) floats
    rows, atoms : (entries,) int32
    weights : (entries,) floats
    sums : (w, d) floats
    """
    tile = np.empty((sums.shape[0], FEATURES_PER_TILE), sums.dtype)
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
            x = dot(residual, i, new, atoms[entry])
            if nonnegative:
                x = max(x, residual.dtype.type(0))
            values[i, slots[entry]] = x
            for f in range(width):
                residual[i, f] -= x * new[atoms[entry], f]
        first = last


@compiled
def _add_multiple(total: Any, factor: float, vector: Any) -> None:
    """``total += factor * vector`` in the precision of `total`."""
    for f in range(np.uint64(total.size)):
        total[f] += factor * vector[f]


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
    direction = np.zeros_like(basis[0])
    for block, *krylov in _blocks_of_atoms(basis, products):
        last, goal = np.ones(len(krylov[0][0])), np.full(len(krylov[0][0]), -np.inf)
        if tol > 0:
            values, vectors = np.linalg.eigh(_projections(*krylov))
            # EᵀE takes the Krylov space out of itself by q only: ‖EᵀE v − θ v‖ = ‖q‖ |last entry of the Ritz vector|
            last, goal = np.abs(vectors[:, -1, -1]), tol * values[:, -1]
        _next_direction(*krylov, last, goal, direction[block])
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
    new = old.copy()
    for block, *krylov in _blocks_of_atoms(basis, products):
        _, vectors = np.linalg.eigh(_projections(*krylov))
        _ritz_vectors(krylov[1], vectors[:, :, -1], new[block])
    return new


def _blocks_of_atoms(
    basis: Sequence[np.ndarray], products: Sequence[np.ndarray]
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Some atoms at a time, their vectors in one array: kernels are not compiled anew for each number of passes."""
    for start in range(0, len(basis[0]), ATOMS_PER_BLOCK):
        block = slice(start, start + ATOMS_PER_BLOCK)
        yield block, np.stack([q[block] for q in basis]), np.stack([product[block] for product in products])


@compiled
def _next_direction(basis: Any, products: Any, last: Any, goal: Any, direction: Any) -> None:
    """Fill `direction`, (w, d) zeros, from (t, w, d) vectors and products, unless ``‖q‖ last ≤ goal``, each (w,)."""
    size, n_atoms, n_features = basis.shape
    exhausted = 16 * np.finfo(basis.dtype).eps
    q = np.empty(n_features, np.float64)
    for j in range(n_atoms):
        for f in range(n_features):
            q[f] = products[size - 1, j, f]
        scale = np.sqrt(long_dot(q, q))
        for _repeat in range(2):  # twice is enough for orthogonality to rounding (Kahan, Parlett)
            for t in range(size):
                _add_multiple(q, -long_dot(q, basis[t, j]), basis[t, j])
        norm = np.sqrt(long_dot(q, q))
        if norm <= exhausted * scale or norm * last[j] <= goal[j]:
            continue
        for f in range(n_features):
            direction[j, f] = q[f] / norm


@compiled
def _ritz_vectors(products: Any, weights: Any, new: Any) -> None:
    """Overwrite `new`, (w, d) atoms so far, by (t, w, d) products, weighted by (w, t)."""
    size, n_atoms, n_features = products.shape
    v = np.empty(n_features, np.float64)
    for j in range(n_atoms):
        for f in range(n_features):
            v[f] = 0.0
        for s in range(size):
            _add_multiple(v, weights[j, s], products[s, j])
        norm = np.sqrt(long_dot(v, v))
        if norm == 0.0:
            continue
        if long_dot(v, new[j]) < 0:
            norm = -norm
        for f in range(n_features):
            new[j, f] = v[f] / norm


@compiled
def _projections(basis: Any, products: Any) -> Any:
    """``q_s E_jᵀE_j q_tᵀ`` of (t, w, d) vectors and products: (w, t, t) float64."""
    size, n_atoms, _ = basis.shape
    projected = np.empty((n_atoms, size, size), np.float64)
    for j in range(n_atoms):
        for s in range(size):
            for t in range(s, size):
                projected[j, s, t] = long_dot(basis[s, j], products[t, j])
                projected[j, t, s] = projected[j, s, t]
    return projected
