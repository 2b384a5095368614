"""What a task does with a chunk is what the oracle does with its rows, whatever the sizes and the blocks."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbksvd_dask.batches import ROWS_PER_TASK
from dbksvd_dask.kernels import chunk as kernels
from dbksvd_dask.kernels import cpu, krylov, passes
from dbksvd_dask.kernels.chunk import EncodedChunk
from dbksvd_dask.kernels.pursuit import Group, Pursuit

DTYPES = [np.float32, np.float64]
PURSUITS = [
    Pursuit(3),
    Pursuit(3, nonnegative=True),
    Pursuit(3, rtol=0.6),
    Pursuit(3, refit="lstsq"),
    Pursuit(3, "omp"),
    Pursuit(3, "omp", rtol=0.6),
]


def problem(seed, n_samples, n_features, n_atoms, dtype):
    """Rows, unit atoms, their Gram matrix and a mean."""
    rng = np.random.default_rng(seed)
    D = oracle.random_atoms(rng, n_atoms, n_features, dtype)
    mean = rng.standard_normal(n_features).astype(dtype)
    Y = (mean + rng.standard_normal((n_samples, n_features))).astype(dtype)
    return Y, D, oracle.gram(D).astype(dtype), mean


def parts(chunk):
    """Indices, values and residual."""
    return chunk.indices, chunk.values, chunk.residual


def expected_codes(Y, D, pursuit, dtype):
    eps = np.finfo(dtype).eps
    if pursuit.encoder == "omp":
        return oracle.orthogonal_matching_pursuit(Y, D, pursuit.n_nonzero_coefs, pursuit.rtol, eps)
    codes = oracle.matching_pursuit(Y, D, pursuit.n_nonzero_coefs, None, pursuit.rtol, pursuit.nonnegative, eps)
    if pursuit.refit == "lstsq":
        return codes._replace(values=oracle.refit(Y, D, codes.indices, codes.values))
    return codes


def random_chunk(seed, n_samples, n_features, n_atoms, k, dtype):
    """A chunk with any codes and any residual, and an inner batch."""
    rng = np.random.default_rng(seed)
    indices, values = oracle.random_codes(rng, n_samples, n_atoms, k)
    residual = rng.standard_normal((n_samples, n_features))
    batch = rng.permutation(n_atoms)[: rng.integers(1, n_atoms + 1)]
    return EncodedChunk(indices, values.astype(dtype), residual.astype(dtype)), batch, places(batch, n_atoms)


def places(batch, n_atoms):
    members = np.full(n_atoms, -1, np.int32)
    members[batch] = np.arange(len(batch))
    return members


def passed_by_hand(chunk, D, batch, vectors):
    """``E_jᵀ (E_j v_j)`` for each atom, and ``‖E_j‖²`` to measure errors by."""
    residual, D, vectors = (array.astype(np.float64) for array in (chunk.residual, D, vectors))
    errors = [oracle.error_matrix(residual, D, chunk.indices, chunk.values, j) for j in batch]
    products = np.stack([E.T @ (E @ v) for E, v in zip(errors, vectors, strict=True)])
    return products, np.array([[np.sum(E**2)] for E in errors])


# --- encoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pursuit", PURSUITS, ids=str)
@pytest.mark.parametrize(
    ("n_samples", "n_features", "n_atoms"), [(1, 40, 50), (60, 127, 255), (60, 128, 256), (60, 129, 257), (60, 30, 600)]
)
def test_encoding_is_that_of_the_oracle(n_samples, n_features, n_atoms, pursuit, dtype):
    Y, D, gram, mean = problem(1, n_samples, n_features, n_atoms, dtype)
    given_Y = Y.copy()
    encoding = kernels.encode_with_residual([Y], D, [gram], mean, pursuit)
    indices, values, residual = parts(encoding.chunk)
    centred = (Y - mean).astype(np.float64)
    norms = np.linalg.norm(centred, axis=1)
    rounding = oracle.pursuit_rounding(dtype, n_features, 12)
    oracle.assert_codes_agree(indices, values, expected_codes(centred, D, pursuit, dtype), norms, rounding)

    left = oracle.residual(centred, D, indices, values)
    assert np.all(np.abs(residual - left) <= rounding * norms[:, np.newaxis])
    residual_products = np.take_along_axis(left @ D.T.astype(np.float64), np.maximum(indices, 0), axis=1)
    errors = np.abs(encoding.residual_products - residual_products) * (indices >= 0)
    assert np.all(errors <= rounding * norms[:, np.newaxis])
    np.testing.assert_allclose(encoding.squared_norms, norms**2, rtol=1e-13)
    np.testing.assert_allclose(encoding.moments[0], centred.sum(axis=0), rtol=1e-13, atol=1e-10)
    np.testing.assert_allclose(encoding.moments[1], np.sum(centred**2, axis=0), rtol=1e-13)

    np.testing.assert_array_equal(Y, given_Y)
    for found, expected in zip(kernels.encode([Y], D, [gram], mean, pursuit), parts(encoding.chunk), strict=False):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("n_samples", [1023, 1024, 1025, 2049])
@pytest.mark.parametrize("encoder", ["mp", "omp"])
def test_every_block_of_rows_is_encoded(n_samples, encoder):
    Y, D, gram, _ = problem(2, n_samples, 8, 20, np.float64)
    pursuit = Pursuit(2, encoder)
    indices, values = kernels.encode([Y[:300], Y[300:]], D, [gram], None, pursuit)
    expected = expected_codes(Y, D, pursuit, np.float64)
    norms, rounding = np.linalg.norm(Y, axis=1), oracle.pursuit_rounding(np.float64, 8, 8)
    oracle.assert_codes_agree(indices, values, expected, norms, rounding)


def test_a_pursuit_that_goes_back_and_forth_ends_after_four_steps_for_each_nonzero():
    D = oracle.unit_rows(np.array([[1.0, 0.1], [1.0, -0.1]]))  # what one atom takes out, the other has to give back
    Y = np.random.default_rng(0).standard_normal((20, 2))
    indices, values = kernels.encode([Y], D, [oracle.gram(D)], None, Pursuit(2))
    expected = oracle.matching_pursuit(Y, D, k=2, max_steps=8)
    assert np.all(np.linalg.norm(oracle.residual(Y, D, *expected[:2]), axis=1) > 1e-6)  # not there yet
    norms, rounding = np.linalg.norm(Y, axis=1), oracle.pursuit_rounding(np.float64, 2, 8)
    oracle.assert_codes_agree(indices, values, expected, norms, rounding)


# --- encoding group by group -----------------------------------------------------------------------------------------

GROUPS = (4, 11, 3, 28)
GROUP_WISE = [
    Pursuit(7, group_sizes=GROUPS),
    Pursuit(5, group_sizes=(15, 31), nonnegative=True),
    Pursuit(7, group_sizes=GROUPS, rtol=0.6),
    Pursuit(7, group_sizes=GROUPS, refit="lstsq"),
    Pursuit(7, "omp", group_sizes=GROUPS),
    Pursuit(7, "omp", group_sizes=GROUPS, rtol=0.6),
    Pursuit(3, group_sizes=(46,)),
]


def grams(D, pursuit):
    """``D Dᵀ`` of each group."""
    return [oracle.gram(D[group.atoms]).astype(D.dtype) for group in pursuit.groups(len(D))]


def expected_group_wise(Y, D, pursuit, dtype):
    """Codes, with the slots of each group side by side."""
    return oracle.group_wise_pursuit(
        Y,
        D,
        pursuit.n_nonzero_coefs,
        pursuit.group_sizes,
        pursuit.encoder,
        nonnegative=pursuit.nonnegative,
        rtol=pursuit.rtol,
        lstsq=pursuit.refit == "lstsq",
        rounding=np.finfo(dtype).eps,
    )


def empty_last(codes):
    """The same codes, the used slots of each sample first and in the order that they have."""
    order = [sorted(range(len(row)), key=lambda slot, row=row: row[slot] < 0) for row in codes.indices]
    return codes._replace(
        **{name: np.take_along_axis(getattr(codes, name), np.array(order), axis=1) for name in ("indices", "values")}
    )


@pytest.mark.parametrize(
    ("k", "group_sizes", "budgets"),
    [(7, (4, 11, 3, 28), (2, 2, 2, 1)), (4, (4, 11, 3, 28), (1, 1, 1, 1)), (8, (9, 9, 9), (3, 3, 2)), (5, (), (5,))],
)
def test_groups_have_equal_shares_of_k_and_the_first_ones_what_is_left_over(k, group_sizes, budgets):
    assert Pursuit(k, group_sizes=group_sizes).budgets == budgets


@given(k=st.integers(1, 200), group_sizes=st.lists(st.integers(1, 50), min_size=1, max_size=12))
def test_the_groups_are_all_atoms_and_all_slots_one_after_the_other(k, group_sizes):
    pursuit = Pursuit(k, group_sizes=tuple(group_sizes))
    assert sum(pursuit.budgets) == k
    assert max(pursuit.budgets) - min(pursuit.budgets) <= 1
    expected = oracle.groups_of(group_sizes, k)
    for group, (atoms, slots) in zip(pursuit.groups(sum(group_sizes)), expected, strict=True):
        np.testing.assert_array_equal(np.arange(sum(group_sizes))[group.atoms], atoms)
        np.testing.assert_array_equal(np.arange(k)[group.slots], slots)


def test_without_groups_all_atoms_and_slots_are_one():
    assert Pursuit(5).groups(16) == [Group(slice(0, 16), slice(0, 5))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pursuit", GROUP_WISE, ids=str)
def test_each_group_encodes_what_those_before_leave(pursuit, dtype):
    Y, D, _, mean = problem(11, 120, 40, sum(GROUPS), dtype)
    Y[[5, 77]] = mean  # zero rows
    encoding = kernels.encode_with_residual([Y[:50], Y[50:]], D, grams(D, pursuit), mean, pursuit)
    indices, values, residual = parts(encoding.chunk)
    centred = (Y - mean).astype(np.float64)
    norms = np.linalg.norm(centred, axis=1)
    rounding = oracle.pursuit_rounding(dtype, 40, 30)
    oracle.assert_codes_agree(indices, values, expected_group_wise(centred, D, pursuit, dtype), norms, rounding)
    assert np.all(indices[[5, 77]] == -1)
    assert np.all(values[indices < 0] == 0)

    left = oracle.residual(centred, D, indices, values)
    assert np.all(np.abs(residual - left) <= rounding * norms[:, np.newaxis])
    np.testing.assert_allclose(encoding.squared_norms, norms**2, rtol=1e-13)
    np.testing.assert_allclose(encoding.moments[0], centred.sum(axis=0), rtol=1e-13, atol=1e-10)
    np.testing.assert_allclose(encoding.moments[1], np.sum(centred**2, axis=0), rtol=1e-13)
    # ⟨r, d_j⟩ with r the residual that the atom's own group leaves.
    left = centred
    for atoms, slots in oracle.groups_of(pursuit.group_sizes, pursuit.n_nonzero_coefs):
        group = indices[:, slots]
        assert np.isin(group, [-1, *atoms]).all()
        left = oracle.residual(left, D, group, values[:, slots])
        products = np.take_along_axis(left @ D.T.astype(np.float64), np.maximum(group, 0), axis=1)
        errors = np.abs(encoding.residual_products[:, slots] - products) * (group >= 0)
        assert np.all(errors <= rounding * norms[:, np.newaxis])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pursuit", GROUP_WISE, ids=str)
def test_codes_of_groups_have_their_empty_slots_last(pursuit, dtype):
    Y, D, _, mean = problem(12, 90, 40, sum(GROUPS), dtype)
    Y[3] = mean
    codes = kernels.encode([Y], D, grams(D, pursuit), mean, pursuit)
    within = kernels.encode_with_residual([Y], D, grams(D, pursuit), mean, pursuit).chunk
    used = codes.indices >= 0
    assert np.all(np.sort(used, axis=1)[:, ::-1] == used)
    assert np.all(codes.values[~used] == 0)
    for found, expected in zip(codes, empty_last(kernels.Codes(within.indices, within.values)), strict=True):
        np.testing.assert_array_equal(found, expected)
    centred = (Y - mean).astype(np.float64)
    expected = empty_last(expected_group_wise(centred, D, pursuit, dtype))
    rounding = oracle.pursuit_rounding(dtype, 40, 30)
    oracle.assert_codes_agree(*codes, expected, np.linalg.norm(centred, axis=1), rounding)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("encoder", ["mp", "omp"])
def test_groups_of_one_atom_are_projections_one_after_the_other(encoder, dtype):
    Y, D, _, _ = problem(19, 30, 20, 3, dtype)
    pursuit = Pursuit(3, encoder, group_sizes=(1, 1, 1))
    chunk = kernels.encode_with_residual([Y], D, grams(D, pursuit), None, pursuit).chunk
    left = Y.astype(np.float64)
    for j in range(3):
        x = left @ D[j].astype(np.float64)
        left = left - np.outer(x, D[j])
        np.testing.assert_array_equal(chunk.indices[:, j], j)
        np.testing.assert_allclose(chunk.values[:, j], x, rtol=0, atol=100 * np.finfo(dtype).eps)
    np.testing.assert_allclose(chunk.residual, left, rtol=0, atol=100 * np.finfo(dtype).eps)


@pytest.mark.parametrize("n_samples", [1023, 1025, 2049])
@pytest.mark.parametrize(
    "pursuit", [Pursuit(5, group_sizes=(6, 5, 9)), Pursuit(3, "omp", group_sizes=(12, 8))], ids=str
)
def test_every_block_of_rows_is_encoded_group_by_group(n_samples, pursuit):
    Y, D, _, _ = problem(13, n_samples, 8, 20, np.float64)
    Y[::100] = 0
    expected = expected_group_wise(Y, D, pursuit, np.float64)
    norms, rounding = np.linalg.norm(Y, axis=1), oracle.pursuit_rounding(np.float64, 8, 20)
    encoding = kernels.encode_with_residual([Y[:300], Y[300:]], D, grams(D, pursuit), None, pursuit)
    indices, values, residual = parts(encoding.chunk)
    oracle.assert_codes_agree(indices, values, expected, norms, rounding)
    np.testing.assert_allclose(residual, oracle.residual(Y, D, indices, values), rtol=0, atol=1e-13)
    codes = kernels.encode([Y[:300], Y[300:]], D, grams(D, pursuit), None, pursuit)
    oracle.assert_codes_agree(*codes, empty_last(expected), norms, rounding)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("encoder", ["mp", "omp"])
def test_rtol_is_about_the_sample_and_not_about_what_the_groups_before_leave(encoder, dtype):
    # Atom 0 leaves 0.3 of the norm of both samples, atom 2 less than half of that of the second: 0.16 and 0.12.
    D = np.eye(5, dtype=dtype)
    left = np.array([[0, 0.3 * np.sqrt(0.5), 0.3 * np.sqrt(0.5)], [0, np.sqrt(0.3**2 - 0.12**2), 0.12]])
    Y = np.stack([[np.sqrt(1 - 0.3**2), 0, *row[1:], 0] for row in left]).astype(dtype)
    pursuit = Pursuit(3, encoder, rtol=0.2, group_sizes=(2, 1, 2))
    indices, _ = kernels.encode([Y], D, grams(D, pursuit), None, pursuit)
    assert indices.tolist() == [[0, 2, 3], [0, 2, -1]]
    # Relative to 0.3 both would have needed the third group: 0.2 · 0.3 = 0.06.


@pytest.mark.parametrize(("stored", "dtype"), [(np.float16, np.float32), (np.float32, np.float64)])
def test_rows_of_lower_precision_are_taken_as_they_are(stored, dtype):
    Y, D, gram, mean = problem(3, 50, 20, 30, dtype)
    Y = Y.astype(stored)
    found = kernels.encode_with_residual([Y], D, [gram], mean, Pursuit(3))
    expected = kernels.encode_with_residual([Y.astype(dtype)], D, [gram], mean, Pursuit(3))
    assert found.chunk.values.dtype == found.chunk.residual.dtype == dtype
    for ours, theirs in zip(parts(found.chunk), parts(expected.chunk), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_layout_of_the_rows_in_memory_does_not_matter(dtype):
    Y, D, gram, mean = problem(4, 300, 150, 40, dtype)
    expected = kernels.encode_with_residual([Y], D, [gram], mean, Pursuit(3))
    for rows in np.asfortranarray(Y), np.repeat(Y, 2, axis=0)[::2], np.repeat(Y, 2, axis=1)[:, ::2]:
        found = kernels.encode_with_residual([rows], D, [gram], mean, Pursuit(3))
        for ours, theirs in zip(parts(found.chunk), parts(expected.chunk), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("centred", [True, False])
def test_reconstruction_is_codes_times_dictionary_plus_mean(dtype, centred):
    rng = np.random.default_rng(0)
    D = oracle.random_atoms(rng, 30, 140, dtype)
    mean = rng.standard_normal(140).astype(dtype) if centred else None
    indices, values = oracle.random_codes(rng, 50, 30, 4)
    values = values.astype(dtype)
    expected = oracle.dense(indices, values, 30) @ D.astype(np.float64) + (mean if centred else 0)
    rows = kernels.reconstruct(indices, values, D, mean)
    assert rows.dtype == dtype
    np.testing.assert_allclose(rows, expected, rtol=0, atol=10 * np.finfo(dtype).eps * np.abs(expected).max())


# --- passes of the dictionary update ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    n_samples=st.integers(1, 40),
    n_features=st.integers(1, 20) | st.sampled_from([127, 128, 129, 257]),
    n_atoms=st.integers(1, 30),
    k=st.integers(1, 5),
)
def test_a_pass_applies_the_error_matrices_to_one_vector_each(dtype, seed, n_samples, n_features, n_atoms, k):
    chunk, batch, members = random_chunk(seed, n_samples, n_features, n_atoms, k, dtype)
    rng = np.random.default_rng(seed)
    D = oracle.random_atoms(rng, n_atoms, n_features, dtype)
    vectors = oracle.random_atoms(rng, len(batch), n_features, dtype)
    expected, sizes = passed_by_hand(chunk, D, batch, vectors)
    sums = passes.atom_pass(chunk, members, D[batch], vectors)
    assert sums.dtype == dtype
    assert np.all(np.abs(sums - expected) <= 20 * np.finfo(dtype).eps * (np.sqrt(n_features) + n_samples) * sizes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pursuit", PURSUITS, ids=str)
def test_the_first_pass_applies_them_to_the_atoms_themselves(pursuit, dtype):
    Y, D, gram, mean = problem(5, 50, 140, 30, dtype)
    encoding = kernels.encode_with_residual([Y], D, [gram], mean, pursuit)
    expected, sizes = passed_by_hand(encoding.chunk, D, range(30), D)
    sums = passes.first_pass(encoding, D, pursuit.groups(len(D)))
    assert np.all(np.abs(sums - expected) <= 20 * np.finfo(dtype).eps * (np.sqrt(140) + 50) * sizes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pursuit", GROUP_WISE, ids=str)
def test_the_first_pass_has_the_residual_that_each_group_leaves(pursuit, dtype):
    Y, D, _, mean = problem(14, 60, 70, sum(GROUPS), dtype)
    encoding = kernels.encode_with_residual([Y], D, grams(D, pursuit), mean, pursuit)
    before = [array.copy() for array in parts(encoding.chunk)]
    sums = passes.first_pass(encoding, D, pursuit.groups(len(D)))
    for group, chunk in left_by_each_group(encoding.chunk, D, pursuit):
        members = range(group.atoms.start, group.atoms.stop)
        expected, sizes = passed_by_hand(chunk, D, members, D[group.atoms])
        limits = 20 * np.finfo(dtype).eps * (np.sqrt(70) + 60) * sizes
        assert np.all(np.abs(sums[group.atoms] - expected) <= limits)
    for array, unchanged in zip(parts(encoding.chunk), before, strict=True):
        np.testing.assert_array_equal(array, unchanged)


def left_by_each_group(chunk, D, pursuit):
    """Each group with its own codes and what the groups up to it leave, found from what all of them leave."""
    indices, values, residual = (np.array(array, array.dtype) for array in parts(chunk))
    for group in pursuit.groups(len(D)):
        later = slice(group.slots.stop, None)
        given_back = oracle.dense(indices[:, later], values[:, later], len(D)) @ D.astype(np.float64)
        yield group, EncodedChunk(indices[:, group.slots], values[:, group.slots], residual + given_back)


@pytest.mark.parametrize("dtype", DTYPES)
def test_group_by_group_goes_from_what_all_groups_leave_back_to_what_the_first_leaves(dtype):
    pursuit = GROUP_WISE[0]
    rng = np.random.default_rng(15)
    D = oracle.random_atoms(rng, sum(GROUPS), 70, dtype)
    Y = rng.standard_normal((50, 70)).astype(dtype)
    chunk = kernels.encode_with_residual([Y], D, grams(D, pursuit), None, pursuit).chunk
    before = chunk.residual.copy()
    expected = list(left_by_each_group(chunk, D, pursuit))
    numbers = []
    for group, part in passes.group_by_group(chunk, D, pursuit.groups(len(D))):
        number = pursuit.groups(len(D)).index(group)
        np.testing.assert_array_equal(part.indices, expected[number][1].indices)
        np.testing.assert_array_equal(part.values, expected[number][1].values)
        np.testing.assert_allclose(part.residual, expected[number][1].residual, rtol=0, atol=50 * np.finfo(dtype).eps)
        numbers.append(number)
    assert numbers == [3, 2, 1, 0]
    np.testing.assert_array_equal(chunk.residual, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("slots", [slice(0, 2), slice(2, 3), slice(1, None)], ids=str)
def test_contributions_of_some_slots_are_taken_out_or_given_back(slots, sign, dtype):
    chunk, _, _ = random_chunk(16, 40, 70, 9, 4, dtype)
    before = [array.copy() for array in parts(chunk)]
    D = oracle.random_atoms(np.random.default_rng(17), 9, 70, dtype)
    changed = passes.with_contributions(chunk, D, slots, sign)
    contributions = oracle.dense(chunk.indices[:, slots], chunk.values[:, slots], 9) @ D.astype(np.float64)
    expected = chunk.residual - sign * contributions
    np.testing.assert_allclose(changed.residual, expected, rtol=0, atol=50 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(changed.indices, chunk.indices)
    np.testing.assert_array_equal(changed.values, chunk.values)
    for array, unchanged in zip(parts(chunk), before, strict=True):
        np.testing.assert_array_equal(array, unchanged)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("idle", [[0], [1, 3], [0, 1, 2, 3, 4]])
def test_a_pass_leaves_atoms_without_a_vector_out(idle, dtype):
    rng = np.random.default_rng(18)
    indices, values = oracle.random_codes(rng, 40, 9, 4)
    chunk = EncodedChunk(indices, values.astype(dtype), rng.standard_normal((40, 12)).astype(dtype))
    batch = np.array([7, 2, 0, 8, 4])
    D, vectors = (oracle.random_atoms(rng, len(batch), 12, dtype) for _ in range(2))
    everything = passes.atom_pass(chunk, places(batch, 9), D, vectors)
    vectors[idle] = 0
    sums = passes.atom_pass(chunk, places(batch, 9), D, vectors)
    np.testing.assert_array_equal(sums[idle], 0)
    others = np.setdiff1d(range(len(batch)), idle)
    np.testing.assert_array_equal(sums[others], everything[others])


@pytest.mark.parametrize("n_users", [1, 2, 3])
def test_a_pass_for_few_users_and_for_none(n_users):
    rng = np.random.default_rng(0)
    D = oracle.random_atoms(rng, 2, 6)
    indices = np.zeros((n_users, 1), np.int32)
    chunk = EncodedChunk(indices, rng.standard_normal((n_users, 1)), rng.standard_normal((n_users, 6)))
    sums = passes.atom_pass(chunk, np.array([0, 1], np.int32), D, D)
    E = chunk.residual + chunk.values * D[0]
    np.testing.assert_allclose(sums[0], E.T @ (E @ D[0]), atol=1e-12)
    np.testing.assert_array_equal(sums[1], 0)


@pytest.mark.parametrize("shift", [0, 1], ids=["of any sign", "all of one sign"])
def test_an_atom_that_every_sample_of_a_task_uses_loses_no_digits(shift):
    rng = np.random.default_rng(0)
    D = oracle.random_atoms(rng, 1, 16, np.float32)
    residual = (shift + rng.standard_normal((ROWS_PER_TASK, 16))).astype(np.float32)
    values = (shift + rng.standard_normal((ROWS_PER_TASK, 1))).astype(np.float32)
    chunk = EncodedChunk(np.zeros((ROWS_PER_TASK, 1), np.int32), values, residual)
    expected, _ = passed_by_hand(chunk, D, [0], D)
    sums = passes.atom_pass(chunk, np.zeros(1, np.int32), D, D)
    np.testing.assert_allclose(sums, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", DTYPES)
def test_passes_and_projection_leave_the_chunk_as_it_is(dtype):
    chunk, batch, members = random_chunk(0, 40, 12, 9, 3, dtype)
    before = [array.copy() for array in parts(chunk)]
    old, new = (oracle.random_atoms(np.random.default_rng(seed), len(batch), 12, dtype) for seed in (1, 2))
    passes.atom_pass(chunk, members, old, new)
    projected = passes.project_in_turn(chunk, members, old, new, nonnegative=False)
    for array, unchanged in zip(parts(chunk), before, strict=True):
        np.testing.assert_array_equal(array, unchanged)
    residual, values = oracle.gauss_seidel(
        chunk.residual.astype(np.float64),
        chunk.values.astype(np.float64),
        chunk.indices,
        set(batch.tolist()),
        dict(zip(batch.tolist(), old, strict=True)),
        dict(zip(batch.tolist(), new, strict=True)),
    )
    np.testing.assert_allclose(projected.residual, residual, atol=100 * np.finfo(dtype).eps)
    np.testing.assert_allclose(projected.values, values, atol=100 * np.finfo(dtype).eps)


# --- without the compiler --------------------------------------------------------------------------------------------


def one_of_everything():
    """What every kernel makes of a tiny chunk."""
    Y, D, _, mean = problem(6, 7, 5, 9, np.float32)
    members = places(np.arange(4, 9), 9)
    results = {}
    for name, pursuit in zip("abcdefg", [*PURSUITS, Pursuit(3, group_sizes=(4, 5))], strict=True):
        encoding = kernels.encode_with_residual([Y], D, grams(D, pursuit), mean, pursuit)
        chunk = encoding.chunk
        passed = passes.first_pass(encoding, D, pursuit.groups(len(D)))
        direction = krylov.next_direction((D,), (passed,), 1e-3)
        passed_again = passes.atom_pass(chunk, places(range(9), 9), D, direction)
        new = krylov.ritz_vectors((D, direction), (passed, passed_again), D)
        projected = passes.project_in_turn(chunk, members, D[4:], new[4:], pursuit.nonnegative)
        everything = (
            *parts(chunk),
            encoding.squared_norms,
            *encoding.moments,
            passed,
            direction,
            new,
            *parts(projected)[1:],
        )
        results |= {f"{name}{number:02}": array for number, array in enumerate(everything)}
    results["bad"] = [cpu.first_nonfinite_row(Y), cpu.first_nonfinite_row(np.where(Y[4, 2] == Y, np.nan, Y))]
    return results


def test_the_kernels_run_as_plain_python_too(tmp_path):
    here = Path(__file__).parent
    subprocess.run(
        [
            sys.executable,
            "-W",
            "error::RuntimeWarning",
            "-c",
            f"import numpy, test_chunk; numpy.savez({str(tmp_path / 'plain.npz')!r}, **test_chunk.one_of_everything())",
        ],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])},
        check=True,
    )
    compiled, plain = one_of_everything(), np.load(tmp_path / "plain.npz")
    assert set(compiled) == set(plain)
    for name, array in compiled.items():
        np.testing.assert_allclose(plain[name], array, rtol=0, atol=2e-5, err_msg=name)
        assert plain[name].dtype == np.asarray(array).dtype
