"""Compiled, with threads that really run at once, the CUDA kernels compute what those of the CPU do."""

from importlib import import_module
from pkgutil import iter_modules

import numpy as np
import oracle
import pytest
from numba import config

from dbksvd_dask.kernels import cpu

N, D, M, K = 24, 19, 37, 4
TOLERANCE = 2e3 * np.finfo(np.float32).eps


@pytest.fixture(scope="module")
def compiled():
    """The kernels, compiled as they are needed: once for all tests."""
    if not config.ENABLE_CUDASIM:
        pytest.skip("there is a GPU, on which the kernels themselves are run")
    import cupy_stand_in

    patch = pytest.MonkeyPatch()
    cupy_stand_in.install(patch)
    from compiled_kernels import CompiledKernels

    from dbksvd_dask.kernels import cuda

    yield CompiledKernels([import_module(f"{cuda.__name__}.{module.name}") for module in iter_modules(cuda.__path__)])
    patch.undo()


@pytest.fixture
def backend(cupy, compiled, monkeypatch):
    """The functions of kernels.cuda, on compiled kernels."""
    from numba.cuda.simulator.kernel import FakeCUDAKernel

    from dbksvd_dask.kernels import cuda
    from dbksvd_dask.kernels.cuda import launching

    monkeypatch.setattr(FakeCUDAKernel, "__call__", lambda kernel, *arguments: compiled.run(kernel, *arguments))
    monkeypatch.setattr(launching, "THREADS", 8)
    monkeypatch.setattr(launching, "TILE", (8, 2))
    return cuda


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    atoms = oracle.random_atoms(rng, M, D, np.float32)
    rows = rng.standard_normal((N, D)).astype(np.float32)
    return rows, atoms


def both(backend, function, *arguments):
    """What a function of both backends returns and leaves in its arrays, on each of them."""
    outcomes = []
    for ops in (cpu, backend):
        given = [ops.xp.array(value) if isinstance(value, np.ndarray) else value for value in arguments]
        returned = getattr(ops, function)(*given)
        arrays = [value for value in given if hasattr(value, "shape")]
        arrays += returned if isinstance(returned, tuple) else [] if returned is None else [returned]
        outcomes.append([value.get() if hasattr(value, "get") else np.asarray(value) for value in arrays])
    return zip(*outcomes, strict=True)


def assert_same(backend, function, *arguments):
    for expected, found in both(backend, function, *arguments):
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(found, expected, atol=TOLERANCE, err_msg=function)
        else:
            np.testing.assert_array_equal(found, expected, err_msg=function)


def no_codes():
    return np.full((N, K), -1, np.int32), np.zeros((N, K), np.float32)


def codes_of(rows, atoms):
    squares = np.sum(rows.astype(np.float64) ** 2, axis=1)
    indices, values = no_codes()
    cpu.matching_pursuit(rows @ atoms.T, atoms @ atoms.T, squares, squares, 4 * K, 0.3, False, indices, values)
    return indices, values


@pytest.mark.parametrize("shared", [True, False], ids=["in shared memory", "in place"])
@pytest.mark.parametrize("nonnegative", [False, True])
def test_matching_pursuit(backend, problem, nonnegative, shared, monkeypatch):
    if not shared:
        monkeypatch.setattr("dbksvd_dask.kernels.cuda.launching.most_shared_memory", lambda: 0)
    rows, atoms = problem
    squares = np.sum(rows.astype(np.float64) ** 2, axis=1)
    given = rows @ atoms.T, atoms @ atoms.T, squares, squares, 4 * K, 0.3, nonnegative
    assert_same(backend, "matching_pursuit", *given, *no_codes())


def test_orthogonal_matching_pursuit(backend, problem):
    rows, atoms = problem
    squares = np.sum(rows.astype(np.float64) ** 2, axis=1)
    given = rows @ atoms.T, atoms @ atoms.T, squares, squares, 0.3
    assert_same(backend, "orthogonal_matching_pursuit", *given, *no_codes())


def test_residual_and_least_squares(backend, problem):
    rows, atoms = problem
    indices, values = codes_of(rows, atoms)
    assert_same(backend, "subtract_reconstruction", rows, atoms, indices, values)
    assert_same(backend, "subtract_reconstruction", rows.astype(np.float64), atoms.astype(np.float64), indices, values)
    products = np.take_along_axis(rows @ atoms.T, np.maximum(indices, 0), axis=1)
    assert_same(backend, "refit_least_squares", products, atoms @ atoms.T, indices, values)


def test_sums_over_the_samples_of_each_atom(backend, problem):
    rows, atoms = problem
    indices, values = codes_of(rows, atoms)
    samples, slots, places = cpu.support_entries(indices, np.arange(M, dtype=np.int32))
    order = np.argsort(places, kind="stable")
    samples, slots, places = samples[order], slots[order], places[order]
    weights = values[samples, slots]
    assert_same(backend, "support_products", rows, atoms, samples, places)
    assert_same(backend, "accumulate_residual", rows, samples, places, weights, atoms)
    assert_same(backend, "sum_by_atom", places, weights, M)
    vectors = np.random.default_rng(1).standard_normal((M, 8))
    assert_same(backend, "normal_products", indices, values.astype(np.float64), vectors)


@pytest.mark.parametrize("shared", [True, False], ids=["in shared memory", "in place"])
def test_project_in_turn(backend, problem, shared, monkeypatch):
    if not shared:
        monkeypatch.setattr("dbksvd_dask.kernels.cuda.launching.most_shared_memory", lambda: 0)
    rows, atoms = problem
    indices, values = codes_of(rows, atoms)
    batch = np.random.default_rng(1).permutation(M)[:15]
    position = np.full(M, -1, np.int32)
    position[batch] = np.arange(15, dtype=np.int32)
    assert_same(backend, "project_in_turn", rows, values, indices, position, atoms[batch], atoms[batch[::-1]], False)


def test_norms_moments_and_bad_rows(backend, problem):
    rows, atoms = problem
    assert_same(backend, "long_dots", atoms, atoms[::-1].copy())
    assert_same(backend, "feature_moments", rows)
    bad = rows.copy()
    bad[7, 3], bad[9, 1] = np.nan, np.inf
    for found in (rows, bad, bad.astype(np.float16), bad.astype(np.float64)):
        pieces = found[:5], found[5:]
        assert backend.first_nonfinite_row(*map(backend.xp.asarray, pieces)) == cpu.first_nonfinite_row(found)
