"""A first dictionary from known structure (paper, section 5.4): which samples use an atom says what the atom is.

An atom whose users are known begins as the first singular vector of what is left of their rows when the atoms known
beforehand are taken out. A few rounds of K-SVD with the support held make all of them fit each other: coefficients by
least squares on the support, then the atoms, all at once. Each round sees one outer batch.
"""

from dataclasses import replace
from typing import Any

import dask
import numpy as np
from scipy.sparse import csr_array

from dbksvd_dask.batches import OuterBatches
from dbksvd_dask.computing import computing
from dbksvd_dask.encoding import AtomVectors, Gram, share_dictionary
from dbksvd_dask.graph import delayed_of, homes, task, tree_sum, without_size_warning
from dbksvd_dask.iteration import Update, update_all
from dbksvd_dask.kernels import support as kernels
from dbksvd_dask.kernels.backend import backend_of, on_device, placed, to_host
from dbksvd_dask.kernels.blas import single_threaded
from dbksvd_dask.kernels.chunk import EncodedChunk
from dbksvd_dask.kernels.pursuit import Group
from dbksvd_dask.training import Training

ROUNDS = 5
UPDATE = Update(n_passes=8, tol=1e-3)
"""More passes than in an iteration: the first round begins anywhere."""


def atoms_of_support(
    batches: OuterBatches, support: csr_array, atoms: np.ndarray, n_known: int, training: Training
) -> np.ndarray:
    """The dictionary to begin with, where the samples that use some of its atoms are known.

    Parameters
    ----------
    batches : OuterBatches
    support : (n, m) csr_array
        Nonzero where it is known that a sample uses an atom.
    atoms : (m, d) floats
        Unit rows: what is known beforehand, and what atoms without a known user begin with.
    n_known : int
        So many first atoms are known and stay as they are here.
    training : Training

    Returns
    -------
    (m, d) floats
        Unit rows.
    """
    usable = np.arange(len(atoms)) < n_known
    with single_threaded():
        for number in range(batches.first_iteration, batches.first_iteration + ROUNDS):
            slots = [kernels.support_slots(support[rows]) for rows in batches.row_numbers(number)]
            users = np.bincount(np.concatenate([part[part >= 0] for part in slots]), minlength=len(atoms))
            learned = (users > 0) & (np.arange(len(atoms)) >= n_known)
            new = _update_now(batches.read(number), slots, atoms, n_known, usable, learned, training, batches.device)
            atoms = np.where(learned[:, np.newaxis], new, atoms)
            usable = usable | learned
    return atoms


def _update_now(
    chunks: list[Any],
    slots: list[np.ndarray],
    atoms: np.ndarray,
    n_known: int,
    usable: np.ndarray,
    learned: np.ndarray,
    training: Training,
    device: bool,
) -> np.ndarray:
    """One round on one outer batch; atoms that are met for the first time begin as the sum of their users."""
    dictionary = share_dictionary(atoms, training.mean, training.flat, device=device)
    states = [
        task(_encode_on_support, rows, *dictionary[:3], indices, usable, home=home)
        for rows, indices, home in zip(chunks, slots, homes(len(chunks)), strict=True)
    ]
    sums = tree_sum([task(_sum_of_users, state, len(atoms), home=state.home) for state in states])
    begun = task(_begin, dictionary.atoms, sums, learned & ~usable)
    everything = [Group(slice(0, len(atoms)), slice(None))]  # a sample may be known to use more than k atoms
    new = update_all(states, begun, everything, replace(UPDATE, n_fixed=n_known))
    with without_size_warning():
        return dask.compute(*delayed_of(task(_vectors, new)))[0]


@computing
def _encode_on_support(
    rows: Any, atoms: AtomVectors, mean: np.ndarray | None, gram: Gram, indices: np.ndarray, usable: np.ndarray
) -> EncodedChunk:
    device = on_device(atoms.vectors)
    known = placed(indices, device), placed(usable, device)
    return kernels.encode_on_support(rows, atoms.vectors, gram.blocks[0], mean, *known)


@computing
def _sum_of_users(state: EncodedChunk, n_atoms: int) -> np.ndarray:
    return kernels.sum_of_users(state, n_atoms)


@computing
def _begin(atoms: AtomVectors, sums: np.ndarray, first: np.ndarray) -> AtomVectors:
    xp = backend_of(sums).xp
    norms = xp.linalg.norm(sums, axis=1, keepdims=True)
    first = placed(first, on_device(sums))[:, np.newaxis] & (norms > 0)
    return AtomVectors(xp.where(first, sums / xp.where(norms > 0, norms, 1), atoms.vectors))


def _vectors(atoms: AtomVectors) -> np.ndarray:
    return to_host(atoms.vectors)
