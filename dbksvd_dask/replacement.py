"""Atoms that start again: those without a user, and those that are nearly the same as another one."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from dbksvd_dask.computing import computing
from dbksvd_dask.encoding import AtomVectors, EncodingStatistics, SharedDictionary
from dbksvd_dask.graph import Lazy, task
from dbksvd_dask.initialize import distinct_directions, random_directions
from dbksvd_dask.kernels.backend import on_device, placed, to_host
from dbksvd_dask.kernels.chunk import EncodedChunk
from dbksvd_dask.kernels.costs import StageCosts


class WorstSamples(NamedTuple):
    """The samples of a batch whose residuals may become atoms."""

    rows: list[np.ndarray]
    """Which rows of each chunk, in ascending order."""
    order: np.ndarray
    """What puts those rows, chunk after chunk, in order from the worst on."""


def replace_atoms(
    new: Lazy,
    dictionary: SharedDictionary,
    replace: Literal["residual", "random"] | None,
    n_fixed: int,
    statistics: Lazy,
    errors: list[Lazy],
    states: Sequence[Lazy],
    seed: Sequence[int],
) -> tuple[Lazy, Lazy, Lazy]:
    """The new dictionary with its unused atoms and duplicates replaced, as tasks.

    Parameters
    ----------
    new : task
        `AtomVectors` of the updated atoms.
    dictionary : SharedDictionary
        What the iteration began with.
    replace : "residual", "random" or None
        By residuals of the worst-reconstructed samples, random directions, or nothing.
    n_fixed : int
        So many first atoms stay as they are.
    statistics : task
        `EncodingStatistics` of the batch.
    errors : list of tasks
        (n,) relative error of each sample of each chunk.
    states : sequence of tasks
        `EncodedChunk` of each chunk.
    seed : sequence of int

    Returns
    -------
    atoms, n_duplicates, costs : tasks
    """
    duplicates = task(_duplicates, dictionary.near, statistics, n_fixed)
    worst, residuals = None, []
    if replace == "residual":
        worst = task(_worst_samples, errors, statistics, duplicates)
        residuals = [task(_residuals, state, worst, chunk, home=state.home) for chunk, state in enumerate(states)]
    how = replace, n_fixed, worst, residuals, seed
    return task(_replace, new, dictionary.atoms, statistics, duplicates, *how, outputs=3)


def _duplicates(near: np.ndarray, statistics: EncodingStatistics, n_fixed: int) -> np.ndarray:
    """Atoms that are near to one that is used more, or that is fixed; of equal ones the first stays.

    An atom that is near to a duplicate only is none: what it is near to goes.
    """
    if len(near) == 0:
        return np.empty(0, np.int64)
    usage = statistics.usage.copy()
    usage[:n_fixed] = np.iinfo(usage.dtype).max
    both_ways = np.concatenate([near, near[:, ::-1]])
    both_ways = both_ways[np.argsort(both_ways[:, 0], kind="stable")]
    atoms, starts = np.unique(both_ways[:, 0], return_index=True)
    neighbours = dict(zip(atoms.tolist(), np.split(both_ways[:, 1], starts[1:]), strict=True))
    gone: set[int] = set()
    for atom in atoms[np.argsort(-usage[atoms], kind="stable")].tolist():
        if atom not in gone:
            gone.update(j for j in neighbours[atom].tolist() if j >= n_fixed)
    return np.array(sorted(gone), np.int64)


def _worst_samples(errors: list[np.ndarray], statistics: EncodingStatistics, duplicates: np.ndarray) -> WorstSamples:
    """A batch's worst samples: twice as many as atoms may need one, since some may be the same direction."""
    count = 2 * (statistics.n_unused + len(duplicates))
    # Of a million errors that nobody asks for the order would take a tenth of a second.
    worst = np.argsort(-np.concatenate(errors), kind="stable")[:count] if count else np.empty(0, np.int64)
    rows = np.sort(worst)
    starts = np.cumsum([0, *map(len, errors)])
    places = np.searchsorted(rows, starts)
    per_chunk = [rows[a:b] - start for (a, b), start in zip(pairwise(places), starts[:-1], strict=True)]
    return WorstSamples(per_chunk, np.searchsorted(rows, worst))


@computing
def _residuals(state: EncodedChunk, worst: WorstSamples, chunk: int) -> np.ndarray:
    return to_host(state.residual[worst.rows[chunk]])


@computing
def _replace(
    new: AtomVectors,
    old: AtomVectors,
    statistics: EncodingStatistics,
    duplicates: np.ndarray,
    replace: str | None,
    n_fixed: int,
    worst: WorstSamples | None,
    residuals: list[np.ndarray],
    seed: Sequence[int],
) -> tuple[np.ndarray, int, StageCosts]:
    gone = np.union1d(np.flatnonzero(statistics.usage == 0), duplicates).astype(np.int64)
    gone = gone[gone >= n_fixed] if replace is not None else gone[:0]
    if len(gone) == 0 and n_fixed == 0:
        return new.vectors, len(duplicates), new.costs
    costs = StageCosts()
    with costs.stage("update", new.vectors):
        atoms = new.vectors.copy()
        atoms[:n_fixed] = old.vectors[:n_fixed]
        if worst is None:
            directions = random_directions(len(gone), atoms.shape[1], atoms.dtype, seed)
        else:
            directions = distinct_directions(np.concatenate(residuals)[worst.order], len(gone))
        atoms[gone[: len(directions)]] = placed(directions, on_device(atoms))
    return atoms, len(duplicates), new.costs + costs
