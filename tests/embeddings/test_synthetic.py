"""The toy problem is what it says: samples of k planted atoms, and all that is true of them."""

import numpy as np
import oracle
import pytest

from dbksvd_dask import DBKSVD, Callback
from dbksvd_dask.embeddings.synthetic import toy_problem

N_SAMPLES, N_FEATURES, N_ATOMS, K, NOISE = 500, 24, 40, 4, 0.05
SIZES = {"n_samples": N_SAMPLES, "n_features": N_FEATURES, "n_atoms": N_ATOMS, "n_nonzero_coefs": K}


@pytest.fixture(scope="module")
def problem():
    return toy_problem(**SIZES, noise=NOISE, random_state=0)


def facts(problem):
    """All its arrays."""
    codes = problem.codes
    return [problem.embeddings, problem.atoms, codes.data, codes.indices, codes.indptr]


def same(one, other):
    return all(map(np.array_equal, facts(one), facts(other)))


def test_shapes_and_dtypes(problem):
    assert problem.embeddings.shape == (N_SAMPLES, N_FEATURES)
    assert problem.atoms.shape == (N_ATOMS, N_FEATURES)
    assert problem.codes.shape == (N_SAMPLES, N_ATOMS)
    assert {problem.embeddings.dtype, problem.atoms.dtype, problem.codes.dtype} == {np.dtype(np.float32)}


def test_the_sizes_unless_asked_for_others_are_those_of_the_paper():
    problem = toy_problem(random_state=0)
    assert problem.embeddings.shape == (2**14, 256)
    assert problem.codes.shape == (2**14, 1024)
    assert problem.codes.nnz == 20 * 2**14


def test_atoms_are_of_unit_norm_and_as_different_as_random_directions(problem):
    np.testing.assert_allclose(np.linalg.norm(problem.atoms.astype(np.float64), axis=1), 1, atol=1e-6)
    products = oracle.gram(problem.atoms)[np.triu_indices(N_ATOMS, 1)]
    # Of directions spread evenly over the sphere, ⟨d_i, d_j⟩² is 1/d on average.
    np.testing.assert_allclose(np.mean(products**2), 1 / N_FEATURES, rtol=0.2)
    assert abs(np.mean(products)) < 5 / np.sqrt(N_FEATURES * len(products))


def test_a_sample_has_k_atoms_each_as_likely_as_any_other(problem):
    X = problem.codes.toarray()
    np.testing.assert_array_equal(np.count_nonzero(X, axis=1), K)
    assert problem.codes.nnz == N_SAMPLES * K
    assert problem.codes.has_canonical_format
    share = K / N_ATOMS
    usage = np.count_nonzero(X, axis=0)
    assert np.all(np.abs(usage - N_SAMPLES * share) < 5 * np.sqrt(N_SAMPLES * share * (1 - share)))


def test_coefficients_are_evenly_spread_from_1_to_2(problem):
    values = problem.codes.data
    assert values.min() >= 1
    assert values.max() <= 2
    counts, _ = np.histogram(values, bins=10, range=(1, 2))
    assert np.all(np.abs(counts - len(values) / 10) < 5 * np.sqrt(len(values) * 0.09))


@pytest.mark.parametrize("noise", [0, 0.05, 1.0])
def test_what_the_planted_atoms_leave_is_normal_noise(noise):
    problem = toy_problem(**SIZES, noise=noise, random_state=1)
    left = problem.embeddings - problem.codes.toarray().astype(np.float64) @ problem.atoms
    np.testing.assert_allclose(np.std(left), noise, rtol=0.05, atol=1e-6)
    np.testing.assert_allclose(np.mean(left), 0, atol=5 * noise / np.sqrt(left.size) + 1e-6)
    np.testing.assert_allclose(np.mean(left**4), 3 * noise**4, rtol=0.2, atol=1e-6)


@pytest.mark.parametrize("noise", [0, 0.05, 0.5])
def test_the_noise_error_is_the_relative_error_of_the_truth(noise):
    problem = toy_problem(**SIZES, noise=noise, random_state=1)
    left = problem.embeddings - problem.codes.toarray().astype(np.float64) @ problem.atoms
    assert isinstance(problem.noise_error, float)
    np.testing.assert_allclose(problem.noise_error, oracle.relative_error(problem.embeddings, left), atol=1e-6)
    # Noise of so many features has a norm close to noise √d.
    norms = np.linalg.norm(problem.embeddings, axis=1)
    np.testing.assert_allclose(problem.noise_error, np.mean(noise * np.sqrt(N_FEATURES) / norms), rtol=0.03, atol=1e-6)


# --- known users -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0, 0.01, 0.25, 0.3, 0.5, 2 / 3, 1, 1.0])
def test_support_is_the_users_of_the_first_atoms(problem, fraction):
    n_known = round(fraction * N_ATOMS)
    expected = (problem.codes.toarray() != 0) & (np.arange(N_ATOMS) < n_known)
    support = problem.support(fraction)
    assert support.format == "csr"
    assert support.shape == problem.codes.shape
    np.testing.assert_array_equal(support.toarray(), expected)
    assert support.nnz == expected.sum()  # no explicit zeros


@pytest.mark.parametrize("fractions", [(1, 0.5, 0.25, 0), (0, 0.25, 0.5, 1), (0.5, 0.5, 1, 0.5)])
def test_support_may_be_asked_for_again_and_again(fractions):
    problem, untouched = (toy_problem(**SIZES, random_state=3) for _ in range(2))
    supports = [problem.support(fraction) for fraction in fractions]
    assert same(problem, untouched)
    for fraction, support in zip(fractions, supports, strict=True):
        np.testing.assert_array_equal(support.toarray(), untouched.support(fraction).toarray())
        assert support.nnz == np.count_nonzero(untouched.codes.indices < round(fraction * N_ATOMS))


def test_what_is_done_to_a_support_is_nothing_to_the_problem():
    problem, untouched = (toy_problem(**SIZES, random_state=3) for _ in range(2))
    support = problem.support(1.0)
    for array in (support.data, support.indices, support.indptr):
        array[:] = 0
    assert same(problem, untouched)


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_problem():
    first, again = (toy_problem(**SIZES, random_state=7) for _ in range(2))
    assert same(first, again)
    first, again = (toy_problem(**SIZES, random_state=np.random.RandomState(7)) for _ in range(2))
    assert same(first, again)


@pytest.mark.parametrize("name", ["embeddings", "atoms"])
def test_another_seed_gives_another_problem(name):
    stream = np.random.RandomState(7)
    seeds = [7, 8, stream, stream, None, None]
    found = [getattr(toy_problem(**SIZES, random_state=seed), name) for seed in seeds]
    found.pop(2)  # the first of the stream is that of its seed
    assert all(not np.allclose(one, other) for i, one in enumerate(found) for other in found[:i])


class First(Callback):
    """Notes what a fit begins with."""

    def begin(self, model, n_iterations):
        self.atoms = model.components_


@pytest.mark.parametrize("seed", range(3))
def test_a_fit_of_the_same_seed_does_not_begin_with_the_planted_atoms(seed):
    problem = toy_problem(300, n_features=64, n_atoms=20, n_nonzero_coefs=2, random_state=seed)
    first = First()
    DBKSVD(20, 2, init="random", max_iter=1, random_state=seed, callbacks=[first]).fit(problem.embeddings)
    assert np.abs(first.atoms @ problem.atoms.T).max() < 0.7


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [1.5, -0.1, np.nan, np.inf, "x", None])
def test_a_fraction_is_from_0_to_1(problem, fraction):
    with pytest.raises(ValueError, match=f"fraction={fraction!r} must be from 0 to 1"):
        problem.support(fraction)


def test_there_are_no_more_nonzeros_than_atoms():
    with pytest.raises(ValueError, match="n_nonzero_coefs=41 exceeds n_atoms=40"):
        toy_problem(**SIZES | {"n_nonzero_coefs": 41})
    assert toy_problem(**SIZES | {"n_nonzero_coefs": 40}).codes.nnz == N_SAMPLES * N_ATOMS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in SIZES for value in (0, -1, 2.5, "many", None)),
        *(("noise", value) for value in (-0.05, np.nan, np.inf, "some")),
        *(("random_state", value) for value in (-1, "seed")),
    ],
)
def test_a_parameter_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"'{name}' parameter of toy_problem"):
        toy_problem(**SIZES | {name: value})
