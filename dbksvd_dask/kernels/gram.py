"""The Gram matrix ``G = D Dᵀ`` in panels of rows, and the coherence that stands in it."""

from typing import NamedTuple

import numpy as np

ATOMS_PER_PANEL = 1024

ATOMS_PER_TILE = 64
"""Rows, or rows and columns, of a panel taken at a time: what is read and what is written stay in cache."""


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
    near = np.empty((0, 2), np.int64)
    if threshold is not None:
        near = np.argwhere(np.triu(np.abs(products) > threshold, 1)) + start
    return Panel(products, _largest_products(products), near)


def _largest_products(panel: np.ndarray) -> np.ndarray:
    """The largest ``|⟨d_i, d_j⟩|`` that a panel holds of each atom with any other: (rows, width) → (width,)."""
    largest = np.zeros(panel.shape[1], panel.dtype)
    for start in range(0, len(panel), ATOMS_PER_TILE):
        products = np.abs(panel[start : start + ATOMS_PER_TILE])
        stop = start + len(products)
        np.fill_diagonal(products[:, start:stop], 0)
        np.maximum(largest, products.max(axis=0), out=largest)
        np.maximum(largest[start:stop], products.max(axis=1), out=largest[start:stop])
    return largest


def assemble_gram(panels: list[Panel]) -> np.ndarray:
    """``D Dᵀ`` from the panels of `gram_panel`, in the order of `panel_starts`: (m, m) floats."""
    n_atoms = len(panels[0].largest)
    products = np.empty((n_atoms, n_atoms), panels[0].products.dtype)
    for start, panel in zip(panel_starts(n_atoms), panels, strict=True):
        _place_panel(panel.products, start, products)
    return products


def _place_panel(panel: np.ndarray, start: int, products: np.ndarray) -> None:
    """Copy the panel that begins on the diagonal at atom `start` to both of its places in the (m, m) `products`."""
    n_rows, width = panel.shape
    products[start : start + n_rows, start:] = panel
    below = products[start:, start : start + n_rows]
    for first in range(n_rows, width, ATOMS_PER_TILE):
        for first_row in range(0, n_rows, ATOMS_PER_TILE):
            columns, rows = slice(first, first + ATOMS_PER_TILE), slice(first_row, first_row + ATOMS_PER_TILE)
            below[columns, rows] = panel[rows, columns].T


def panels_coherence(largest: list[np.ndarray]) -> np.ndarray:
    """Coherence of each atom, from what the panels hold of it: (m,) floats."""
    coherence = largest[0].copy()
    for start, values in zip(panel_starts(len(coherence)), largest, strict=True):
        np.maximum(coherence[start:], values, out=coherence[start:])
    return coherence
