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
    entries = cpu.support_entries(indices, position)
    cpu.project_in_turn(residual, values, *entries, old[batch], new[batch], nonnegative)
    tolerance = 20 * np.finfo(dtype).eps * np.sqrt(n_features) * (k + 1)
    np.testing.assert_allclose(residual, expected[0], rtol=0, atol=tolerance)
    np.testing.assert_allclose(values, expected[1], rtol=0, atol=tolerance)


# --- new atoms -------------------------------------------------------------------------------------------------------


def new_atoms(errors, old, n_passes, solver="lanczos"):
    """The update of all atoms at once from their ``E_j``, pass by pass as the library does it."""
    passes = [E.astype(np.float64).T @ E.astype(np.float64) for E in errors]

    def through(vectors):
        return np.stack([A @ v for A, v in zip(passes, vectors.astype(np.float64), strict=True)]).astype(old.dtype)

    basis, products = [old], [through(old)]
    for _ in range(n_passes - 1):
        if solver == "lanczos":
            basis.append(cpu.next_direction(tuple(basis), tuple(products), 0.0))
            products.append(through(basis[-1]))
        else:
            basis = [cpu.ritz_vectors(tuple(basis), tuple(products), old)]
            products = [through(basis[0])]
    return cpu.ritz_vectors(tuple(basis), tuple(products), old)


def decaying_errors(rng, n_atoms, n_users, n_features):
    """``E_j`` with singular values that halve from one to the next, in any directions."""
    errors = rng.standard_normal((n_atoms, n_users, n_features))
    for E in errors:
        U, _, V = np.linalg.svd(E, full_matrices=False)
        E[:] = (U * rng.uniform(0.1, 10) * 2.0 ** -np.arange(U.shape[1])) @ V
    return errors


def warm_starts(rng, errors, dtype):
    """Atoms on either side of the first singular vectors, about 17° away."""
    first = np.stack([np.linalg.svd(E)[2][0] for E in errors]) * rng.choice([-1, 1], (len(errors), 1))
    return oracle.unit_rows(first + 0.3 * oracle.random_atoms(rng, *first.shape)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("solver", "by_hand"), [("lanczos", oracle.krylov_atom), ("power", oracle.power_atom)], ids=["lanczos", "power"]
)
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    n_atoms=st.integers(1, 10),
    n_users=st.integers(1, 12),
    n_features=st.integers(2, 20) | st.just(129),
    n_passes=st.integers(1, 4),
)
def test_new_atoms_are_those_of_the_formula(solver, by_hand, dtype, seed, n_atoms, n_users, n_features, n_passes):
    rng = np.random.default_rng(seed)
    errors = decaying_errors(rng, n_atoms, n_users, n_features)
    old = warm_starts(rng, errors, dtype)
    new = new_atoms(errors, old, n_passes, solver)
    expected = [by_hand(E, before, n_passes) for E, before in zip(errors, old.astype(np.float64), strict=True)]
    assert new.dtype == dtype
    np.testing.assert_allclose(new, expected, rtol=0, atol=50 * np.finfo(dtype).eps)
    np.testing.assert_allclose(np.linalg.norm(new, axis=1), 1, rtol=2 * np.finfo(dtype).eps)
    assert np.all(np.sum(new * old, axis=1) > 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_users", [1, 2, 3, 50])
def test_enough_passes_end_at_the_first_singular_vector(dtype, n_users):
    rng = np.random.default_rng(n_users)
    errors = decaying_errors(rng, 10, n_users, 8)
    old = oracle.random_atoms(rng, 10, 8, dtype)
    new = new_atoms(errors, old, n_passes=10)  # more than the Krylov space has dimensions
    expected = [oracle.singular_atom(E, before) for E, before in zip(errors, old, strict=True)]
    np.testing.assert_allclose(new, expected, atol=50 * np.finfo(dtype).eps)


@pytest.mark.parametrize("n_passes", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_atom_stays_where_its_error_has_no_other_direction(dtype, n_passes):
    old = oracle.random_atoms(np.random.default_rng(0), 3, 9, dtype)
    x = np.array([1.5, -2.0, 0.25])
    errors = [np.outer(x, old[0]), np.outer(x, old[1]), np.zeros((3, 9))]  # E_j = x_j d_jᵀ with R = 0, and E_j = 0
    new = new_atoms(errors, old, n_passes)
    np.testing.assert_allclose(new, old, atol=4 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(new[2], old[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_atom_stays_where_its_error_is_orthogonal_to_it(dtype):
    old = np.eye(4, dtype=dtype)[:1]
    errors = [np.array([[0, 2, 0, 0], [0, 0, 1, 0]])]
    np.testing.assert_array_equal(new_atoms(errors, old, n_passes=3), old)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [1, -1])
def test_the_new_atom_is_on_the_side_of_the_old_one(dtype, side):
    E = np.array([[3, 1, 0], [-6, -2, 0], [0, 0, 0.1]])
    old = side * oracle.unit_rows(np.array([[1, 2, 2]])).astype(dtype)
    new = new_atoms([E], old, n_passes=3)
    np.testing.assert_allclose(new, side * oracle.unit_rows(np.array([[3, 1, 0]])), atol=2e-3)
    assert new[0] @ old[0] > 0


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), n_features=st.integers(1, 12), size=st.integers(1, 5))
def test_the_next_direction_completes_an_orthonormal_basis_or_is_zero(dtype, seed, n_features, size):
    rng = np.random.default_rng(seed)
    size = min(size, n_features)
    Q = np.linalg.qr(rng.standard_normal((n_features, size)))[0].T.astype(dtype)
    outside, inside = rng.standard_normal(n_features), rng.standard_normal(size) @ Q
    basis = tuple(np.stack([q, q]) for q in Q)
    product = np.stack([outside, inside]).astype(dtype)
    direction = cpu.next_direction(basis, (product,) * size, 0.0)  # without tolerance only the last product counts
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(direction @ Q.T.astype(np.float64), 0, atol=20 * eps)
    if size < n_features:
        assert direction[0] @ outside > 0
        np.testing.assert_allclose(np.linalg.norm(direction[0]), 1, rtol=2 * eps)
    else:
        np.testing.assert_array_equal(direction[0], 0)
    np.testing.assert_array_equal(direction[1], 0)
