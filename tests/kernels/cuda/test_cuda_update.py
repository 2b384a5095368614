"""On a device the sums over the users of an atom are those of the formulas, and the same bits run after run."""

import numpy as np
import oracle
import pytest

DTYPES = [np.float32, np.float64]


def inner_batch(rng, n_atoms):
    """Some of the atoms, in any order, and the place of each atom among them."""
    batch = rng.permutation(n_atoms)[: rng.integers(1, n_atoms + 1)].tolist()
    return batch, np.array([batch.index(j) if j in batch else -1 for j in range(n_atoms)], np.int32)


def sorted_entries(rng, n_samples, n_atoms, n_entries):
    """Entries sorted by atom, of all atoms but the last."""
    atoms = np.sort(rng.integers(0, max(n_atoms - 1, 1), n_entries)).astype(np.int32)
    return rng.integers(0, n_samples, n_entries).astype(np.int32), atoms


# --- the entries of an inner batch -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_samples", "n_atoms", "k"), [(0, 5, 3), (1, 1, 1), (20, 6, 4), (30, 40, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_support_entries_are_the_uses_of_the_inner_batch_atom_by_atom(cupy, seed, n_samples, n_atoms, k):
    from dbksvd_dask.kernels import cuda

    rng = np.random.default_rng(seed)
    indices, _ = oracle.random_codes(rng, n_samples, n_atoms, k)
    batch, position = inner_batch(rng, n_atoms)
    found = cuda.support_entries(cupy.asarray(indices), cupy.asarray(position))
    expected = [
        (i, s, place) for place, j in enumerate(batch) for i in range(n_samples) for s in range(k) if indices[i, s] == j
    ]
    assert list(zip(*(column.get().tolist() for column in found), strict=True)) == expected
    assert all(column.dtype == np.int32 for column in found)


def test_no_entries_where_no_atom_is_in_the_inner_batch(cupy):
    from dbksvd_dask.kernels import cuda

    indices = cupy.asarray(np.array([[0, 2], [1, -1]], np.int32))
    found = cuda.support_entries(indices, cupy.asarray(np.full(3, -1, np.int32)))
    assert [column.shape for column in found] == [(0,)] * 3


# --- sums over them --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n_samples", "n_features", "n_atoms", "n_entries"),
    [(1, 1, 1, 1), (9, 8, 3, 33), (20, 19, 3, 6), (5, 3, 7, 0)],
)
def test_sums_over_entries_are_those_of_the_formula(cupy, kernels, dtype, n_samples, n_features, n_atoms, n_entries):
    rng = np.random.default_rng(n_entries)
    residual = rng.standard_normal((n_samples, n_features)).astype(dtype)
    vectors = rng.standard_normal((n_atoms, n_features)).astype(dtype)
    rows, atoms = sorted_entries(rng, n_samples, n_atoms, n_entries)
    weights = rng.standard_normal(n_entries).astype(dtype)
    on_device = cupy.asarray(residual), cupy.asarray(rows), cupy.asarray(atoms), cupy.asarray(weights)
    eps = np.finfo(dtype).eps
    wide_residual, wide_vectors = residual.astype(np.float64), vectors.astype(np.float64)

    # ⟨r_i, v_j⟩ for each entry, in whatever order they are
    order = rng.permutation(n_entries)
    products = kernels.support_products(
        on_device[0], cupy.asarray(vectors), cupy.asarray(rows[order]), cupy.asarray(atoms[order])
    )
    terms = (wide_residual[rows] * wide_vectors[atoms])[order]
    assert products.dtype == dtype
    errors = np.abs(products.get() - np.sum(terms, axis=1))
    assert np.all(errors <= (n_features + 2) * eps * np.sum(np.abs(terms), axis=1))

    # sums_j += Σ_i weight_ij r_i
    sums, size, expected = cupy.asarray(vectors.copy()), np.abs(wide_vectors), wide_vectors.copy()
    for entry, (i, j) in enumerate(zip(rows, atoms, strict=True)):
        expected[j] += weights[entry] * wide_residual[i]
        size[j] += np.abs(weights[entry] * wide_residual[i])
    kernels.accumulate_residual(*on_device, sums)
    assert np.all(np.abs(sums.get() - expected) <= (n_entries + 2) * eps * size)
    unused = np.setdiff1d(np.arange(n_atoms), atoms)
    np.testing.assert_array_equal(sums.get()[unused], vectors[unused])

    # Σ_i weight_ij
    totals = kernels.sum_by_atom(on_device[2], on_device[3], n_atoms)
    assert totals.dtype == np.float64
    np.testing.assert_allclose(totals.get(), np.bincount(atoms, weights, n_atoms), rtol=0, atol=1e-14 * n_entries)


def test_sums_of_codes_in_float32_are_in_float64(cupy):
    from dbksvd_dask.kernels import cuda

    weights = np.array([2.0**24, 1, 1, -(2.0**24)], np.float32)
    totals = cuda.sum_by_atom(cupy.zeros(4, np.int32), cupy.asarray(weights), 1)
    assert totals.get().tolist() == [2.0]


def test_an_atom_that_every_sample_uses_takes_the_sum_of_all_rows(cupy, kernels):
    residual = np.arange(101 * 3, dtype=np.float64).reshape(101, 3)
    everywhere = cupy.zeros(101, np.int32)
    sums = cupy.zeros((2, 3))
    rows = cupy.asarray(np.arange(101, dtype=np.int32))
    kernels.accumulate_residual(cupy.asarray(residual), rows, everywhere + np.int32(1), cupy.ones(101), sums)
    np.testing.assert_array_equal(sums.get(), [np.zeros(3), residual.sum(axis=0)])  # whole numbers: exact


@pytest.mark.parametrize(("n_samples", "n_atoms", "k", "n_vectors"), [(12, 7, 3, 2), (0, 3, 2, 1)])
def test_normal_products_are_those_of_the_codes(cupy, n_samples, n_atoms, k, n_vectors):
    from dbksvd_dask.kernels import cuda

    rng = np.random.default_rng(0)
    indices, values = oracle.random_codes(rng, n_samples, n_atoms, k)
    vectors = rng.standard_normal((n_atoms, n_vectors))
    found = cuda.normal_products(cupy.asarray(indices), cupy.asarray(values), cupy.asarray(vectors))
    X = oracle.dense(indices, values, n_atoms)
    np.testing.assert_allclose(found.get(), X.T @ X @ vectors, atol=1e-12)


def test_rows_of_many_features(cupy):
    """More than the threads of a block take at a time."""
    from dbksvd_dask.kernels import cuda

    rng = np.random.default_rng(0)
    residual, vectors = rng.standard_normal((40, 330)), rng.standard_normal((2, 330))
    rows, atoms = np.arange(40, dtype=np.int32), np.ones(40, np.int32)
    there = cupy.asarray(residual), cupy.asarray(rows), cupy.asarray(atoms)
    few = slice(0, 3)
    products = cuda.support_products(there[0], cupy.asarray(vectors), there[1][few], there[2][few])
    np.testing.assert_allclose(products.get(), residual[few] @ vectors[1], atol=1e-12)
    sums = cupy.asarray(vectors[:, :130].copy())
    narrow = cupy.asarray(residual[:, :130].copy())
    cuda.accumulate_residual(narrow, *there[1:], cupy.asarray(rows.astype(np.float64)), sums)
    expected = vectors[:, :130] + np.stack([np.zeros(130), rows @ residual[:, :130]])
    np.testing.assert_allclose(sums.get(), expected, atol=1e-11)


# --- Gauss-Seidel ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["shared memory", "in place"])
def where_rows_wait(request, cupy, monkeypatch):
    """In shared memory, or where rows have more features than that holds."""
    from dbksvd_dask.kernels.cuda import launching

    if request.param == "in place":
        monkeypatch.setattr(launching, "most_shared_memory", lambda: 0)


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_samples", "n_features", "n_atoms", "k"), [(4, 9, 8, 4), (3, 1, 3, 2)])
def test_project_in_turn_is_gauss_seidel_over_the_slots(
    cupy, kernels, where_rows_wait, dtype, nonnegative, n_samples, n_features, n_atoms, k
):
    rng = np.random.default_rng(n_features)
    old, new = (oracle.random_atoms(rng, n_atoms, n_features, dtype) for _ in range(2))
    given = rng.standard_normal((n_samples, n_features)).astype(dtype)
    indices, coefficients = oracle.random_codes(rng, n_samples, n_atoms, k)
    indices[0] = -1
    coefficients = (coefficients * (indices >= 0)).astype(dtype)
    batch, position = inner_batch(rng, n_atoms)
    wide = given.astype(np.float64), coefficients.astype(np.float64)
    expected = oracle.gauss_seidel(*wide, indices, set(batch), old, new, nonnegative)
    residual, values = cupy.asarray(given.copy()), cupy.asarray(coefficients.copy())
    codes = cupy.asarray(indices), cupy.asarray(position)
    kernels.project_in_turn(residual, values, *codes, cupy.asarray(old[batch]), cupy.asarray(new[batch]), nonnegative)
    tolerance = 20 * np.finfo(dtype).eps * np.sqrt(n_features) * (k + 1)
    np.testing.assert_allclose(residual.get(), expected[0], rtol=0, atol=tolerance)
    np.testing.assert_allclose(values.get(), expected[1], rtol=0, atol=tolerance)
    outside = ~np.isin(indices, batch)
    np.testing.assert_array_equal(values.get()[outside], coefficients[outside])
    np.testing.assert_array_equal(residual.get()[outside.all(axis=1)], given[outside.all(axis=1)])


# --- run after run ---------------------------------------------------------------------------------------------------


def test_the_same_bits_in_every_run(cupy):
    from dbksvd_dask.kernels import cuda

    rng = np.random.default_rng(0)
    residual = rng.standard_normal((8, 6)).astype(np.float32)
    atoms = cupy.asarray(oracle.random_atoms(rng, 5, 6, np.float32))
    indices, coefficients = (cupy.asarray(a) for a in oracle.random_codes(rng, 8, 5, 3))
    coefficients = coefficients.astype(np.float32)

    def run():
        rows_left, values = cupy.asarray(residual.copy()), coefficients.copy()
        rows, slots, users = cuda.support_entries(indices, cupy.arange(5, dtype=np.int32))
        products = cuda.support_products(rows_left, atoms, rows, users)
        sums = cupy.zeros((5, 6), np.float32)
        cuda.accumulate_residual(rows_left, rows, users, products, sums)
        totals = cuda.sum_by_atom(users, values[rows, slots], 5)
        cuda.project_in_turn(
            rows_left, values, indices, cupy.arange(5, dtype=np.int32), atoms, atoms[::-1].copy(), False
        )
        return [array.get().tobytes() for array in (rows, slots, users, products, sums, totals, rows_left, values)]

    assert run() == run()


@pytest.mark.parametrize("lanes", [1, 3, 4])
def test_the_order_of_a_sum_is_that_of_the_lanes(cupy, monkeypatch, lanes):
    """Each lane adds up every so many entries of an atom, and the lanes are added up from the first on: to the bit."""
    from dbksvd_dask.kernels import cuda
    from dbksvd_dask.kernels.cuda import launching

    monkeypatch.setattr(launching, "TILE", (1, lanes))
    residual = np.random.default_rng(0).standard_normal((50, 1)).astype(np.float32)
    sums = cupy.zeros((1, 1), np.float32)
    rows, atoms = cupy.asarray(np.arange(50, dtype=np.int32)), cupy.zeros(50, np.int32)
    cuda.accumulate_residual(cupy.asarray(residual), rows, atoms, cupy.ones(50, np.float32), sums)
    total = np.float32(0)
    for lane in range(lanes):
        share = np.float32(0)
        for r in residual[lane::lanes, 0]:
            share += r
        total += share
    assert sums.get()[0, 0] == total
