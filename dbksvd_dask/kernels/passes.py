"""Passes over an encoded chunk: what it adds to the update of the atoms, and what new atoms change in it."""

from collections.abc import Iterator, Sequence

import numpy as np

from dbksvd_dask.kernels.backend import backend_of
from dbksvd_dask.kernels.chunk import EncodedChunk, Encoding
from dbksvd_dask.kernels.pursuit import Group


def first_pass(encoding: Encoding, dictionary: np.ndarray, groups: Sequence[Group]) -> np.ndarray:
    """``E_jᵀE_j d_j`` summed over a chunk for every atom, with the inner products that the pursuit left.

    Parameters
    ----------
    encoding : Encoding
    dictionary : (m, d) floats
    groups : sequence of Group

    Returns
    -------
    (m, d) floats
    """
    ops = backend_of(dictionary)
    everything = ops.xp.arange(len(dictionary), dtype=np.int32)
    sums = ops.xp.empty_like(dictionary)
    for group, chunk in group_by_group(encoding.chunk, dictionary, groups):
        rows, slots, atoms = ops.support_entries(chunk.indices, everything)
        values = chunk.values[rows, slots]
        # e_i = r_i + x_i d_j, so ⟨e_i, d_j⟩ = ⟨r_i, d_j⟩ + x_i for unit atoms.
        weights = encoding.residual_products[:, group.slots][rows, slots] + values
        members = atoms - group.atoms.start
        sums[group.atoms] = _accumulate(chunk.residual, rows, members, weights, values, dictionary[group.atoms])
    return sums


def group_by_group(
    chunk: EncodedChunk, dictionary: np.ndarray, groups: Sequence[Group]
) -> Iterator[tuple[Group, EncodedChunk]]:
    """Each group with its codes and the residual that it leaves, from the last group to the first.

    The residual is one array that what is taken out of it comes back to, group after group.

    Parameters
    ----------
    chunk : EncodedChunk
        Its residual is that of all groups.
    dictionary : (m, d) floats
    groups : sequence of Group
    """
    ops = backend_of(chunk.residual)
    residual = chunk.residual if len(groups) == 1 else chunk.residual.copy()
    for group in reversed(groups):
        indices, values = chunk.codes(group.slots)
        yield group, EncodedChunk(indices, values, residual)
        if group is not groups[0]:
            ops.subtract_reconstruction(residual, dictionary, indices, -values)


def atom_pass(chunk: EncodedChunk, members: np.ndarray, atoms: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """``E_jᵀE_j v_j`` summed over a chunk, for the atoms of one inner batch.

    Parameters
    ----------
    chunk : EncodedChunk
    members : (m,) int32
        Place of each atom in the inner batch, −1 for atoms outside it.
    atoms : (w, d) floats
        The atoms d_j of the inner batch, as the residual has them.
    vectors : (w, d) floats
        v_j; those that are zero take no time.

    Returns
    -------
    (w, d) floats
    """
    ops = backend_of(chunk.residual)
    xp = ops.xp
    idle = xp.logical_not(vectors.any(axis=1))
    if idle.any():
        members = xp.where((members >= 0) & ~idle[members], members, np.int32(-1))
    rows, slots, places = ops.support_entries(chunk.indices, members)
    values = chunk.values[rows, slots]
    # ⟨e_i, v_j⟩ = ⟨r_i, v_j⟩ + x_i ⟨d_j, v_j⟩
    overlap = xp.einsum("jf,jf->j", atoms, vectors)
    weights = ops.support_products(chunk.residual, vectors, rows, places) + values * overlap[places]
    return _accumulate(chunk.residual, rows, places, weights, values, atoms)


def _accumulate(
    residual: np.ndarray,
    rows: np.ndarray,
    places: np.ndarray,
    weights: np.ndarray,
    values: np.ndarray,
    atoms: np.ndarray,
) -> np.ndarray:
    """``Σ_i w_ij e_i = Σ_i w_ij r_i + (Σ_i w_ij x_ij) d_j``."""
    ops = backend_of(residual)
    along_atom = ops.sum_by_atom(places, weights.astype(np.float64) * values, len(atoms))
    sums = atoms * along_atom.astype(atoms.dtype)[:, np.newaxis]
    ops.accumulate_residual(residual, rows, places, weights, sums)
    return sums


def project_in_turn(
    chunk: EncodedChunk, members: np.ndarray, old: np.ndarray, new: np.ndarray, nonnegative: bool
) -> EncodedChunk:
    """The chunk with the new atoms of an inner batch in its residual and coefficients (Gauss-Seidel).

    Parameters
    ----------
    chunk : EncodedChunk
        Left as it is.
    members : (m,) int32
        Place of each atom in the inner batch, −1 for atoms outside it.
    old, new : (w, d) floats
    nonnegative : bool
    """
    ops = backend_of(chunk.residual)
    values = chunk.values.copy()
    residual = chunk.residual.copy()
    ops.project_in_turn(residual, values, chunk.indices, members, old, new, nonnegative)
    return EncodedChunk(chunk.indices, values, residual)


def with_contributions(chunk: EncodedChunk, dictionary: np.ndarray, slots: slice, sign: int) -> EncodedChunk:
    """The chunk with what its codes in some slots contribute taken from its residual, or with sign −1 given back."""
    residual = chunk.residual.copy()
    indices, values = chunk.codes(slots)
    backend_of(residual).subtract_reconstruction(residual, dictionary, indices, sign * values)
    return EncodedChunk(chunk.indices, chunk.values, residual)
