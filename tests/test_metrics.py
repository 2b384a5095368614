"""Metrics against closed forms and against the formulas of the paper."""

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbksvd_dask.kernels.gram import ATOMS_PER_PANEL
from dbksvd_dask.metrics import (
    ErrorSums,
    atom_usage,
    coherence,
    l0,
    relative_error,
    relative_errors,
    variance_explained,
)

SHAPES = st.tuples(st.integers(2, 40), st.integers(1, 20))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(deadline=None)
@given(seed=st.integers(0, 2**32), shape=SHAPES, offset=st.sampled_from([0, 1, 100]))
def test_reconstruction_metrics_are_the_formulas(dtype, seed, shape, offset):
    rng = np.random.default_rng(seed)
    Y = (offset + rng.standard_normal(shape)).astype(dtype)
    reconstruction = (Y + 0.3 * rng.standard_normal(shape)).astype(dtype)
    wide, R = Y.astype(np.float64), (Y - reconstruction).astype(np.float64)
    # Σy² − (Σy)²/n loses the digits that the mean is larger than the deviations.
    digits = pytest.approx if offset < 100 else lambda value: pytest.approx(value, rel=1e-6)
    assert relative_error(Y, reconstruction) == pytest.approx(oracle.relative_error(wide, R), rel=1e-12)
    assert variance_explained(Y, reconstruction) == digits(oracle.variance_explained(wide, R))
    per_feature = variance_explained(Y, reconstruction, per_feature=True)
    assert per_feature == digits(oracle.variance_explained_per_feature(wide, R))


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), n_samples=st.integers(2, 40), cut=st.integers(0, 40))
def test_sums_of_chunks_are_the_sums_of_all(seed, n_samples, cut):
    rng = np.random.default_rng(seed)
    Y, R = rng.standard_normal((2, n_samples, 5))
    whole, parts = ErrorSums.of(Y, R), ErrorSums.of(Y[:cut], R[:cut]) + ErrorSums.of(Y[cut:], R[cut:])
    assert (parts.n_samples, parts.n_nonzero) == (n_samples, n_samples)
    assert parts.relative_error == pytest.approx(whole.relative_error, rel=1e-13)
    assert parts.variance_explained == pytest.approx(whole.variance_explained, rel=1e-12)
    assert parts.variance_explained_per_feature == pytest.approx(whole.variance_explained_per_feature, rel=1e-12)


def test_a_perfect_reconstruction_and_the_mean():
    Y = np.random.default_rng(0).standard_normal((30, 4))
    assert relative_error(Y, Y) == 0
    assert relative_error(Y, np.zeros_like(Y)) == 1
    for per_feature in (False, True):
        assert variance_explained(Y, Y, per_feature=per_feature) == 1
        mean = np.broadcast_to(Y.mean(axis=0), Y.shape)
        assert variance_explained(Y, mean, per_feature=per_feature) == pytest.approx(0, abs=1e-13)


def test_pooled_variance_weighs_features_by_their_variance():
    Y = np.array([[-10.0, -1.0], [10.0, 1.0]])
    half_of_the_second = np.array([[-10.0, 0.0], [10.0, 0.0]])
    assert variance_explained(Y, half_of_the_second) == pytest.approx(1 - 2 / 202)
    assert variance_explained(Y, half_of_the_second, per_feature=True) == pytest.approx((1 + 0) / 2)


def test_zero_rows_do_not_count_in_relative_error():
    Y = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0]])
    R = np.array([[0.0, 1.0], [9.0, 9.0], [0.0, 2.0]])
    assert ErrorSums.of(Y, R).n_nonzero == 2
    assert relative_error(Y, Y - R) == pytest.approx((1 / 5 + 1) / 2)
    np.testing.assert_allclose(relative_errors(np.sum(Y**2, axis=1), R), [0.2, 0, 1])


def test_relative_error_is_not_a_number_where_all_rows_are_zero():
    assert np.isnan(relative_error(np.zeros((3, 2)), np.zeros((3, 2))))


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1 / 3])
def test_constant_features_have_no_variance_to_explain(value):
    rng = np.random.default_rng(0)
    Y = np.column_stack([rng.standard_normal(1000), np.full(1000, value)])
    reconstruction = np.column_stack([0.5 * Y[:, 0], np.full(1000, value)])
    expected = oracle.variance_explained(Y[:, :1], 0.5 * Y[:, :1])
    assert variance_explained(Y, reconstruction, per_feature=True) == pytest.approx(expected, rel=1e-12)
    assert variance_explained(Y, reconstruction) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("Y", [np.array([[1.0, 2.0]]), np.full((7, 2), 0.1)], ids=["one sample", "all the same"])
@pytest.mark.parametrize("per_feature", [False, True])
def test_variance_explained_is_not_a_number_where_nothing_varies(Y, per_feature):
    assert np.isnan(variance_explained(Y, 0 * Y, per_feature=per_feature))
    assert relative_error(Y, 0 * Y) == pytest.approx(1)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), n_samples=st.integers(1, 30), n_atoms=st.integers(1, 20), k=st.integers(1, 6))
def test_usage_and_l0_count_the_slots_in_use(seed, n_samples, n_atoms, k):
    indices, _ = oracle.random_codes(np.random.default_rng(seed), n_samples, n_atoms, k)
    usage = atom_usage(indices, n_atoms)
    assert usage.tolist() == [sum(j in row for row in indices) for j in range(n_atoms)]
    assert l0(indices) == pytest.approx(usage.sum() / n_samples)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_atoms", [1, 2, ATOMS_PER_PANEL - 1, ATOMS_PER_PANEL, ATOMS_PER_PANEL + 1, 2500])
def test_coherence_is_the_largest_cosine_with_any_other_atom(n_atoms, dtype):
    D = oracle.random_atoms(np.random.default_rng(0), n_atoms, 5, dtype)
    found = coherence(D)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, oracle.coherence(D), atol=4 * np.finfo(dtype).eps)
    assert n_atoms > 1 or found[0] == 0
