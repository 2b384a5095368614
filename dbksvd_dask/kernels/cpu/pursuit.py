"""Sparse encoding: matching pursuits on precomputed products, and reconstruction."""

from typing import Any

import numpy as np

from dbksvd_dask.kernels.cpu.least_squares import (
    backward_substitute,
    extend_cholesky,
    forward_substitute,
    pivot_limit,
)
from dbksvd_dask.kernels.cpu.vector import FEATURES_PER_TILE, compiled, empty_tile, load_tile, maximum, prefetch_row

ATOMS_PER_BLOCK = 256
"""Products updated between two looks at the running maximum: few enough to find the winner again quickly."""


def matching_pursuit(
    products: np.ndarray,
    gram: np.ndarray,
    squared_norms: np.ndarray,
    squared_residuals: np.ndarray,
    max_steps: int,
    rtol: float,
    nonnegative: bool,
    indices: np.ndarray,
    values: np.ndarray,
) -> None:
    """Matching pursuit on precomputed products (paper, section 4.1).

    For each row: pick ``j = argmax |p|`` (lowest index on ties), add ``c = p_j`` to the coefficient of atom j,
    ``p ← p − c G_j``. Ends before the (k+1)-th distinct atom, at ``‖r‖ ≤ rtol ‖y‖``, after `max_steps`, or when the
    best product is below rounding.

    Parameters
    ----------
    products : (n, m) floats
        ``Y Dᵀ``; overwritten by ``R Dᵀ``, the products of what is left.
    gram : (m, m) floats
        ``D Dᵀ``.
    squared_norms : (n,) float64
        ``‖y‖²``.
    squared_residuals : (n,) float64
        ``‖r‖²`` to begin with: that of the rows whose products these are.
    max_steps : int
    rtol : float
    nonnegative : bool
        Pick only positive products.
    indices, values : (n, k) int32 and floats
        Filled in the order of first picking; empty slots stay as they were given (−1 and 0).
    """
    smallest, goal = _ends(squared_norms, rtol, products.dtype)
    _matching_pursuit(products, gram, squared_residuals, max_steps, smallest, goal, nonnegative, indices, values)


def orthogonal_matching_pursuit(
    products: np.ndarray,
    gram: np.ndarray,
    squared_norms: np.ndarray,
    squared_residuals: np.ndarray,
    rtol: float,
    indices: np.ndarray,
    values: np.ndarray,
) -> None:
    """Orthogonal matching pursuit on precomputed products, with a growing Cholesky factor.

    Like `matching_pursuit`, but after each pick all coefficients are the least-squares ones for the atoms picked so
    far (Rubinstein, Zibulevsky, Elad 2008). A row ends early when the best atom depends linearly on its support.

    Parameters
    ----------
    products : (n, m) floats
        ``Y Dᵀ``; left as given.
    gram, squared_norms, squared_residuals, rtol, indices, values
        As in `matching_pursuit`.
    """
    smallest, goal = _ends(squared_norms, rtol, products.dtype)
    n_slots = indices.shape[1]
    p, lower = np.empty(products.shape[1], products.dtype), np.empty((n_slots, n_slots))
    target, coefficients = np.empty(n_slots), np.empty(n_slots)
    ends = squared_residuals, smallest, goal, pivot_limit(gram)
    _orthogonal_matching_pursuit(products, gram, *ends, indices, values, p, lower, target, coefficients)


def subtract_reconstruction(rows: np.ndarray, dictionary: np.ndarray, indices: np.ndarray, values: np.ndarray) -> None:
    """``rows ← rows − X D`` in place, one tile of features at a time.

    Parameters
    ----------
    rows : (n, d) floats
        Embeddings; overwritten by the residual.
    dictionary : (m, d) floats
    indices, values : (n, k) int32 and floats
    """
    _subtract_reconstruction(rows, dictionary, indices, values, empty_tile(dictionary))


def _ends(squared_norms: np.ndarray, rtol: float, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The best product that is below rounding, and the ``‖r‖²`` that is small enough, of each row: (n,) float64."""
    smallest = float(np.finfo(dtype).eps) * np.sqrt(squared_norms)
    goal = rtol * rtol * squared_norms if rtol > 0 else np.full(len(squared_norms), -np.inf)
    return smallest, goal


@compiled
def _matching_pursuit(
    products: Any,
    gram: Any,
    squared_residuals: Any,
    max_steps: int,
    smallest: Any,
    goal: Any,
    nonnegative: bool,
    indices: Any,
    values: Any,
) -> None:
    n_atoms = products.shape[1]
    n_slots = indices.shape[1]
    zero = products.dtype.type(0)
    for i in range(products.shape[0]):
        p = products[i]
        squared_residual = squared_residuals[i]
        n_used = 0
        atom = 0
        c = zero
        for step in range(max_steps + 1):
            g = gram[atom]
            peak = zero
            best = 0
            for start in range(0, n_atoms, ATOMS_PER_BLOCK):
                stop = start + ATOMS_PER_BLOCK
                if stop > n_atoms:
                    stop = n_atoms
                block_peak = _subtract_and_peak(p, g, c, start, stop, nonnegative)
                if block_peak > peak:
                    peak = block_peak
                    best = start
            if step == max_steps or peak <= smallest[i] or squared_residual <= goal[i]:
                break
            atom = best
            while (p[atom] if nonnegative else abs(p[atom])) != peak:
                atom += 1
            slot = 0
            while slot < n_used and indices[i, slot] != atom:
                slot += 1
            if slot == n_used:
                if n_used == n_slots:
                    break
                indices[i, slot] = atom
                n_used += 1
            # The next step waits for this row of G: the hardware guesses it a page at a time, which takes 1.4 times
            # as long at m = 4096.
            prefetch_row(gram, atom)
            c = p[atom]
            values[i, slot] += c
            squared_residual -= np.float64(c) * np.float64(c)


@compiled
def _orthogonal_matching_pursuit(
    products: Any,
    gram: Any,
    squared_residuals: Any,
    smallest: Any,
    goal: Any,
    limit: float,
    indices: Any,
    values: Any,
    p: Any,
    lower: Any,
    target: Any,
    coefficients: Any,
) -> None:
    n_atoms = products.shape[1]
    zero = products.dtype.type(0)
    for i in range(products.shape[0]):
        support = indices[i]
        squared_residual = squared_residuals[i]
        for size in range(indices.shape[1]):
            if squared_residual <= goal[i]:
                break
            # p ← y Dᵀ − x G over the support
            peak = zero
            best = 0
            for atom in range(n_atoms):
                p[atom] = products[i, atom]
            for start in range(0, n_atoms, ATOMS_PER_BLOCK):
                stop = start + ATOMS_PER_BLOCK
                if stop > n_atoms:
                    stop = n_atoms
                for slot in range(size):
                    _subtract_and_peak(p, gram[support[slot]], values[i, slot], start, stop, False)
                for slot in range(size):
                    if start <= support[slot] < stop:
                        p[support[slot]] = zero
                block_peak = _subtract_and_peak(p, p, zero, start, stop, False)
                if block_peak > peak:
                    peak = block_peak
                    best = start
            if peak <= smallest[i]:
                break
            picked = best
            while abs(p[picked]) != peak:
                picked += 1
            if not extend_cholesky(lower, size, gram, support, picked, limit):
                break
            support[size] = picked
            target[size] = products[i, picked]
            for slot in range(size + 1):
                coefficients[slot] = target[slot]
            forward_substitute(lower, size + 1, coefficients)
            backward_substitute(lower, size + 1, coefficients)
            squared_residual = squared_residuals[i]
            for slot in range(size + 1):
                values[i, slot] = coefficients[slot]
                squared_residual -= coefficients[slot] * target[slot]


@compiled
def _subtract_reconstruction(rows: Any, dictionary: Any, indices: Any, values: Any, tile: Any) -> None:
    for first in range(0, rows.shape[1], FEATURES_PER_TILE):
        width = np.uint64(load_tile(dictionary, first, tile))
        offset = np.uint64(first)
        for i in range(rows.shape[0]):
            for slot in range(indices.shape[1]):
                atom = indices[i, slot]
                if atom < 0:
                    continue
                x = values[i, slot]
                for f in range(width):
                    rows[i, offset + f] -= x * tile[atom, f]


@compiled
def _subtract_and_peak(p: Any, g: Any, c: float, start: int, stop: int, nonnegative: bool) -> float:
    """``p[start:stop] -= c * g[start:stop]`` and the largest ``|p|`` (or ``p``) there, in one pass."""
    peak = p.dtype.type(0)
    # Unsigned bounds spare the test for negative indices, which would keep the loops from being vectorised.
    if nonnegative:
        for atom in range(np.uint64(start), np.uint64(stop)):
            q = p[atom] - c * g[atom]
            p[atom] = q
            peak = maximum(q, peak)
    else:
        for atom in range(np.uint64(start), np.uint64(stop)):
            q = p[atom] - c * g[atom]
            p[atom] = q
            peak = maximum(abs(q), peak)
    return peak
