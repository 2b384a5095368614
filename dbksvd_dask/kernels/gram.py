"""The Gram matrix ``G = D Dᵀ`` in panels of rows, and the coherence that stands in it."""

import numpy as np

ATOMS_PER_PANEL = 1024


def panel_starts(n_atoms: int) -> range:
    """First atom of each panel."""
    return range(0, n_atoms, ATOMS_PER_PANEL)


def gram_panel(dictionary: np.ndarray, start: int) -> np.ndarray:
    """Rows ``start`` … ``start + ATOMS_PER_PANEL`` of ``D Dᵀ``, from the diagonal on: the rest is symmetric."""
    return dictionary[start : start + ATOMS_PER_PANEL] @ dictionary[start:].T


def assemble_gram(panels: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Put the panels of `gram_panel` together.

    Parameters
    ----------
    panels : list of (rows, m - start) floats
        In the order of `panel_starts`.

    Returns
    -------
    products : (m, m) floats
    coherence : (m,) floats
    """
    n_atoms = panels[0].shape[1]
    products = np.empty((n_atoms, n_atoms), panels[0].dtype)
    coherence = np.zeros(n_atoms, panels[0].dtype)
    for start, panel in zip(panel_starts(n_atoms), panels, strict=True):
        stop = start + panel.shape[0]
        products[start:stop, start:] = panel
        products[stop:, start:stop] = panel[:, stop - start :].T
        raise_coherence(coherence, panel, start)
    return products, coherence


def raise_coherence(coherence: np.ndarray, panel: np.ndarray, start: int) -> None:
    """Raise the coherence of each atom, in place, to the largest entry of the panel that begins at atom `start`."""
    magnitude = np.abs(panel)
    np.fill_diagonal(magnitude, 0)
    stop = start + len(panel)
    coherence[start:stop] = np.maximum(coherence[start:stop], magnitude.max(axis=1))
    coherence[start:] = np.maximum(coherence[start:], magnitude.max(axis=0))
