"""The pursuits on a device choose what the oracle chooses, and what the CPU kernels choose.

A thread of a block is a thread of Python where there is no GPU: the problems are small, and blocks of 4 threads.
"""

from types import SimpleNamespace

import numpy as np
import oracle
import pytest

from dbksvd_dask.kernels import cpu

DTYPES = [np.float32, np.float64]
ATOMS = [1, 3, 4, 5, 33]
"""Less than a block of 4 threads has, as many, and no multiple of it."""


@pytest.fixture
def device(cupy):
    """The kernels on NumPy arrays: in place, as on the CPU."""
    from dbksvd_dask.kernels.cuda import launching, least_squares, pursuit

    def on_device(kernel):
        def run(*arguments):
            there = [cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments]
            kernel(*there)
            for here, result in zip(arguments, there, strict=True):
                if isinstance(here, np.ndarray):
                    here[...] = result.get()

        return run

    kernels = pursuit.matching_pursuit, pursuit.orthogonal_matching_pursuit, pursuit.subtract_reconstruction
    kernels = {kernel.__name__: on_device(kernel) for kernel in (*kernels, least_squares.refit_least_squares)}
    return SimpleNamespace(launching=launching, **kernels)


@pytest.fixture(params=["products in shared memory", "products in global memory"])
def either_memory(request, device, monkeypatch):
    if request.param == "products in global memory":
        monkeypatch.setattr(device.launching, "most_shared_memory", lambda: 1024)


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


def matching_pursuit(kernels, Y, D, k, max_steps=None, rtol=0.0, nonnegative=False):
    products, gram, squared_norms, indices, values = inputs(Y, D, k)
    steps = 4 * k if max_steps is None else max_steps
    kernels.matching_pursuit(products, gram, squared_norms, squared_norms, steps, rtol, nonnegative, indices, values)
    return indices, values, products


def orthogonal_matching_pursuit(kernels, Y, D, k, rtol=0.0):
    products, gram, squared_norms, indices, values = inputs(Y, D, k)
    given_products = products.copy()
    kernels.orthogonal_matching_pursuit(products, gram, squared_norms, squared_norms, rtol, indices, values)
    np.testing.assert_array_equal(products, given_products)
    return indices, values


PURSUITS = [matching_pursuit, orthogonal_matching_pursuit]


def normal_problem(seed, n_samples, n_features, n_atoms, dtype):
    rng = np.random.default_rng(seed)
    scales = 10.0 ** rng.uniform(-3, 3, (n_samples, 1))
    Y = (scales * rng.standard_normal((n_samples, n_features))).astype(dtype)
    return Y, oracle.random_atoms(rng, n_atoms, n_features, dtype)


def exact_problem(seed, n_samples, n_atoms):
    """Small integers as samples, atoms of ±1 or of four ±½: few steps of a pursuit round nothing, so ties stay ties."""
    rng = np.random.default_rng(seed)
    D = np.zeros((n_atoms, 6))
    for atom in D:
        if rng.random() < 0.5:
            atom[rng.integers(6)] = rng.choice([-1, 1])
        else:
            atom[rng.choice(6, size=4, replace=False)] = rng.choice([-0.5, 0.5], size=4)
    return rng.integers(-4, 5, (n_samples, 6)) * rng.integers(0, 2, 6).astype(np.float64), D


# --- matching pursuit ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("either_memory")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("n_atoms", ATOMS)
def test_matching_pursuit_is_exact_where_nothing_rounds(device, n_atoms, nonnegative, dtype):
    Y, D = exact_problem(n_atoms, 3, n_atoms)
    for k, max_steps, rtol in [(1, 4, 0), (3, 0, 0), (2, 6, 0), (3, 5, 0.5), (6, 6, 0.25)]:
        codes = matching_pursuit(device, Y.astype(dtype), D.astype(dtype), k, max_steps, rtol, nonnegative)
        expected = oracle.matching_pursuit(Y, D, k, max_steps, rtol, nonnegative)
        left = oracle.residual(Y, D, *expected[:2]) @ D.T
        for result, wanted in zip(codes, (*expected[:2], left), strict=True):
            np.testing.assert_array_equal(result, wanted)


@pytest.mark.usefixtures("either_memory")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rtol", "nonnegative"), [(0.0, False), (0.6, False), (0.0, True)])
def test_matching_pursuit_agrees_with_the_oracle_and_the_cpu(device, rtol, nonnegative, dtype):
    Y, D = normal_problem(0, 8, 16, 29, dtype)
    indices, values, products = matching_pursuit(device, Y, D, 4, None, rtol, nonnegative)
    rounding, norms = oracle.pursuit_rounding(dtype, 16, 16), np.linalg.norm(Y, axis=1)
    expected = oracle.matching_pursuit(Y, D, 4, None, rtol, nonnegative, np.finfo(dtype).eps)
    oracle.assert_codes_agree(indices, values, expected, norms, rounding)
    on_cpu = oracle.Codes(*matching_pursuit(cpu, Y, D, 4, None, rtol, nonnegative)[:2], expected.margins)
    oracle.assert_codes_agree(indices, values, on_cpu, norms, rounding)
    # The products end as ⟨r, d⟩ with the residual of these very codes.
    left = oracle.residual(Y, D, indices, values) @ D.T.astype(np.float64)
    assert np.all(np.abs(products - left) <= rounding * norms[:, np.newaxis])


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_atom_may_be_picked_again(device, dtype):
    # 1. atom 0 with p = 4,  2. atom 1 with p = 3.5 − ½·4,  3. atom 0 again with p = −½·1.5
    D = np.array([[1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]], dtype)
    indices, values, products = matching_pursuit(device, np.array([[4, 1, 1, 1]], dtype), D, k=2, max_steps=3)
    assert indices.tolist() == [[0, 1]]
    assert values.tolist() == [[3.25, 1.5]]
    assert products.tolist() == [[0, 0.375]]


def test_matching_pursuit_may_use_every_atom(device):
    Y, D = normal_problem(0, 4, 12, 8, np.float64)
    indices, values, _ = matching_pursuit(device, Y, D, k=8)
    assert np.count_nonzero(indices >= 0) > 6 * len(Y)
    rounding = oracle.pursuit_rounding(np.float64, 12, 32)
    oracle.assert_codes_agree(indices, values, oracle.matching_pursuit(Y, D, 8), np.linalg.norm(Y, axis=1), rounding)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nonnegative_picks_the_largest_product_above_zero(device, dtype):
    D = np.array([[1, 0], [0, 1], [-1, 0]], dtype)
    Y = np.array([[1, -9], [-2, 1], [0, -1]], dtype)
    indices, values, _ = matching_pursuit(device, Y, D, k=2, nonnegative=True)
    assert indices.tolist() == [[0, -1], [2, 1], [-1, -1]]
    assert values.tolist() == [[1, 0], [2, 1], [0, 0]]


@pytest.mark.usefixtures("either_memory")
@pytest.mark.parametrize("pursue", PURSUITS)
def test_any_number_of_threads_gives_the_same_bits(device, monkeypatch, pursue):
    Y, D = normal_problem(1, 3, 12, 37, np.float32)
    monkeypatch.setattr(device.launching, "THREADS", 1)
    alone = pursue(device, Y, D, 3)
    for n_threads in 2, 4, 8, 32:
        monkeypatch.setattr(device.launching, "THREADS", n_threads)
        for result, expected in zip(pursue(device, Y, D, 3), alone, strict=True):
            np.testing.assert_array_equal(result, expected)


@pytest.mark.usefixtures("either_memory")
@pytest.mark.parametrize("n_threads", [1, 4, 32])
@pytest.mark.parametrize("pursue", PURSUITS)
def test_the_lowest_index_wins_a_tie_also_across_threads(device, monkeypatch, pursue, n_threads):
    monkeypatch.setattr(device.launching, "THREADS", n_threads)
    D = np.tile(np.eye(3, dtype=np.float32), (30, 1))  # atoms 0, 3, 6, … are the same
    D[40:] *= -1
    D[:20] = np.eye(3)[0]  # and the first of the others are atoms 20 and 22
    indices, values, *_ = pursue(device, np.array([[0, 5, -3]], np.float32), D, k=3)
    assert indices.tolist() == [[22, 20, -1]]
    assert values.tolist() == [[5, -3, 0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pursue", PURSUITS)
def test_zero_rows_get_empty_codes(device, pursue, dtype):
    Y, D = normal_problem(0, 5, 7, 9, dtype)
    Y[[0, 3]] = 0
    indices, values, *_ = pursue(device, Y, D, 2)
    assert np.all(indices[[0, 3]] == -1)
    assert np.all(values[[0, 3]] == 0)
    assert np.all(indices[[1, 2, 4]] >= 0)


# --- orthogonal matching pursuit and refit ---------------------------------------------------------------------------


def least_squares_rounding(D, indices, dtype, rounding):
    """Rounding, magnified by the condition number of the worst support."""
    supports = [support[support >= 0] for support in indices]
    condition = max(np.linalg.cond(D[support].astype(np.float64)) for support in supports if support.size)
    return rounding * condition**2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rtol", [0.0, 0.6])
@pytest.mark.parametrize(("n_atoms", "k"), [(1, 1), (3, 3), (33, 6)])
def test_orthogonal_matching_pursuit_agrees_with_least_squares_at_every_step(device, n_atoms, k, rtol, dtype):
    Y, D = normal_problem(n_atoms, 8, 20, n_atoms, dtype)
    indices, values = orthogonal_matching_pursuit(device, Y, D, k, rtol)
    expected = oracle.orthogonal_matching_pursuit(Y, D, k, rtol, np.finfo(dtype).eps)
    rounding, norms = oracle.pursuit_rounding(dtype, 20, k), np.linalg.norm(Y, axis=1)
    rounding = least_squares_rounding(D, expected.indices, dtype, rounding)
    oracle.assert_codes_agree(indices, values, expected, norms, rounding)
    on_cpu = oracle.Codes(*orthogonal_matching_pursuit(cpu, Y, D, k, rtol), expected.margins)
    oracle.assert_codes_agree(indices, values, on_cpu, norms, rounding)


def test_orthogonal_matching_pursuit_may_use_every_atom(device):
    Y, D = normal_problem(0, 4, 12, 8, np.float64)
    indices, values = orthogonal_matching_pursuit(device, Y, D, k=8)
    assert np.all(np.sort(indices) == np.arange(8))
    X = np.linalg.lstsq(D.T, Y.T, rcond=None)[0].T
    np.testing.assert_allclose(oracle.dense(indices, values, 8), X, rtol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_orthogonal_matching_pursuit_ends_where_all_that_is_left_depends_on_the_support(device, dtype):
    # Only directions e_0 and e_1 have atoms, twice each and once mixed: a third atom would be dependent.
    half = np.sqrt(0.5)
    D = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [half, half, 0], [0, -1, 0]], dtype)
    indices, values = orthogonal_matching_pursuit(device, np.array([[4, 1, 7]], dtype), D, k=4)
    assert indices.tolist() == [[0, 1, -1, -1]]
    np.testing.assert_allclose(values, [[4, 1, 0, 0]], rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_atom_that_rounding_alone_makes_independent_ends_a_row(device, dtype):
    # Seen from the first two atoms, the third is off their plane by less than what the pivots may tell.
    tilt = np.sqrt(8 * np.finfo(dtype).eps)
    D = oracle.unit_rows(np.array([[1, 0, 0], [0, 1, 0], [1, 1, tilt]])).astype(dtype)
    Y = np.array([[9, 8, 0]], dtype)
    products, gram, squared_norms, indices, values = inputs(Y, D, 3)
    for kernels in device, cpu:
        kernels.orthogonal_matching_pursuit(products, gram, squared_norms, squared_norms, 0.0, indices, values)
        assert indices[0, 2] == -1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_atoms", "k"), [(1, 1), (5, 5), (33, 6)])
def test_refit_is_least_squares_on_the_support(device, n_atoms, k, dtype):
    Y, D = normal_problem(n_atoms, 12, 20, n_atoms, dtype)
    indices, values = oracle.random_codes(np.random.default_rng(0), 12, n_atoms, k)
    norms = np.linalg.norm(Y.astype(np.float64), axis=1, keepdims=True)
    values = (norms * values).astype(dtype)
    expected = oracle.refit(Y, D, indices, values)
    refit_with_residual_products(device, Y, D, indices, values)
    rounding = least_squares_rounding(D, indices, dtype, oracle.pursuit_rounding(dtype, 20, 4 * k))
    assert np.all(np.abs(values - expected) <= rounding * norms)


@pytest.mark.parametrize("dtype", DTYPES)
def test_refit_leaves_a_dependent_support_as_it_is(device, dtype):
    D = np.array([[1, 0, 0], [0, 1, 0], [-1, 0, 0]], dtype)
    Y = np.array([[3, 4, 5], [3, 4, 5]], dtype)
    indices = np.array([[0, 2, 1], [1, 2, -1]], np.int32)
    values = np.array([[7, 7, 7], [7, 7, 0]], dtype)
    refit_with_residual_products(device, Y, D, indices, values)
    assert values.tolist() == [[7, 7, 7], [4, -3, 0]]


@pytest.mark.parametrize("n_blocks", [1, 3])
def test_few_blocks_take_many_rows_each(device, monkeypatch, n_blocks):
    from dbksvd_dask.kernels.cuda import least_squares

    monkeypatch.setattr(device.launching, "THREADS", 32)
    Y, D = normal_problem(0, 12, 12, 20, np.float32)
    Y[1::2] = 0  # done with the first search: the block goes on to the next row with what it has in shared memory
    indices, values = orthogonal_matching_pursuit(device, Y, D, 2)
    refitted = np.ones_like(values)
    refit_with_residual_products(device, Y, D, indices, refitted)
    monkeypatch.setattr(least_squares, "SCRATCH_BYTES", n_blocks * 2 * 2 * 2 * 8)
    for result, expected in zip(orthogonal_matching_pursuit(device, Y, D, 2), (indices, values), strict=True):
        np.testing.assert_array_equal(result, expected)
    again = np.ones_like(values)
    refit_with_residual_products(device, Y, D, indices, again)
    np.testing.assert_array_equal(again, refitted)


def refit_with_residual_products(kernels, Y, D, indices, values):
    left = oracle.residual(Y, D, indices, values) @ D.T.astype(np.float64)
    residual_products = np.take_along_axis(left, np.maximum(indices, 0), axis=1).astype(Y.dtype)
    _, gram, *_ = inputs(Y, D, 1)
    kernels.refit_least_squares(residual_products, gram, indices, values)


# --- reconstruction --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_features", [1, 4, 8, 37])
def test_subtracting_the_reconstruction_leaves_the_residual(device, n_features, dtype):
    Y, D = normal_problem(n_features, 6, n_features, 9, dtype)
    indices, values = oracle.random_codes(np.random.default_rng(0), 6, 9, 5)
    indices, values = indices[:, ::-1].copy(), values[:, ::-1].astype(dtype)  # empty slots may come first
    expected = oracle.residual(Y, D, indices, values)
    rows = Y.copy()
    device.subtract_reconstruction(rows, D, indices, values)
    size = np.abs(Y) + oracle.dense(indices, np.abs(values), 9) @ np.abs(D)
    assert np.all(np.abs(rows - expected) <= 6 * np.finfo(dtype).eps * size)
