"""Atoms known beforehand: fixed ones stay as they are, known ones are learned on, and the others are learned anew."""

import dask
import numpy as np
import oracle
import pytest
from sklearn.base import clone

from dbksvd_dask import DBKSVD, Callback, Dictionary, open_dictionary

N_SAMPLES, N_FEATURES, N_ATOMS, K, BATCH = 600, 12, 18, 3, 150
DTYPES = ["float32", "float64"]
SCHEDULERS = [{"scheduler": "synchronous"}, *({"scheduler": "threads", "num_workers": n} for n in (1, 3))]


@pytest.fixture(scope="module")
def problem():
    """Samples, and atoms near those that they are made of."""
    rng = np.random.default_rng(0)
    planted = oracle.random_atoms(rng, N_ATOMS, N_FEATURES)
    Y = oracle.sparse_samples(rng, N_SAMPLES, planted, K)
    return Y, oracle.unit_rows(planted + 0.1 * rng.standard_normal(planted.shape))


class Beginning(Callback):
    """Notes the dictionary that a fit begins with."""

    def begin(self, model, n_iterations):
        self.atoms = model.components_.copy()


def fit(Y, **parameters):
    """The model after its fit, and the dictionary that it began with."""
    beginning = Beginning()
    defaults = {"batch_size": BATCH, "max_iter": 6, "random_state": 0, "callbacks": [beginning]}
    return DBKSVD(N_ATOMS, K, **(defaults | parameters)).fit(Y), beginning.atoms


def cosines(atoms, others):
    """The largest ``|cos|`` of each atom with any of the others."""
    return np.abs(atoms.astype(np.float64) @ others.T.astype(np.float64)).max(axis=1)


# --- the first dictionary --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n_fixed", "n_known", "init"),
    [(*counts, init) for counts in [(4, 0), (0, 5), (4, 5)] for init in ("samples", "random", "array")]
    + [(17, 0, "array"), (17, 1, "random"), (4, 14, "samples"), (0, N_ATOMS, "samples")],
)
def test_fixed_atoms_come_first_then_known_ones_then_all_others(problem, n_fixed, n_known, init, dtype):
    Y, atoms = (array.astype(dtype) for array in problem)
    n_given = n_fixed + n_known
    model, first = fit(
        Y,
        fixed_atoms=atoms[:n_fixed] if n_fixed else None,
        known_atoms=atoms[n_fixed:n_given] if n_known else None,
        init=atoms[n_given:] if init == "array" else init,
    )
    assert first.dtype == model.components_.dtype == dtype
    np.testing.assert_array_equal(first[:n_given], atoms[:n_given])
    others, rows = first[n_given:], oracle.unit_rows(Y)
    if init == "array":
        np.testing.assert_array_equal(others, atoms[n_given:])
    elif n_given < N_ATOMS:
        eps = np.finfo(dtype).eps
        np.testing.assert_allclose(np.linalg.norm(others, axis=1), 1, rtol=4 * eps)
        from_rows = cosines(others, rows[:BATCH]) > 1 - 4 * eps  # of the first batch
        assert from_rows.all() if init == "samples" else not from_rows.any()
        assert oracle.coherence(others).max() < 1 - 1e-6 or len(others) == 1

    learned = model.components_
    np.testing.assert_array_equal(learned[:n_fixed], atoms[:n_fixed])
    assert np.all(np.abs(learned[n_fixed:] - first[n_fixed:]).max(axis=1) > 1e-4)
    np.testing.assert_allclose(np.linalg.norm(learned, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("name", ["fixed_atoms", "known_atoms"])
def test_rows_that_are_known_already_are_no_first_atoms_again(name):
    rng = np.random.default_rng(2)
    directions = oracle.random_atoms(rng, 9, N_FEATURES)  # no more than half as many as atoms
    Y = np.repeat(directions, 60, axis=0) * rng.uniform(1, 2, (540, 1)) * rng.choice([-1, 1], (540, 1))
    _, first = fit(rng.permutation(Y), **{name: directions[:5]})
    np.testing.assert_array_equal(first[:5], directions[:5])
    assert np.count_nonzero(cosines(first[5:], directions[5:]) > 1 - 1e-9) == 4
    assert cosines(first[5:], directions[:5]).max() < 1 - 1e-6


# --- fixed ones ------------------------------------------------------------------------------------------------------

OPTIONS = [
    {},
    {"inner_batch_size": 4},
    {"matryoshka": [5, 13]},
    {"matryoshka": [3, 15], "flat_share": 0, "inner_batch_size": 3},
    {"nonnegative": True},
    {"encoder": "omp", "solver": "power"},
    {"replace_unused": "random", "max_coherence": 0.7},
    {"center": True, "shuffle": "chunks"},
    {"average": False, "n_passes": 4, "tol": 0.05},
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fixed_atoms_keep_their_bits_on_any_scheduler(problem, options, dtype):
    Y, atoms = (array.astype(dtype) for array in problem)
    learned = []
    for scheduler in SCHEDULERS:
        with dask.config.set(**scheduler):
            model, _ = fit(Y, fixed_atoms=atoms[:4], known_atoms=atoms[4:8], **options)
        learned.append(model.components_)
    np.testing.assert_array_equal(learned[0][:4], atoms[:4])
    for others in learned[1:]:
        np.testing.assert_array_equal(others, learned[0])


@pytest.mark.parametrize("inner_batch_size", [None, 5])
@pytest.mark.parametrize("group_sizes", [False, [3, 15]])
def test_a_fit_with_fixed_atoms_is_the_loop_of_the_oracle(problem, group_sizes, inner_batch_size):
    Y, D = problem
    model, _ = fit(
        Y,
        fixed_atoms=D[:4],
        known_atoms=D[4:6],
        init=D[6:],
        matryoshka=group_sizes,
        flat_share=0,
        inner_batch_size=inner_batch_size,
        replace_unused=None,
    )
    seed = model.dictionary_.provenance["seed"]
    dictionaries = []
    for number in range(6):
        codes, D = oracle.iteration(
            np.split(Y, 4)[number % 4],
            D,
            K,
            size=inner_batch_size,
            seed=[seed, 1, number],
            group_sizes=tuple(group_sizes or ()),
            n_fixed=4,
        )
        assert codes.margins.min() > 1e-9
        dictionaries.append(D)
    np.testing.assert_allclose(model.components_, oracle.averages(dictionaries)[-1], rtol=0, atol=1e-8)


def test_fixed_atoms_that_no_sample_uses_or_that_are_near_to_each_other_stay(problem):
    Y, _ = problem
    Y = np.hstack([Y, np.zeros((N_SAMPLES, 2))])
    fixed = np.zeros((3, N_FEATURES + 2))
    fixed[0, -1], fixed[1:, 0], fixed[2, 1] = 1, [1, 0.99], np.sqrt(1 - 0.99**2)
    model, _ = fit(Y, fixed_atoms=fixed, max_coherence=0.9)
    np.testing.assert_array_equal(model.components_[:3], fixed)
    assert model.history_.n_unused_atoms.min() >= 1
    assert cosines(model.components_[3:], fixed[1:]).max() < 0.98


def test_fixed_atoms_stay_over_calls_of_partial_fit_and_in_a_store(problem, tmp_path):
    Y, atoms = problem
    model = DBKSVD(N_ATOMS, K, batch_size=BATCH, fixed_atoms=atoms[:4], known_atoms=atoms[4:8], random_state=0)
    for rows in (Y, Y[:300], Y[300:]):
        model.partial_fit(rows)
        np.testing.assert_array_equal(model.components_[:4], atoms[:4])
    model.dictionary_.to_zarr(tmp_path / "dictionary.zarr")
    np.testing.assert_array_equal(open_dictionary(tmp_path / "dictionary.zarr").atoms[:4], atoms[:4])


def test_what_is_given_is_neither_changed_nor_kept(problem):
    Y, atoms = problem
    given = {"fixed_atoms": atoms[:4].copy(), "known_atoms": atoms[4:8].copy()}
    model, _ = fit(Y, **given)
    np.testing.assert_array_equal(given["fixed_atoms"], atoms[:4])
    np.testing.assert_array_equal(given["known_atoms"], atoms[4:8])
    learned = model.components_.copy()
    given["fixed_atoms"][:] = 0
    np.testing.assert_array_equal(model.components_, learned)
    again = clone(model).set_params(fixed_atoms=atoms[:4].tolist(), callbacks=()).fit(Y)
    np.testing.assert_array_equal(again.components_, learned)


@pytest.mark.parametrize("given", ["float16", "float32", "float64"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_atoms_of_another_precision_are_unit_rows_in_that_of_the_fit(problem, dtype, given):
    Y, atoms = problem[0].astype(dtype), problem[1][:4].astype(given)
    model, first = fit(Y, fixed_atoms=atoms)
    np.testing.assert_array_equal(model.components_[:4], first[:4])
    np.testing.assert_allclose(first[:4], oracle.unit_rows(atoms.astype(np.float64)), rtol=0, atol=np.finfo(dtype).eps)
    np.testing.assert_allclose(np.linalg.norm(first[:4].astype(np.float64), axis=1), 1, rtol=4 * np.finfo(dtype).eps)


# --- what they are good for ------------------------------------------------------------------------------------------


def test_the_others_learn_what_the_fixed_ones_leave():
    """Half of a planted dictionary is given, the other half is recovered: better than without what is given."""
    rng = np.random.default_rng(3)
    planted = oracle.random_atoms(rng, 24, 16)
    Y = oracle.sparse_samples(rng, 3000, planted, 2, noise=0.05)
    options = {"max_iter": 25, "random_state": 0}
    helped = DBKSVD(24, 2, fixed_atoms=planted[:12], **options).fit(Y)
    alone = DBKSVD(24, 2, **options).fit(Y)
    found = [np.count_nonzero(cosines(planted[12:], model.components_) > 0.99) for model in (helped, alone)]
    assert found[0] >= 10
    assert found[0] >= found[1]
    assert helped.score(Y) >= alone.score(Y) - 1e-3


def test_known_atoms_are_where_the_learning_goes_on(problem):
    """A fit from the dictionary of another one begins as well as that one is."""
    Y, _ = problem
    before, _ = fit(Y, batch_size=N_SAMPLES)
    after, first = fit(Y, batch_size=N_SAMPLES, known_atoms=before.components_, max_iter=2)
    np.testing.assert_array_equal(first, before.components_)
    D = Dictionary(before.components_, K)
    error = oracle.relative_error(Y, Y - D.decode(D.encode(Y)))
    assert after.history_.train_relative_error[0] == pytest.approx(error, rel=1e-12)
    assert after.history_.train_relative_error[1] < error
