"""One iteration as a Dask graph is one iteration of the oracle, whatever computes it."""

from pathlib import Path

import dask
import numpy as np
import oracle
import pytest
from dask.delayed import delayed

from dbksvd_dask import DBKSVD, open_embeddings
from dbksvd_dask.batches import ROWS_PER_TASK
from dbksvd_dask.encoding import evaluate_chunks, share_dictionary
from dbksvd_dask.iteration import Update, iterate
from dbksvd_dask.kernels.blas import single_threaded
from dbksvd_dask.kernels.pursuit import Pursuit

N_SAMPLES, N_FEATURES, N_ATOMS, K = 200, 8, 15, 3
SEED = [7, 1, 4]
SAMPLE = Path(__file__).parents[1] / "data" / "minilm-wikitext2.zarr"
SCHEDULERS = [{"scheduler": "synchronous"}, *({"scheduler": "threads", "num_workers": n} for n in (1, 2, 5))]


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    planted = oracle.random_atoms(rng, N_ATOMS, N_FEATURES)
    Y = oracle.sparse_samples(rng, N_SAMPLES, planted, K)
    Y[[3, 150]] = 0
    return Y, oracle.unit_rows(planted + 0.2 * rng.standard_normal(planted.shape))


def lazily(Y, n_tasks=5):
    """Tasks that read the rows, those of each task in two pieces."""
    return [delayed(np.array_split)(rows, 2) for rows in np.array_split(Y, n_tasks)]


def one_iteration(Y, D, pursuit, update, **scheduler):
    """New atoms and statistics of the batch."""
    with single_threaded(), dask.config.set(**(scheduler or {"scheduler": "threads"})):
        tasks = iterate(lazily(Y), share_dictionary(D, None, pursuit), len(D), pursuit, update, SEED)
        return dask.compute(tasks.atoms, tasks.statistics)


UPDATES = [("lanczos", 1), ("lanczos", 2), ("lanczos", 3), ("power", 1), ("power", 2), ("power", 3)]
PURSUITS = [Pursuit(K), Pursuit(K, rtol=0.5), Pursuit(K, nonnegative=True), Pursuit(K, "omp")]


@pytest.mark.parametrize("inner_batch_size", [None, 1, 3, 7, N_ATOMS])
@pytest.mark.parametrize(
    ("pursuit", "solver", "n_passes"),
    [(PURSUITS[0], *update) for update in UPDATES] + [(pursuit, "lanczos", 2) for pursuit in PURSUITS[1:]],
    ids=str,
)
def test_an_iteration_is_that_of_the_oracle(problem, pursuit, solver, n_passes, inner_batch_size):
    Y, D = problem
    update = Update(inner_batch_size, n_passes, solver, replace_unused=None)
    atoms, statistics = one_iteration(Y, D, pursuit, update)
    codes, expected = oracle.iteration(
        Y,
        D,
        K,
        encoder=pursuit.encoder,
        nonnegative=pursuit.nonnegative,
        rtol=pursuit.rtol,
        solver=solver,
        n_passes=n_passes,
        size=inner_batch_size,
        seed=SEED,
    )
    assert codes.margins.min() > 1e-10  # no choice of the pursuit is left to rounding
    np.testing.assert_allclose(atoms, expected, rtol=0, atol=1e-10)

    R = oracle.residual(Y, D, codes.indices, codes.values)
    errors = statistics.errors
    assert errors.n_samples == N_SAMPLES
    np.testing.assert_allclose(errors.relative_error, oracle.relative_error(Y, R), rtol=1e-12)
    np.testing.assert_allclose(errors.variance_explained, oracle.variance_explained(Y, R), rtol=1e-12)
    np.testing.assert_array_equal(statistics.usage, [np.count_nonzero(codes.indices == j) for j in range(N_ATOMS)])
    assert statistics.l0 == np.count_nonzero(codes.indices >= 0) / N_SAMPLES


GROUP_WISE = [
    Pursuit(K, group_sizes=(4, 11)),
    Pursuit(5, group_sizes=(4, 3, 8)),
    Pursuit(5, group_sizes=(4, 3, 8), rtol=0.5),
    Pursuit(5, "omp", group_sizes=(4, 3, 8)),
    Pursuit(K, group_sizes=(N_ATOMS,)),
]


def by_hand(Y, D, pursuit, update, n_fixed=0):
    """Codes and new atoms."""
    return oracle.iteration(
        Y,
        D,
        pursuit.n_nonzero_coefs,
        encoder=pursuit.encoder,
        nonnegative=pursuit.nonnegative,
        rtol=pursuit.rtol,
        solver=update.solver,
        n_passes=update.n_passes,
        tol=update.tol,
        size=update.inner_batch_size,
        seed=SEED,
        group_sizes=pursuit.group_sizes,
        n_fixed=update.n_fixed,
    )


@pytest.mark.parametrize("inner_batch_size", [None, 1, 3, N_ATOMS])
@pytest.mark.parametrize(("solver", "n_passes"), [("lanczos", 2), ("power", 1)])
@pytest.mark.parametrize("pursuit", GROUP_WISE, ids=str)
def test_a_group_wise_iteration_is_that_of_the_oracle(problem, pursuit, solver, n_passes, inner_batch_size):
    Y, D = problem
    update = Update(inner_batch_size, n_passes, solver, replace_unused=None)
    atoms, statistics = one_iteration(Y, D, pursuit, update)
    codes, expected = by_hand(Y, D, pursuit, update)
    assert codes.margins.min() > 1e-10  # no choice of the pursuit is left to rounding
    np.testing.assert_allclose(atoms, expected, rtol=0, atol=1e-10)
    # The statistics are those of all groups together.
    R = oracle.residual(Y, D, codes.indices, codes.values)
    assert statistics.errors.n_samples == N_SAMPLES
    np.testing.assert_allclose(statistics.errors.relative_error, oracle.relative_error(Y, R), rtol=1e-12)
    np.testing.assert_allclose(statistics.errors.variance_explained, oracle.variance_explained(Y, R), rtol=1e-12)
    np.testing.assert_array_equal(statistics.usage, [np.count_nonzero(codes.indices == j) for j in range(N_ATOMS)])
    assert statistics.l0 == np.count_nonzero(codes.indices >= 0) / N_SAMPLES


@pytest.mark.parametrize("inner_batch_size", [None, 3])
def test_one_group_of_all_atoms_is_no_group(problem, inner_batch_size):
    Y, D = problem
    update = Update(inner_batch_size)
    grouped, flat = (one_iteration(Y, D, Pursuit(K, group_sizes=sizes), update)[0] for sizes in ((N_ATOMS,), ()))
    np.testing.assert_array_equal(grouped, flat)


def test_what_the_later_groups_do_is_nothing_to_the_first(problem):
    """Its atoms and coefficients are those of a dictionary and of a k of its own."""
    Y, D = problem
    update = Update(replace_unused=None)
    all_groups, _ = one_iteration(Y, D, Pursuit(5, group_sizes=(6, 9)), update)
    alone, _ = one_iteration(Y, D[:6], Pursuit(3), update)
    np.testing.assert_allclose(all_groups[:6], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tol", [0.2, 1e-3])
@pytest.mark.parametrize("inner_batch_size", [None, 3])
@pytest.mark.parametrize("pursuit", [Pursuit(K), GROUP_WISE[1]], ids=str)
def test_an_iteration_with_a_tolerance_is_that_of_the_oracle(problem, pursuit, inner_batch_size, tol):
    Y, D = problem
    update = Update(inner_batch_size, n_passes=5, replace_unused=None, tol=tol)
    atoms, _ = one_iteration(Y, D, pursuit, update)
    np.testing.assert_allclose(atoms, by_hand(Y, D, pursuit, update)[1], rtol=0, atol=1e-10)
    without, _ = one_iteration(Y, D, pursuit, Update(inner_batch_size, n_passes=5, replace_unused=None))
    assert np.abs(atoms - without).max() > 1e-6  # fewer passes are not the same


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tol", [0.0, 1e-2, 1e-6])
@pytest.mark.parametrize("inner_batch_size", [None, 4])
def test_with_one_atom_a_sample_new_atoms_are_the_singular_vectors_of_its_users(dtype, tol, inner_batch_size):
    """With k = 1 the error matrix of an atom is its users: by LAPACK, and to the tolerance.

    Atom 0 has one user, atom 1 users that are all the same, atom 2 multiples of one row, atom 3 none but itself as it
    is, atoms 4 and 5 have two and three users, atom 6 has many.
    """
    rng = np.random.default_rng(5)
    D = np.eye(7, 10) + 0.05 * rng.standard_normal((7, 10))
    D = oracle.unit_rows(D)
    near = [oracle.unit_rows(D[[j]] + 0.1 * rng.standard_normal((n, 10))) for j, n in enumerate([1, 1, 1, 1, 2, 3, 60])]
    users = [near[0], np.repeat(near[1], 9, axis=0), np.outer([2.0, -1.0, 0.3], near[2]), 3 * D[[3]], *near[4:]]
    users[6] *= rng.uniform(-3, 3, (60, 1))
    Y = rng.permutation(np.concatenate([*users, np.zeros((2, 10))]))
    update = Update(inner_batch_size, n_passes=10, replace_unused=None, tol=tol)
    atoms, statistics = one_iteration(Y.astype(dtype), D.astype(dtype), Pursuit(1), update)
    assert statistics.usage.tolist() == [len(rows) for rows in users]
    rounding = 200 * np.finfo(dtype).eps
    for j, rows in enumerate(users):
        _, sizes, V = np.linalg.svd(rows, full_matrices=False)
        gap = 1 - (sizes[1] / sizes[0]) ** 2 if len(sizes) > 1 else 1
        expected = oracle.towards(V[0], D[j])
        # The last pass takes the vector nearer by the ratio of the first two eigenvalues, but that is not counted on.
        limit = rounding / gap if j < 4 else (tol + rounding) / gap
        assert np.linalg.norm(atoms[j] - expected) <= limit, j


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("inner_batch_size", [None, 4])
@pytest.mark.parametrize("tol", [0.0, 1e-3])
def test_atoms_stay_where_nothing_is_left(dtype, inner_batch_size, tol):
    """Zero residual: E_j = x_j d_jᵀ."""
    Y = np.random.default_rng(6).choice([-2.0, 0.0, 1.0], (50, 6)).astype(dtype)
    D = np.eye(6, dtype=dtype)[[3, 1, 5, 0, 2, 4]]
    atoms, statistics = one_iteration(Y, D, Pursuit(6), Update(inner_batch_size, n_passes=4, tol=tol))
    assert statistics.errors.relative_error == 0
    np.testing.assert_allclose(atoms, D, rtol=0, atol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("nonnegative", [False, True])
def test_one_atom_at_a_time_with_enough_passes_is_classic_ksvd(problem, nonnegative):
    Y, D = problem
    D = D[:6]
    update = Update(inner_batch_size=1, n_passes=N_FEATURES, replace_unused=None)
    atoms, _ = one_iteration(Y, D, Pursuit(K, nonnegative=nonnegative), update)
    codes = oracle.matching_pursuit(Y, D, K, nonnegative=nonnegative)
    one_by_one = oracle.inner_batches(6, 1, SEED)
    expected, values, R = oracle.update(
        Y, D, codes.indices, codes.values, one_by_one, oracle.singular_atom, nonnegative
    )
    np.testing.assert_allclose(atoms, expected, rtol=0, atol=1e-9)
    # The oracle's residual followed every atom, and the error has fallen.
    np.testing.assert_allclose(R, oracle.residual(Y, expected, codes.indices, values), atol=1e-12)
    assert np.sum(R**2) < 0.95 * np.sum(oracle.residual(Y, D, codes.indices, codes.values) ** 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("group_sizes", [(), (4, 11)])
@pytest.mark.parametrize(
    "update", [Update(), Update(3, n_fixed=2), Update(7, 3, "power", "random"), Update(n_passes=3, tol=0.05)], ids=str
)
def test_no_bit_depends_on_the_scheduler(problem, update, group_sizes, dtype):
    Y, D = (array.astype(dtype) for array in problem)
    pursuit = Pursuit(K, group_sizes=group_sizes)
    first, *others = [one_iteration(Y, D, pursuit, update, **scheduler)[0] for scheduler in SCHEDULERS]
    assert first.dtype == dtype
    for atoms in others:
        np.testing.assert_array_equal(atoms, first)


def test_single_precision_is_close_to_double(problem):
    Y, D = problem
    Y = Y[oracle.matching_pursuit(Y, D, K).margins > oracle.pursuit_rounding(np.float32, N_FEATURES, 4 * K)]
    assert len(Y) > N_SAMPLES / 2
    update = Update(5, replace_unused=None)
    double, _ = one_iteration(Y, D, Pursuit(K), update)
    single, _ = one_iteration(Y.astype(np.float32), D.astype(np.float32), Pursuit(K), update)
    np.testing.assert_allclose(single, double, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shift", [0, 1], ids=["of any sign", "all of one sign"])
def test_an_atom_that_all_samples_use_loses_no_digits_over_many_tasks(shift):
    n_samples = 2**17 + 1
    rng = np.random.default_rng(0)
    Y = (shift + rng.standard_normal((n_samples, 6)) * [2, 1, 1, 0.5, 0.5, 0.5]).astype(np.float32)
    D = oracle.random_atoms(rng, 1, 6, np.float32)
    tasks = -(-n_samples // ROWS_PER_TASK)
    single, double = (
        iterate(
            lazily(Y, tasks), share_dictionary(D.astype(dtype), None, Pursuit(1)), 1, Pursuit(1), Update(), SEED
        ).atoms
        for dtype in (np.float32, np.float64)
    )
    single, double = dask.compute(single, double)
    np.testing.assert_allclose(single, double, rtol=0, atol=2e-6)
    # With one atom and k = 1, E = R + x dᵀ is Y itself.
    expected = oracle.krylov_atom(Y.astype(np.float64), oracle.unit_rows(D.astype(np.float64))[0], n_passes=2)
    np.testing.assert_allclose(double[0], expected, rtol=0, atol=1e-6)


def test_the_graph_of_many_inner_batches_is_made_once():
    # One graph for all that an iteration returns; dask.delayed would merge those of its arguments at every call.
    shared, chunks = share_dictionary(np.eye(128), None, Pursuit(K)), lazily(np.eye(128), 8)
    tasks = iterate(chunks, shared, 128, Pursuit(K), Update(4), SEED)
    assert len({id(task.__dask_graph__()) for task in tasks}) == 1


def test_evaluation_is_encoding_without_update(problem):
    Y, D = problem
    statistics = evaluate_chunks(lazily(Y), share_dictionary(D, None, Pursuit(K)), Pursuit(K)).compute()
    codes = oracle.matching_pursuit(Y, D, K)
    R = oracle.residual(Y, D, codes.indices, codes.values)
    np.testing.assert_allclose(statistics.errors.relative_error, oracle.relative_error(Y, R), rtol=1e-12)
    assert statistics.n_unused == N_ATOMS - len(set(codes.indices.ravel()) - {-1})


# --- all atoms at once where codes are of one sign -------------------------------------------------------------------


def one_signed(seed, n_samples=2000, n_features=32, n_atoms=48, k=6):
    """Samples of k atoms each with coefficients of 1 to 2, and atoms near those planted."""
    rng = np.random.default_rng(seed)
    planted = oracle.random_atoms(rng, n_atoms, n_features)
    X = np.zeros((n_samples, n_atoms))
    for x in X:
        x[rng.choice(n_atoms, size=k, replace=False)] = rng.uniform(1, 2, k)
    Y = X @ planted + 0.02 * rng.standard_normal((n_samples, n_features))
    return Y, oracle.unit_rows(planted + 0.15 * rng.standard_normal(planted.shape))


@pytest.mark.parametrize("inner_batch_size", [None, 7, 20])
@pytest.mark.parametrize("group_sizes", [(), (20, 28)])
@pytest.mark.parametrize("nonnegative", [False, True])
def test_an_iteration_on_codes_of_one_sign_is_that_of_the_oracle(nonnegative, group_sizes, inner_batch_size):
    Y, D = one_signed(0, n_samples=300)
    pursuit = Pursuit(6, nonnegative=nonnegative, group_sizes=group_sizes)
    update = Update(inner_batch_size, replace_unused=None)
    codes, expected = by_hand(Y, D, pursuit, update)
    assert codes.margins.min() > 1e-10
    atoms, _ = one_iteration(Y, D, pursuit, update)
    np.testing.assert_allclose(atoms, expected, rtol=0, atol=1e-10)


def test_all_atoms_at_once_leave_less_where_each_for_itself_leaves_more_than_before():
    Y, D = one_signed(0, n_samples=300)
    codes = oracle.matching_pursuit(Y, D, 6, nonnegative=True)
    alone, _, _ = oracle.update(Y, D, *codes[:2], [range(48)], lambda E, d: oracle.krylov_atom(E, d, 2))
    together, _ = one_iteration(Y, D, Pursuit(6, nonnegative=True), Update(replace_unused=None))
    X = oracle.dense(*codes[:2], 48)
    left = [np.linalg.norm(Y - X @ atoms) for atoms in (D, alone, together)]
    assert left[1] > left[0] > left[2]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("nonnegative", [False, True])
def test_all_atoms_at_once_end_where_small_inner_batches_do(nonnegative, seed):
    Y, init = one_signed(seed)
    at_once, in_batches = (
        DBKSVD(48, 6, max_iter=30, init=init, nonnegative=nonnegative, inner_batch_size=size, random_state=0)
        .fit(Y)
        .history_.train_relative_error.values
        for size in (None, 4)
    )
    assert at_once[-1] <= 1.1 * in_batches[-1]
    assert at_once[-1] < 0.5 * at_once[0]
    assert np.all(at_once[1:] <= 1.05 * np.minimum.accumulate(at_once)[:-1])


@pytest.mark.parametrize("solver", ["lanczos", "power"])
def test_nonnegative_codes_of_embeddings_get_better_all_atoms_at_once(solver):
    Y = open_embeddings(SAMPLE)[:4096]
    model = DBKSVD(128, 10, max_iter=12, nonnegative=True, solver=solver, random_state=0).fit(Y)
    errors = model.history_.train_relative_error.values
    assert errors[-1] < 0.95 * errors[0]
    assert np.all(np.diff(errors) < 0.01 * errors[0])


# --- atoms that stay as they are -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("inner_batch_size", [None, 1, 4])
@pytest.mark.parametrize(
    "pursuit", [Pursuit(K), Pursuit(5, group_sizes=(4, 3, 8)), Pursuit(K, nonnegative=True)], ids=str
)
@pytest.mark.parametrize("n_fixed", [1, 5])
def test_fixed_atoms_stay_to_the_last_bit_and_the_others_are_updated(
    problem, n_fixed, pursuit, inner_batch_size, dtype
):
    Y, D = (array.astype(dtype) for array in problem)
    update = Update(inner_batch_size, replace_unused=None, n_fixed=n_fixed)
    atoms, _ = one_iteration(Y, D, pursuit, update)
    np.testing.assert_array_equal(atoms[:n_fixed], D[:n_fixed])
    assert np.all(np.abs(atoms[n_fixed:] - D[n_fixed:]).max(axis=1) > 1e-4)
    if dtype == np.float64:
        np.testing.assert_allclose(atoms, by_hand(Y, D, pursuit, update)[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(2))
def test_steps_that_fixed_atoms_do_not_take_keep_the_others_from_nothing(seed):
    """The others go on to where they leave least beside the fixed ones: as far as if only they had moved together.

    Fixed ones that are a bit off would take steps of the same kind at each iteration, for ever.
    """
    Y, D = one_signed(seed)
    n_fixed, pursuit = 24, Pursuit(6, nonnegative=True)
    for _ in range(15):
        before, (D, _) = D, one_iteration(Y, D, pursuit, Update(replace_unused=None, n_fixed=n_fixed))
    codes = oracle.matching_pursuit(Y, before, 6, nonnegative=True)
    X = oracle.dense(*codes[:2], len(D))
    alone, _, _ = oracle.update(Y, before, *codes[:2], [range(len(D))], lambda E, d: oracle.krylov_atom(E, d, 2))
    others = before.copy()
    others[n_fixed:] = oracle.move_together(before[n_fixed:], alone[n_fixed:], X[:, n_fixed:])
    left = {
        name: np.linalg.norm(Y - X @ atoms) for name, atoms in {"before": before, "after": D, "others": others}.items()
    }
    assert left["before"] - left["after"] > 0.5 * (left["before"] - left["others"])


# --- unused atoms ----------------------------------------------------------------------------------------------------


@pytest.fixture
def with_unused_atoms():
    """Atoms 3 and 5 point where no sample goes, atom 4 has one user; four samples are orthogonal to every atom."""
    rng = np.random.default_rng(1)
    D = np.zeros((6, 10))
    D[:3, :5] = oracle.random_atoms(rng, 3, 5)
    D[[3, 4, 5], [5, 6, 7]] = 1
    Y = np.zeros((40, 10))
    Y[:, :5] = rng.standard_normal((40, 5))
    Y[25] = 2 * D[4]
    Y[[11, 30]] = np.outer([-3, 0.5], np.eye(10)[8])  # the same direction
    Y[[20, 39]] = np.outer([0.1, -7], 3 * np.eye(10)[8] - 4 * np.eye(10)[9])
    return Y, D


@pytest.mark.parametrize("inner_batch_size", [None, 1, 4])
def test_unused_atoms_become_the_directions_of_the_worst_reconstructed_samples(with_unused_atoms, inner_batch_size):
    Y, D = with_unused_atoms
    atoms, statistics = one_iteration(Y, D, Pursuit(2), Update(inner_batch_size, replace_unused="residual"))
    kept, _ = one_iteration(Y, D, Pursuit(2), Update(inner_batch_size, replace_unused=None))
    assert statistics.n_unused == 2
    used = statistics.usage > 0
    np.testing.assert_array_equal(used, [True, True, True, False, True, False])
    assert statistics.usage[4] == 1
    np.testing.assert_array_equal(atoms[used], kept[used])
    np.testing.assert_array_equal(kept[~used], D[~used])
    # Relative error 1 for all four samples: in storage order, a direction only once.
    expected = np.zeros((2, 10))
    expected[0, 8], expected[1, [8, 9]] = 1, [0.6, -0.8]
    np.testing.assert_allclose(np.abs(np.sum(atoms[~used] * expected, axis=1)), 1, rtol=1e-12)


def test_unused_atoms_become_random_directions_that_follow_from_the_seed(with_unused_atoms):
    Y, D = with_unused_atoms
    D = D[[*range(6), 3, 5]]  # four unused atoms
    update = Update(replace_unused="random")
    atoms, again = (one_iteration(Y, D, Pursuit(2), update, **scheduler)[0] for scheduler in SCHEDULERS[:2])
    np.testing.assert_array_equal(atoms, again)
    unused = atoms[[3, 5, 6, 7]]
    np.testing.assert_allclose(np.linalg.norm(unused, axis=1), 1, rtol=1e-14)
    assert np.abs(np.triu(unused @ unused.T, 1)).max() < 0.95
    assert np.abs(unused).min() > 0


def test_an_unused_atom_stays_where_no_other_direction_is_left():
    Y = np.outer([1.0, -2.0, 3.0], np.eye(4)[0]) + np.array([0, 0, 0, 1e-3])
    D = np.eye(4)[:3]
    atoms, _ = one_iteration(Y, D, Pursuit(1), Update(replace_unused="residual"))
    np.testing.assert_allclose(np.abs(atoms[1]), np.eye(4)[3], atol=1e-12)  # all residuals point the same way
    np.testing.assert_array_equal(atoms[2], D[2])
