"""The Gram matrix ``G = D Dᵀ`` in panels of rows, and the coherence that stands in it."""

from typing import NamedTuple

import numpy as np

from dbksvd_dask.kernels.backend import backend_of

ATOMS_PER_PANEL = 1024


class Panel(NamedTuple):
    """Rows of ``D Dᵀ`` from the diagonal on: what stands before it is symmetric."""

    products: np.ndarray
    """(rows, m - start) floats."""
    largest: np.ndarray
    """(m - start,) floats: the largest ``|⟨d_i, d_j⟩|`` here of each atom with any other."""
    near: np.ndarray
    """(pairs, 2) integers: atoms i < j whose ``|⟨d_i, d_j⟩|`` is above a threshold."""


def panel_starts(n_atoms: int) -> range:
    """First atom of each panel."""
    return range(0, n_atoms, ATOMS_PER_PANEL)


def gram_panel(dictionary: np.ndarray, start: int, threshold: float | None = None) -> Panel:
    """The panel that begins at atom `start`; without a threshold no atoms are near."""
    products = dictionary[start : start + ATOMS_PER_PANEL] @ dictionary[start:].T
    xp = backend_of(dictionary).xp
    near = xp.empty((0, 2), np.int64)
    if threshold is not None:
        near = xp.argwhere(xp.triu(xp.abs(products) > threshold, 1)) + start
    return Panel(products, _largest_products(products), near)


def _largest_products(panel: np.ndarray) -> np.ndarray:
    """The largest ``|⟨d_i, d_j⟩|`` that a panel holds of each atom with any other: (rows, width) → (width,)."""
    ops = backend_of(panel)
    xp, tile = ops.xp, ops.GRAM_TILE
    largest = xp.zeros(panel.shape[1], panel.dtype)
    for start in range(0, len(panel), tile):
        products = xp.abs(panel[start : start + tile])
        stop = start + len(products)
        diagonal = xp.arange(len(products))
        products[diagonal, start + diagonal] = 0
        xp.maximum(largest, products.max(axis=0), out=largest)
        xp.maximum(largest[start:stop], products.max(axis=1), out=largest[start:stop])
    return largest


def assemble_gram(panels: list[Panel]) -> np.ndarray:
    """``D Dᵀ`` from the panels of `gram_panel`, in the order of `panel_starts`: (m, m) floats."""
    n_atoms = len(panels[0].largest)
    products = backend_of(panels[0].products).xp.empty((n_atoms, n_atoms), panels[0].products.dtype)
    for start, panel in zip(panel_starts(n_atoms), panels, strict=True):
        _place_panel(panel.products, start, products)
    return products


def _place_panel(panel: np.ndarray, start: int, products: np.ndarray) -> None:
    """Copy the panel that begins on the diagonal at atom `start` to both of its places in the (m, m) `products`."""
    tile = backend_of(panel).GRAM_TILE
    n_rows, width = panel.shape
    products[start : start + n_rows, start:] = panel
    below = products[start:, start : start + n_rows]
    for first in range(n_rows, width, tile):
        for first_row in range(0, n_rows, tile):
            columns, rows = slice(first, first + tile), slice(first_row, first_row + tile)
            below[columns, rows] = panel[rows, columns].T


def panels_coherence(largest: list[np.ndarray]) -> np.ndarray:
    """Coherence of each atom, from what the panels hold of it: (m,) floats."""
    xp = backend_of(largest[0]).xp
    coherence = largest[0].copy()
    for start, values in zip(panel_starts(len(coherence)), largest, strict=True):
        xp.maximum(coherence[start:], values, out=coherence[start:])
    return coherence
