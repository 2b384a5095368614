"""Norms, moments and the search for rows that are not finite, against NumPy in float64."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbksvd_dask.kernels import cpu
from dbksvd_dask.kernels.cpu.vector import maximum

DTYPES = [np.float32, np.float64]
FLOATS = [np.float16, *DTYPES]
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None)
@given(seed=st.integers(0, 2**32), shape=SHAPES)
def test_sums_are_in_float64(dtype, seed, shape):
    rows = (1000 + np.random.default_rng(seed).standard_normal(shape)).astype(dtype)
    wide = rows.astype(np.float64)
    total, squares = cpu.feature_moments(rows)
    for found, expected in [
        (cpu.squared_row_norms(rows), np.sum(wide**2, axis=1)),
        (total, np.sum(wide, axis=0)),
        (squares, np.sum(wide**2, axis=0)),
        (cpu.long_dots(rows, rows[::-1].copy()), np.sum(wide * wide[::-1], axis=1)),
        (cpu.long_dots(wide, rows), np.sum(wide**2, axis=1)),
    ]:
        assert np.asarray(found).dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None)
@given(seed=st.integers(0, 2**32), shape=SHAPES)
def test_multiples_are_added_in_the_precision_of_the_totals(dtype, seed, shape):
    rng = np.random.default_rng(seed)
    totals, factors, vectors = rng.standard_normal(shape), rng.standard_normal(shape[0]), rng.standard_normal(shape)
    vectors = vectors.astype(dtype)
    expected = totals + factors[:, np.newaxis] * vectors.astype(np.float64)
    cpu.add_multiples(totals, factors, vectors)
    np.testing.assert_allclose(totals, expected, rtol=0, atol=1e-14)


def test_moments_of_a_million_samples_lose_no_digits():
    values = np.full((2**20, 1), 0.1, np.float32)
    total, squares = cpu.feature_moments(values)
    x = float(values[0, 0])
    np.testing.assert_allclose([total[0], squares[0]], [2**20 * x, 2**20 * x**2], rtol=1e-9)


def test_squared_norms_of_large_rows_do_not_overflow():
    np.testing.assert_allclose(cpu.squared_row_norms(np.full((1, 3), 1e30, np.float32)), 3e60, rtol=1e-6)


@pytest.mark.parametrize(("a", "b"), [(1.0, 2.0), (-1.0, -2.0), (3.0, 3.0), (0.0, -5.0)])
def test_maximum(a, b):
    assert maximum(a, b) == maximum(b, a) == max(a, b)


@pytest.mark.parametrize("dtype", FLOATS)
@settings(deadline=None)
@given(data=st.data(), shape=SHAPES)
def test_the_first_row_that_is_not_finite(dtype, data, shape):
    bits = np.dtype(f"u{np.dtype(dtype).itemsize}")
    finite = data.draw(hnp.arrays(dtype, shape, elements=st.floats(width=16, allow_nan=False, allow_infinity=False)))
    any_bits = data.draw(hnp.arrays(bits, shape)).view(dtype)
    rows = np.where(
        data.draw(hnp.arrays(bool, shape, elements=st.sampled_from([False] * 9 + [True]))), any_bits, finite
    )
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    assert cpu.first_nonfinite_row(rows) == (bad[0] if bad.size else -1)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_every_nan_and_infinity_is_found_wherever_it_stands(dtype, value):
    for n_features in (1, 7, 64, 65):
        for feature in {0, n_features // 2, n_features - 1}:
            rows = np.full((5, n_features), np.finfo(dtype).max)
            rows[1] = np.finfo(dtype).tiny
            rows[3, feature] = value
            assert cpu.first_nonfinite_row(rows) == 3
            assert cpu.first_nonfinite_row(rows[:3]) == -1
            assert cpu.first_nonfinite_row(np.asfortranarray(rows)) == 3
            assert cpu.first_nonfinite_row(rows[::-1]) == 1
