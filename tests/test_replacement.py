"""Atoms that are nearly the same as another one start again, the less used one of the two."""

import dask
import numpy as np
import oracle
import pytest
from dask.delayed import delayed
from hypothesis import given
from hypothesis import strategies as st

from dbksvd_dask import DBKSVD, metrics
from dbksvd_dask.encoding import EncodingStatistics, share_dictionary
from dbksvd_dask.iteration import Update, iterate
from dbksvd_dask.kernels.blas import single_threaded
from dbksvd_dask.kernels.costs import StageCosts
from dbksvd_dask.kernels.gram import gram_panel
from dbksvd_dask.kernels.pursuit import Pursuit
from dbksvd_dask.replacement import _duplicates

N_FEATURES = 12
MAX_COHERENCE = 0.9


def duplicates(D, usage, n_fixed=0, max_coherence=MAX_COHERENCE):
    """What the library finds, in a list."""
    near = gram_panel(D, 0, max_coherence).near
    return _duplicates(near, EncodingStatistics(None, np.asarray(usage), StageCosts()), n_fixed).tolist()


def on_a_circle(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


# --- which atoms go --------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**32),
    n_atoms=st.integers(1, 25),
    n_features=st.integers(2, 4),
    most=st.sampled_from([0, 2, 100]),
    n_fixed=st.integers(0, 4),
    max_coherence=st.sampled_from([0.5, 0.8, 0.95]),
)
def test_duplicates_are_those_of_the_oracle(seed, n_atoms, n_features, most, n_fixed, max_coherence):
    rng = np.random.default_rng(seed)
    D = oracle.random_atoms(rng, n_atoms, n_features)  # few features: many are near to each other
    usage = rng.integers(0, most + 1, n_atoms)
    expected = oracle.near_duplicates(D, usage, max_coherence, min(n_fixed, n_atoms))
    assert duplicates(D, usage, min(n_fixed, n_atoms), max_coherence) == expected


@pytest.mark.parametrize(
    ("usage", "n_fixed", "expected"),
    [
        ([5, 3, 1], 0, [1]),  # the first stays, the second goes, and so the third is near to nobody any more
        ([3, 5, 1], 0, [0, 2]),  # the one in the middle stays
        ([1, 3, 5], 0, [1]),
        ([1, 5, 3], 0, [0, 2]),
        ([4, 4, 4], 0, [1]),  # equally used: the first of them stays
        ([0, 0, 0], 0, [1]),
        ([1, 3, 5], 1, [1]),  # a fixed atom stays, used or not
        ([0, 3, 2], 2, [2]),
        ([1, 5, 3], 1, [1]),  # the one in the middle goes for the fixed one, used most or not: the last one may stay
        ([0, 3, 9], 3, []),  # and so do several that are near to each other
    ],
)
def test_of_a_chain_of_which_only_neighbours_are_near(usage, n_fixed, expected):
    D = on_a_circle(0, 20, 40)  # cos 20° = .94, cos 40° = .77
    assert duplicates(D, usage, n_fixed) == expected
    assert duplicates(D * [[1], [-1], [1]], usage, n_fixed) == expected


def test_without_near_atoms_nothing_goes():
    assert duplicates(np.eye(4), [0, 1, 2, 0]) == []


# --- in an iteration -------------------------------------------------------------------------------------------------


@pytest.fixture
def with_near_atoms():
    """Five features each for its own atom; atom 5 is near to atom 1, and atom 6 to atom 2.

    Atom 1 is used by more samples than atom 5, and atom 6 by more than atom 2. Samples 30 and 70 have directions that
    no atom has, and are worst reconstructed.
    """
    rng = np.random.default_rng(0)
    D = np.eye(7, N_FEATURES)
    D[5], D[6] = 0.95 * np.eye(N_FEATURES)[[1, 2]] + np.sqrt(1 - 0.95**2) * np.eye(N_FEATURES)[[8, 9]]
    users = np.repeat(range(7), [10, 20, 6, 10, 10, 7, 15])
    Y = rng.uniform(1, 2, (len(users), 1)) * D[users] + 0.02 * rng.standard_normal((len(users), N_FEATURES))
    Y[[30, 70]] = np.eye(N_FEATURES)[[10, 11]] * [[0.5], [-2.0]] + 0.01 * np.eye(N_FEATURES)[0]
    return Y, D


def one_iteration(Y, D, pursuit=None, max_coherence=MAX_COHERENCE, **update):
    """New atoms, statistics and how many near duplicates were replaced."""
    pursuit = Pursuit(1) if pursuit is None else pursuit
    shared = share_dictionary(D, None, pursuit, max_coherence)
    chunks = [delayed(np.array_split)(rows, 2) for rows in np.array_split(Y, 4)]
    with single_threaded(), dask.config.set(scheduler="threads"):
        tasks = iterate(chunks, shared, len(D), pursuit, Update(**update), [3])
        return dask.compute(tasks.atoms, tasks.statistics, tasks.n_duplicates)


def without_replacement(Y, D, **update):
    return one_iteration(Y, D, max_coherence=None, **(update | {"replace_unused": None}))[0]


@pytest.mark.parametrize("inner_batch_size", [None, 1, 3])
def test_the_less_used_one_becomes_the_residual_of_a_worst_sample(with_near_atoms, inner_batch_size):
    Y, D = with_near_atoms
    atoms, statistics, n_duplicates = one_iteration(Y, D, inner_batch_size=inner_batch_size)
    assert statistics.usage[1] > statistics.usage[5] > 0
    assert statistics.usage[6] > statistics.usage[2] > 0
    assert n_duplicates == 2
    others = [0, 1, 3, 4, 6]
    kept = without_replacement(Y, D, inner_batch_size=inner_batch_size)
    np.testing.assert_array_equal(atoms[others], kept[others])
    # Of two worst samples, each for one atom: the residual of a sample of which no atom takes anything is itself.
    codes = oracle.matching_pursuit(Y, D, 1)
    R = oracle.residual(Y, D, codes.indices, codes.values)
    worst = np.argsort(-np.linalg.norm(R, axis=1) / np.linalg.norm(Y, axis=1), kind="stable")[:2]
    assert set(worst) == {30, 70}
    np.testing.assert_allclose(np.abs(np.sum(atoms[[2, 5]] * oracle.unit_rows(R[worst]), axis=1)), 1, rtol=1e-12)
    assert oracle.coherence(atoms).max() < MAX_COHERENCE


def test_duplicates_become_random_directions_that_follow_from_the_seed(with_near_atoms):
    Y, D = with_near_atoms
    atoms, _, n_duplicates = one_iteration(Y, D, replace_unused="random")
    again, _, _ = one_iteration(Y, D, replace_unused="random")
    assert n_duplicates == 2
    np.testing.assert_array_equal(atoms, again)
    np.testing.assert_allclose(np.linalg.norm(atoms[[2, 5]], axis=1), 1, rtol=1e-14)
    assert np.abs(atoms[[2, 5]]).min() > 0
    assert np.abs(np.sum(atoms[[2, 5]] * D[[2, 5]], axis=1)).max() < 0.9


def test_an_unused_atom_that_is_near_to_another_one_is_replaced_once(with_near_atoms):
    Y, D = with_near_atoms
    D = np.concatenate([D, [D[0]]])  # the first of equal atoms wins every tie: this one has no user
    atoms, statistics, n_duplicates = one_iteration(Y, D)
    assert statistics.usage[7] == 0
    assert n_duplicates == 3
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), 1, rtol=1e-14)
    changed = np.abs(np.sum(atoms * D, axis=1)) < 0.5
    assert np.flatnonzero(changed).tolist() in ([2, 5, 7], [2, 5])  # where the directions last
    np.testing.assert_array_equal(atoms[0], without_replacement(Y, D)[0])


def test_nothing_is_near_enough_below_the_threshold_or_without_one(with_near_atoms):
    Y, D = with_near_atoms
    kept = without_replacement(Y, D)
    for max_coherence in (0.96, None):
        atoms, _, n_duplicates = one_iteration(Y, D, max_coherence=max_coherence)
        assert n_duplicates == 0
        np.testing.assert_array_equal(atoms, kept)


@pytest.mark.parametrize("inner_batch_size", [None, 2])
@pytest.mark.parametrize("replace_unused", ["residual", "random"])
def test_fixed_atoms_are_never_replaced_though_unused_or_near(with_near_atoms, replace_unused, inner_batch_size):
    Y, D = with_near_atoms
    D = np.concatenate([np.eye(N_FEATURES)[[7]], D[[2, 6, 5, 1, 0, 3, 4]]])  # unused, near pair, the less used of one
    atoms, statistics, n_duplicates = one_iteration(
        Y, D, n_fixed=4, inner_batch_size=inner_batch_size, replace_unused=replace_unused
    )
    assert statistics.usage[0] == 0
    assert n_duplicates == 1
    np.testing.assert_array_equal(atoms[:4], D[:4])
    assert abs(atoms[4] @ D[4]) < 0.9  # near to a fixed atom, it goes though it is used more
    kept = without_replacement(Y, D, n_fixed=4, inner_batch_size=inner_batch_size)
    np.testing.assert_array_equal(atoms[5:], kept[5:])


def test_groups_do_not_matter_for_what_is_near(with_near_atoms):
    Y, D = with_near_atoms
    atoms, _, n_duplicates = one_iteration(Y, D, Pursuit(2, group_sizes=(3, 4)))
    assert n_duplicates == 2  # atom 1 of the first group and atom 5 of the second, and so 2 and 6
    assert oracle.coherence(atoms).max() < 0.99


# --- in a fit --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted_twice():
    """Samples, and a first dictionary of which each atom of the second half is near to one of the first."""
    rng = np.random.default_rng(1)
    planted = oracle.random_atoms(rng, 24, 16)
    Y = oracle.sparse_samples(rng, 1500, planted, 3)
    noise = 0.02 * rng.standard_normal((2, 12, 16))
    return Y, oracle.unit_rows(np.concatenate([planted[:12] + noise[0], planted[:12] + noise[1]]))


@pytest.mark.parametrize("batch_size", [1500, 500], ids=["one batch", "three batches"])
def test_a_fit_lowers_the_largest_coherence(planted_twice, batch_size):
    Y, init = planted_twice
    assert metrics.coherence(init).min() > 0.98
    options = {"max_iter": 25, "init": init, "batch_size": batch_size, "random_state": 0}
    without, with_it = (
        DBKSVD(24, 3, max_coherence=max_coherence, **options).fit(Y) for max_coherence in (None, MAX_COHERENCE)
    )
    assert metrics.coherence(with_it.components_).max() < MAX_COHERENCE < metrics.coherence(without.components_).max()
    assert with_it.score(Y) > without.score(Y)
    assert not without.history_.n_duplicate_atoms.any()
    # An iteration replaces atoms just where those that it began with are too near to each other.
    history = with_it.history_
    assert history.n_duplicate_atoms[0] == 12
    np.testing.assert_array_equal(history.n_duplicate_atoms > 0, history.coherence.sel(quantile=1) > MAX_COHERENCE)


def test_a_fit_counts_the_duplicates_of_each_iteration_as_the_oracle_does(planted_twice):
    Y, init = planted_twice
    atoms = [init]
    model = DBKSVD(
        24,
        3,
        max_iter=6,
        init=init,
        max_coherence=0.7,
        random_state=0,
        callbacks=[lambda model, iteration: atoms.append(model.components_.copy())],
    ).fit(Y)
    for D, n_duplicates in zip(atoms[:-1], model.history_.n_duplicate_atoms.values, strict=True):
        codes = oracle.matching_pursuit(Y, D, 3)
        usage = [np.count_nonzero(codes.indices == j) for j in range(24)]
        assert n_duplicates == len(oracle.near_duplicates(D, usage, 0.7))
    assert model.history_.n_duplicate_atoms.sum() > 12
