"""Putting ``D Dᵀ`` together from the panels on and above its diagonal."""

from typing import Any

import numpy as np

from dbksvd_dask.kernels.cpu.vector import compiled, maximum

ATOMS_PER_TILE = 64
"""Rows and columns of a panel copied at a time: the tile and its transpose stay in cache."""


@compiled
def largest_products(panel: Any) -> Any:
    """The largest ``|⟨d_i, d_j⟩|`` that a panel holds of each atom with any other.

    Parameters
    ----------
    panel : (rows, width) floats
        Products of the first `rows` of `width` atoms with all of these.

    Returns
    -------
    (width,) floats
    """
    n_rows, width = panel.shape
    largest = np.zeros(width, panel.dtype)
    for i in range(n_rows):
        row = panel[i]
        peak = panel.dtype.type(0)
        for j in range(np.uint64(i)):
            product = abs(row[j])
            peak = maximum(product, peak)
            largest[j] = maximum(product, largest[j])
        for j in range(np.uint64(i + 1), np.uint64(width)):
            product = abs(row[j])
            peak = maximum(product, peak)
            largest[j] = maximum(product, largest[j])
        largest[i] = maximum(peak, largest[i])
    return largest


@compiled
def place_panel(panel: Any, start: int, products: Any) -> None:
    """Copy the panel that begins on the diagonal at atom `start` to both of its places in the (m, m) `products`."""
    n_rows, width = panel.shape
    for first_row in range(0, n_rows, ATOMS_PER_TILE):
        last_row = min(first_row + ATOMS_PER_TILE, n_rows)
        for first in range(0, width, ATOMS_PER_TILE):
            last = min(first + ATOMS_PER_TILE, width)
            # Loops, not slices: numba takes five times as long to compile these.
            for i in range(first_row, last_row):
                for j in range(np.uint64(first), np.uint64(last)):
                    products[start + i, start + j] = panel[i, j]
            if first >= n_rows:
                for j in range(first, last):
                    for i in range(np.uint64(first_row), np.uint64(last_row)):
                        products[start + j, start + i] = panel[i, j]
