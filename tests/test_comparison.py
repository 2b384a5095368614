"""Matching of dictionaries against brute force over all permutations, and against what is known of copies."""

from itertools import combinations, permutations

import numpy as np
import oracle
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from dbksvd_dask import Dictionary
from dbksvd_dask.comparison import compare, stability


def atoms(n_atoms, n_features=6, seed=0, dtype=np.float64):
    return oracle.random_atoms(np.random.default_rng(seed), n_atoms, n_features, dtype)


def shuffled(D, seed=0, noise=0.0):
    """The atoms in another order and with other signs: the copy, where each went, its sign."""
    rng = np.random.default_rng(seed)
    order, signs = rng.permutation(len(D)), rng.choice([-1, 1], len(D))
    copy = np.empty_like(D)
    copy[order] = oracle.unit_rows(signs[:, np.newaxis] * D + noise * rng.standard_normal(D.shape))
    return copy, order, signs


def best_sum(D1, D2):
    """Largest Σ|cos| of any one-to-one matching."""
    smaller, larger = sorted((D1, D2), key=len)
    cosines = np.abs(smaller @ larger.T)
    rows = np.arange(len(smaller))
    return max(cosines[rows, list(order)].sum() for order in permutations(range(len(larger)), len(smaller)))


# --- two dictionaries ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_atoms", [1, 2, 50])
def test_a_copy_in_another_order_with_other_signs_is_found_again(n_atoms, dtype):
    D = atoms(n_atoms, 20, dtype=dtype)
    copy, order, signs = shuffled(D)
    comparison = compare(D, copy)
    np.testing.assert_array_equal(comparison.match, order)
    assert comparison.cosine.dtype == comparison.nearest_cosine.dtype == dtype
    rounding = 20 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(comparison.cosine, signs, rtol=rounding)
    np.testing.assert_allclose(comparison.nearest_cosine, 1, rtol=rounding)
    assert comparison["count"].values.tolist() == [0] * 19 + [n_atoms]
    assert comparison.mean_cosine == pytest.approx(1, rel=rounding)
    assert comparison.median_cosine == pytest.approx(1, rel=rounding)
    assert comparison.matched_above == 1


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), m1=st.integers(1, 5), m2=st.integers(1, 5), d=st.integers(1, 4))
def test_no_other_matching_has_a_larger_sum(seed, m1, m2, d):
    D1, D2 = atoms(m1, d, seed), atoms(m2, d, seed + 1)
    comparison = compare(D1, D2)
    matched = np.flatnonzero(comparison.match >= 0)
    partners = comparison.match.values[matched]
    assert len(matched) == len(set(partners)) == min(m1, m2)
    np.testing.assert_allclose(comparison.cosine[matched], np.sum(D1[matched] * D2[partners], axis=1), atol=1e-14)
    assert np.abs(comparison.cosine[matched]).sum() == pytest.approx(best_sum(D1, D2), rel=1e-12)


def test_the_closest_pair_is_given_up_for_a_larger_sum():
    def directions(degrees):
        return np.column_stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])

    # cos 26° + |cos 95°| = .90 + .09, but crosswise cos 37° + cos 32° = .80 + .85
    comparison = compare(directions([0, 58]), directions([26, -37]))
    assert comparison.match.values.tolist() == [1, 0]
    np.testing.assert_allclose(comparison.cosine, np.cos(np.radians([37, 32])))
    np.testing.assert_allclose(comparison.nearest_cosine, np.cos(np.radians([26, 32])))


@pytest.mark.parametrize(("m1", "m2"), [(30, 12), (12, 30)])
def test_of_different_sizes_the_smaller_is_matched_whole(m1, m2):
    large = atoms(30, 20)
    copy, order, signs = shuffled(large[:12])
    if m1 > m2:
        comparison = compare(large, copy)
        np.testing.assert_array_equal(comparison.match, [*order, *[-1] * 18])
        np.testing.assert_allclose(comparison.cosine, [*signs, *[np.nan] * 18])
        expected = np.abs(large @ copy.T).max(axis=1)
    else:
        comparison = compare(copy, large)
        np.testing.assert_array_equal(comparison.match, np.argsort(order))
        np.testing.assert_allclose(comparison.cosine, signs[np.argsort(order)])
        expected = np.abs(copy @ large.T).max(axis=1)
    assert comparison.sizes["atom"] == m1
    assert comparison["count"].sum() == 12
    assert comparison.mean_cosine == pytest.approx(1)  # of what is matched
    np.testing.assert_allclose(comparison.nearest_cosine, expected)


def test_noise_lowers_the_cosines_and_leaves_the_matches():
    D = atoms(60, 50)
    means = []
    for noise in (0.01, 0.03, 0.1):
        copy, order, signs = shuffled(D, noise=noise)
        comparison = compare(D, copy)
        np.testing.assert_array_equal(comparison.match, order)
        np.testing.assert_array_equal(np.sign(comparison.cosine), signs)
        # cos of d with d + ε, ε of d features and deviation σ: about 1 / √(1 + d σ²)
        means.append(comparison.mean_cosine.item())
        assert means[-1] == pytest.approx(1 / np.sqrt(1 + 50 * noise**2), abs=0.02)
    assert np.all(np.diff(means) < 0)


def test_the_histogram_and_the_scalars_are_those_of_the_matched_cosines():
    D1, D2 = atoms(40, 3), atoms(35, 3, seed=1)
    comparison = compare(D1, D2)
    cosines = np.abs(comparison.cosine.values[comparison.match.values >= 0])
    assert comparison["count"].sum() == len(cosines) == 35
    edges = np.append(comparison.bin, 1.0)
    np.testing.assert_allclose(edges, np.arange(21) / 20)
    for count, low, high in zip(comparison["count"].values, edges, edges[1:], strict=False):
        assert count == np.count_nonzero((low <= cosines) & (cosines < high))
    assert comparison.mean_cosine == pytest.approx(cosines.mean())
    assert comparison.median_cosine == pytest.approx(np.median(cosines))
    assert comparison.matched_above == np.count_nonzero(cosines > 0.9) / 35
    assert 0 < comparison.matched_above < 1


def test_orthogonal_dictionaries_have_nothing_in_common():
    comparison = compare(np.eye(4)[:2], np.eye(4)[2:])
    assert comparison["count"].values.tolist() == [2] + [0] * 19
    assert comparison.mean_cosine == comparison.matched_above == 0
    assert not comparison.nearest_cosine.any()


def test_norms_that_are_1_to_tolerance_do_not_count():
    D = atoms(20)
    for scale in (0.9992, 1.0008):
        comparison = compare(scale * D, D)
        np.testing.assert_allclose(comparison.cosine, 1, rtol=1e-14)
        assert comparison["count"].sum() == 20


def test_dictionaries_and_arrays_are_compared_alike():
    D1, D2 = atoms(9), atoms(9, seed=1)
    xr.testing.assert_identical(compare(Dictionary(D1), Dictionary(D2)), compare(D1, D2))


# --- several ---------------------------------------------------------------------------------------------------------


def fits():
    return {"first": atoms(8), "second": atoms(8, seed=1), "small": atoms(5, seed=2)}


def test_stability_is_the_mean_of_each_pair_and_1_with_itself():
    several = stability(fits())
    assert several.mean_cosine.dims == ("dictionary", "other")
    assert several.dictionary.values.tolist() == several.other.values.tolist() == list(fits())
    np.testing.assert_array_equal(several.mean_cosine, several.mean_cosine.T)
    np.testing.assert_array_equal(np.diag(several.mean_cosine), 1)
    for one, other in combinations(fits(), 2):
        expected = compare(fits()[one], fits()[other]).mean_cosine
        assert several.mean_cosine.sel(dictionary=one, other=other) == pytest.approx(expected.item())


def test_an_atom_has_the_mean_over_the_dictionaries_where_it_is_matched():
    several = stability(fits())
    for name, D in fits().items():
        cosines = [np.abs(compare(D, other).cosine) for key, other in fits().items() if key != name]
        expected = [np.mean([c for c in of_atom if not np.isnan(c)]) for of_atom in zip(*cosines, strict=True)]
        found = several.atom_cosine.sel(dictionary=name).values
        np.testing.assert_allclose(found[: len(D)], expected)
        assert np.isnan(found[len(D) :]).all()


def test_an_atom_without_a_match_anywhere_has_no_cosine():
    large = np.eye(3)
    several = stability([large, large[:2]])
    np.testing.assert_array_equal(several.atom_cosine, [[1, 1, np.nan], [1, 1, np.nan]])
    assert several.mean_cosine.sel(dictionary=0, other=1) == 1


def test_copies_are_stable_and_what_differs_between_fits_is_not():
    D = atoms(12, 30)
    copies = [shuffled(D, seed)[0] for seed in range(3)]
    np.testing.assert_allclose(stability(copies).mean_cosine, 1)
    others = [np.concatenate([D[:6], atoms(6, 30, seed)]) for seed in (1, 2, 3)]
    found = stability([Dictionary(D) for D in others]).atom_cosine
    np.testing.assert_allclose(found[:, :6], 1)
    assert np.all(found[:, 6:] < 0.8)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("D", "error", "message"),
    [
        (atoms(3, 4), ValueError, "D2 has 4 features, but D1 has 6"),
        (2 * atoms(3), ValueError, "D2 row 0 has norm 2"),
        (np.eye(6, dtype=int), TypeError, "D2 has dtype int64"),
        (atoms(3)[0], ValueError, r"D2 has shape \(6,\)"),
        (np.empty((0, 6)), ValueError, r"D2 has shape \(0, 6\)"),
        (np.full((2, 6), np.nan), ValueError, "D2 row 0 is not finite"),
    ],
)
def test_what_is_no_dictionary_like_the_first_is_named(D, error, message):
    with pytest.raises(error, match=message):
        compare(atoms(3), D)
    if "features" not in message:
        with pytest.raises(error, match=message.replace("D2", "D1")):
            compare(D, atoms(3))
        with pytest.raises(error, match=message.replace("D2", r"dictionaries\['mine'\]")):
            stability({"first": atoms(3), "mine": D})


@pytest.mark.parametrize(
    ("dictionaries", "error", "message"),
    [
        ([], ValueError, "dictionaries has 0 entries: compare two or more"),
        ({"mine": np.eye(2)}, ValueError, "dictionaries has 1 entries"),
        (Dictionary(np.eye(2)), TypeError, "dictionaries is a Dictionary"),
        (np.eye(2), TypeError, "dictionaries is a ndarray"),
        ([np.eye(2), np.eye(2), np.eye(3)], ValueError, r"the dictionaries have \[2, 2, 3\] features"),
        ([np.eye(2), np.ones((1, 2))], ValueError, r"dictionaries\[1\] row 0 has norm 1.414"),
    ],
)
def test_what_cannot_be_compared_is_named(dictionaries, error, message):
    with pytest.raises(error, match=message):
        stability(dictionaries)
