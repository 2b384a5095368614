"""One iteration of DB-KSVD as a Dask graph: encode every chunk, then update the atoms, one inner batch after the other.

Every task is a pure function of its inputs, and sums over chunks are trees of fixed shape: a lost worker's chunks are
computed again, and the result is the same bits on any number of workers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Literal, NamedTuple

import numpy as np
from dask.delayed import Delayed

from dbksvd_dask.computing import computing
from dbksvd_dask.encoding import AtomVectors, EncodingStatistics, Gram, SharedDictionary
from dbksvd_dask.graph import Lazy, active_client, delayed_of, homes, task, tree_sum
from dbksvd_dask.kernels import chunk as kernels
from dbksvd_dask.kernels import coupling, krylov, passes
from dbksvd_dask.kernels.backend import on_device, placed, to_host
from dbksvd_dask.kernels.chunk import EncodedChunk
from dbksvd_dask.kernels.costs import StageCosts
from dbksvd_dask.kernels.pursuit import Group, Pursuit
from dbksvd_dask.metrics import relative_errors
from dbksvd_dask.replacement import replace_atoms

_ORDER, _REPLACEMENT = 0, 1  # what a random stream of an iteration is for

SUBSPACE_ITERATIONS = 4
"""Steps towards the vectors along which all atoms at once would overshoot; see `kernels.coupling`."""


@dataclass(frozen=True)
class Update:
    """How atoms are updated."""

    inner_batch_size: int | None = None
    """Atoms updated simultaneously; None for all of them."""
    n_passes: int = 2
    """Most passes over the residual for each inner batch: applications of ``E_jᵀE_j`` to one vector of each atom."""
    solver: Literal["lanczos", "power"] = "lanczos"
    """What is made of the passes: the best vector of the Krylov space, or plain power iteration."""
    replace_unused: Literal["residual", "random"] | None = "residual"
    """What becomes of atoms without a user: a residual direction, a random direction, or nothing."""
    tol: float = 0.0
    """An atom takes no more passes when ``‖E_jᵀE_j v − θ v‖ ≤ tol θ``; with the Lanczos solver."""
    n_fixed: int = 0
    """So many first atoms stay as they are."""


class IterationTasks(NamedTuple):
    """What one iteration leaves, as tasks."""

    atoms: Delayed
    """(m, d) floats: the new dictionary; on a device where rows are, but from a cluster it comes as a NumPy array."""
    statistics: Delayed
    """`EncodingStatistics` of the batch under the dictionary that the iteration began with."""
    n_duplicates: Delayed
    """Atoms that were replaced for being near to another one."""
    update_costs: Delayed
    """`StageCosts` of the update."""


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
    groups = pursuit.groups(n_atoms)
    largest = max(group.atoms.stop - group.atoms.start for group in groups)
    size = update.inner_batch_size or largest
    all_at_once = size >= largest
    states, statistics, errors, first_passes = zip(
        *(
            task(_encode, rows, *dictionary[:3], pursuit, all_at_once, outputs=4, home=home)
            for rows, home in zip(chunks, homes(len(chunks)), strict=True)
        ),
        strict=True,
    )
    batch_statistics = tree_sum(statistics)
    if all_at_once:
        new = update_all(states, dictionary.atoms, groups, update, tree_sum(first_passes))
    else:
        order = np.random.default_rng([*seed, _ORDER]).permutation(n_atoms)
        order = order[order >= update.n_fixed]
        new = _update_in_inner_batches(states, dictionary.atoms, order, groups, size, pursuit, update)
    replaced, n_duplicates, costs = replace_atoms(
        new,
        dictionary,
        update.replace_unused,
        update.n_fixed,
        batch_statistics,
        list(errors),
        states,
        [*seed, _REPLACEMENT],
    )
    atoms = replaced if active_client() is None else task(to_host, replaced)
    return IterationTasks(*delayed_of(atoms, batch_statistics, n_duplicates, costs))


def update_all(
    states: Sequence[Lazy], atoms: Any, groups: Sequence[Group], update: Update, first_pass: Lazy | None = None
) -> Lazy:
    """All new atoms at once, those of each group from the residual that it leaves, as a task.

    Parameters
    ----------
    states : sequence of tasks
        `EncodedChunk` of each chunk.
    atoms : task
        `AtomVectors` of the dictionary so far.
    groups : sequence of Group
    update : Update
    first_pass : task, optional
        `AtomVectors` of ``E_jᵀE_j d_j``, where the encoding has left it.

    Returns
    -------
    task
        `AtomVectors`.
    """

    def pass_over(directions: Any) -> Lazy:
        parts = [task(_pass_for_all, state, groups, atoms, directions, home=state.home) for state in states]
        return tree_sum(parts)

    new = _new_vectors(pass_over, atoms, pass_over(atoms) if first_pass is None else first_pass, update)
    sums = tree_sum([task(_code_sums, state, atoms, update.n_fixed, home=state.home) for state in states])
    directions = task(_first_directions, sums, groups)
    products = _coupling_products(states, sums, directions, groups)
    for _ in range(SUBSPACE_ITERATIONS):
        directions = task(_orthonormal, products, groups)
        products = _coupling_products(states, sums, directions, groups)
    return task(_move_together, atoms, new, sums, directions, products, groups)


def _coupling_products(states: Sequence[Lazy], sums: Lazy, directions: Lazy, groups: Sequence[Group]) -> Lazy:
    return tree_sum([task(_coupling_product, state, sums, directions, groups, home=state.home) for state in states])


def _update_in_inner_batches(
    states: Sequence[Lazy],
    atoms: Any,
    order: np.ndarray,
    groups: Sequence[Group],
    size: int,
    pursuit: Pursuit,
    update: Update,
) -> Lazy:
    """`AtomVectors` of the new dictionary, group by group and in each inner batch by inner batch (paper, 4.1, 4.2)."""
    if len(groups) > 1:
        states = [task(_back_to_first_group, state, atoms, groups, home=state.home) for state in states]
    batches, updated = [], []
    for group in groups:
        if group is not groups[0]:
            states = [task(_enter_group, state, atoms, group, home=state.home) for state in states]
        members = order[(group.atoms.start <= order) & (order < group.atoms.stop)]
        for batch in (members[i : i + size] for i in range(0, len(members), size)):
            old = task(_take, atoms, batch)
            new = _update_inner_batch(states, batch, len(order) + update.n_fixed, old, update)
            batches.append(batch)
            updated.append(new)
            # The last of these are never made: nothing needs them.
            projection = batch, len(order) + update.n_fixed, old, new, pursuit.nonnegative
            states = [task(_project_in_turn, state, *projection, home=state.home) for state in states]
    return task(_join, atoms, batches, updated)


def _update_inner_batch(states: Sequence[Lazy], batch: np.ndarray, n_atoms: int, old: Lazy, update: Update) -> Lazy:
    """`AtomVectors` of the new atoms of one inner batch, all from the same dictionary, codes and residual."""

    def pass_over(directions: Any) -> Lazy:
        return tree_sum(
            [task(_pass_for_batch, state, batch, n_atoms, old, directions, home=state.home) for state in states]
        )

    return _new_vectors(pass_over, old, pass_over(old), update)


def _new_vectors(pass_over: Callable[[Any], Lazy], old: Any, first_pass: Lazy, update: Update) -> Lazy:
    """`AtomVectors` of the new atoms from passes over the residual, of which the first is made."""
    basis, products = [old], [first_pass]
    for _ in range(update.n_passes - 1):
        if update.solver == "lanczos":
            basis.append(task(_next_direction, basis, products, update.tol))
        else:
            basis, products = [task(_new_atoms, basis, products, old)], []
        products.append(pass_over(basis[-1]))
    return task(_new_atoms, basis, products, old)


@computing
def _encode(
    rows: Any, atoms: AtomVectors, mean: np.ndarray | None, gram: Gram, pursuit: Pursuit, with_first_pass: bool
) -> "_Outputs":
    encoding = kernels.encode_with_residual(rows, atoms.vectors, gram.blocks, mean, pursuit)
    statistics = EncodingStatistics.of(encoding, len(atoms.vectors))
    errors = relative_errors(encoding.squared_norms, encoding.chunk.residual)
    if not with_first_pass:
        return _Outputs((encoding.chunk, statistics, errors, None))
    costs = StageCosts()
    with costs.stage("update", atoms.vectors):
        sums = passes.first_pass(encoding, atoms.vectors, pursuit.groups(len(atoms.vectors)))
    return _Outputs((encoding.chunk, statistics, errors, AtomVectors(sums, costs)))


@dataclass(frozen=True, eq=False)
class _Outputs:
    """`EncodedChunk`, `EncodingStatistics`, relative errors and first pass of a chunk, for a task to hand on each.

    Dask counts them there. Counted here as well, they made workers of a cluster spill that had memory enough.
    """

    values: tuple[EncodedChunk, EncodingStatistics, np.ndarray, AtomVectors | None]

    def __getitem__(self, place: int) -> Any:
        return self.values[place]

    def __sizeof__(self) -> int:
        """None of its own."""
        return 0


@computing
def _pass_for_all(
    state: EncodedChunk, groups: Sequence[Group], atoms: AtomVectors, directions: AtomVectors
) -> AtomVectors:
    costs = StageCosts()
    with costs.stage("update", atoms.vectors):
        sums = np.empty_like(atoms.vectors)
        for group, chunk in passes.group_by_group(state, atoms.vectors, groups):
            places = _places(np.arange(group.atoms.start, group.atoms.stop), len(sums), state)
            vectors = atoms.vectors[group.atoms], directions.vectors[group.atoms]
            sums[group.atoms] = passes.atom_pass(chunk, places, *vectors)
    return AtomVectors(sums, costs)


@computing
def _pass_for_batch(
    state: EncodedChunk, batch: np.ndarray, n_atoms: int, old: AtomVectors, directions: AtomVectors
) -> AtomVectors:
    costs = StageCosts()
    with costs.stage("update", old.vectors):
        sums = passes.atom_pass(state, _places(batch, n_atoms, state), old.vectors, directions.vectors)
    return AtomVectors(sums, costs)


def _places(batch: np.ndarray, n_atoms: int, state: EncodedChunk) -> np.ndarray:
    """(m,) int32, where the chunk is: place of each atom in the inner batch, −1 for atoms outside it."""
    places = np.full(n_atoms, -1, np.int32)
    places[batch] = np.arange(len(batch), dtype=np.int32)
    return placed(places, on_device(state.indices))


@computing
def _next_direction(basis: list[AtomVectors], products: list[AtomVectors], tol: float) -> AtomVectors:
    costs = StageCosts()
    with costs.stage("update", basis[0].vectors):
        given = [q.vectors for q in basis], [product.vectors for product in products]
        direction = krylov.next_direction(*given, tol)
    return AtomVectors(direction, costs)


@computing
def _new_atoms(basis: list[AtomVectors], products: list[AtomVectors], old: AtomVectors) -> AtomVectors:
    costs = reduce(add, (vectors.costs for vectors in [*basis, *products]))
    with costs.stage("update", basis[0].vectors):
        given = [q.vectors for q in basis], [product.vectors for product in products]
        atoms = krylov.ritz_vectors(*given, old.vectors)
    return AtomVectors(atoms, costs)


@computing
def _code_sums(state: EncodedChunk, atoms: AtomVectors, n_fixed: int) -> np.ndarray:
    sums = coupling.code_sums(state, len(atoms.vectors))
    sums[:, :n_fixed] = 0  # what does not move does not overshoot
    return sums


@computing
def _coupling_product(
    state: EncodedChunk, sums: np.ndarray, directions: np.ndarray, groups: Sequence[Group]
) -> np.ndarray:
    return coupling.coupling_products(state, sums, directions, groups)


@computing
def _first_directions(sums: np.ndarray, groups: Sequence[Group]) -> np.ndarray:
    return coupling.first_directions(sums, groups)


@computing
def _orthonormal(products: np.ndarray, groups: Sequence[Group]) -> np.ndarray:
    return coupling.orthonormal(products, groups)


@computing
def _move_together(
    old: AtomVectors,
    new: AtomVectors,
    sums: np.ndarray,
    directions: np.ndarray,
    products: np.ndarray,
    groups: Sequence[Group],
) -> AtomVectors:
    costs = StageCosts()
    with costs.stage("update", old.vectors):
        atoms = coupling.move_together(old.vectors, new.vectors, sums, directions, products, groups)
    return AtomVectors(atoms, new.costs + costs)


@computing
def _take(atoms: AtomVectors, batch: np.ndarray) -> AtomVectors:
    return AtomVectors(atoms.vectors[batch])


@computing
def _join(atoms: AtomVectors, batches: list[np.ndarray], updated: list[AtomVectors]) -> AtomVectors:
    vectors = atoms.vectors.copy()
    for batch, new in zip(batches, updated, strict=True):
        vectors[batch] = new.vectors
    return AtomVectors(vectors, reduce(add, (new.costs for new in updated)))


@computing
def _project_in_turn(
    state: EncodedChunk, batch: np.ndarray, n_atoms: int, old: AtomVectors, new: AtomVectors, nonnegative: bool
) -> EncodedChunk:
    return passes.project_in_turn(state, _places(batch, n_atoms, state), old.vectors, new.vectors, nonnegative)


@computing
def _back_to_first_group(state: EncodedChunk, atoms: AtomVectors, groups: Sequence[Group]) -> EncodedChunk:
    """The chunk with the residual that the first group leaves."""
    return passes.with_contributions(state, atoms.vectors, slice(groups[0].slots.stop, None), sign=-1)


@computing
def _enter_group(state: EncodedChunk, atoms: AtomVectors, group: Group) -> EncodedChunk:
    """The chunk with the residual that this group leaves, from that of the one before."""
    return passes.with_contributions(state, atoms.vectors, group.slots, sign=1)
