"""The update kernels are the rank-1 updates of the oracle, without ever forming ``E_j``."""

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbksvd_dask.kernels import cpu

DTYPES = [np.float32, np.float64]
WIDTHS = st.integers(1, 20) | st.sampled_from([127, 128, 129, 256, 257])
"""Numbers of features, some around the tiles of 128."""


# --- the entries of an inner batch, and sums over them ---------------------------------------------------------------


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), n_samples=st.integers(0, 30), n_atoms=st.integers(1, 20), k=st.integers(1, 6))
def test_support_entries_are_the_uses_of_the_inner_batch_row_by_row(seed, n_samples, n_atoms, k):
    rng = np.random.default_rng(seed)
    indices, _ = oracle.random_codes(rng, n_samples, n_atoms, k)
    batch = rng.permutation(n_atoms)[: rng.integers(0, n_atoms + 1)].tolist()
    position = np.array([batch.index(j) if j in batch else -1 for j in range(n_atoms)], np.int32)
    found = cpu.support_entries(indices, position)
    expected = [(i, s, batch.index(j)) for i, row in enumerate(indices) for s, j in enumerate(row) if j in batch]
    assert list(zip(*(column.tolist() for column in found), strict=True)) == expected
    assert all(column.dtype == np.int32 for column in found)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    n_samples=st.integers(1, 30),
    n_features=WIDTHS,
    n_atoms=st.integers(1, 20),
    n_entries=st.integers(0, 100),
)
def test_sums_over_entries_are_those_of_the_formula(dtype, seed, n_samples, n_features, n_atoms, n_entries):
    rng = np.random.default_rng(seed)
    residual = rng.standard_normal((n_samples, n_features)).astype(dtype)
    vectors = rng.standard_normal((n_atoms, n_features)).astype(dtype)
    rows = rng.integers(0, n_samples, n_entries).astype(np.int32)
    atoms = rng.integers(0, n_atoms, n_entries).astype(np.int32)
    weights = rng.standard_normal(n_entries).astype(dtype)
    eps = np.finfo(dtype).eps
    wide_residual, wide_vectors = residual.astype(np.float64), vectors.astype(np.float64)

    # ⟨r_i, v_j⟩ for each entry
    products = cpu.support_products(residual, vectors, rows, atoms)
    assert products.dtype == dtype
    size = np.sum(np.abs(wide_residual[rows] * wide_vectors[atoms]), axis=1)
    errors = np.abs(products - np.sum(wide_residual[rows] * wide_vectors[atoms], axis=1))
    assert np.all(errors <= (n_features + 2) * eps * size)

    # sums_j += Σ_i weight_ij r_i
    sums, size = vectors.copy(), np.abs(wide_vectors)
    expected = wide_vectors.copy()
    for entry, (i, j) in enumerate(zip(rows, atoms, strict=True)):
        expected[j] += weights[entry] * wide_residual[i]
        size[j] += np.abs(weights[entry] * wide_residual[i])
    cpu.accumulate_residual(residual, rows, atoms, weights, sums)
    assert np.all(np.abs(sums - expected) <= (n_entries + 2) * eps * size)

    # Σ_i weight_ij
    expected = [weights[atoms == j].astype(np.float64).sum() for j in range(n_atoms)]
    found = cpu.sum_by_atom(atoms, weights, n_atoms)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    n_samples=st.integers(1, 30),
    n_atoms=st.integers(1, 20),
    k=st.integers(1, 6),
    n_vectors=st.integers(1, 9),
)
def test_normal_products_are_those_of_the_dense_codes(dtype, seed, n_samples, n_atoms, k, n_vectors):
    rng = np.random.default_rng(seed)
    indices, values = oracle.random_codes(rng, n_samples, n_atoms, k)
    values, V = values.astype(dtype), rng.standard_normal((n_atoms, n_vectors))
    X = oracle.dense(indices, values, n_atoms)
    products = cpu.normal_products(indices, values, V)
    assert products.dtype == np.float64
    np.testing.assert_allclose(products, X.T @ (X @ V), rtol=0, atol=1e-12 * (1 + np.abs(X).sum()))


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    n_samples=st.integers(1, 30),
    n_features=WIDTHS,
    n_atoms=st.integers(1, 20),
    k=st.integers(1, 6),
)
def test_project_in_turn_is_gauss_seidel_over_the_slots(dtype, nonnegative, seed, n_samples, n_features, n_atoms, k):
    rng = np.random.default_rng(seed)
    old, new = (oracle.random_atoms(rng, n_atoms, n_features, dtype) for _ in range(2))
    residual = rng.standard_normal((n_samples, n_features)).astype(dtype)
    indices, values = oracle.random_codes(rng, n_samples, n_atoms, k)
    values = values.astype(dtype)
    batch = rng.permutation(n_atoms)[: rng.integers(1, n_atoms + 1)]
    position = np.full(n_atoms, -1, np.int32)
    position[batch] = np.arange(len(batch))
    expected = oracle.gauss_seidel(
        residual.astype(np.float64), values.astype(np.float64), indices, set(batch.tolist()), old, new, nonnegative
    )
    cpu.project_in_turn(residual, values, indices, position, old[batch], new[batch], nonnegative)
    tolerance = 20 * np.finfo(dtype).eps * np.sqrt(n_features) * (k + 1)
    np.testing.assert_allclose(residual, expected[0], rtol=0, atol=tolerance)
    np.testing.assert_allclose(values, expected[1], rtol=0, atol=tolerance)
