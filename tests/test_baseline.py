"""The baseline is K-SVD as Aharon, Elad and Bruckstein have it: the oracle's pursuit, then one full SVD an atom."""

import re

import dask.array as da
import numpy as np
import oracle
import pytest
import xarray as xr
from scipy.optimize import linear_sum_assignment

from dbksvd_dask import DBKSVD, SparseCodes
from dbksvd_dask.baseline import ksvd_baseline, update_in_turn

N_SAMPLES, N_FEATURES, N_ATOMS, K = 200, 8, 15, 3
PURSUITS = {"mp": oracle.matching_pursuit, "omp": oracle.orthogonal_matching_pursuit}


@pytest.fixture(scope="module")
def problem():
    """Samples, two of them zero, and a dictionary to begin with."""
    rng = np.random.default_rng(0)
    planted = oracle.random_atoms(rng, N_ATOMS, N_FEATURES)
    Y = oracle.sparse_samples(rng, N_SAMPLES, planted, K)
    Y[[3, 150]] = 0
    return Y, oracle.unit_rows(planted + 0.2 * rng.standard_normal(planted.shape))


def updated(Y, D, indices, values, order):
    """Atoms, values and residual after the update; what was given stays as it was."""
    codes = SparseCodes(indices.astype(np.int32), np.array(values, Y.dtype), len(D))
    atoms, residual = np.array(D), (Y - codes.to_csr() @ D).astype(Y.dtype)
    update_in_turn(order, atoms, codes, residual)
    return atoms, codes.values, residual


# --- the update ------------------------------------------------------------------------------------------------------

ORDERS = {
    "storage order": range(N_ATOMS),
    "another order": np.random.default_rng(1).permutation(N_ATOMS),
    "some atoms": [7, 2, 11],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_the_update_is_the_oracles_with_one_svd_an_atom(problem, order):
    Y, D = problem
    indices, values = oracle.random_codes(np.random.default_rng(2), N_SAMPLES, N_ATOMS - 2, K)  # two atoms without user
    found = updated(Y, D, indices, values, order)
    expected = oracle.update(Y, D, indices, values, [[j] for j in order], oracle.singular_atom)
    for array, literal in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, literal, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(found[0][-2:], D[-2:])


def test_the_error_never_rises_over_the_update(problem):
    Y, D = problem
    codes = oracle.matching_pursuit(Y, D, K)
    R = oracle.residual(Y, D, codes.indices, codes.values)
    errors = [np.sum(R**2)]
    for j in range(1, N_ATOMS + 1):
        atoms, values, residual = updated(Y, D, codes.indices, codes.values, range(j))
        np.testing.assert_allclose(residual, oracle.residual(Y, atoms, codes.indices, values), atol=1e-12)
        errors.append(np.sum(residual**2))
    assert np.all(np.diff(errors) < 0)
    assert errors[-1] < 0.95 * errors[0]


def test_the_update_in_single_precision_is_close_to_double(problem):
    Y, D = problem
    codes = oracle.matching_pursuit(Y, D, K)
    single, double = (
        updated(Y.astype(dtype), D.astype(dtype), codes.indices, codes.values, range(N_ATOMS))
        for dtype in (np.float32, np.float64)
    )
    for found, expected in zip(single, double, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


# --- a whole fit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_iter", [1, 3])
@pytest.mark.parametrize("encoder", PURSUITS)
def test_a_fit_is_pursuit_and_update_of_the_oracle_by_turns(problem, encoder, max_iter):
    Y, D = problem
    dictionary, codes, history = ksvd_baseline(Y, N_ATOMS, K, max_iter=max_iter, encoder=encoder, init=D)
    assert history.sizes == {"iteration": max_iter}
    for iteration in range(max_iter):
        expected = PURSUITS[encoder](Y, D, K)
        assert expected.margins.min() > 1e-9  # no choice of the pursuit is left to rounding
        R = oracle.residual(Y, D, expected.indices, expected.values)
        record = history.isel(iteration=iteration)
        assert record.relative_error == pytest.approx(oracle.relative_error(Y, R), rel=1e-8)
        assert record.variance_explained == pytest.approx(oracle.variance_explained(Y, R), rel=1e-8)
        one_by_one = [[j] for j in range(N_ATOMS)]
        D, values, _ = oracle.update(Y, D, expected.indices, expected.values, one_by_one, oracle.singular_atom)
    np.testing.assert_allclose(dictionary.atoms, D, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(codes.indices, expected.indices)
    np.testing.assert_allclose(codes.values, values, rtol=0, atol=1e-8)
    assert (dictionary.n_nonzero_coefs, dictionary.encoder) == (K, encoder)
    xr.testing.assert_identical(dictionary.history, history)


@pytest.mark.parametrize(
    ("given", "computed"), [("float16", "float32"), ("float32", "float32"), (">f4", "float32"), ("float64", "float64")]
)
def test_the_computation_is_in_the_precision_of_the_embeddings_but_at_least_single(problem, given, computed):
    Y = problem[0].astype(given)
    dictionary, codes, _ = ksvd_baseline(Y, N_ATOMS, K, max_iter=2, random_state=0)
    again, _, _ = ksvd_baseline(Y.astype(computed), N_ATOMS, K, max_iter=2, random_state=0)
    assert dictionary.dtype == codes.dtype == computed
    np.testing.assert_array_equal(dictionary.atoms, again.atoms)


def test_what_is_given_stays_as_it_was(problem):
    Y, D = (array.copy() for array in problem)
    ksvd_baseline(Y, N_ATOMS, K, max_iter=1, init=D)
    np.testing.assert_array_equal(Y, problem[0])
    np.testing.assert_array_equal(D, problem[1])


# --- beside DBKSVD ---------------------------------------------------------------------------------------------------


def one_atom_at_a_time(k, D, **parameters):
    return DBKSVD(
        len(D), k, inner_batch_size=1, n_passes=D.shape[1], init=D, replace_unused=None, average=False, **parameters
    )


def test_dbksvd_with_one_atom_at_a_time_is_the_baseline_in_another_order(problem):
    Y, D = problem
    model = one_atom_at_a_time(K, D, max_iter=1, random_state=0).fit(Y)
    codes = oracle.matching_pursuit(Y, D, K)
    order = np.concatenate(oracle.inner_batches(N_ATOMS, 1, [model.dictionary_.provenance["seed"], 1, 0]))
    atoms, _, _ = updated(Y, D, codes.indices, codes.values, order)
    np.testing.assert_allclose(model.components_, atoms, rtol=0, atol=1e-8)


def test_with_one_atom_a_sample_no_order_matters_and_both_learn_the_same(problem):
    Y, D = problem
    model = one_atom_at_a_time(1, D, max_iter=4, random_state=0).fit(Y)
    dictionary, _, history = ksvd_baseline(Y, N_ATOMS, 1, max_iter=4, init=D)
    assert model.history_.n_unused_atoms.max() == 0
    np.testing.assert_allclose(model.components_, dictionary.atoms, rtol=0, atol=1e-8)
    np.testing.assert_allclose(model.history_.train_relative_error, history.relative_error, rtol=1e-10)


@pytest.mark.parametrize("n_zero", [2, 150], ids=["enough directions", "too few directions"])
@pytest.mark.parametrize("init", ["samples", "random"])
def test_the_same_seed_begins_with_the_atoms_of_dbksvd(problem, init, n_zero):
    Y = problem[0].copy()
    Y[:n_zero] = 0
    model = DBKSVD(N_ATOMS, K, max_iter=1, init=init, random_state=5).fit(Y)
    baseline = ksvd_baseline(Y, N_ATOMS, K, max_iter=1, encoder="mp", init=init, random_state=5)
    assert baseline.history.relative_error[0] == pytest.approx(float(model.history_.train_relative_error[0]), rel=1e-12)


# --- recovery (Aharon, Elad, Bruckstein, section V: 20 features, 50 atoms, 1500 samples of 3 atoms) ------------------


def noiseless(seed):
    rng = np.random.default_rng(seed)
    planted = oracle.random_atoms(rng, 50, 20)
    return planted, oracle.sparse_samples(rng, 1500, planted, 3, noise=0)


def share_recovered(atoms, planted):
    """Share of planted atoms with |cos| > 0.99 to the atom that a one-to-one matching gives them."""
    cosines = np.abs(planted @ atoms.T)
    return np.mean(cosines[linear_sum_assignment(-cosines)] > 0.99)


@pytest.mark.parametrize("encoder", PURSUITS)
def test_a_planted_dictionary_is_recovered_whole_from_nearby(encoder):
    planted, Y = noiseless(0)
    start = oracle.unit_rows(planted + 0.1 * np.random.default_rng(1).standard_normal(planted.shape))
    assert share_recovered(start, planted) < 0.1
    dictionary, _, _ = ksvd_baseline(Y, 50, 3, max_iter=10, encoder=encoder, init=start)
    assert share_recovered(dictionary.atoms, planted) == 1


def test_most_of_a_planted_dictionary_is_recovered_from_samples_alone():
    # Some nine tenths: K-SVD ends in a local minimum unless atoms that are much alike are pruned, too.
    shares = []
    for seed in range(3):
        planted, Y = noiseless(seed)
        dictionary, _, _ = ksvd_baseline(Y, 50, 3, max_iter=40, init="random", random_state=seed)
        shares.append(share_recovered(dictionary.atoms, planted))
    assert np.mean(shares) > 0.8


# --- unused atoms, zero rows -----------------------------------------------------------------------------------------


def test_unused_atoms_become_the_samples_of_the_largest_residuals_in_unit_norm():
    rng = np.random.default_rng(1)
    D = np.zeros((5, 10))
    D[:3, :5] = oracle.random_atoms(rng, 3, 5)
    D[[3, 4], [5, 6]] = 1  # where no sample goes
    Y = np.zeros((40, 10))
    Y[:, :5] = 0.1 * rng.standard_normal((40, 5))
    Y[[11, 30]] = np.outer([-3, 0.5], np.eye(10)[8])  # the same direction
    Y[:9] = 20 * D[0]
    Y[39] = D[0] + 7 * np.eye(10)[9]  # the worst, though atom 0 takes some of it
    dictionary, codes, _ = ksvd_baseline(Y, 5, 1, max_iter=1, init=D)
    assert set(codes.indices.ravel()) == {-1, 0, 1, 2}
    expected = oracle.unit_rows(Y[[39, 11]])
    np.testing.assert_allclose(dictionary.atoms[3:], expected, rtol=0, atol=1e-12)
    # In the next iteration they have users.
    _, codes, history = ksvd_baseline(Y, 5, 1, max_iter=2, init=D)
    assert {3, 4} <= set(codes.indices.ravel())
    assert history.relative_error[1] < history.relative_error[0]


@pytest.mark.parametrize("init", ["samples", "random", "atoms"])
def test_samples_that_are_all_zero_leave_the_atoms_alone(init):
    start = np.eye(4, 6)
    Y = np.zeros((10, 6))
    dictionary, codes, history = ksvd_baseline(
        Y, 4, 2, max_iter=2, init=start if init == "atoms" else init, random_state=0
    )
    np.testing.assert_allclose(np.linalg.norm(dictionary.atoms, axis=1), 1, rtol=1e-14)
    assert init != "atoms" or np.array_equal(dictionary.atoms, start)
    assert np.all(codes.indices == -1)
    assert history.relative_error.isnull().all()


def test_more_atoms_than_directions():
    Y = np.outer(np.arange(-5.0, 15.0), [3.0, 0.0, 4.0])
    dictionary, codes, _ = ksvd_baseline(Y, 4, 2, max_iter=3, random_state=0)
    np.testing.assert_allclose(dictionary.decode(codes), Y, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(dictionary.atoms, axis=1), 1, rtol=1e-14)


# --- mistakes --------------------------------------------------------------------------------------------------------


def rows(n_samples=30, n_features=6, dtype="float64"):
    return np.random.default_rng(0).standard_normal((n_samples, n_features)).astype(dtype)


def with_value(value):
    Y = rows()
    Y[17, 2] = value
    return Y


@pytest.mark.parametrize("lazy", [da.ones((30, 6)), xr.DataArray(rows()), "rows.npy"], ids=["dask", "xarray", "path"])
def test_embeddings_that_are_not_in_memory_are_for_dbksvd(lazy):
    with pytest.raises(TypeError, match="needs all samples in memory: pass a NumPy array, or fit DBKSVD"):
        ksvd_baseline(lazy, 5, 2)


MISTAKES = {
    "NaN": (
        lambda: ksvd_baseline(with_value(np.nan), 5, 2),
        ValueError,
        "Y contains NaN or infinity: row 17, in chunk 0, is the first",
    ),
    "infinity": (
        lambda: ksvd_baseline(with_value(-np.inf), 5, 2),
        ValueError,
        "Y contains NaN or infinity: row 17, in chunk 0, is the first",
    ),
    "overflow": (lambda: ksvd_baseline(with_value(1e200), 5, 2), ValueError, "overflows .* scale the embeddings"),
    "integers": (lambda: ksvd_baseline(np.ones((30, 6), int), 5, 2), TypeError, "has dtype int64: embeddings are"),
    "complex": (lambda: ksvd_baseline(rows() + 0j, 5, 2), TypeError, "has dtype complex128: embeddings are"),
    "1-D": (lambda: ksvd_baseline(np.ones(30), 5, 2), ValueError, r"has shape \(30,\): embeddings are two-dim"),
    "no samples": (lambda: ksvd_baseline(rows(0), 5, 2), ValueError, r"is empty: shape \(0, 6\)"),
    "no features": (lambda: ksvd_baseline(rows(30, 0), 5, 2), ValueError, r"is empty: shape \(30, 0\)"),
    "list": (lambda: ksvd_baseline(rows().tolist(), 5, 2), TypeError, "pass a path, a NumPy, CuPy or dask array"),
    "masked": (lambda: ksvd_baseline(np.ma.masked_less(rows(), 0), 5, 2), TypeError, "MaskedArray"),
    "n < m": (lambda: ksvd_baseline(rows(), 31, 2), ValueError, "n_samples=30 is smaller than n_components=31"),
    "k > m": (lambda: ksvd_baseline(rows(), 5, 6), ValueError, "n_nonzero_coefs=6 exceeds n_components=5"),
    "init shape": (lambda: ksvd_baseline(rows(), 5, 2, init=np.eye(4, 6)), ValueError, r"init has shape \(4, 6\)"),
    "init norm": (lambda: ksvd_baseline(rows(), 5, 2, init=2 * np.eye(5, 6)), ValueError, "init row 0 has norm 2"),
}


@pytest.mark.parametrize(("mistake", "error", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_an_error_that_names_it(mistake, error, message):
    with pytest.raises(error, match=message):
        mistake()


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in ("n_components", "n_nonzero_coefs", "max_iter") for value in (0, -1, 2.0, "2", None)]
    + [("encoder", "lasso"), ("encoder", None), ("init", "svd"), ("init", None), ("random_state", -1)],
)
def test_a_parameter_out_of_range_is_named_with_its_value(name, value):
    parameters = {"n_components": 5, "n_nonzero_coefs": 2} | {name: value}
    said = f"The '{name}' parameter of ksvd_baseline must be .* Got {re.escape(repr(value))} instead"
    with pytest.raises(ValueError, match=said):
        ksvd_baseline(rows(), **parameters)
