"""How far all atoms may move at once: what their samples share would otherwise be made up for by each of them.

With the codes held, atoms that move by Δ change the residual to ``R − X Δ``. The update of each atom is about the step
that would be best if it moved alone, the Jacobi step of this least-squares problem. Along an eigenvector u, over the
atoms, of their coupling ``C = N^(−1/2) XᵀX N^(−1/2)``, where N holds ``Σ_i x_ij²``, it is too long by the factor λ, the
eigenvalue; from λ = 2 on, such steps diverge. Signed codes hardly couple atoms, but those of one sign couple as many as
a sample uses, along a vector close to the sums of the codes, and atoms that are used together do so among themselves.
The few eigenvectors with λ > 2 are found by subspace iteration, and the step along them is divided by λ.
"""

from collections.abc import Sequence

import numpy as np

from dbksvd_dask.kernels.backend import backend_of, to_host
from dbksvd_dask.kernels.chunk import EncodedChunk
from dbksvd_dask.kernels.pursuit import Group

STABLE = 2.0
"""Jacobi steps converge up to this λ; planted codes of one sign diverged from there on, and not before."""

N_DIRECTIONS = 8
"""Vectors that subspace iteration goes on with; on embeddings one to four eigenvalues were above 2."""


def code_sums(chunk: EncodedChunk, n_atoms: int) -> np.ndarray:
    """``Σ_i x_ij²`` and ``Σ_i x_ij`` of each atom over a chunk: (2, m) float64."""
    ops = backend_of(chunk.values)
    rows, slots, atoms = ops.support_entries(chunk.indices, ops.xp.arange(n_atoms, dtype=np.int32))
    values = chunk.values[rows, slots].astype(np.float64)
    return ops.xp.stack([ops.sum_by_atom(atoms, values * values, n_atoms), ops.sum_by_atom(atoms, values, n_atoms)])


def first_directions(sums: np.ndarray, groups: Sequence[Group]) -> np.ndarray:
    """The sums of the codes over their norms, and random vectors; orthonormal in each group: (m, N_DIRECTIONS) float64.

    Parameters
    ----------
    sums : (2, m) float64
        Those of `code_sums` over all samples.
    groups : sequence of Group
    """
    xp, scale = backend_of(sums).xp, _inverse_norms(sums)
    sizes = [group.atoms.stop - group.atoms.start for group in groups]
    random = np.concatenate([np.random.default_rng(0).standard_normal((size, N_DIRECTIONS)) for size in sizes])
    directions = xp.where(scale[:, np.newaxis] > 0, xp.asarray(random), 0.0)
    directions[:, 0] = sums[1] * scale
    return orthonormal(directions, groups)


def orthonormal(directions: np.ndarray, groups: Sequence[Group]) -> np.ndarray:
    """The same with orthonormal columns in each group; a group of fewer atoms has columns of zeros."""
    xp = backend_of(directions).xp
    basis = xp.zeros_like(directions)
    for group in groups:
        q = xp.linalg.qr(directions[group.atoms])[0]
        basis[group.atoms, : q.shape[1]] = q
    return basis


def coupling_products(
    chunk: EncodedChunk, sums: np.ndarray, directions: np.ndarray, groups: Sequence[Group]
) -> np.ndarray:
    """``C U`` summed over a chunk for the directions U, each group by itself: (m, N_DIRECTIONS) float64."""
    ops, scale = backend_of(directions), _inverse_norms(sums)
    products = ops.xp.zeros_like(directions)
    for group in groups:
        indices, values = chunk.codes(group.slots)
        scaled = values * scale[ops.xp.maximum(indices, 0)]
        # The other groups' atoms are in none of these slots.
        products += ops.normal_products(indices, scaled, directions)
    return products


def _inverse_norms(sums: np.ndarray) -> np.ndarray:
    xp = backend_of(sums).xp
    return xp.where(sums[0] > 0, 1 / xp.sqrt(xp.where(sums[0] > 0, sums[0], 1)), 0.0)


def move_together(
    old: np.ndarray,
    new: np.ndarray,
    sums: np.ndarray,
    directions: np.ndarray,
    products: np.ndarray,
    groups: Sequence[Group],
) -> np.ndarray:
    """The new atoms, where they would overshoot with a shorter step along what their samples share.

    Parameters
    ----------
    old, new : (m, d) floats
        Unit rows.
    sums : (2, m) float64
        Those of `code_sums` over all samples.
    directions : (m, N_DIRECTIONS) float64
        Orthonormal in each group.
    products : (m, N_DIRECTIONS) float64
        Those of `coupling_products` over all samples.
    groups : sequence of Group

    Returns
    -------
    (m, d) floats
        Unit rows.
    """
    xp = backend_of(new).xp
    scale, norms = _inverse_norms(sums), xp.sqrt(sums[0])
    atoms = new.copy()
    for group in groups:
        projected = to_host(directions[group.atoms].T @ products[group.atoms])
        overshoots, vectors = np.linalg.eigh((projected + projected.T) / 2)
        u = (directions[group.atoms] @ xp.asarray(vectors))[:, overshoots > STABLE]
        if u.shape[1] == 0:
            continue
        moves = (new[group.atoms] - old[group.atoms]).astype(np.float64)
        common = (u * norms[group.atoms, np.newaxis]).T @ moves
        excess = xp.asarray(1 - 1 / overshoots[overshoots > STABLE])
        shorter = new[group.atoms] - (u * excess * scale[group.atoms, np.newaxis]) @ common
        lengths = xp.linalg.norm(shorter, axis=1, keepdims=True)
        atoms[group.atoms] = xp.where(lengths > 0, shorter / xp.where(lengths > 0, lengths, 1), new[group.atoms])
    return atoms
