"""Bounds against dictionaries for which they are known, and against the counts and experiments that they predict."""

import ast
import math
import re
import sys
import tracemalloc
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import oracle
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard

from dbksvd_dask import Dictionary, bounds
from dbksvd_dask.bounds import (
    best_guaranteed_k,
    guaranteed_k,
    mutual_coherence,
    plan,
    restricted_isometry,
    welch_bound,
)
from dbksvd_dask.kernels.gram import ATOMS_PER_PANEL

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def rounding(dtype):
    return float(8 * np.finfo(dtype).eps)


def mercedes_benz():
    angles = np.pi / 2 + np.arange(3) * 2 * np.pi / 3
    return np.column_stack([np.cos(angles), np.sin(angles)])


def icosahedron():
    """Its six diagonals."""
    golden = (1 + np.sqrt(5)) / 2
    return oracle.unit_rows(np.array([np.roll([0, 1, s * golden], i) for s in (1, -1) for i in range(3)]))


def simplex(d):
    """d + 1 atoms whose sum is zero: unit vectors seen from their mean, in an orthonormal basis of what they span."""
    centred = np.eye(d + 1) - 1 / (d + 1)
    return oracle.unit_rows(centred @ np.linalg.svd(centred)[2][:d].T)


def sixteen_lines():
    """16 equiangular lines in 6 dimensions: the characters of Z₂⁴ on the difference set where x₀x₁ + x₂x₃ = 1."""
    points = np.array(list(product([0, 1], repeat=4)))
    difference_set = points[(points[:, 0] * points[:, 1] + points[:, 2] * points[:, 3]) % 2 == 1]
    return oracle.unit_rows((-1.0) ** (points @ difference_set.T))


def identity_and_hadamard(d=16):
    return np.vstack([np.eye(d), hadamard(d) / np.sqrt(d)])


TIGHT_FRAMES = pytest.mark.parametrize(
    ("atoms", "coherence"),
    [
        (mercedes_benz(), 1 / 2),
        (icosahedron(), 1 / np.sqrt(5)),
        (simplex(3), 1 / 3),
        (simplex(50), 1 / 50),
        (sixteen_lines(), 1 / 3),
    ],
    ids=["mercedes-benz", "icosahedron", "tetrahedron", "simplex", "sixteen-lines"],
)


def test_bounds_know_nothing_of_dask_nor_of_what_is_above_them():
    with open(bounds.__file__) as source:
        nodes = list(ast.walk(ast.parse(source.read())))
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    outside = {module for module in modules if module.split(".")[0] not in sys.stdlib_module_names}
    assert outside == {"numpy", "dbksvd_dask", "dbksvd_dask.atoms"}


# --- coherence and the Welch bound -----------------------------------------------------------------------------------


@DTYPES
@TIGHT_FRAMES
def test_equiangular_tight_frames_attain_the_welch_bound(atoms, coherence, dtype):
    assert welch_bound(*atoms.shape) == pytest.approx(coherence, rel=1e-14)
    assert mutual_coherence(atoms.astype(dtype)) == pytest.approx(coherence, abs=rounding(dtype))


@DTYPES
@settings(deadline=None)
@given(seed=st.integers(0, 2**32), n_atoms=st.integers(1, 40), n_features=st.integers(1, 20))
def test_no_dictionary_is_below_the_welch_bound(dtype, seed, n_atoms, n_features):
    atoms = oracle.random_atoms(np.random.default_rng(seed), n_atoms, n_features, dtype)
    coherence = mutual_coherence(atoms)
    assert coherence == pytest.approx(oracle.coherence(atoms).max(), abs=rounding(dtype))
    assert welch_bound(n_atoms, n_features) <= coherence + rounding(dtype)


@pytest.mark.parametrize(("m", "d"), [(1, 1), (1, 5), (5, 5), (4, 7)])
def test_up_to_d_atoms_may_be_orthonormal(m, d):
    assert welch_bound(m, d) == mutual_coherence(np.eye(m, d)) == 0
    assert best_guaranteed_k(m, d) == m


@DTYPES
def test_the_coherence_of_repeated_atoms_is_one_and_no_more(dtype):
    atoms = oracle.random_atoms(np.random.default_rng(0), 200, 7, dtype)
    doubled = mutual_coherence(np.vstack([atoms, -atoms]))
    assert doubled == pytest.approx(1, abs=rounding(dtype))
    assert doubled <= 1
    assert guaranteed_k(doubled) == 0


def test_the_largest_coherence_may_stand_in_any_panel():
    for i, j in [(0, 1), (0, 2499), (1500, 1501), (2498, 2499), (ATOMS_PER_PANEL - 1, ATOMS_PER_PANEL)]:
        atoms = oracle.random_atoms(np.random.default_rng(0), 2500, 64)
        atoms[j] = -atoms[i] + 0.1 * atoms[j]
        atoms[j] /= np.linalg.norm(atoms[j])
        assert mutual_coherence(atoms) == pytest.approx(abs(atoms[i] @ atoms[j]), rel=1e-14)


def test_coherence_takes_the_memory_of_one_panel_rather_than_of_all_products():
    n_atoms = 8192
    atoms = oracle.random_atoms(np.random.default_rng(0), n_atoms, 16, np.float32)
    mutual_coherence(atoms)  # compiles
    tracemalloc.start()
    mutual_coherence(atoms)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    panel = ATOMS_PER_PANEL * n_atoms * 4
    assert panel <= peak < 1.2 * panel < n_atoms**2 * 4 / 6


# --- guaranteed k ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(numerator=st.integers(1, 10**4), denominator=st.integers(1, 10**4))
def test_guaranteed_k_is_the_largest_below_the_bound(numerator, denominator):
    assume(numerator <= denominator)
    coherence = Fraction(numerator, denominator)
    bound = (1 + 1 / coherence) / 2
    k = guaranteed_k(numerator / denominator)
    assert k < bound <= k + 1


@pytest.mark.parametrize("d", [3, 5, 7, 49, 101])
@DTYPES
def test_the_bound_itself_is_not_guaranteed(d, dtype):
    # The atoms of a simplex add up to zero: half of them and, with the other sign, the other half give one sample.
    atoms = simplex(d)
    k = (d + 1) // 2
    np.testing.assert_allclose(atoms[:k].sum(axis=0), -atoms[k:].sum(axis=0), atol=1e-12)
    assert guaranteed_k(1 / d) == guaranteed_k(mutual_coherence(atoms.astype(dtype))) == k - 1
    assert best_guaranteed_k(d + 1, d) == k - 1


def test_every_2_sparse_code_over_identity_and_hadamard_is_found_by_omp():
    atoms = identity_and_hadamard()
    assert mutual_coherence(atoms) == 1 / 4
    assert guaranteed_k(1 / 4) == 2
    supports = list(combinations(range(32), 2))
    values = [(1, 1), (1, -1), (1, 0.1), (0.01, -1), (-3, 2)]
    X = np.zeros((len(supports) * len(values), 32))
    for x, (support, coefficients) in zip(X, product(supports, values), strict=True):
        x[list(support)] = coefficients
    codes = Dictionary(atoms, 2).encode(X @ atoms, encoder="omp")
    np.testing.assert_allclose(oracle.dense(codes.indices, codes.values, 32), X, atol=1e-14)


def test_orthonormal_atoms_set_no_limit():
    assert guaranteed_k(0.0) == guaranteed_k(5e-324) == guaranteed_k(1e-300) == sys.maxsize
    assert guaranteed_k(mutual_coherence(np.eye(4))) == sys.maxsize


@TIGHT_FRAMES
def test_the_best_guaranteed_k_is_that_of_the_dictionaries_at_the_welch_bound(atoms, coherence):
    assert best_guaranteed_k(*atoms.shape) == guaranteed_k(mutual_coherence(atoms)) == guaranteed_k(coherence)


@settings(deadline=None)
@given(d=st.integers(1, 5000), excess=st.integers(1, 70_000))
def test_the_best_guaranteed_k_is_the_largest_below_the_bound(d, excess):
    m = d + excess
    k, squared_bound = best_guaranteed_k(m, d), Fraction(d * (m - 1), m - d)  # 1/μ²
    assert 2 * k - 1 < 0 or (2 * k - 1) ** 2 < squared_bound
    assert squared_bound <= (2 * k + 1) ** 2


def test_the_sizes_of_the_paper():
    # (1 + √(2304 · 4095 / 1792)) / 2 = 36.8
    assert best_guaranteed_k(4096, 2304) == 36
    assert isinstance(best_guaranteed_k(np.int32(65_536), np.int32(2304)), int)
    assert best_guaranteed_k(np.int32(65_536), np.int32(2304)) == best_guaranteed_k(65_536, 2304)


# --- the plan --------------------------------------------------------------------------------------------------------

SIZES = {"d": 64, "m": 256, "k": 4, "n": 10**6, "snr": 10.0}


def planned(**changed):
    return plan(**(SIZES | changed))


def condition(name, **changed):
    return {found.name: found for found in planned(**changed).conditions}[name]


def test_a_plan_with_enough_samples_is_ok():
    found = planned()
    assert found.ok
    assert [condition.name for condition in found.conditions] == ["sparsity", "counting", "coverage", "noise"]
    assert all(condition.met for condition in found.conditions)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("sparsity", {"k": 10}),
        ("counting", {"d": 2304, "m": 4096, "k": 36, "n": 2000, "snr": math.inf}),
        ("coverage", {"k": 1, "n": 1000, "snr": math.inf}),
        ("noise", {"snr": 0.01}),
    ],
)
def test_each_condition_can_fail_alone_and_is_named(name, changed):
    found = planned(**changed)
    failed = [condition for condition in found.conditions if not condition.met]
    assert [condition.name for condition in failed] == [name]
    assert not found.ok
    lines = str(found).splitlines()
    assert [line.split(":")[0] for line in lines if "NOT MET" in line] == [name]


@settings(deadline=None)
@given(
    d=st.integers(2, 300),
    m=st.integers(1, 2000),
    k=st.integers(1, 100),
    snr=st.floats(1e-3, 1e6),
    name=st.sampled_from(["counting", "coverage", "noise"]),
)
def test_exactly_the_samples_that_are_needed_do(d, m, k, snr, name):
    assume(k <= m and k < d)
    sizes = {"d": d, "m": m, "k": k, "snr": snr}
    needed = condition(name, **sizes).needed
    assert condition(name, **sizes, n=needed).met
    assert condition(name, **sizes, n=10 * needed).met
    assert needed == 1 or not condition(name, **sizes, n=needed - 1).met  # n = 0 is no number of samples


def test_exactly_the_k_that_is_guaranteed_is_sparse_enough():
    k = best_guaranteed_k(SIZES["m"], SIZES["d"])
    assert condition("sparsity", k=k).met
    assert not condition("sparsity", k=k + 1).met
    assert condition("sparsity").needed == k


def test_more_samples_never_unmeet_a_condition():
    met = np.array([[condition.met for condition in planned(n=n, snr=0.5).conditions] for n in 2 ** np.arange(22)])
    assert np.all(met[1:] >= met[:-1])
    assert not met[0, 1:].any()
    assert met[-1].all()
    errors = [planned(n=n, snr=0.5).atom_error for n in 2 ** np.arange(22)]
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), np.sqrt(2))


@settings(deadline=None)
@given(d=st.integers(2, 50), m=st.integers(1, 200), k=st.integers(1, 49))
def test_counting_asks_for_as_many_equations_as_unknowns(d, m, k):
    assume(k < d and k <= m)
    n = condition("counting", d=d, m=m, k=k).needed
    assert n * d >= m * (d - 1) + n * k
    assert n == 1 or (n - 1) * d < m * (d - 1) + (n - 1) * k


@pytest.mark.parametrize("k", [8, 9, 20])
def test_no_number_of_samples_makes_up_for_as_many_nonzero_coefficients_as_features(k):
    found = condition("counting", d=8, k=k, n=10**15)
    assert not found.met
    assert found.needed == math.inf
    assert "k < d" in str(found)


@pytest.mark.parametrize(("m", "k"), [(5, 1), (12, 3), (40, 4), (30, 29)])
def test_coverage_is_the_union_bound_on_the_chance_that_an_atom_is_left_out(m, k):
    def left_out(n):
        """Inclusion and exclusion: some of the atoms are in none of n uniform supports."""
        without = (Fraction(math.comb(m - i, k), math.comb(m, k)) for i in range(1, m + 1))
        return float(sum((-1) ** i * math.comb(m, i + 1) * share**n for i, share in enumerate(without)))

    n = condition("coverage", d=64, m=m, k=k).needed
    assert m * Fraction(m - k, m) ** n <= Fraction(5, 100) < m * Fraction(m - k, m) ** (n - 1)
    assert left_out(n) <= 0.05 < left_out(int(0.9 * n) - 1)


def test_one_sample_covers_all_atoms_if_it_uses_them_all():
    assert condition("coverage", m=4, k=4).needed == 1


@pytest.mark.parametrize("snr", [0.5, 4.0, 100.0])
def test_the_error_of_an_atom_is_that_of_least_squares_with_known_codes(snr):
    d, m, k, n = 20, 30, 3, 3000
    rng = np.random.default_rng(0)
    D = oracle.random_atoms(rng, m, d)
    errors = []
    for _ in range(4):
        X = np.zeros((n, m))
        for x in X:
            x[rng.choice(m, size=k, replace=False)] = 1.7 * rng.standard_normal(k)
        signal = X @ D
        sigma = np.sqrt(np.sum(signal**2) / (n * d * snr))
        found = np.linalg.lstsq(X, signal + sigma * rng.standard_normal((n, d)), rcond=None)[0]
        errors.append(np.sum((found - D) ** 2))
    expected = plan(d, m, k, n, snr)
    assert np.sqrt(np.mean(errors) / m) == pytest.approx(expected.atom_error, rel=0.1)
    # A total squared error of one is what "noise" asks for.
    assert n * np.mean(errors) == pytest.approx(condition("noise", d=d, m=m, k=k, snr=snr).needed, rel=0.1)


def test_without_noise_one_sample_leaves_none_in_the_atoms():
    assert planned(n=1, snr=math.inf).atom_error == 0
    assert condition("noise", n=1, snr=math.inf).met
    assert condition("noise", n=1, snr=math.inf).needed == 0


def test_noise_beyond_all_numbers_cannot_be_met():
    found = condition("noise", m=10**5, snr=5e-324)
    assert found.needed == math.inf
    assert not found.met


def test_a_plan_reads_as_a_line_for_each_condition_with_the_n_that_would_do():
    found = planned(n=5000)
    lines = str(found).splitlines()
    assert repr(found) == str(found)
    assert [line.split(":")[0] for line in lines[:-1]] == ["sparsity", "counting", "coverage", "noise"]
    assert lines[3].startswith("noise: NOT MET, needed 6,554, given 5,000: n ≥ m² / snr")  # 256² / 10
    assert "arXiv 1507.05498" in lines[3]
    assert lines[0].startswith("sparsity: met, needed 5, given 4: k ≤ ")
    assert "worst-case" in lines[0]
    assert lines[4] == "expected root-mean-square error of an atom: 0.0716"  # √(256 / 50,000)
    assert not planned(n=6553).ok
    assert planned(n=6554).ok


def test_whole_numbers_of_numpy_do_not_overflow():
    sizes = {"d": np.int32(2304), "m": np.int32(65_536), "k": np.int32(20), "n": np.int32(10**6), "snr": np.float32(10)}
    assert plan(**sizes) == plan(2304, 65_536, 20, 10**6, 10)


# --- restricted isometry ---------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("k", [1, 3, 8])
def test_orthonormal_atoms_are_an_isometry(dtype, k):
    atoms = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0].astype(dtype)
    found = restricted_isometry(atoms, k, random_state=0)
    assert found.smallest.shape == found.largest.shape == (100,)
    assert found.delta == pytest.approx(0, abs=rounding(dtype))


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.0, np.pi / 2, 2.0, np.pi])
def test_two_atoms_have_the_eigenvalues_1_plus_and_minus_their_cosine(angle):
    found = restricted_isometry(np.array([[1.0, 0.0], [np.cos(angle), np.sin(angle)]]), 2, n_supports=3, random_state=0)
    np.testing.assert_allclose(found.smallest, 1 - abs(np.cos(angle)), atol=1e-14)
    np.testing.assert_allclose(found.largest, 1 + abs(np.cos(angle)), atol=1e-14)
    assert found.delta == pytest.approx(abs(np.cos(angle)), abs=1e-14)


@pytest.mark.parametrize("k", [1, 2, 5, 9, 12])
@DTYPES
def test_eigenvalues_are_the_squared_singular_values_of_some_support(k, dtype):
    atoms = oracle.random_atoms(np.random.default_rng(1), 12, 9, dtype)
    found = restricted_isometry(atoms, k, n_supports=20, random_state=0)
    singular = np.array([singular_values(atoms[list(support)]) for support in combinations(range(12), k)])
    extremes = singular[:, [-1, 0]] ** 2
    for pair in zip(found.smallest, found.largest, strict=True):
        assert np.abs(extremes - pair).max(axis=1).min() < 1e-12


def singular_values(atoms):
    """As many as there are atoms: 0 for those that depend on the others."""
    found = np.linalg.svd(atoms.astype(np.float64), compute_uv=False)
    return np.append(found, np.zeros(len(atoms) - len(found)))


@pytest.mark.parametrize("k", [2, 3, 4])
def test_random_supports_bound_the_isometry_constant_from_below(k):
    atoms = oracle.random_atoms(np.random.default_rng(2), 9, 20)
    singular = np.array([singular_values(atoms[list(support)]) for support in combinations(range(9), k)])
    constant = np.abs(singular**2 - 1).max()
    few, many = (restricted_isometry(atoms, k, n_supports=n, random_state=0).delta for n in (1, 3000))
    assert few < constant
    assert many == pytest.approx(constant, rel=1e-12)  # 3,000 draws leave out none of at most 126 supports


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), n_atoms=st.integers(2, 30), n_features=st.integers(1, 15), k=st.integers(1, 30))
def test_the_isometry_constant_is_within_gershgorins_discs(seed, n_atoms, n_features, k):
    assume(k <= n_atoms)
    atoms = oracle.random_atoms(np.random.default_rng(seed), n_atoms, n_features)
    found = restricted_isometry(atoms, k, n_supports=5, random_state=seed)
    assert -1e-12 <= found.delta <= (k - 1) * mutual_coherence(atoms) + 1e-12


def test_supports_are_uniform_and_follow_the_seed():
    # One pair of atoms is coherent: its support is one of six.
    atoms = np.eye(4)
    atoms[3] = [0.6, 0, 0, 0.8]
    found = restricted_isometry(atoms, 2, n_supports=6000, random_state=0)
    assert np.mean(found.largest > 1.5) == pytest.approx(1 / 6, abs=0.02)  # four standard deviations
    again, other = (restricted_isometry(atoms, 2, n_supports=6000, random_state=seed) for seed in (0, 1))
    np.testing.assert_array_equal(found.largest, again.largest)
    assert np.any(found.largest != other.largest)
    generator = restricted_isometry(atoms, 2, n_supports=6000, random_state=np.random.default_rng(0))
    np.testing.assert_array_equal(found.largest, generator.largest)


# --- bad input -------------------------------------------------------------------------------------------------------

ATOMS = np.eye(3, 4)


def with_value(value):
    atoms = ATOMS.copy()
    atoms[1, 2] = value
    return atoms


@pytest.mark.parametrize("call", [mutual_coherence, lambda atoms: restricted_isometry(atoms, 1)])
@pytest.mark.parametrize(
    ("atoms", "error", "message"),
    [
        (np.eye(3, dtype=int), TypeError, r"atoms has dtype int64.*astype"),
        (np.eye(3, dtype=complex), TypeError, "atoms has dtype complex128"),
        (np.eye(3, dtype=np.longdouble), TypeError, "atoms has dtype"),
        (np.ones(1), ValueError, r"atoms has shape \(1,\).*two-dimensional"),
        (np.ones((0, 3)), ValueError, r"atoms has shape \(0, 3\).*not empty"),
        (np.ones((3, 0)), ValueError, "not empty"),
        (with_value(np.nan), ValueError, "atoms row 1 is not finite"),
        (with_value(np.inf), ValueError, "atoms row 1 is not finite"),
        (with_value(0.75), ValueError, "atoms row 1 has norm 1.25.*divide each row by its norm"),
        (np.zeros((2, 2)), ValueError, "atoms row 0 has norm 0"),
        (np.full((2, 2), 1e200), ValueError, "atoms row 0 has norm"),
    ],
)
def test_what_is_no_dictionary_is_refused(call, atoms, error, message):
    with pytest.raises(error, match=message):
        call(atoms)


@pytest.mark.parametrize("dtype", [np.float16, ">f4", ">f8"])
def test_other_floats_and_layouts_are_taken(dtype):
    atoms = identity_and_hadamard().astype(dtype)
    assert mutual_coherence(atoms) == mutual_coherence(np.asfortranarray(atoms)) == 1 / 4
    assert restricted_isometry(atoms, 2, n_supports=200, random_state=0).delta == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (welch_bound, {"m": 4, "d": 2}),
        (best_guaranteed_k, {"m": 4, "d": 2}),
        (plan, SIZES),
        (restricted_isometry, {"atoms": ATOMS, "k": 2, "n_supports": 1}),
    ],
)
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "=0 must be at least 1"),
        (-3, ValueError, "=-3 must be at least 1"),
        (2.0, TypeError, "=2.0 must be a whole number"),
        (True, TypeError, "=True must be a whole number"),
        ("2", TypeError, "='2' must be a whole number"),
        (None, TypeError, "=None must be a whole number"),
    ],
)
def test_counts_are_whole_and_positive(function, arguments, value, error, message):
    function(**arguments)
    for name in arguments.keys() - {"atoms", "snr"}:
        with pytest.raises(error, match=f"^{name}{re.escape(message)}"):
            function(**(arguments | {name: value}))


@pytest.mark.parametrize("snr", [0, -1.0, math.nan, True, "10", None, 1j])
def test_snr_is_a_positive_ratio_of_powers(snr):
    with pytest.raises(ValueError, match=f"snr={re.escape(repr(snr))} must be a positive number.*decibels"):
        planned(snr=snr)


@pytest.mark.parametrize("coherence", [-0.1, 1.001, math.nan, math.inf, True, "0.5", None, 1j])
def test_coherence_is_a_number_from_0_to_1(coherence):
    with pytest.raises(ValueError, match=f"coherence={re.escape(repr(coherence))} must be a number from 0 to 1"):
        guaranteed_k(coherence)


def test_a_support_is_no_larger_than_the_dictionary():
    with pytest.raises(ValueError, match=r"^k=257 exceeds m=256"):
        planned(k=257)
    with pytest.raises(ValueError, match=r"^k=4 exceeds the number of atoms, 3"):
        restricted_isometry(ATOMS, 4)


@pytest.mark.parametrize("random_state", [-1, 0.5, True, "seed", np.random.RandomState(0)])
def test_a_random_state_is_a_seed_or_a_generator(random_state):
    with pytest.raises((TypeError, ValueError), match="random_state="):
        restricted_isometry(ATOMS, 2, random_state=random_state)
