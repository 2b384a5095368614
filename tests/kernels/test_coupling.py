"""Where all atoms at once would diverge along what their samples share, that part of the step is divided by λ."""

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbksvd_dask.kernels import coupling
from dbksvd_dask.kernels.chunk import EncodedChunk
from dbksvd_dask.kernels.pursuit import Group, Pursuit

DTYPES = [np.float32, np.float64]
GROUPS = [(12,), (7, 5), (2, 3, 7)]
N_ATOMS, N_FEATURES, K = 12, 9, 6


def random_codes(seed, group_sizes, dtype, positive=False):
    """Codes of up to K atoms a sample, those of each group in its own slots; atoms 5 and 11 are not used."""
    rng = np.random.default_rng(seed)
    indices, values = np.full((60, K), -1, np.int32), np.zeros((60, K))
    for atoms, slots in oracle.groups_of(group_sizes, K):
        members = np.setdiff1d(atoms, [5, 11])
        found, values[:, slots] = oracle.random_codes(rng, 60, len(members), len(slots))
        indices[:, slots] = np.where(found >= 0, members[found], -1)
    return in_chunks(indices, (np.abs(values) if positive else values).astype(dtype))


def in_chunks(indices, values):
    """Chunks of 20 samples and of all others; their residual is nobody's business here."""
    return [
        EncodedChunk(*(array[rows] for array in (indices, values, values))) for rows in (slice(20), slice(20, None))
    ]


def codes_of(X):
    """Chunks of dense codes."""
    indices = np.where(X == 0, -1, np.arange(X.shape[1])).astype(np.int32)
    return in_chunks(indices, X)


def dense(chunks):
    return np.concatenate([oracle.dense(chunk.indices, chunk.values, N_ATOMS) for chunk in chunks])


def random_step(seed, dtype=np.float64):
    """Old and new atoms; those without a user stay."""
    rng = np.random.default_rng(seed)
    old = oracle.random_atoms(rng, N_ATOMS, N_FEATURES)
    new = oracle.unit_rows(old + 0.3 * rng.standard_normal(old.shape))
    new[[5, 11]] = old[[5, 11]]
    return old.astype(dtype), new.astype(dtype)


def moved_together(chunks, old, new, groups, n_iterations=4):
    """What is made of the step, with sums over chunks as an iteration has them."""
    sums = sum(coupling.code_sums(chunk, len(old)) for chunk in chunks)
    directions = coupling.first_directions(sums, groups)
    products = products_of(chunks, sums, directions, groups)
    for _ in range(n_iterations):
        directions = coupling.orthonormal(products, groups)
        products = products_of(chunks, sums, directions, groups)
    return coupling.move_together(old, new, sums, directions, products, groups)


def products_of(chunks, sums, directions, groups):
    return sum(coupling.coupling_products(chunk, sums, directions, groups) for chunk in chunks)


def shared(X):
    """``X N^(−1/2)``, N, u and λ = uᵀ C u, of atoms that are all used."""
    norms = np.linalg.norm(X, axis=0)
    scaled = X / norms
    u = X.sum(axis=0) / norms
    u = u / np.linalg.norm(u)
    return scaled, norms, u, u @ (scaled.T @ scaled) @ u


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("positive", [False, True], ids=["of any sign", "of one sign"])
@pytest.mark.parametrize("group_sizes", GROUPS, ids=str)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_the_step_is_that_of_the_oracle_in_each_group(group_sizes, positive, dtype, seed):
    chunks = random_codes(seed, group_sizes, dtype, positive)
    old, new = random_step(seed, dtype)
    groups = Pursuit(K, group_sizes=group_sizes).groups(N_ATOMS)
    given_new = new.copy()
    atoms = moved_together(chunks, old, new, groups)
    expected = new.astype(np.float64)
    for group in groups:
        steps = (array[group.atoms].astype(np.float64) for array in (old, new))
        expected[group.atoms] = oracle.move_together(*steps, dense(chunks)[:, group.atoms])
    assert atoms.dtype == dtype
    np.testing.assert_allclose(atoms, expected, rtol=0, atol=20 * np.finfo(dtype).eps)
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), 1, rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(new, given_new)


def test_sums_of_codes_and_their_coupling_are_those_of_the_formula():
    chunks = random_codes(3, (N_ATOMS,), np.float64)
    X, groups = dense(chunks), Pursuit(K).groups(N_ATOMS)
    sums = sum(coupling.code_sums(chunk, N_ATOMS) for chunk in chunks)
    np.testing.assert_allclose(sums, [np.sum(X**2, axis=0), np.sum(X, axis=0)], atol=1e-13)
    directions = coupling.first_directions(sums, groups)
    products = products_of(chunks, sums, directions, groups)
    used = np.any(X, axis=0)
    scaled, _, u, _ = shared(X[:, used])
    np.testing.assert_allclose(np.abs(directions[used, 0]), np.abs(u), atol=1e-13)
    np.testing.assert_allclose(directions.T @ directions, np.eye(coupling.N_DIRECTIONS), atol=1e-13)
    np.testing.assert_allclose(products[used], scaled.T @ (scaled @ directions[used]), atol=1e-12)
    np.testing.assert_array_equal(products[~used], 0)


def largest(X):
    """``X N^(−1/2)``, N^(1/2), and the eigenvector of C of the largest eigenvalue, with that."""
    norms = np.linalg.norm(X, axis=0)
    scaled = X / norms
    overshoots, vectors = np.linalg.eigh(scaled.T @ scaled)
    return scaled, norms, vectors[:, -1], overshoots[-1]


@pytest.mark.parametrize("positive", [False, True])
def test_the_signs_of_the_samples_do_not_matter(positive):
    """A sample and its negative are the same to K-SVD, but cancel in the sums of the codes."""
    chunks = random_codes(5, (N_ATOMS,), np.float64, positive)
    X, groups = dense(chunks), Pursuit(K).groups(N_ATOMS)
    signs = np.random.default_rng(0).choice([-1, 1], (len(X), 1))
    old, new = random_step(3)
    as_they_are = moved_together(codes_of(X), old, new, Pursuit(N_ATOMS).groups(N_ATOMS), n_iterations=60)
    turned = moved_together(codes_of(signs * X), old, new, Pursuit(N_ATOMS).groups(N_ATOMS), n_iterations=60)
    np.testing.assert_allclose(turned, as_they_are, atol=1e-9)
    assert len(groups) == 1


def with_neighbours(n_atoms, x):
    """A coefficient of 1 of each atom goes with x of the next one: λ is at most (1 + |x|)² / (1 + x²), at most 2."""
    return np.tile(np.eye(n_atoms) + x * np.roll(np.eye(n_atoms), 1, axis=1), (8, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x", [-0.4, 0.0, 0.4, 0.9])
def test_atoms_that_would_not_diverge_move_as_they_are_to_the_last_bit(x, dtype):
    X = with_neighbours(N_ATOMS, x)
    assert largest(X)[3] <= 2
    old, new = random_step(0, dtype)
    atoms = moved_together(codes_of(X.astype(dtype)), old, new, Pursuit(N_ATOMS).groups(N_ATOMS))
    np.testing.assert_array_equal(atoms, new)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_group_that_would_diverge_leaves_the_others_as_they_are_to_the_last_bit(dtype):
    X = np.zeros((96, N_ATOMS))
    X[:40, :5] = with_neighbours(5, 0.4)
    X[:, 5:] = np.abs(np.random.default_rng(0).standard_normal((96, 7)))
    assert shared(X[:, 5:])[3] > 4
    old, new = random_step(0, dtype)
    groups = [Group(slice(0, 5), slice(0, 5)), Group(slice(5, 12), slice(5, 12))]
    atoms = moved_together(codes_of(X.astype(dtype)), old, new, groups)
    np.testing.assert_array_equal(atoms[:5], new[:5])
    assert np.abs(atoms[5:] - new[5:]).max() > 0.05


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_codes_nothing_moves(dtype):
    old, new = random_step(1, dtype)
    nothing = in_chunks(np.full((30, K), -1, np.int32), np.zeros((30, K), dtype))
    np.testing.assert_array_equal(moved_together(nothing, old, new, Pursuit(K).groups(N_ATOMS)), new)


@pytest.mark.parametrize("sign", [1, -1])
def test_along_what_the_samples_share_the_step_ends_at_the_least_squares_solution(sign):
    """Codes held, ``‖R − X Δ‖`` is least along u for ``Δ = N^(−1/2) u c`` with ``c = (X N^(−1/2) u)⁺ R``.

    The residual is orthogonal to all atoms and small, so that they move by Δ to second order. Each atom for itself goes
    by ``Δ_j = Σ_i x_ij r_i / Σ_i x_ij²``, which is λ times as far.
    """
    rng = np.random.default_rng(2)
    X = sign * rng.uniform(1, 2, (200, N_ATOMS)) * (rng.random((200, N_ATOMS)) < 0.5)
    scaled, norms, u, overshoot = largest(X)
    assert overshoot > 4
    old = np.hstack([oracle.random_atoms(rng, N_ATOMS, 5), np.zeros((N_ATOMS, 4))])
    R = 1e-6 * (X.sum(axis=1, keepdims=True) * rng.standard_normal(4) + rng.standard_normal((200, 4)))
    step = X.T @ R / norms[:, np.newaxis] ** 2
    new = oracle.unit_rows(old + np.hstack([np.zeros((N_ATOMS, 5)), step]))
    atoms = moved_together(codes_of(X), old, new, Pursuit(N_ATOMS).groups(N_ATOMS), n_iterations=30)

    moved = (atoms - old)[:, 5:]
    best = np.linalg.lstsq((scaled @ u)[:, np.newaxis], R, rcond=None)[0][0]
    np.testing.assert_allclose(u @ (norms[:, np.newaxis] * step), overshoot * best, rtol=1e-9)
    np.testing.assert_allclose(u @ (norms[:, np.newaxis] * moved), best, rtol=1e-9)
    # Orthogonally to u each atom goes as far as by itself.
    others = np.eye(N_ATOMS) - np.outer(u, u)
    for_itself = others @ (norms[:, np.newaxis] * step)
    np.testing.assert_allclose(others @ (norms[:, np.newaxis] * moved), for_itself, rtol=0, atol=1e-15)
    # The whole step makes the residual larger than it was; the shorter one makes it smaller.
    assert np.linalg.norm(R - X @ step) > np.linalg.norm(R) > np.linalg.norm(R - X @ moved)
