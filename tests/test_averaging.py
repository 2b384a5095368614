"""The average of the atoms over iterations."""

import numpy as np
import oracle
import pytest
from scipy.special import comb
from sklearn.base import clone

from dbksvd_dask import DBKSVD
from dbksvd_dask.averaging import DEGREE, LEAST_COSINE, LearnedAtoms

N_ATOMS, N_FEATURES, K = 24, 12, 3


def averaged(dictionaries):
    learned = LearnedAtoms.of(dictionaries[0])
    for atoms in dictionaries:
        learned = learned.averaged_with(atoms)
    return learned


def test_the_average_is_the_oracles_whatever_becomes_of_the_atoms():
    rng = np.random.default_rng(0)
    D = oracle.random_atoms(rng, N_ATOMS, N_FEATURES)
    dictionaries = []
    for _ in range(12):  # some drift, and now and then one is replaced
        D = oracle.unit_rows(D + 0.1 * rng.standard_normal(D.shape))
        replaced = rng.random(N_ATOMS) < 0.05
        D[replaced] = oracle.random_atoms(rng, replaced.sum(), N_FEATURES)
        dictionaries.append(D)
    learned = averaged(dictionaries)
    assert learned.latest is dictionaries[-1]
    np.testing.assert_allclose(learned.average, oracle.averages(dictionaries)[-1], atol=1e-12)
    assert learned.n_averaged.min() < 12 == learned.n_averaged.max()


def test_the_weights_are_those_of_polynomial_decay():
    angles = 1e-4 * np.random.default_rng(1).standard_normal(30)  # so small that the circle is a line
    learned = averaged([np.array([[np.cos(angle), np.sin(angle)]]) for angle in angles])
    weights = comb(np.arange(30) + DEGREE, DEGREE)
    assert learned.average[0, 1] == pytest.approx(np.average(angles, weights=weights), rel=1e-6)
    assert weights[-30 // (DEGREE + 1) :].sum() > 0.6 * weights.sum()  # what the docstring says of them


def test_an_atom_that_became_another_one_is_not_averaged_with_what_it_was():
    before, after = np.eye(2)
    near = np.array([LEAST_COSINE + 0.01, np.sqrt(1 - (LEAST_COSINE + 0.01) ** 2)])
    learned = averaged([np.array([before, before, before]), np.array([after, -before, near])])
    np.testing.assert_array_equal(learned.average[:2], [after, -before])
    assert learned.n_averaged.tolist() == [1, 1, 2]
    assert before @ near < before @ learned.average[2] < 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_atom_that_stays_as_it_is_keeps_its_bits(dtype):
    rng = np.random.default_rng(5)
    D = oracle.random_atoms(rng, N_ATOMS, N_FEATURES, dtype)
    dictionaries = [oracle.unit_rows(D + 0.1 * rng.standard_normal(D.shape)).astype(dtype) for _ in range(20)]
    for atoms in dictionaries:
        atoms[:10] = D[:10]
    learned = averaged(dictionaries)
    np.testing.assert_array_equal(learned.average[:10], D[:10])
    expected = oracle.averages([atoms.astype(np.float64) for atoms in dictionaries])[-1]
    np.testing.assert_allclose(learned.average, expected, atol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_averages_are_unit_rows_in_the_precision_of_the_atoms(dtype):
    rng = np.random.default_rng(2)
    D = oracle.random_atoms(rng, N_ATOMS, N_FEATURES)
    learned = averaged([oracle.unit_rows(D + 0.3 * rng.standard_normal(D.shape)).astype(dtype) for _ in range(50)])
    assert learned.average.dtype == dtype
    np.testing.assert_allclose(np.linalg.norm(learned.average, axis=1), 1, atol=4 * np.finfo(dtype).eps)


@pytest.fixture(scope="module")
def noisy():
    """A planted dictionary, and samples with as much noise as signal."""
    rng = np.random.default_rng(3)
    planted = oracle.random_atoms(rng, N_ATOMS, N_FEATURES)
    return planted, oracle.sparse_samples(rng, 4000, planted, 2, noise=0.5)


def fit(Y, planted, **options):
    init = oracle.unit_rows(planted + 0.1 * np.random.default_rng(4).standard_normal(planted.shape))
    return DBKSVD(N_ATOMS, K, init=init, replace_unused=None, random_state=0, **options).fit(Y)


def test_the_noise_of_the_batches_is_averaged_away(noisy):
    planted, Y = noisy
    distances = {}
    for average in (True, False):
        # What all samples together say is where the batches scatter around.
        aim = fit(Y, planted, max_iter=60).components_
        learned = fit(Y, planted, batch_size=400, max_iter=60, average=average).components_
        distances[average] = np.median(1 - np.abs(np.einsum("jf,jf->j", learned, aim)))
    assert distances[True] < 0.5 * distances[False]


def test_iterations_do_not_depend_on_the_average(noisy):
    planted, Y = noisy
    averaging, plain = (fit(Y, planted, batch_size=1000, max_iter=6, average=average) for average in (True, False))
    np.testing.assert_array_equal(averaging.history_.train_relative_error, plain.history_.train_relative_error)
    assert not np.array_equal(averaging.components_, plain.components_)


def test_one_and_the_same_batch_is_not_averaged(noisy):
    planted, Y = noisy
    averaging, plain = (fit(Y, planted, max_iter=3, average=average) for average in (True, False))
    np.testing.assert_array_equal(averaging.components_, plain.components_)


def test_partial_fit_goes_on_with_the_average_whatever_comes_in_a_call(noisy):
    planted, Y = noisy
    whole = fit(Y, planted, batch_size=1000, max_iter=8)
    in_calls = fit(Y, planted, batch_size=1000, max_iter=4)
    for batches in (Y[:1000], Y[1000:3000], Y[3000:]):
        in_calls.partial_fit(batches)
    np.testing.assert_array_equal(in_calls.components_, whole.components_)


def test_the_first_atoms_that_are_learned_are_their_own_average_to_the_last_bit(noisy):
    planted, Y = noisy
    whole = fit(Y, planted, max_iter=1)
    one_call = clone(whole).partial_fit(Y)
    np.testing.assert_array_equal(one_call.components_, whole.components_)
