"""The pursuit kernels are the formulas of the oracle, on products and a Gram matrix instead of samples and atoms."""

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbksvd_dask.kernels import cpu

DTYPES = [np.float32, np.float64]
BOUNDARIES = [1, 2, 127, 128, 129, 255, 256, 257, 511, 513]
"""Numbers of atoms and features around the tiles of 128 features and the blocks of 256 atoms."""


def inputs(Y, D, k):
    """What the pursuits take, in the precision of Y and D: products, Gram matrix, ‖y‖², empty indices and values."""
    wide_Y, wide_D = Y.astype(np.float64), D.astype(np.float64)
    return (
        (wide_Y @ wide_D.T).astype(Y.dtype),
        (wide_D @ wide_D.T).astype(D.dtype),
        np.sum(wide_Y**2, axis=1),
        np.full((len(Y), k), -1, np.int32),
        np.zeros((len(Y), k), Y.dtype),
    )


def matching_pursuit(Y, D, k, max_steps=None, rtol=0.0, nonnegative=False):
    products, gram, squared_norms, indices, values = inputs(Y, D, k)
    steps = 4 * k if max_steps is None else max_steps
    cpu.matching_pursuit(products, gram, squared_norms, squared_norms, steps, rtol, nonnegative, indices, values)
    return indices, values, products


def orthogonal_matching_pursuit(Y, D, k, rtol=0.0):
    products, gram, squared_norms, indices, values = inputs(Y, D, k)
    given_products = products.copy()
    cpu.orthogonal_matching_pursuit(products, gram, squared_norms, squared_norms, rtol, indices, values)
    np.testing.assert_array_equal(products, given_products)
    return indices, values


def normal_problem(seed, n_samples, n_features, n_atoms, dtype):
    rng = np.random.default_rng(seed)
    scales = 10.0 ** rng.uniform(-3, 3, (n_samples, 1))
    Y = (scales * rng.standard_normal((n_samples, n_features))).astype(dtype)
    return Y, oracle.random_atoms(rng, n_atoms, n_features, dtype)


@st.composite
def exact_problems(draw):
    """Small integers as samples, atoms of ±1 or of four ±½: few steps of a pursuit round nothing, so ties stay ties."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_features, n_atoms = draw(st.integers(4, 12)), draw(st.integers(1, 40) | st.sampled_from(BOUNDARIES))
    D = np.zeros((n_atoms, n_features))
    for atom in D:
        if rng.random() < 0.5:
            atom[rng.integers(n_features)] = rng.choice([-1, 1])
        else:
            atom[rng.choice(n_features, size=4, replace=False)] = rng.choice([-0.5, 0.5], size=4)
    Y = rng.integers(-4, 5, (draw(st.integers(1, 20)), n_features)) * rng.integers(0, 2, n_features)
    return Y.astype(np.float64), D


# --- matching pursuit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nonnegative", [False, True])
@settings(deadline=None)
@given(problem=exact_problems(), k=st.integers(1, 6), max_steps=st.integers(0, 6), rtol=st.sampled_from([0, 0.25, 0.5]))
def test_matching_pursuit_is_exact_where_nothing_rounds(problem, k, max_steps, rtol, nonnegative, dtype):
    Y, D = problem
    indices, values, products = matching_pursuit(Y.astype(dtype), D.astype(dtype), k, max_steps, rtol, nonnegative)
    expected = oracle.matching_pursuit(Y, D, k, max_steps, rtol, nonnegative)
    np.testing.assert_array_equal(indices, expected.indices)
    np.testing.assert_array_equal(values, expected.values)
    np.testing.assert_array_equal(products, oracle.residual(Y, D, *expected[:2]) @ D.T)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    n_features=st.integers(16, 40) | st.sampled_from(BOUNDARIES[2:]),
    n_atoms=st.integers(24, 60) | st.sampled_from(BOUNDARIES[2:]),
    k=st.integers(1, 5),
    rtol=st.sampled_from([0.0, 0.3, 0.7]),
    nonnegative=st.booleans(),
)
def test_matching_pursuit_agrees_with_the_oracle(dtype, seed, n_features, n_atoms, k, rtol, nonnegative):
    Y, D = normal_problem(seed, 40, n_features, n_atoms, dtype)
    indices, values, products = matching_pursuit(Y, D, k, None, rtol, nonnegative)
    rounding, norms = oracle.pursuit_rounding(dtype, n_features, 4 * k), np.linalg.norm(Y, axis=1)
    expected = oracle.matching_pursuit(Y, D, k, None, rtol, nonnegative, np.finfo(dtype).eps)
    oracle.assert_codes_agree(indices, values, expected, norms, rounding)
    # The products end as ⟨r, d⟩ with the residual of these very codes.
    left = oracle.residual(Y, D, indices, values) @ D.T.astype(np.float64)
    assert np.all(np.abs(products - left) <= rounding * norms[:, np.newaxis])


def test_matching_pursuit_may_use_every_atom():
    Y, D = normal_problem(0, 30, 12, 8, np.float64)
    indices, values, _ = matching_pursuit(Y, D, k=8)
    assert np.count_nonzero(indices >= 0) > 6 * len(Y)
    rounding = oracle.pursuit_rounding(np.float64, 12, 32)
    oracle.assert_codes_agree(indices, values, oracle.matching_pursuit(Y, D, 8), np.linalg.norm(Y, axis=1), rounding)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_atom_may_be_picked_again(dtype):
    # 1. atom 0 with p = 4,  2. atom 1 with p = 3.5 − ½·4,  3. atom 0 again with p = −½·1.5
    D = np.array([[1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]], dtype)
    Y = np.array([[4, 1, 1, 1]], dtype)
    indices, values, products = matching_pursuit(Y, D, k=2, max_steps=3)
    assert indices.tolist() == [[0, 1]]
    assert values.tolist() == [[3.25, 1.5]]
    assert products.tolist() == [[0, 0.375]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pursue", [matching_pursuit, orthogonal_matching_pursuit])
def test_the_lowest_index_wins_a_tie_also_across_blocks(pursue, dtype):
    D = np.tile(np.eye(3, dtype=dtype), (200, 1))  # atoms 0, 3, 6, … are the same
    D[256:] *= -1
    indices, values, *_ = pursue(np.array([[0, 5, -3]], dtype), D, k=3)
    assert indices.tolist() == [[1, 2, -1]]
    assert values.tolist() == [[5, -3, 0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_nonnegative_picks_the_largest_product_above_zero(dtype):
    D = np.array([[1, 0], [0, 1], [-1, 0]], dtype)
    indices, values, _ = matching_pursuit(np.array([[1, -9], [-2, 1], [0, -1]], dtype), D, k=2, nonnegative=True)
    assert indices.tolist() == [[0, -1], [2, 1], [-1, -1]]
    assert values.tolist() == [[1, 0], [2, 1], [0, 0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pursue", [matching_pursuit, orthogonal_matching_pursuit])
def test_zero_rows_get_empty_codes(pursue, dtype):
    Y, D = normal_problem(0, 5, 7, 9, dtype)
    Y[[0, 3]] = 0
    indices, values, *_ = pursue(Y, D, 2)
    assert np.all(indices[[0, 3]] == -1)
    assert np.all(values[[0, 3]] == 0)
    assert np.all(indices[[1, 2, 4]] >= 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pursue", [matching_pursuit, orthogonal_matching_pursuit])
def test_orthonormal_atoms_give_the_largest_products(pursue, dtype):
    rng = np.random.default_rng(0)
    D = np.linalg.qr(rng.standard_normal((16, 16)))[0]
    X = np.stack([rng.permutation(np.arange(1, 17)) * rng.choice([-1, 1], 16) for _ in range(20)])
    indices, values, *_ = pursue((X @ D).astype(dtype), D.astype(dtype), 5)
    np.testing.assert_array_equal(indices, np.argsort(-np.abs(X), axis=1)[:, :5])
    rounding = oracle.pursuit_rounding(dtype, 16, 20) * np.linalg.norm(X[0])
    np.testing.assert_allclose(values, np.take_along_axis(X, indices, axis=1), atol=rounding)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pursue", [matching_pursuit, orthogonal_matching_pursuit])
def test_codes_scale_with_the_samples(pursue, dtype):
    Y, D = normal_problem(0, 20, 30, 50, dtype)
    indices, values, *_ = pursue(Y, D, 4)
    for scale in dtype(2.0**-30), dtype(2.0**30):
        scaled_indices, scaled_values, *_ = pursue(scale * Y, D, 4)
        np.testing.assert_array_equal(scaled_indices, indices)
        np.testing.assert_array_equal(scaled_values, scale * values)


# --- orthogonal matching pursuit and refit ---------------------------------------------------------------------------


def least_squares_rounding(D, indices, dtype, rounding):
    """Rounding, magnified by the condition number of the worst support."""
    supports = [support[support >= 0] for support in indices]
    condition = max(np.linalg.cond(D[support].astype(np.float64)) for support in supports if support.size)
    return rounding * condition**2


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    n_features=st.integers(10, 40) | st.sampled_from(BOUNDARIES[2:]),
    n_atoms=st.integers(1, 60) | st.sampled_from(BOUNDARIES),
    k=st.integers(1, 5),
    rtol=st.sampled_from([0.0, 0.3, 0.7]),
)
def test_orthogonal_matching_pursuit_agrees_with_least_squares_at_every_step(dtype, seed, n_features, n_atoms, k, rtol):
    Y, D = normal_problem(seed, 40, n_features, n_atoms, dtype)
    k = min(k, n_atoms)
    indices, values = orthogonal_matching_pursuit(Y, D, k, rtol)
    expected = oracle.orthogonal_matching_pursuit(Y, D, k, rtol, np.finfo(dtype).eps)
    rounding = oracle.pursuit_rounding(dtype, n_features, k)
    rounding = least_squares_rounding(D, expected.indices, dtype, rounding)
    oracle.assert_codes_agree(indices, values, expected, np.linalg.norm(Y, axis=1), rounding)


def test_orthogonal_matching_pursuit_may_use_every_atom():
    Y, D = normal_problem(0, 30, 12, 8, np.float64)
    indices, values = orthogonal_matching_pursuit(Y, D, k=8)
    assert np.all(np.sort(indices) == np.arange(8))
    X = np.linalg.lstsq(D.T, Y.T, rcond=None)[0].T
    np.testing.assert_allclose(oracle.dense(indices, values, 8), X, rtol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_orthogonal_matching_pursuit_ends_where_all_that_is_left_depends_on_the_support(dtype):
    # Only directions e_0 and e_1 have atoms, twice each and once mixed: a third atom would be dependent.
    half = np.sqrt(0.5)
    D = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [half, half, 0], [0, -1, 0]], dtype)
    indices, values = orthogonal_matching_pursuit(np.array([[4, 1, 7]], dtype), D, k=4)
    assert indices.tolist() == [[0, 1, -1, -1]]
    np.testing.assert_allclose(values, [[4, 1, 0, 0]], rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    n_features=st.integers(10, 300),
    n_atoms=st.integers(1, 60),
    k=st.integers(1, 5),
)
def test_refit_is_least_squares_on_the_support(dtype, seed, n_features, n_atoms, k):
    Y, D = normal_problem(seed, 40, n_features, n_atoms, dtype)
    indices, values = oracle.random_codes(np.random.default_rng(seed), 40, n_atoms, min(k, n_atoms))
    norms = np.linalg.norm(Y.astype(np.float64), axis=1, keepdims=True)
    values = (norms * values).astype(dtype)
    expected = oracle.refit(Y, D, indices, values)
    refit_with_residual_products(Y, D, indices, values)
    rounding = oracle.pursuit_rounding(dtype, n_features, 4 * k)
    rounding = rounding if np.all(indices < 0) else least_squares_rounding(D, indices, dtype, rounding)
    assert np.all(np.abs(values - expected) <= rounding * norms)


@pytest.mark.parametrize("dtype", DTYPES)
def test_refit_leaves_a_dependent_support_as_it_is(dtype):
    D = np.array([[1, 0, 0], [0, 1, 0], [-1, 0, 0]], dtype)
    Y = np.array([[3, 4, 5], [3, 4, 5]], dtype)
    indices = np.array([[0, 2, 1], [1, 2, -1]], np.int32)
    values = np.array([[7, 7, 7], [7, 7, 0]], dtype)
    refit_with_residual_products(Y, D, indices, values)
    assert values.tolist() == [[7, 7, 7], [4, -3, 0]]


def refit_with_residual_products(Y, D, indices, values):
    left = oracle.residual(Y, D, indices, values) @ D.T.astype(np.float64)
    residual_products = np.take_along_axis(left, np.maximum(indices, 0), axis=1).astype(Y.dtype)
    _, gram, *_ = inputs(Y, D, 1)
    cpu.refit_least_squares(residual_products, gram, indices, values)


# --- reconstruction --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    n_samples=st.integers(1, 30),
    n_features=st.integers(1, 20) | st.sampled_from(BOUNDARIES),
    n_atoms=st.integers(1, 60),
    k=st.integers(1, 7),
)
def test_subtracting_the_reconstruction_leaves_the_residual(dtype, seed, n_samples, n_features, n_atoms, k):
    Y, D = normal_problem(seed, n_samples, n_features, n_atoms, dtype)
    indices, values = oracle.random_codes(np.random.default_rng(seed), n_samples, n_atoms, k)
    values = values.astype(dtype)
    expected = oracle.residual(Y, D, indices, values)
    rows = Y.copy()
    cpu.subtract_reconstruction(rows, D, indices, values)
    size = np.abs(Y) + oracle.dense(indices, np.abs(values), n_atoms) @ np.abs(D)
    assert np.all(np.abs(rows - expected) <= (k + 1) * np.finfo(dtype).eps * size)
