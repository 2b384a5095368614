"""Matryoshka groups: their sizes and shares, fits that go group by group and then flat, dictionaries that have them."""

import dask.array as da
import numpy as np
import oracle
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from dbksvd_dask import DBKSVD, Dictionary, open_dictionary
from dbksvd_dask.kernels.pursuit import Pursuit
from dbksvd_dask.matryoshka import default_group_sizes, group_sizes

N_SAMPLES, N_FEATURES, N_ATOMS, K, N_ITERATIONS = 400, 10, 16, 5, 5
GROUPS = (4, 3, 9)

# --- how many atoms each group has -----------------------------------------------------------------------------------


def test_the_groups_are_all_atoms_for_any_number_of_them():
    for n_atoms in range(1, 5001):
        sizes = default_group_sizes(n_atoms)
        assert sum(sizes) == n_atoms
        assert min(sizes) >= 1
        assert all(isinstance(size, int) for size in sizes)


def test_the_groups_are_as_the_docstring_has_them():
    for n_atoms in range(4, 5001):
        sizes = default_group_sizes(n_atoms)
        *before, last = sizes
        if n_atoms < 512:
            assert len(sizes) == 2
        else:
            assert before == [256, *(256 * 2**i for i in range(len(before) - 1))]
            assert 0.4 < last / sum(before) < 1.9


def test_three_atoms_are_two_groups_like_any_other_number_below_512():
    assert len(default_group_sizes(3)) == 2


@pytest.mark.parametrize("n_doublings", range(1, 7))
def test_powers_of_two_have_the_groups_of_the_paper(n_doublings):
    # 256, 256, 512, 1024, …: each group as large as all before it
    expected = [256]
    while len(expected) <= n_doublings:
        expected.append(sum(expected))
    assert default_group_sizes(256 * 2**n_doublings) == tuple(expected)


def test_the_largest_dictionaries_of_the_paper():
    assert default_group_sizes(4096) == (256, 256, 512, 1024, 2048)
    assert default_group_sizes(16384) == (256, 256, 512, 1024, 2048, 4096, 8192)


@given(k=st.integers(1, 500), n_groups=st.integers(1, 20))
def test_the_shares_are_k_dealt_out_one_by_one(k, n_groups):
    budgets = Pursuit(k, group_sizes=(1000,) * n_groups).budgets
    assert sum(budgets) == k
    assert budgets == tuple(len(slots) for _, slots in oracle.groups_of((1000,) * n_groups, k))
    assert list(budgets) == sorted(budgets, reverse=True)


@pytest.mark.parametrize(
    ("matryoshka", "n_atoms", "expected"),
    [
        (False, 64, ()),
        (np.False_, 64, ()),
        (True, 64, (32, 32)),
        (np.True_, 1024, (256, 256, 512)),
        ([4, 60], 64, (4, 60)),
        (np.array([4, 60], np.uint8), 64, (4, 60)),
        ((64,), 64, (64,)),
    ],
)
def test_groups_are_the_default_ones_or_those_given(matryoshka, n_atoms, expected):
    sizes = group_sizes(matryoshka, n_atoms, n_nonzero_coefs=8)
    assert sizes == expected
    assert all(type(size) is int for size in sizes)


# --- fits ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem():
    """Embeddings, held-out ones, and a dictionary to begin with."""
    rng = np.random.default_rng(0)
    planted = oracle.random_atoms(rng, N_ATOMS, N_FEATURES)
    Y = oracle.sparse_samples(rng, N_SAMPLES + 60, planted, K)
    return Y[:N_SAMPLES], Y[N_SAMPLES:], oracle.unit_rows(planted + 0.2 * rng.standard_normal(planted.shape))


def estimator(init, **parameters):
    defaults = {"max_iter": N_ITERATIONS, "init": init, "matryoshka": GROUPS, "replace_unused": None, "random_state": 3}
    return DBKSVD(N_ATOMS, K, **(defaults | parameters))


def fit_by_hand(Y, D, n_batches, first_flat, n_iterations, seed, **options):
    """The dictionaries before and after each iteration, and the codes of its batch."""
    batches = np.split(Y, n_batches)
    dictionaries, codes = [D], []
    for number in range(n_iterations):
        sizes = GROUPS if number < first_flat else ()
        batch = batches[number % n_batches]
        found, D = oracle.iteration(batch, D, K, group_sizes=sizes, seed=[seed, 1, number], **options)
        assert found.margins.min() > 1e-9  # no choice of a pursuit is left to rounding
        dictionaries.append(D)
        codes.append(found)
    return dictionaries, codes


@pytest.mark.parametrize(("flat_share", "first_flat"), [(0, 5), (0.1, 5), (0.3, 3), (0.5, 3), (1, 0)])
@pytest.mark.parametrize(("encoder", "inner_batch_size"), [("mp", None), ("mp", 2), ("omp", 9)])
def test_a_fit_is_group_wise_first_and_flat_in_the_end(problem, flat_share, first_flat, encoder, inner_batch_size):
    Y, held_out, init = problem
    assert first_flat == N_ITERATIONS - round(flat_share * N_ITERATIONS)
    model = estimator(init, flat_share=flat_share, encoder=encoder, inner_batch_size=inner_batch_size)
    model.fit(Y, validation=held_out)
    seed = model.dictionary_.provenance["seed"]
    options = {"encoder": encoder, "size": inner_batch_size}
    dictionaries, codes = fit_by_hand(Y, init, 1, first_flat, N_ITERATIONS, seed, **options)
    np.testing.assert_allclose(model.components_, dictionaries[-1], rtol=0, atol=1e-8)
    encode = oracle.matching_pursuit if encoder == "mp" else oracle.orthogonal_matching_pursuit
    for number, found in enumerate(codes):
        record = model.history_.isel(iteration=number)
        R = oracle.residual(Y, dictionaries[number], found.indices, found.values)
        assert record.train_relative_error == pytest.approx(oracle.relative_error(Y, R), rel=1e-8)
        assert record.train_l0 == np.count_nonzero(found.indices >= 0) / N_SAMPLES
        # Validation is one pursuit over all atoms throughout.
        flat = encode(held_out, dictionaries[number + 1], K)
        R = oracle.residual(held_out, dictionaries[number + 1], flat.indices, flat.values)
        assert record.validation_relative_error == pytest.approx(oracle.relative_error(held_out, R), rel=1e-7)


@pytest.mark.parametrize("flat_share", [0.4, 1])
def test_averages_are_over_group_wise_and_flat_iterations(problem, flat_share):
    Y, _, init = problem
    model = estimator(init, flat_share=flat_share, batch_size=N_SAMPLES // 4, n_passes=3).fit(Y)
    seed = model.dictionary_.provenance["seed"]
    first_flat = N_ITERATIONS - round(flat_share * N_ITERATIONS)
    dictionaries, _ = fit_by_hand(Y, init, 4, first_flat, N_ITERATIONS, seed, n_passes=3)
    np.testing.assert_allclose(model.components_, oracle.averages(dictionaries[1:])[-1], rtol=0, atol=1e-8)


@pytest.mark.parametrize("flat_share", [0.5, 1])
def test_partial_fit_goes_group_by_group_throughout(problem, flat_share):
    Y, _, init = problem
    model = estimator(init, flat_share=flat_share, batch_size=N_SAMPLES // 2)
    for _ in range(2):
        model.partial_fit(Y)
    seed = model.dictionary_.provenance["seed"]
    dictionaries, _ = fit_by_hand(Y, init, 2, first_flat=4, n_iterations=4, seed=seed)
    np.testing.assert_allclose(model.components_, oracle.averages(dictionaries[1:])[-1], rtol=0, atol=1e-8)


def test_partial_fit_after_a_fit_is_group_wise_again(problem):
    Y, _, init = problem
    model = estimator(init, flat_share=0.4, average=False).fit(Y).partial_fit(Y)
    seed = model.dictionary_.provenance["seed"]
    dictionaries, _ = fit_by_hand(Y, init, 1, 3, N_ITERATIONS, seed)
    _, expected = oracle.iteration(Y, dictionaries[-1], K, group_sizes=GROUPS, seed=[seed, 1, N_ITERATIONS])
    np.testing.assert_allclose(model.components_, expected, rtol=0, atol=1e-8)


def test_a_fit_that_is_flat_from_the_first_iteration_on_is_one_without_groups(problem):
    Y, _, init = problem
    flat, without = estimator(init, flat_share=1).fit(Y), estimator(init, matryoshka=False).fit(Y)
    np.testing.assert_array_equal(flat.components_, without.components_)
    assert flat.dictionary_.group_sizes == GROUPS
    assert without.dictionary_.group_sizes == ()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_learned_is_used_by_one_pursuit_over_all_atoms(problem, dtype):
    Y, held_out, init = problem
    model = estimator(init).fit(Y.astype(dtype))
    plain = Dictionary(model.components_, K)
    codes = model.transform(held_out.astype(dtype))
    np.testing.assert_array_equal(codes.toarray(), plain.encode(held_out.astype(dtype)).to_csr().toarray())
    R = held_out - codes.toarray() @ model.components_.astype(np.float64)
    expected = oracle.variance_explained(held_out, R)
    assert model.score(held_out.astype(dtype)) == pytest.approx(expected, rel=1e-3 if dtype == "float32" else 1e-9)


def test_the_first_group_learns_to_do_alone():
    """With its share of k it explains more than the first atoms of a dictionary without groups."""
    rng = np.random.default_rng(1)
    planted = oracle.random_atoms(rng, 40, 20)
    Y = oracle.sparse_samples(rng, 2000, planted, 4)
    explained = {}
    for matryoshka in (False, [10, 30]):
        model = DBKSVD(40, 4, max_iter=12, matryoshka=matryoshka, flat_share=0, random_state=0).fit(Y)
        first = Dictionary(model.components_[:10], 2)
        explained[bool(matryoshka)] = oracle.variance_explained(Y, Y - first.decode(first.encode(Y)))
    assert explained[True] > 1.1 * explained[False]


# --- dictionaries ----------------------------------------------------------------------------------------------------


def dictionary(dtype="float64", group_sizes=GROUPS, **parameters):
    D = oracle.random_atoms(np.random.default_rng(2), N_ATOMS, N_FEATURES, dtype)
    return Dictionary(D, K, group_sizes=group_sizes, **parameters)


@pytest.mark.parametrize("sizes", [GROUPS, list(GROUPS), np.array(GROUPS), (N_ATOMS,)], ids=repr)
def test_a_dictionary_knows_the_group_of_each_atom(sizes):
    D = dictionary(group_sizes=sizes)
    assert D.group_sizes == tuple(sizes)
    assert D.group.tolist() == [number for number, size in enumerate(sizes) for _ in range(size)]


def test_without_groups_all_atoms_are_one():
    D = dictionary(group_sizes=())
    assert D.group_sizes == ()
    assert D.group.tolist() == [0] * N_ATOMS
    assert "group" not in D.to_xarray()


@pytest.mark.parametrize("sizes", [(), GROUPS, (N_ATOMS,), (1,) * N_ATOMS])
def test_a_store_keeps_the_groups(sizes, tmp_path):
    D = dictionary(group_sizes=sizes, mean=np.arange(10.0))
    D.to_zarr(tmp_path / "dictionary.zarr")
    opened = open_dictionary(tmp_path / "dictionary.zarr")
    assert opened.group_sizes == sizes
    np.testing.assert_array_equal(opened.group, D.group)
    np.testing.assert_array_equal(opened.atoms, D.atoms)
    assert "group" not in opened.history
    if sizes:
        plain = xr.open_zarr(tmp_path / "dictionary.zarr")
        assert plain.group.dims == ("atom",)
        np.testing.assert_array_equal(plain.group, D.group)


def test_what_a_fit_learned_with_groups_survives_a_store(problem, tmp_path):
    Y, held_out, init = problem
    learned = estimator(init).fit(Y).dictionary_
    learned.to_zarr(tmp_path / "dictionary.zarr")
    opened = open_dictionary(tmp_path / "dictionary.zarr")
    assert opened.group_sizes == learned.group_sizes == GROUPS
    for group_wise in (False, True):
        ours, theirs = (D.encode(held_out, group_wise=group_wise) for D in (opened, learned))
        np.testing.assert_array_equal(ours.indices, theirs.indices)
        np.testing.assert_array_equal(ours.values, theirs.values)
    xr.testing.assert_equal(opened.history, learned.history)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [3, K])
@pytest.mark.parametrize("options", [{}, {"rtol": 0.4}, {"encoder": "omp"}, {"refit": "lstsq"}], ids=str)
def test_group_wise_codes_are_those_of_the_oracle(problem, options, k, dtype):
    _, Y, _ = problem
    Y = np.concatenate([Y, np.zeros((2, N_FEATURES))]).astype(dtype)
    D = dictionary(dtype)
    codes = D.encode(Y, k, group_wise=True, **options)
    lstsq = {"lstsq": True} if "refit" in options else {}
    options = {name: value for name, value in options.items() if name != "refit"} | lstsq
    expected = oracle.group_wise_pursuit(Y, D.atoms, k, GROUPS, rounding=np.finfo(dtype).eps, **options)
    rounding = 50 * oracle.pursuit_rounding(dtype, N_FEATURES, 4 * k)
    clear = expected.margins > 2 * rounding
    assert np.count_nonzero(clear) > len(Y) / 2
    X, by_hand = (oracle.dense(found.indices, found.values, N_ATOMS)[clear] for found in (codes, expected))
    np.testing.assert_allclose(X, by_hand, rtol=0, atol=rounding * np.linalg.norm(Y, axis=1).max())
    used = codes.indices >= 0
    assert np.all(np.sort(used, axis=1)[:, ::-1] == used)  # empty slots last
    assert not used[-2:].any()


def test_group_wise_codes_in_memory_and_lazily_are_the_same(problem):
    _, Y, _ = problem
    D = dictionary(mean=np.ones(N_FEATURES))
    codes, lazy = (D.encode(rows, group_wise=True) for rows in (Y, da.from_array(Y, chunks=(17, -1))))
    assert isinstance(lazy.indices, da.Array)
    np.testing.assert_array_equal(lazy.compute().indices, codes.indices)
    np.testing.assert_array_equal(lazy.compute().values, codes.values)
    assert not np.array_equal(codes.indices, D.encode(Y).indices)


def test_one_group_of_all_atoms_encodes_as_no_group_does(problem):
    _, Y, _ = problem
    grouped = dictionary(group_sizes=(N_ATOMS,)).encode(Y, group_wise=True)
    flat = dictionary(group_sizes=()).encode(Y)
    np.testing.assert_array_equal(grouped.indices, flat.indices)
    np.testing.assert_array_equal(grouped.values, flat.values)
