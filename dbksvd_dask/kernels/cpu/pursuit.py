"""Sparse encoding: matching pursuits on precomputed products, refit, reconstruction."""

from typing import Any

import numpy as np

from dbksvd_dask.kernels.cpu.vector import FEATURES_PER_TILE, compiled, load_tile, maximum, prefetch_row

ATOMS_PER_BLOCK = 256
"""Products updated between two looks at the running maximum: few enough to find the winner again quickly."""


@compiled
def matching_pursuit(
    products: Any,
    gram: Any,
    squared_norms: Any,
    squared_residuals: Any,
    max_steps: int,
    rtol: float,
    nonnegative: bool,
    indices: Any,
    values: Any,
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
    n_samples, n_atoms = products.shape
    n_slots = indices.shape[1]
    zero = products.dtype.type(0)
    rounding = np.finfo(products.dtype).eps
    for i in range(n_samples):
        p = products[i]
        squared_residual = squared_residuals[i]
        smallest = rounding * np.sqrt(squared_norms[i])
        n_used = 0
        atom = 0
        c = zero
        for step in range(max_steps + 1):
            g = gram[atom]
            peak = zero
            best = 0
            for start in range(0, n_atoms, ATOMS_PER_BLOCK):
                block_peak = _subtract_and_peak(p, g, c, start, min(start + ATOMS_PER_BLOCK, n_atoms), nonnegative)
                if block_peak > peak:
                    peak = block_peak
                    best = start
            if step == max_steps or peak <= smallest:
                break
            if rtol > 0 and squared_residual <= rtol * rtol * squared_norms[i]:
                break
            atom = _locate(p, peak, best, nonnegative)
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
def orthogonal_matching_pursuit(
    products: Any, gram: Any, squared_norms: Any, squared_residuals: Any, rtol: float, indices: Any, values: Any
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
    n_samples, n_atoms = products.shape
    n_slots = indices.shape[1]
    zero = products.dtype.type(0)
    rounding = np.finfo(products.dtype).eps
    p = np.empty(n_atoms, products.dtype)
    lower = np.empty((n_slots, n_slots), np.float64)
    target = np.empty(n_slots, np.float64)
    coefficients = np.empty(n_slots, np.float64)
    for i in range(n_samples):
        support = indices[i]
        smallest = rounding * np.sqrt(squared_norms[i])
        squared_residual = squared_residuals[i]
        for size in range(n_slots):
            if rtol > 0 and squared_residual <= rtol * rtol * squared_norms[i]:
                break
            # p ← y Dᵀ − x G over the support
            peak = zero
            best = 0
            p[:] = products[i]
            for start in range(0, n_atoms, ATOMS_PER_BLOCK):
                stop = min(start + ATOMS_PER_BLOCK, n_atoms)
                for slot in range(size):
                    _subtract_and_peak(p, gram[support[slot]], values[i, slot], start, stop, False)
                for slot in range(size):
                    if start <= support[slot] < stop:
                        p[support[slot]] = zero
                block_peak = _subtract_and_peak(p, p, zero, start, stop, False)
                if block_peak > peak:
                    peak = block_peak
                    best = start
            if peak <= smallest:
                break
            atom = _locate(p, peak, best, False)
            if not _extend_cholesky(lower, size, gram, support, atom):
                break
            support[size] = atom
            target[size] = products[i, atom]
            coefficients[: size + 1] = target[: size + 1]
            _forward_substitute(lower, size + 1, coefficients)
            _backward_substitute(lower, size + 1, coefficients)
            squared_residual = squared_residuals[i]
            for slot in range(size + 1):
                values[i, slot] = coefficients[slot]
                squared_residual -= coefficients[slot] * target[slot]


@compiled
def refit_least_squares(residual_products: Any, gram: Any, indices: Any, values: Any) -> None:
    """Replace the coefficients of each row by the least-squares ones on the same support.

    Parameters
    ----------
    residual_products : (n, k) floats
        ``⟨r, d_j⟩`` for the atom in each slot, with r the residual of the coefficients given.
    gram : (m, m) floats
    indices, values : (n, k) int32 and floats
        `values` are overwritten; a row whose support is linearly dependent keeps its own.
    """
    n_samples, n_slots = indices.shape
    lower = np.empty((n_slots, n_slots), np.float64)
    step = np.empty(n_slots, np.float64)
    for i in range(n_samples):
        size = 0
        independent = True
        while independent and size < n_slots and indices[i, size] >= 0:
            independent = _extend_cholesky(lower, size, gram, indices[i], indices[i, size])
            step[size] = residual_products[i, size]
            size += 1
        if not independent:
            continue
        # The correction G_II δ = ⟨r, d_I⟩ is small where the pursuit was good, so it loses fewer digits than x itself.
        _forward_substitute(lower, size, step)
        _backward_substitute(lower, size, step)
        for slot in range(size):
            values[i, slot] += step[slot]


@compiled
def subtract_reconstruction(rows: Any, dictionary: Any, indices: Any, values: Any) -> None:
    """``rows ← rows − X D`` in place, one tile of features at a time.

    Parameters
    ----------
    rows : (n, d) floats
        Embeddings; overwritten by the residual.
    dictionary : (m, d) floats
    indices, values : (n, k) int32 and floats
    """
    n_samples, n_features = rows.shape
    tile = np.empty((dictionary.shape[0], FEATURES_PER_TILE), dictionary.dtype)
    for first in range(0, n_features, FEATURES_PER_TILE):
        width = np.uint64(load_tile(dictionary, first, tile))
        offset = np.uint64(first)
        for i in range(n_samples):
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


@compiled
def _locate(p: Any, peak: float, start: int, nonnegative: bool) -> int:
    """Lowest index from `start` on whose ``|p|`` (or ``p``) is `peak`."""
    atom = start
    while (p[atom] if nonnegative else abs(p[atom])) != peak:
        atom += 1
    return atom


@compiled
def _forward_substitute(lower: Any, size: int, right: Any) -> None:
    """Solve ``L z = right`` in place for the leading `size` rows of the lower triangular L."""
    for row in range(size):
        for column in range(row):
            right[row] -= lower[row, column] * right[column]
        right[row] /= lower[row, row]


@compiled
def _backward_substitute(lower: Any, size: int, right: Any) -> None:
    """Solve ``Lᵀ z = right`` in place for the leading `size` rows of the lower triangular L."""
    for row in range(size - 1, -1, -1):
        for column in range(row + 1, size):
            right[row] -= lower[column, row] * right[column]
        right[row] /= lower[row, row]


@compiled
def _extend_cholesky(lower: Any, size: int, gram: Any, support: Any, atom: int) -> bool:
    """Append `atom` to the Cholesky factor of ``G[support, support]``; False when it depends on the support."""
    for column in range(size):
        lower[size, column] = gram[atom, support[column]]
    _forward_substitute(lower, size, lower[size])
    pivot = np.float64(gram[atom, atom])
    for column in range(size):
        pivot -= lower[size, column] * lower[size, column]
    lower[size, size] = np.sqrt(max(pivot, 0.0))
    return pivot > 16 * np.finfo(gram.dtype).eps
