"""Where it is known which samples use an atom, the first dictionary is the oracle's, and a fit begins near its end."""

import subprocess
import sys

import dask
import dask.array as da
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.sparse import csr_array
from small_fits import in_chunks

from dbksvd_dask import DBKSVD, Callback, Dictionary, toy_problem
from dbksvd_dask.batches import OuterBatches
from dbksvd_dask.iteration import Update
from dbksvd_dask.kernels.pursuit import Pursuit
from dbksvd_dask.known_structure import atoms_of_support
from dbksvd_dask.training import Training

N_SAMPLES, N_FEATURES, N_ATOMS, K = 240, 8, 15, 3
ROUNDS, N_PASSES, TOL = 5, 8, 1e-3
SCHEDULERS = [{"scheduler": "synchronous"}, *({"scheduler": "threads", "num_workers": n} for n in (1, 2, 5))]


# --- rows of a batch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [None, "chunks"])
@settings(deadline=None, max_examples=30)
@given(
    chunks=st.lists(st.integers(1, 40) | st.sampled_from([1024, 5000]), min_size=1, max_size=6).map(tuple),
    batch_size=st.integers(1, 100) | st.integers(1000, 20_000),
    seed=st.integers(0, 5),
)
def test_the_row_numbers_of_a_batch_are_those_of_the_rows_it_reads(shuffle, chunks, batch_size, seed):
    values = np.random.default_rng(seed).standard_normal((sum(chunks), 2))
    embeddings = da.from_array(values, chunks=(chunks, 2))
    batches = OuterBatches(embeddings, max(batch_size, len(values) // 8), shuffle, seed, first_iteration=seed)
    for iteration in range(seed, seed + 2 * batches.n_batches):
        tasks = dask.compute(*batches.read(iteration), scheduler="synchronous")
        for pieces, rows in zip(tasks, batches.row_numbers(iteration), strict=True):
            np.testing.assert_array_equal(np.concatenate(pieces), values[rows])


# --- the rounds ------------------------------------------------------------------------------------------------------


def krylov(E, old):
    return oracle.krylov_atom(E, old, N_PASSES, TOL)


def first_dictionary(Y, support, D, n_known, batches, new_atom=krylov):
    """The first dictionary by hand: one round on each of these batches of row numbers.

    Coefficients are least squares on the usable atoms of a sample, zero where those are linearly dependent. An atom met
    for the first time begins as the sum of what that leaves of its users, and is no part of it; then all atoms with
    users but those known beforehand move together.
    """
    D, usable = np.array(D, np.float64), np.arange(len(D)) < n_known
    for rows in batches:
        X = np.zeros((len(rows), len(D)))
        for x, y, used in zip(X, Y[rows], support[rows] & usable, strict=True):
            atoms = np.flatnonzero(used)
            if np.linalg.matrix_rank(D[atoms]) == len(atoms):
                x[atoms] = np.linalg.lstsq(D[atoms].T, y, rcond=None)[0]
        R = Y[rows] - X @ D
        users = support[rows].T
        met = users.any(axis=1)
        begun = D.copy()
        for j in np.flatnonzero(met & ~usable):
            total = R[users[j]].sum(axis=0)
            begun[j] = total / np.linalg.norm(total) if np.any(total) else D[j]
        learned = met & (np.arange(len(D)) >= n_known)
        new = begun.copy()
        for j in np.flatnonzero(learned):
            new[j] = new_atom(R[users[j]] + np.outer(X[users[j], j], begun[j]), begun[j])
        D = oracle.move_together(begun, new, X * learned)
        usable |= learned
    return D


@pytest.fixture(scope="module")
def problem():
    """Rows, what is known of who uses which atoms, and atoms to begin with of which the first four are those planted.

    Atoms 11 to 13 have no known user, atom 10 only some that are none, atom 14 only a sample that is zero. Atoms 8 and
    9 are met in the last third of the rows. A few samples are said to use more atoms than there are features.
    """
    rng = np.random.default_rng(0)
    planted = oracle.random_atoms(rng, N_ATOMS, N_FEATURES)
    X = np.zeros((N_SAMPLES, N_ATOMS))
    for x in X:
        x[rng.choice(14, size=K, replace=False)] = rng.uniform(1, 2, K)
    support = X != 0
    support[:, 10:] = False
    support[::9, 10] = True
    support[: 2 * N_SAMPLES // 3, 8:10] = False
    support[[5, 100, 230], :11] = True
    X[50] = 0
    Y = X @ planted + 0.05 * rng.standard_normal((N_SAMPLES, N_FEATURES))
    Y[50] = 0
    support[50, 14] = True
    D = oracle.random_atoms(rng, N_ATOMS, N_FEATURES)
    D[:4] = planted[:4]
    return Y, support, D


def first_atoms(Y, support, D, n_known=0, *, mean=None, batch_size=N_SAMPLES, shuffle=None, group_sizes=(), k=N_ATOMS):
    """The first dictionary, and the batches of row numbers that it comes from."""
    batches = OuterBatches(da.from_array(Y, chunks=(37, -1)), batch_size, shuffle, seed=3, first_iteration=2)
    training = Training(Pursuit(k, group_sizes=group_sizes), Update(n_fixed=1), mean, seed=0, average=False)
    atoms = atoms_of_support(batches, csr_array(support, dtype=np.float64), D, n_known, training)
    return atoms, [np.concatenate(batches.row_numbers(number)) for number in range(2, 2 + ROUNDS)]


@pytest.mark.parametrize("shuffle", [None, "chunks"])
@pytest.mark.parametrize("batch_size", [N_SAMPLES, 90, 30])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("n_known", [0, 4])
def test_the_first_dictionary_is_that_of_the_oracle(problem, n_known, centred, batch_size, shuffle):
    Y, support, D = problem
    mean = Y.mean(axis=0) if centred else None
    given = D.copy()
    atoms, batches = first_atoms(Y, support, D, n_known, mean=mean, batch_size=batch_size, shuffle=shuffle)
    expected = first_dictionary(Y - mean if centred else Y, support, D, n_known, batches)
    np.testing.assert_allclose(atoms, expected, rtol=0, atol=1e-10)
    # To the bit: what is known, and what nothing is known about.
    np.testing.assert_array_equal(atoms[:n_known], D[:n_known])
    np.testing.assert_array_equal(atoms[11:14], D[11:14])
    np.testing.assert_array_equal(D, given)


@pytest.mark.parametrize("n_known", [0, 4])
def test_new_atoms_are_singular_vectors_of_what_their_users_leave(problem, n_known):
    Y, support, D = problem
    atoms, batches = first_atoms(Y, support, D, n_known)

    def singular(E, old):
        return oracle.singular_atom(E, old) if np.any(E) else old

    expected = first_dictionary(Y, support, D, n_known, batches, singular)
    np.testing.assert_allclose(atoms, expected, rtol=0, atol=1e-3)


def test_single_precision_is_close_to_double(problem):
    Y, support, D = problem
    single, batches = first_atoms(Y.astype(np.float32), support, D.astype(np.float32), 4, batch_size=90)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, first_dictionary(Y, support, D, 4, batches), rtol=0, atol=1e-4)


def test_matryoshka_groups_are_nothing_to_the_first_dictionary(problem):
    Y, support, D = problem
    flat, _ = first_atoms(Y, support, D)
    grouped, _ = first_atoms(Y, support, D, group_sizes=(4, 11))
    np.testing.assert_array_equal(grouped, flat)


def test_samples_may_be_known_to_use_more_than_k_atoms(problem):
    """Least squares and sums have all of them."""
    Y, support, D = problem
    atoms, batches = first_atoms(Y, support, D, k=K)
    np.testing.assert_allclose(atoms, first_dictionary(Y, support, D, 0, batches), rtol=0, atol=1e-10)


# --- fits ------------------------------------------------------------------------------------------------------------


class First(Callback):
    """Notes what a fit begins with."""

    def begin(self, model, n_iterations):
        self.atoms = model.components_


def fit(Y, support, **parameters):
    """The dictionary that a fit begins with, and the model."""
    first = First()
    model = DBKSVD(20, 3, **({"max_iter": 1, "random_state": 0, "callbacks": [first]} | parameters))
    model.fit(Y, support=support)
    return first.atoms, model


@pytest.fixture(scope="module")
def toy():
    return toy_problem(600, n_features=16, n_atoms=20, n_nonzero_coefs=3, noise=0, random_state=0)


def cosines(atoms, planted):
    return np.sum(atoms * planted, axis=1)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"init": "random"},
        {"batch_size": 200},
        {"batch_size": 200, "shuffle": "chunks"},
        {"batch_size": 90, "shuffle": "chunks"},
        {"nonnegative": True},
        {"encoder": "omp"},
        {"matryoshka": [8, 12]},
        {"inner_batch_size": 4},
        {"n_passes": 1, "solver": "power"},
        {"dtype": "float64"},
    ],
    ids=str,
)
def test_without_noise_the_whole_support_gives_the_planted_atoms(toy, parameters):
    first, _ = fit(da.from_array(toy.embeddings, chunks=(70, -1)), toy.support(1.0), **parameters)
    # On their side, too: the coefficients are positive.
    assert np.all(cosines(first, toy.atoms) > (0.999 if parameters.get("batch_size", 200) >= 200 else 0.99))


@pytest.mark.parametrize("parameters", [{}, {"nonnegative": True}, {"encoder": "omp"}], ids=str)
def test_the_first_error_is_about_that_of_the_planted_atoms(toy, parameters):
    _, model = fit(toy.embeddings, toy.support(1.0), **parameters)
    codes = Dictionary(toy.atoms, 3, **parameters).encode(toy.embeddings).to_csr()
    planted = oracle.relative_error(toy.embeddings, toy.embeddings - codes @ toy.atoms)
    error = model.history_.train_relative_error.values[0]
    # Atoms that are off by an angle of 0.03 leave so much more.
    assert abs(error - planted) < 0.03
    assert error < fit(toy.embeddings, None, **parameters)[1].history_.train_relative_error.values[0] / 2


@pytest.mark.parametrize("init", ["samples", "random"])
@pytest.mark.parametrize(("fraction", "least"), [(0.25, 0.8), (0.5, 0.95), (0.75, 0.95)])
def test_atoms_with_known_users_begin_near_those_planted_and_others_as_ever(toy, fraction, least, init):
    first, _ = fit(toy.embeddings, toy.support(fraction), init=init)
    otherwise, _ = fit(toy.embeddings, None, init=init)
    n_known = round(fraction * 20)
    assert np.all(cosines(first, toy.atoms)[:n_known] > least)
    assert np.all(np.abs(cosines(otherwise, toy.atoms)) < least)
    np.testing.assert_array_equal(first[n_known:], otherwise[n_known:])


def test_some_users_of_an_atom_are_enough(toy):
    """Of each atom a third of its users, which differ from atom to atom."""
    support = toy.support(1.0).toarray()
    support[np.random.default_rng(0).random(support.shape) > 1 / 3] = 0
    first, _ = fit(toy.embeddings, support)
    assert np.all(cosines(first, toy.atoms) > 0.8)


def test_nothing_known_is_no_support_at_all(toy):
    models = [fit(toy.embeddings, support, max_iter=3)[1] for support in (None, toy.support(0), csr_array((600, 20)))]
    for model in models[1:]:
        np.testing.assert_array_equal(model.components_, models[0].components_)


def test_known_atoms_stay(toy):
    given = {"fixed_atoms": toy.atoms[:2], "known_atoms": toy.atoms[2:5]}
    first, model = fit(toy.embeddings, toy.support(0.5), **given)
    np.testing.assert_array_equal(first[:5], toy.atoms[:5])
    np.testing.assert_array_equal(model.components_[:2], toy.atoms[:2])


@pytest.mark.parametrize("n_known", [0, 5])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_a_fit_begins_with_the_dictionary_of_the_oracle(toy, fraction, center, n_known):
    Y, support = toy.embeddings.astype(np.float64), toy.support(fraction)
    D = oracle.random_atoms(np.random.default_rng(1), 20, 16)
    known = {"fixed_atoms": D[:2], "known_atoms": D[2:n_known]} if n_known else {}
    first, _ = fit(Y, support, center=center, init=D[n_known:], **known)
    rows = Y - Y.mean(axis=0) if center else Y
    expected = first_dictionary(rows, support.toarray() != 0, D, n_known, [np.arange(600)] * ROUNDS)
    np.testing.assert_allclose(first, expected, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(first[:n_known], D[:n_known])


# --- what is given, in whatever form ---------------------------------------------------------------------------------


def unsorted(support):
    """The atoms of each sample in descending order, and zeros among them that are stored."""
    rows = csr_array(support)
    parts = [np.flatnonzero(row)[::-1] for row in rows.toarray()]
    parts = [np.append(part, np.setdiff1d(np.arange(20), part)[:1]) for part in parts]
    data = [np.arange(len(part)) < len(part) - 1 for part in parts]
    starts = np.cumsum([0, *map(len, parts)])
    made = csr_array((np.concatenate(data).astype(np.int8), np.concatenate(parts), starts), rows.shape)
    assert not made.has_sorted_indices
    assert made.nnz > rows.nnz
    return made


FORMS = {
    **{name: getattr(sparse, name) for name in ("csr_array", "csc_array", "coo_array", "lil_array", "bsr_array")},
    **{name: getattr(sparse, name) for name in ("csr_matrix", "csc_matrix", "coo_matrix", "dok_matrix")},
    **{f"csr of {dtype}": lambda S, dtype=dtype: S.astype(dtype) for dtype in ("?", "i1", "u8", "i8", "f4", "f8")},
    **{
        f"dense {dtype}": lambda S, dtype=dtype: S.toarray().astype(dtype)
        for dtype in ("?", "u1", "i8", "f2", "f4", "f8")
    },
    "dense in Fortran order": lambda S: np.asfortranarray(S.toarray()),
    "unsorted": unsorted,
}


@pytest.mark.parametrize("form", FORMS)
def test_support_may_come_in_any_form(toy, form):
    support = toy.support(0.5)
    given, again = FORMS[form](support), FORMS[form](support)
    expected, _ = fit(toy.embeddings, support)
    found, _ = fit(toy.embeddings, given)
    np.testing.assert_array_equal(found, expected)
    # It stays as it is, entry by entry.
    assert type(given) is type(again)
    assert given.dtype == again.dtype
    if sparse.issparse(given) and given.format in ("csr", "csc", "bsr"):
        for name in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(given, name), getattr(again, name))
    elif sparse.issparse(given):
        assert (given != again).nnz == 0
    else:
        np.testing.assert_array_equal(given, again)


@pytest.mark.parametrize("batch_size", [65536, 200])
def test_embeddings_may_come_in_any_form(toy, tmp_path, batch_size):
    Y, support = toy.embeddings, toy.support(0.5)
    np.save(tmp_path / "Y.npy", Y)
    expected, model = fit(Y, support, batch_size=batch_size)
    for source in (da.from_array(Y, chunks=(70, -1)), tmp_path / "Y.npy", str(tmp_path / "Y.npy")):
        found, fitted = fit(source, support, batch_size=batch_size)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(fitted.components_, model.components_)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_no_bit_depends_on_the_scheduler(fraction, dtype):
    toy = toy_problem(9000, n_features=16, n_atoms=20, n_nonzero_coefs=3, random_state=0)
    Y = da.from_array(toy.embeddings.astype(dtype), chunks=(700, -1))
    found = []
    for scheduler in SCHEDULERS:
        with dask.config.set(**scheduler):
            found.append(fit(Y, toy.support(fraction), batch_size=4500, shuffle="chunks", max_iter=2))
    for first, model in found[1:]:
        np.testing.assert_array_equal(first, found[0][0])
        np.testing.assert_array_equal(model.components_, found[0][1].components_)


# --- the way to the minimum (paper, Fig. 3) --------------------------------------------------------------------------

SEEDS = range(3)
FRACTIONS = {0: 60, 0.5: 40, 1: 6}
"""γ, and how many iterations."""


@pytest.fixture(scope="module")
def ways():
    """Errors of all samples after each iteration over that of the planted atoms: for each seed and γ."""
    found = {}
    for seed in SEEDS:
        toy = toy_problem(4096, n_features=64, n_atoms=128, n_nonzero_coefs=6, random_state=seed)
        codes = Dictionary(toy.atoms, 6).encode(toy.embeddings).to_csr()
        planted = oracle.relative_error(toy.embeddings, toy.embeddings - codes @ toy.atoms)
        Y = da.from_array(toy.embeddings, chunks=(256, -1))
        parameters = {"init": "random", "batch_size": 2048, "shuffle": "chunks", "max_coherence": 0.8}
        for fraction, max_iter in FRACTIONS.items():
            model = DBKSVD(128, 6, max_iter=max_iter, random_state=seed, **parameters)
            model.fit(Y, validation=Y, support=toy.support(fraction))
            found[seed, fraction] = model.history_.validation_relative_error.values / planted
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_the_more_is_known_the_shorter_the_way(ways, seed):
    """To an error half above that of the planted atoms: further down it depends on when a last lost atom is found."""
    without, half, whole = (np.flatnonzero(ways[seed, fraction] < 1.5)[0] for fraction in FRACTIONS)
    assert whole == 0
    assert 0 < half <= 0.6 * without
    # At the beginning, too.
    assert ways[seed, 1][0] < 1.1 < 0.9 * ways[seed, 0.5][0] < 0.8 * ways[seed, 0][0]


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_the_minimum_is_that_of_the_planted_atoms_whatever_is_known(ways, fraction):
    """But for a lost atom or two, which cost a tenth each, in some of the fits."""
    minima = [ways[seed, fraction].min() for seed in SEEDS]
    assert min(minima) < 1.03
    assert max(minima) < 1.25
    assert min(minima) > 0.95  # noise cannot be learned from so many samples


# --- bad input -------------------------------------------------------------------------------------------------------


def refusal(support, error=ValueError, **parameters):
    """What fit says to it, before it reads any data and leaving the model as it was."""
    read = []
    Y = in_chunks(np.ones((8, 4), np.float32), read.append, rows=4)
    model = DBKSVD(3, 2, random_state=0, **parameters)
    with pytest.raises(error) as caught:
        model.fit(Y, support=support)
    assert not read
    assert not hasattr(model, "components_")
    assert not hasattr(model, "n_features_in_")
    return str(caught.value)


def users(dtype=np.int8):
    """(8, 3) of 0 and 1."""
    return csr_array((np.arange(24).reshape(8, 3) % 5 == 0).astype(dtype))


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("shape", [(3, 8), (8, 4), (8, 2), (7, 3), (9, 3), (0, 3), (8, 0), (1, 24)])
def test_support_has_a_row_a_sample_and_a_column_an_atom(shape, center):
    for support in (csr_array(shape), np.zeros(shape)):
        message = refusal(support, center=center)
        assert message == f"support has shape {shape}: the samples of Y and n_components make it (8, 3)"


def test_a_transposed_support_is_told_by_its_shape():
    assert "support has shape (3, 8)" in refusal(users().T)


def test_a_support_of_one_dimension_is_refused():
    assert "support has shape (8,)" in refusal(np.ones(8))
    assert "support has shape (3,)" in refusal(sparse.coo_array(np.ones(3)))


@pytest.mark.parametrize("value", [0.5, 2, -1, 1e-9, np.nan, np.inf])
@pytest.mark.parametrize("form", [csr_array, sparse.csc_matrix, np.asarray])
def test_support_is_0_and_1(form, value):
    dense = users(float).toarray()
    dense[4, 1] = value
    assert f"support holds {value:g}: it is 1 where a sample uses an atom" in refusal(form(dense))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float64])
def test_entries_that_are_given_twice_are_added_up(dtype):
    entries = np.array([1, 1], dtype)
    assert "support holds 2" in refusal(sparse.coo_array((entries, ([1, 1], [2, 2])), shape=(8, 3)))
    assert "support holds 2" in refusal(csr_array((entries, [2, 2], [0, 0, 2, 2, 2, 2, 2, 2, 2]), shape=(8, 3)))


@pytest.mark.parametrize("dtype", ["c8", "c16", "U1", "S1", "O", "M8[s]"])
def test_a_support_of_no_numbers_is_refused(dtype):
    assert f"support has dtype {np.dtype(dtype)}" in refusal(np.ones((8, 3)).astype(dtype), TypeError)


@pytest.mark.parametrize(
    "support", [users().toarray().tolist(), [], "support.npz", 1, da.ones((8, 3)), True, range(8)], ids=str
)
def test_what_is_no_array_is_refused(support):
    name = type(support).__name__
    assert f"support is a {name}: pass a SciPy sparse array of 0 and 1" in refusal(support, TypeError)


@pytest.mark.parametrize("atom", [3, -1, 2**31 - 1])
@pytest.mark.parametrize("made", ["by hand", "changed"])
def test_an_atom_that_there_is_not_is_refused(atom, made):
    support = users()
    if made == "changed":
        support.indices[0] = atom
    else:
        support = csr_array((np.ones(1, np.int8), [atom], [0, 1, 1, 1, 1, 1, 1, 1, 1]), shape=(8, 3))
    message = refusal(support)
    assert "support is no valid sparse array of shape (8, 3)" in message
    assert "indices" in message


def test_row_pointers_that_go_back_are_refused():
    support = users()
    support.indptr[2] = support.indptr[1] - 1
    assert "support is no valid sparse array of shape (8, 3)" in refusal(support)


def test_samples_and_atoms_that_there_are_not_are_refused_in_other_forms():
    """In a process of its own: where SciPy follows such indices beyond its memory, that is the end of it."""
    script = """
import numpy as np
from scipy.sparse import coo_array, csc_array
from dbksvd_dask.inputs import check_support

coo = [coo_array((np.ones(1), ([7], [1])), shape=(8, 3)) for _ in range(3)]
coo[0].coords[0][0] = coo[1].coords[1][0] = 2**30
coo[2].coords[0][0] = -(2**30)
for support in (csc_array((np.ones(1), [2**30], [0, 1, 1, 1]), shape=(8, 3)), *coo):
    try:
        check_support(support, (8, 3))
    except ValueError as error:
        print(error)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0
    messages = ended.stdout.splitlines()
    assert len(messages) == 4
    assert all(message.startswith("support is no valid sparse array of shape (8, 3)") for message in messages)


def test_a_masked_support_is_refused():
    """As masked embeddings are."""
    dense = users().toarray()
    assert "support is a MaskedArray" in refusal(np.ma.masked_array(dense, mask=dense == 1), TypeError)
