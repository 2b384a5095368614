"""Dictionary update: the rank-1 updates of an inner batch of atoms, matrix-free.

For atom j, ``E_j = R_Ω + x_j d_jᵀ``; the new atom is its first right singular vector. ``E_jᵀE_j`` is never formed: one
pass over the residual applies it to one vector of every atom, and Lanczos needs two or three passes.
"""

from typing import Any

import numpy as np
from scipy.sparse import csr_array

from dbksvd_dask.kernels.cpu.vector import FEATURES_PER_TILE, compiled, compiled_sum, empty_tile, load_tile


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


def sum_by_atom(atoms: np.ndarray, weights: np.ndarray, n_atoms: int) -> np.ndarray:
    """``Σ_i weight_ij`` of each atom j over the entries (i, j).

    Parameters
    ----------
    atoms : (entries,) int32
    weights : (entries,) floats
    n_atoms : int

    Returns
    -------
    (n_atoms,) float64
    """
    return np.bincount(atoms, weights, n_atoms).astype(np.float64, copy=False)  # of nothing: integers


def normal_products(indices: np.ndarray, values: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """``XᵀX V`` of the codes X.

    Parameters
    ----------
    indices, values : (n, k) int32 and floats
    vectors : (m, t) float64

    Returns
    -------
    (m, t) float64
    """
    n_samples, n_slots = indices.shape
    starts = np.arange(n_samples + 1) * n_slots
    atoms = np.maximum(indices, 0).ravel()  # empty slots hold zero
    X = csr_array((values.ravel(), atoms, starts), (n_samples, len(vectors)))
    return X.T @ (X @ vectors)


def project_in_turn(
    residual: np.ndarray,
    values: np.ndarray,
    indices: np.ndarray,
    position: np.ndarray,
    old: np.ndarray,
    new: np.ndarray,
    nonnegative: bool,
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
    indices : (n, k) int32
    position : (m,) int32
        Place of each atom in the inner batch, −1 for atoms outside it.
    old, new : (w, d) floats
    nonnegative : bool
        Clip coefficients at zero.
    """
    _project_in_turn(residual, values, *support_entries(indices, position), old, new, nonnegative)


@compiled
def _project_in_turn(
    residual: Any, values: Any, rows: Any, slots: Any, atoms: Any, old: Any, new: Any, nonnegative: bool
) -> None:
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
