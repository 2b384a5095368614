"""One iteration of DB-KSVD as a Dask graph: encode every chunk, then update the atoms, one inner batch after the other.

Every task is a pure function of its inputs, and sums over chunks are trees of fixed shape: a lost worker's chunks are
computed again, and the result is the same bits on any number of workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from dask.delayed import Delayed

from dbksvd_dask.encoding import (
    AtomVectors,
    EncodingStatistics,
    Gram,
    SharedDictionary,
    add_seconds,
)
from dbksvd_dask.graph import Lazy, delayed_of, homes, task, tree_sum
from dbksvd_dask.initialize import distinct_directions, random_directions
from dbksvd_dask.kernels import chunk as kernels
from dbksvd_dask.kernels import cpu
from dbksvd_dask.kernels.blas import single_threaded
from dbksvd_dask.kernels.chunk import EncodedChunk, Pursuit, timed
from dbksvd_dask.metrics import relative_errors

_ORDER, _REPLACEMENT = 0, 1  # what a random stream of an iteration is for


@dataclass(frozen=True)
class Update:
    """How atoms are updated."""

    inner_batch_size: int | None = None
    """Atoms updated simultaneously; None for all of them."""
    n_passes: int = 2
    """Passes over the residual for each inner batch: applications of ``E_jᵀE_j`` to one vector of each atom."""
    solver: Literal["lanczos", "power"] = "lanczos"
    """What is made of the passes: the best vector of the Krylov space, or plain power iteration."""
    replace_unused: Literal["residual", "random"] | None = "residual"
    """What becomes of atoms without a user: a residual direction, a random direction, or nothing."""


class IterationTasks(NamedTuple):
    """What one iteration leaves, as tasks."""

    atoms: Delayed
    """(m, d) floats: the new dictionary."""
    statistics: Delayed
    """`EncodingStatistics` of the batch under the dictionary that the iteration began with."""
    update_seconds: Delayed
    """Task seconds of the update, by stage."""


class WorstSamples(NamedTuple):
    """The samples of a batch whose residuals may become atoms."""

    rows: list[np.ndarray]
    """Which rows of each chunk, in ascending order."""
    order: np.ndarray
    """What puts those rows, chunk after chunk, in order from the worst on."""


def iterate(
    chunks: Sequence[Any],
    dictionary: SharedDictionary,
    n_atoms: int,
    pursuit: Pursuit,
    update: Update,
    seed: Sequence[int],
) -> IterationTasks:
    """One iteration over one outer batch, as tasks.

    Parameters
    ----------
    chunks : sequence of tasks
        The rows of the outer batch, (n, d) floats each.
    dictionary : SharedDictionary
    n_atoms : int
    pursuit : Pursuit
    update : Update
    seed : sequence of int
        For the order of the inner batches and for random directions; another one for each iteration.
    """
    size = update.inner_batch_size or n_atoms
    all_at_once = size >= n_atoms
    states, statistics, errors, first_passes = zip(
        *(
            task(_encode, rows, *dictionary[:3], pursuit, all_at_once, outputs=4, home=home)
            for rows, home in zip(chunks, homes(len(chunks)), strict=True)
        ),
        strict=True,
    )
    batch_statistics = tree_sum(statistics)
    if all_at_once:
        new = _update_atoms(states, np.arange(n_atoms), n_atoms, dictionary.atoms, tree_sum(first_passes), update)
    else:
        order = np.random.default_rng([*seed, _ORDER]).permutation(n_atoms)
        new = _update_in_inner_batches(states, dictionary.atoms, order, size, pursuit.nonnegative, update)
    worst, residuals = None, []
    if update.replace_unused == "residual":
        worst = task(_worst_samples, list(errors), batch_statistics)
        residuals = [task(_residuals, state, worst, chunk, home=state.home) for chunk, state in enumerate(states)]
    replacement = update.replace_unused, worst, residuals, seed
    atoms, seconds = task(_replace_unused, new, batch_statistics, *replacement, outputs=2)
    return IterationTasks(*delayed_of(atoms, batch_statistics, seconds))


def _update_in_inner_batches(
    states: Sequence[Lazy], atoms: Any, order: np.ndarray, size: int, nonnegative: bool, update: Update
) -> Lazy:
    """`AtomVectors` of the new dictionary, inner batch by inner batch (paper, section 4.1)."""
    n_atoms = len(order)
    batches = [order[i : i + size] for i in range(0, n_atoms, size)]
    updated = []
    for batch in batches:
        old = task(_take, atoms, batch)
        first_pass = tree_sum(_passes(states, batch, n_atoms, old, old))
        new = _update_atoms(states, batch, n_atoms, old, first_pass, update)
        updated.append(new)
        if batch is not batches[-1]:  # the codes are computed anew in the next iteration
            states = [
                task(_project_in_turn, state, batch, n_atoms, old, new, nonnegative, home=state.home)
                for state in states
            ]
    return task(_join, order, updated)


def _update_atoms(
    states: Sequence[Lazy], batch: np.ndarray, n_atoms: int, old: Any, first_pass: Lazy, update: Update
) -> Lazy:
    """`AtomVectors` of the new atoms of one inner batch, all from the same dictionary, codes and residual."""
    basis, products = [old], [first_pass]
    for _ in range(update.n_passes - 1):
        if update.solver == "lanczos":
            basis.append(task(_next_direction, basis, products[-1]))
        else:
            basis, products = [task(_new_atoms, basis, products, old)], []
        products.append(tree_sum(_passes(states, batch, n_atoms, old, basis[-1])))
    return task(_new_atoms, basis, products, old)


def _passes(states: Sequence[Lazy], batch: np.ndarray, n_atoms: int, old: Any, direction: Any) -> list[Lazy]:
    return [task(_atom_pass, state, batch, n_atoms, old, direction, home=state.home) for state in states]


@single_threaded()
def _encode(
    rows: Any, atoms: AtomVectors, mean: np.ndarray | None, gram: Gram, pursuit: Pursuit, with_first_pass: bool
) -> tuple[EncodedChunk, EncodingStatistics, np.ndarray, AtomVectors | None]:
    encoding = kernels.encode_with_residual(rows, atoms.vectors, gram.products, mean, pursuit)
    statistics = EncodingStatistics.of(encoding, len(atoms.vectors))
    errors = relative_errors(encoding.squared_norms, encoding.chunk.residual)
    if not with_first_pass:
        return encoding.chunk, statistics, errors, None
    seconds: dict[str, float] = {}
    with timed(seconds, "update"):
        sums = kernels.first_pass(encoding, atoms.vectors)
    return encoding.chunk, statistics, errors, AtomVectors(sums, seconds)


def _places(batch: np.ndarray, n_atoms: int) -> np.ndarray:
    """(m,) int32: place of each atom in the inner batch, −1 for atoms outside it."""
    places = np.full(n_atoms, -1, np.int32)
    places[batch] = np.arange(len(batch), dtype=np.int32)
    return places


def _take(atoms: AtomVectors, batch: np.ndarray) -> AtomVectors:
    return AtomVectors(atoms.vectors[batch])


def _join(order: np.ndarray, updated: list[AtomVectors]) -> AtomVectors:
    atoms = np.concatenate([new.vectors for new in updated])
    atoms[order] = atoms.copy()
    return AtomVectors(atoms, reduce(add_seconds, (new.seconds for new in updated)))


@single_threaded()
def _atom_pass(
    state: EncodedChunk, batch: np.ndarray, n_atoms: int, old: AtomVectors, direction: AtomVectors
) -> AtomVectors:
    seconds: dict[str, float] = {}
    with timed(seconds, "update"):
        sums = kernels.atom_pass(state, _places(batch, n_atoms), old.vectors, direction.vectors)
    return AtomVectors(sums, seconds)


def _next_direction(basis: list[AtomVectors], product: AtomVectors) -> AtomVectors:
    seconds: dict[str, float] = {}
    with timed(seconds, "update"):
        direction = cpu.next_direction(tuple(q.vectors for q in basis), product.vectors)
    return AtomVectors(direction, seconds)


@single_threaded()
def _new_atoms(basis: list[AtomVectors], products: list[AtomVectors], old: AtomVectors) -> AtomVectors:
    seconds = reduce(add_seconds, (vectors.seconds for vectors in [*basis, *products]))
    with timed(seconds, "update"):
        krylov = tuple(q.vectors for q in basis), tuple(product.vectors for product in products)
        atoms = cpu.ritz_vectors(*krylov, old.vectors)
    return AtomVectors(atoms, seconds)


def _project_in_turn(
    state: EncodedChunk, batch: np.ndarray, n_atoms: int, old: AtomVectors, new: AtomVectors, nonnegative: bool
) -> EncodedChunk:
    return kernels.project_in_turn(state, _places(batch, n_atoms), old.vectors, new.vectors, nonnegative)


def _worst_samples(errors: list[np.ndarray], statistics: EncodingStatistics) -> WorstSamples:
    """A batch's worst samples: twice as many as there are unused atoms, since some may be the same direction."""
    worst = np.argsort(-np.concatenate(errors), kind="stable")[: 2 * statistics.n_unused]
    rows = np.sort(worst)
    starts = np.cumsum([0, *map(len, errors)])
    places = np.searchsorted(rows, starts)
    per_chunk = [rows[a:b] - start for (a, b), start in zip(pairwise(places), starts[:-1], strict=True)]
    return WorstSamples(per_chunk, np.searchsorted(rows, worst))


def _residuals(state: EncodedChunk, worst: WorstSamples, chunk: int) -> np.ndarray:
    return state.residual[worst.rows[chunk]]


def _replace_unused(
    new: AtomVectors,
    statistics: EncodingStatistics,
    replace: str | None,
    worst: WorstSamples | None,
    residuals: list[np.ndarray],
    seed: Sequence[int],
) -> tuple[np.ndarray, dict[str, float]]:
    """The new dictionary with its unused atoms replaced, and the task seconds of the update."""
    seconds = dict(new.seconds)
    if replace is None or statistics.n_unused == 0:
        return new.vectors, seconds
    with timed(seconds, "update"):
        unused = np.flatnonzero(statistics.usage == 0)
        atoms = new.vectors.copy()
        if worst is None:
            directions = random_directions(len(unused), atoms.shape[1], atoms.dtype, [*seed, _REPLACEMENT])
        else:
            directions = distinct_directions(np.concatenate(residuals)[worst.order], len(unused))
        atoms[unused[: len(directions)]] = directions
    return atoms, seconds
