"""New atoms are those of the oracle, from passes over ``E_j`` that stop where the tolerance is met."""

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import svds

from dbksvd_dask.kernels.krylov import next_direction, ritz_vectors

DTYPES = [np.float32, np.float64]


def new_atoms(errors, old, n_passes, solver="lanczos", tol=0.0):
    """The update of all atoms at once from their ``E_j``, pass by pass as the library does it."""
    if solver == "lanczos":
        return ritz_vectors(*krylov(errors, old, n_passes, tol), old)
    atoms = old
    for _ in range(n_passes):
        atoms = ritz_vectors((atoms,), (through(errors, atoms),), old)
    return atoms


def through(errors, vectors):
    """``EᵀE v`` for each atom, in the precision of the vectors."""
    wide = [E.astype(np.float64) for E in errors]
    return np.stack([E.T @ (E @ v) for E, v in zip(wide, vectors.astype(np.float64), strict=True)]).astype(
        vectors.dtype
    )


def krylov(errors, old, n_passes, tol):
    """The basis of each atom's Krylov space after so many passes, and what ``EᵀE`` makes of it."""
    basis, products = [old], [through(errors, old)]
    for _ in range(n_passes - 1):
        basis.append(next_direction(tuple(basis), tuple(products), tol))
        products.append(through(errors, basis[-1]))
    return tuple(basis), tuple(products)


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
    direction = next_direction(basis, (product,) * size, 0.0)  # without tolerance only the last product counts
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(direction @ Q.T.astype(np.float64), 0, atol=20 * eps)
    if size < n_features:
        assert direction[0] @ outside > 0
        np.testing.assert_allclose(np.linalg.norm(direction[0]), 1, rtol=2 * eps)
    else:
        np.testing.assert_array_equal(direction[0], 0)
    np.testing.assert_array_equal(direction[1], 0)


# --- until the tolerance is met --------------------------------------------------------------------------------------


def passes_taken(basis):
    """Of each atom: directions that are not zero."""
    return np.count_nonzero([q.any(axis=1) for q in basis], axis=0)


ENOUGH_PASSES = 10
"""More than the Krylov spaces below have dimensions."""


def errors_with_a_gap(rng):
    """``E_j`` of 9 features whose first singular value is 1.2 to 3 times the second; the others decay slowly."""
    errors = rng.standard_normal((12, 30, 9))
    for E in errors:
        U, _, V = np.linalg.svd(E, full_matrices=False)
        sizes = 0.9 ** np.arange(9)
        sizes[0] *= rng.uniform(1.08, 2.7)
        E[:] = 10 ** rng.uniform(-3, 3) * (U * sizes) @ V
    return errors


def angle(a, b):
    """Between lines, and exact where it is small: (…,) radians."""
    cosine = np.sum(a * b, axis=-1, keepdims=True)
    return np.arctan2(np.linalg.norm(a - cosine * b, axis=-1), np.abs(cosine[..., 0]))


@pytest.mark.parametrize("tol", [0.1, 0.01, 1e-4])
def test_an_atom_is_done_where_its_ritz_vector_is_as_good_as_the_tolerance(tol):
    """The next direction is zero just where ``‖EᵀE v − θ v‖ ≤ tol θ``, by NumPy from EᵀE itself."""
    rng = np.random.default_rng(0)
    errors = errors_with_a_gap(rng)
    old = warm_starts(rng, errors, np.float64)
    n_done = []
    for n_passes in range(1, 10):
        basis, products = krylov(errors, old, n_passes, tol=0.0)
        direction = next_direction(basis, products, tol)
        done = ~direction.any(axis=1)
        for j, E in enumerate(errors):
            A, Q = E.T @ E, np.stack([q[j] for q in basis])
            theta, vectors = np.linalg.eigh(Q @ A @ Q.T)
            v = vectors[:, -1] @ Q
            assert done[j] == (np.linalg.norm(A @ v - theta[-1] * v) <= tol * theta[-1])
        np.testing.assert_array_equal(direction[~done], next_direction(basis, products, 0.0)[~done])
        n_done.append(np.count_nonzero(done))
    assert n_done[0] < len(errors)
    assert n_done[-1] > n_done[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tol", [0.3, 0.01, 1e-3])
@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 2**32),
    n_atoms=st.integers(1, 10),
    n_users=st.integers(1, 12),
    n_features=st.integers(2, 20),
    n_passes=st.integers(1, 6),
)
def test_atoms_with_a_tolerance_are_those_of_the_formula(tol, dtype, seed, n_atoms, n_users, n_features, n_passes):
    rng = np.random.default_rng(seed)
    errors = decaying_errors(rng, n_atoms, n_users, n_features)
    old = warm_starts(rng, errors, dtype)
    wide = old.astype(np.float64)
    # By rounding alone an atom may be done one pass earlier or later: either is right.
    either = [
        [oracle.krylov_atom(E, d, n_passes, limit) for E, d in zip(errors, wide, strict=True)]
        for limit in (tol * (1 - 1e-3), tol * (1 + 1e-3))
    ]
    new = new_atoms(errors, old, n_passes, tol=tol)
    deviations = np.abs(new - either).max(axis=2).min(axis=0)
    assert np.all(deviations <= 50 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-8])
def test_the_tolerance_bounds_the_angle_to_the_first_singular_vector(tol, dtype):
    """sin(angle) ≤ ‖EᵀE v − θ v‖ / gap (Davis, Kahan), and what rounding leaves of EᵀE."""
    rng = np.random.default_rng(1)
    errors = errors_with_a_gap(rng)
    old = warm_starts(rng, errors, dtype)
    new = new_atoms(errors, old, n_passes=ENOUGH_PASSES, tol=tol)
    sizes = np.stack([np.linalg.svd(E, compute_uv=False) for E in errors]) ** 2
    lapack = np.stack([np.linalg.svd(E)[2][0] for E in errors])
    arpack = np.stack([svds(E, k=1, random_state=0)[2][0] for E in errors])
    gap = 1 - sizes[:, 1] / sizes[:, 0]
    limits = (tol + 20 * np.finfo(dtype).eps) / gap
    assert np.all(angle(new, lapack) <= limits)
    assert np.all(angle(new, arpack) <= limits + 1e-12)
    assert np.all(np.sum(new * old, axis=1) > 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_larger_tolerance_takes_fewer_passes(dtype):
    rng = np.random.default_rng(2)
    errors = errors_with_a_gap(rng)
    old = warm_starts(rng, errors, dtype)
    taken = [passes_taken(krylov(errors, old, ENOUGH_PASSES, tol)[0]) for tol in (10.0, 0.1, 0.01, 1e-3, 1e-5)]
    np.testing.assert_array_equal(taken[0], 1)
    assert np.all(np.diff(taken, axis=0) >= 0)
    assert np.all(np.diff(np.sum(taken, axis=1)) > 0)
    assert np.all(taken[-1] <= 9)  # more dimensions the space does not have


def test_an_atom_that_is_done_stays_done():
    rng = np.random.default_rng(3)
    errors = errors_with_a_gap(rng)
    old = warm_starts(rng, errors, np.float64)
    used = np.array([q.any(axis=1) for q in krylov(errors, old, ENOUGH_PASSES, tol=0.01)[0]])
    assert np.all(used[:-1] >= used[1:])
    assert any(0 < np.count_nonzero(direction) < len(errors) for direction in used)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tol", [0.0, 1e-6, 0.1])
@pytest.mark.parametrize("n_passes", [1, 2, ENOUGH_PASSES])
def test_errors_of_rank_one_are_exact_whatever_the_passes(n_passes, tol, dtype):
    """One user, identical users, users that are multiples of each other; and none of it at all."""
    rng = np.random.default_rng(4)
    row = rng.standard_normal(9)
    errors = [np.outer(x, row) for x in ([2.0], [1.0] * 7, [3.0, -1e-3, 0.0, 5.0])]
    old = oracle.unit_rows(row + rng.standard_normal((3, 9))).astype(dtype)
    expected = [oracle.towards(row, d) for d in old]
    new = new_atoms(errors, old, n_passes, tol=tol)
    np.testing.assert_allclose(new, expected, rtol=0, atol=10 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(new_atoms([np.zeros((4, 9))], old[:1], n_passes, tol=tol), old[:1])
