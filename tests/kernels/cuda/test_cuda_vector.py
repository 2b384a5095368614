"""Norms, moments and the search for rows that are not finite, on a device, against NumPy in float64."""

import numpy as np
import pytest

DTYPES = [np.float32, np.float64]
FLOATS = [np.float16, *DTYPES]
SHAPES = [(0, 3), (1, 1), (2, 10), (7, 5)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_are_in_float64(cupy, kernels, dtype, shape):
    rows = (1000 + np.random.default_rng(0).standard_normal(shape)).astype(dtype)
    wide, there = rows.astype(np.float64), cupy.asarray(rows)
    total, squares = kernels.feature_moments(there)
    for found, expected in [
        (kernels.squared_row_norms(there), np.sum(wide**2, axis=1)),
        (total, np.sum(wide, axis=0)),
        (squares, np.sum(wide**2, axis=0)),
        (kernels.long_dots(there, cupy.asarray(rows[::-1].copy())), np.sum(wide * wide[::-1], axis=1)),
        (kernels.long_dots(cupy.asarray(wide), there), np.sum(wide**2, axis=1)),
    ]:
        assert found.dtype == np.float64
        np.testing.assert_allclose(found.get(), expected, rtol=1e-14)


def test_moments_of_more_rows_than_a_segment_has(cupy):
    from dbksvd_dask.kernels import cuda
    from dbksvd_dask.kernels.cuda import vector

    rows = np.arange(2 * vector.ROWS_PER_SEGMENT + 7, dtype=np.float64)[:, np.newaxis]
    total, squares = cuda.feature_moments(cupy.asarray(rows))
    np.testing.assert_array_equal(total.get(), rows.sum(axis=0))  # whole numbers: exact
    np.testing.assert_array_equal(squares.get(), (rows**2).sum(axis=0))


def test_squared_norms_of_large_rows_do_not_overflow(cupy):
    from dbksvd_dask.kernels import cuda

    rows = cupy.asarray(np.full((1, 3), 1e30, np.float32))
    np.testing.assert_allclose(cuda.squared_row_norms(rows).get(), 3e60, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_multiples_is_in_the_precision_of_the_totals(cupy, dtype):
    from dbksvd_dask.kernels import cuda

    rng = np.random.default_rng(0)
    totals, factors = rng.standard_normal((4, 7)), rng.standard_normal(4)
    vectors = rng.standard_normal((4, 7)).astype(dtype)
    sums = cupy.asarray(totals.copy())
    cuda.add_multiples(sums, cupy.asarray(factors), cupy.asarray(vectors))
    np.testing.assert_allclose(sums.get(), totals + factors[:, np.newaxis] * vectors, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_every_nan_and_infinity_is_found_wherever_it_stands(cupy, dtype, value):
    from dbksvd_dask.kernels import cuda

    for feature in (0, 4):
        rows = np.full((4, 5), np.finfo(dtype).max)
        rows[1] = np.finfo(dtype).tiny
        rows[2, feature] = value
        assert cuda.first_nonfinite_row(cupy.asarray(rows)) == 2
        assert cuda.first_nonfinite_row(cupy.asarray(rows[:2])) == -1
        assert cuda.first_nonfinite_row(cupy.asarray(rows)[::-1]) == 1


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_first_of_several_bad_rows_is_told(cupy, kernels, dtype):
    bits = np.random.default_rng(0).integers(0, 256, (12, 3 * np.dtype(dtype).itemsize), np.uint8)
    rows = bits.view(dtype)
    rows[5, 2], rows[9, 0] = np.nan, np.inf
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    assert kernels.first_nonfinite_row(cupy.asarray(rows)) == bad[0]
    finite = np.where(np.isfinite(rows), rows, dtype(0))
    assert kernels.first_nonfinite_row(cupy.asarray(finite)) == -1


def test_no_rows_are_finite(cupy):
    from dbksvd_dask.kernels import cuda

    assert cuda.first_nonfinite_row(cupy.zeros((0, 3), np.float32)) == -1


def test_the_same_bits_in_every_run(cupy):
    from dbksvd_dask.kernels import cuda

    rows = cupy.asarray(np.random.default_rng(0).standard_normal((10, 9)).astype(np.float32))

    def run():
        return [a.get().tobytes() for a in (*cuda.feature_moments(rows), cuda.squared_row_norms(rows))]

    assert run() == run()
