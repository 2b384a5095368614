"""Codes where it is known which atoms each sample uses: least squares by LAPACK, sums sample by sample."""

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from dbksvd_dask.kernels import support as kernels
from dbksvd_dask.kernels.chunk import EncodedChunk

N_SAMPLES, N_FEATURES, N_ATOMS = 60, 16, 20
DTYPES = [np.float32, np.float64]


def problem(dtype=np.float64, seed=0):
    """Rows, unit atoms, a mean, the support of 0 … 6 atoms a sample, and which atoms are usable."""
    rng = np.random.default_rng(seed)
    D = oracle.random_atoms(rng, N_ATOMS, N_FEATURES, dtype)
    mean = rng.standard_normal(N_FEATURES).astype(dtype)
    Y = (mean + rng.standard_normal((N_SAMPLES, N_FEATURES))).astype(dtype)
    support = np.zeros((N_SAMPLES, N_ATOMS), bool)
    for i, used in enumerate(support):
        used[rng.permutation(N_ATOMS)[: i % 7]] = True
    return Y, D, mean, support, rng.random(N_ATOMS) < 0.7


def encode(rows, D, mean, support, usable):
    indices = kernels.support_slots(csr_array(support))
    gram = oracle.gram(D).astype(D.dtype)
    return kernels.encode_on_support(rows, D, gram, mean, indices, usable)


def by_lapack(Y, D, support, usable):
    """X, (n, m); zero where the atoms of a sample are linearly dependent."""
    Y, D, X = Y.astype(np.float64), D.astype(np.float64), np.zeros(support.shape)
    for x, y, used in zip(X, Y, support & usable, strict=True):
        atoms = np.flatnonzero(used)
        if np.linalg.matrix_rank(D[atoms]) == len(atoms):
            x[atoms] = np.linalg.lstsq(D[atoms].T, y, rcond=None)[0]
    return X


# --- slots -----------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 1000), n=st.integers(1, 12), m=st.integers(1, 9), density=st.sampled_from([0, 0.1, 0.5, 1]))
def test_the_slots_of_a_sample_are_its_atoms_in_ascending_order_and_then_empty_ones(seed, n, m, density):
    support = np.random.default_rng(seed).random((n, m)) < density
    slots = kernels.support_slots(csr_array(support))
    assert slots.dtype == np.int32
    assert slots.shape == (n, max(support.sum(axis=1).max(), 1))
    for found, used in zip(slots, support, strict=True):
        expected = np.flatnonzero(used)
        np.testing.assert_array_equal(found, [*expected, *[-1] * (slots.shape[1] - len(expected))])


def test_one_empty_slot_is_left_where_nobody_uses_an_atom():
    np.testing.assert_array_equal(kernels.support_slots(csr_array((3, 5))), [[-1], [-1], [-1]])


# --- least squares ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("all_usable", [False, True])
def test_coefficients_are_least_squares_on_the_usable_atoms_and_zero_on_others(all_usable, centred, dtype):
    Y, D, mean, support, usable = problem(dtype)
    usable = usable | all_usable
    chunk = encode([Y], D, mean if centred else None, support, usable)
    np.testing.assert_array_equal(chunk.indices, kernels.support_slots(csr_array(support)))
    rows = Y.astype(np.float64) - mean if centred else Y.astype(np.float64)
    expected = by_lapack(rows, D, support, usable)
    assert np.any(np.abs(expected) > 1)
    rounding = 200 * np.finfo(dtype).eps
    np.testing.assert_allclose(oracle.dense(chunk.indices, chunk.values, N_ATOMS), expected, rtol=0, atol=rounding)
    np.testing.assert_allclose(chunk.residual, rows - expected @ D.astype(np.float64), rtol=0, atol=rounding)
    assert chunk.values.dtype == chunk.residual.dtype == dtype
    unused = (chunk.indices < 0) | ~usable[chunk.indices]
    assert not np.any(chunk.values[unused])
    assert unused.all(axis=1).any()  # samples without a usable atom
    np.testing.assert_array_equal(chunk.residual[unused.all(axis=1)], (Y - mean if centred else Y)[unused.all(axis=1)])


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("given_as", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cuts", [[], [1], [0, 7, 7, 40], range(1, N_SAMPLES)], ids=len)
def test_rows_may_come_in_pieces_and_in_any_precision(cuts, dtype, given_as, centred):
    Y, D, mean, support, usable = problem(dtype)
    Y, mean = Y.astype(given_as), mean if centred else None
    whole = encode([Y.astype(dtype)], D, mean, support, usable)
    pieces = encode(np.split(Y, cuts), D, mean, support, usable)
    for name in ("indices", "values", "residual"):
        np.testing.assert_array_equal(getattr(pieces, name), getattr(whole, name))


def test_what_is_given_stays_as_it_is():
    Y, D, mean, support, usable = problem()
    given = [Y, D, oracle.gram(D), mean, kernels.support_slots(csr_array(support)), usable]
    before = [array.copy() for array in given]
    chunk = kernels.encode_on_support([given[0]], *given[1:])
    kernels.sum_of_users(chunk, N_ATOMS)
    for array, as_it_was in zip(given, before, strict=True):
        np.testing.assert_array_equal(array, as_it_was)


DEPENDENT = [[2, 4], [1, 3, 7], [1, 3, 7, 9], [2, 3, 4, 5], range(3, N_ATOMS), range(N_ATOMS)]
"""Atom 4 is atom 2 turned round, atom 7 between 1 and 3; the last two are more atoms than features."""


def dependent_problem(dtype):
    """Rows, unit atoms, and supports that are linearly dependent."""
    Y, D, _, _, _ = problem(dtype)
    D[4], D[7] = -D[2], oracle.unit_rows(D[[1]] + D[[3]])[0]
    support = np.zeros((len(DEPENDENT), N_ATOMS), bool)
    for used, atoms in zip(support, DEPENDENT, strict=True):
        used[list(atoms)] = True
    return Y[: len(support)], D, support


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_of_linearly_dependent_atoms_have_coefficients_of_zero(dtype):
    Y, D, support = dependent_problem(dtype)
    chunk = encode([Y], D, None, support, np.ones(N_ATOMS, bool))
    assert not np.any(chunk.values)
    np.testing.assert_array_equal(chunk.residual, Y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_atoms_that_are_not_usable_make_no_sample_dependent(dtype):
    Y, D, support = dependent_problem(dtype)
    usable = np.arange(N_ATOMS) % 4 != 0
    usable[7] = False
    chunk = encode([Y], D, None, support, usable)
    expected = by_lapack(Y, D, support, usable)
    assert np.any(expected, axis=1).all()
    rounding = 2000 * np.finfo(dtype).eps
    np.testing.assert_allclose(oracle.dense(chunk.indices, chunk.values, N_ATOMS), expected, rtol=0, atol=rounding)


def test_as_many_independent_atoms_as_features_leave_nothing():
    Y, D, _, support, _ = problem()
    support[:] = np.arange(N_ATOMS) < N_FEATURES
    chunk = encode([Y], D, None, support, np.ones(N_ATOMS, bool))
    np.testing.assert_allclose(chunk.residual, 0, atol=1e-9)
    np.testing.assert_allclose(chunk.values, np.linalg.solve(D[:N_FEATURES].T, Y.T).T, rtol=0, atol=1e-9)


# --- sums ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum_of_users_is_that_of_their_residuals(dtype):
    rng = np.random.default_rng(0)
    indices, values = oracle.random_codes(rng, N_SAMPLES, N_ATOMS - 1, 4)  # nobody uses the last atom
    residual = rng.standard_normal((N_SAMPLES, N_FEATURES)).astype(dtype)
    sums = kernels.sum_of_users(EncodedChunk(indices, values.astype(dtype), residual), N_ATOMS)
    assert sums.dtype == dtype
    expected = np.zeros((N_ATOMS, N_FEATURES))
    for r, slots in zip(residual, indices, strict=True):
        for atom in slots[slots >= 0]:
            expected[atom] += r
    np.testing.assert_allclose(sums, expected, rtol=0, atol=100 * np.finfo(dtype).eps)
    assert not np.any(sums[-1])
