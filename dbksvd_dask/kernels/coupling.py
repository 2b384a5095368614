"""How far all atoms may move at once: what their samples share would otherwise be made up for by each of them.

With the codes held, atoms that move by Δ change the residual to ``R − X Δ``. The update of each atom is about the step
that would be best if it moved alone, the Jacobi step of this least-squares problem. Along a vector u over the atoms it
is too long by the factor ``λ = uᵀ C u`` of their coupling ``C = N^(−1/2) XᵀX N^(−1/2)``, where N holds ``Σ_i x_ij²``;
from λ = 2 on, such steps diverge. Signed codes hardly couple atoms, but those of one sign couple as many as a sample
uses, along a vector close to the sums of the codes. Where λ exceeds 2 for that one, the step along it is divided by λ.
"""

from collections.abc import Sequence

import numpy as np

from dbksvd_dask.kernels.chunk import EncodedChunk
from dbksvd_dask.kernels.pursuit import Group

STABLE = 2.0
"""Jacobi steps converge up to this λ; planted codes of one sign diverged from there on, and not before."""


def code_sums(chunk: EncodedChunk, n_atoms: int) -> np.ndarray:
    """``Σ_i x_ij²`` and ``Σ_i x_ij`` of each atom over a chunk: (2, m) float64."""
    atoms = np.maximum(chunk.indices, 0).ravel()  # empty slots hold zero
    values = chunk.values.astype(np.float64).ravel()
    return np.stack([np.bincount(atoms, values * values, n_atoms), np.bincount(atoms, values, n_atoms)])


def coupling_products(chunk: EncodedChunk, sums: np.ndarray, groups: Sequence[Group]) -> np.ndarray:
    """``C u`` summed over a chunk for the vector u of `shared_direction`, each group by itself: (m,) float64."""
    direction, scale = shared_direction(sums, groups), _inverse_norms(sums)
    products = np.zeros_like(direction)
    for group in groups:
        indices, values = chunk.codes(group.slots)
        atoms = np.maximum(indices, 0)
        values = values.astype(np.float64)
        along = np.sum((direction * scale)[atoms] * values, axis=1, keepdims=True)
        products += np.bincount(atoms.ravel(), (values * along).ravel(), len(products))
    return products * scale


def shared_direction(sums: np.ndarray, groups: Sequence[Group]) -> np.ndarray:
    """u, the sums of the codes over their norms, of unit norm in each group: (m,) float64."""
    direction = sums[1] * _inverse_norms(sums)
    for group in groups:
        direction[group.atoms] /= np.linalg.norm(direction[group.atoms]) or 1.0
    return direction


def _inverse_norms(sums: np.ndarray) -> np.ndarray:
    return np.divide(1.0, np.sqrt(sums[0]), out=np.zeros_like(sums[0]), where=sums[0] > 0)


def move_together(
    old: np.ndarray, new: np.ndarray, sums: np.ndarray, products: np.ndarray, groups: Sequence[Group]
) -> np.ndarray:
    """The new atoms, where they would overshoot with a shorter step along what their samples share.

    Parameters
    ----------
    old, new : (m, d) floats
        Unit rows.
    sums : (2, m) float64
        Those of `code_sums` over all samples.
    products : (m,) float64
        Those of `coupling_products` over all samples.
    groups : sequence of Group

    Returns
    -------
    (m, d) floats
        Unit rows.
    """
    direction, scale, norms = shared_direction(sums, groups), _inverse_norms(sums), np.sqrt(sums[0])
    atoms = new.copy()
    for group in groups:
        u = direction[group.atoms]
        overshoot = u @ products[group.atoms]
        if overshoot <= STABLE:
            continue
        moves = (new[group.atoms] - old[group.atoms]).astype(np.float64)
        common = (u * norms[group.atoms]) @ moves
        moves = np.outer((1 - 1 / overshoot) * u * scale[group.atoms], common)
        shorter = new[group.atoms] - moves
        lengths = np.linalg.norm(shorter, axis=1, keepdims=True)
        atoms[group.atoms] = np.where(lengths > 0, shorter / np.where(lengths > 0, lengths, 1), new[group.atoms])
    return atoms
