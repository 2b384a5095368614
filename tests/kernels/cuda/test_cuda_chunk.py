"""What is made of a chunk on a device is what is made of it on the host, to rounding, and stays on the device."""

import pickle
from dataclasses import fields
from sys import getsizeof

import numpy as np
import oracle
import pytest
from scipy.sparse import csr_array

from dbksvd_dask.averaging import LearnedAtoms
from dbksvd_dask.kernels import chunk as kernels
from dbksvd_dask.kernels import coupling, gram, krylov, passes, support
from dbksvd_dask.kernels.backend import on_device
from dbksvd_dask.kernels.chunk import EncodedChunk, Encoding
from dbksvd_dask.kernels.costs import ProcessMemory, StageCosts
from dbksvd_dask.kernels.pursuit import Pursuit
from dbksvd_dask.metrics import ErrorSums, atom_usage, coherence, l0, relative_error, relative_errors

N_SAMPLES, N_FEATURES, N_ATOMS = 9, 8, 14
DTYPES = [np.float32, np.float64]
GROUPS = (5, 9)
PURSUITS = [
    Pursuit(3),
    Pursuit(3, nonnegative=True),
    Pursuit(3, rtol=0.7),
    Pursuit(3, refit="lstsq"),
    Pursuit(3, "omp"),
    Pursuit(4, group_sizes=GROUPS),
    Pursuit(3, group_sizes=GROUPS, refit="lstsq"),
    Pursuit(3, "omp", rtol=0.7, group_sizes=GROUPS),
]


@pytest.fixture(autouse=True)
def small_blocks(cupy, monkeypatch):
    """Several blocks of rows, panels, tiles and blocks of atoms, also where there is little."""
    from dbksvd_dask.kernels import cuda

    monkeypatch.setattr(cuda, "rows_per_block", lambda *_: 4)
    monkeypatch.setattr(cuda, "GRAM_TILE", 4)
    monkeypatch.setattr(cuda, "KRYLOV_BLOCK", 6)
    monkeypatch.setattr(gram, "ATOMS_PER_PANEL", 6)


def moved(cupy, value):
    """The same with its arrays on the device."""
    if isinstance(value, np.ndarray):
        return cupy.asarray(value)
    if isinstance(value, EncodedChunk):
        return EncodedChunk(*(cupy.asarray(array) for array in parts(value)))
    if isinstance(value, Encoding):
        return Encoding(*(moved(cupy, part) for part in value))
    return type(value)(moved(cupy, part) for part in value) if type(value) in (list, tuple) else value


def parts(chunk):
    return tuple(getattr(chunk, field.name) for field in fields(EncodedChunk))


def arrays_of(value):
    """All arrays in what a function returned."""
    if isinstance(value, EncodedChunk):
        value = parts(value)
    if isinstance(value, tuple | list):
        return [array for part in value for array in arrays_of(part)]
    return [] if value is None or isinstance(value, StageCosts) else [value]


def assert_same_on_device(cupy, function, *arguments, rounding=100):
    """What a function returns for arguments on the device is there as well, and what it returns on the host."""
    expected = arrays_of(function(*arguments))
    found = arrays_of(function(*moved(cupy, arguments)))
    assert all(map(on_device, found))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        if theirs.dtype.kind == "f":
            limit = rounding * np.finfo(np.float32 if any_float32(arguments) else np.float64).eps
            np.testing.assert_allclose(ours.get(), theirs, rtol=limit, atol=limit)
        else:
            np.testing.assert_array_equal(ours.get(), theirs)


def any_float32(arguments):
    return any(array.dtype == np.float32 for array in arrays_of(list(arguments)) if isinstance(array, np.ndarray))


def problem(pursuit, dtype=np.float64, stored=None):
    """Rows in two pieces, of which one is the mean, unit atoms, their Gram matrices and a mean."""
    rng = np.random.default_rng(1)
    D = oracle.random_atoms(rng, N_ATOMS, N_FEATURES, dtype)
    mean = rng.integers(-3, 4, N_FEATURES).astype(dtype)
    Y = (mean + rng.standard_normal((N_SAMPLES, N_FEATURES))).astype(stored or dtype)
    Y[4] = mean
    return [Y[:3], Y[3:]], D, [oracle.gram(D[group.atoms]).astype(dtype) for group in pursuit.groups(N_ATOMS)], mean


def encoded(pursuit, dtype=np.float64):
    """An encoding on the host, and the atoms."""
    rows, D, grams, mean = problem(pursuit, dtype)
    return kernels.encode_with_residual(rows, D, grams, mean, pursuit), D


# --- encoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pursuit", PURSUITS, ids=str)
def test_chunks_are_encoded_as_on_the_host(cupy, pursuit):
    assert_same_on_device(cupy, kernels.encode_with_residual, *problem(pursuit, np.float32, np.float16), pursuit)


@pytest.mark.parametrize("pursuit", [PURSUITS[0], PURSUITS[-1]], ids=str)
def test_codes_in_double_precision_and_without_a_mean_are_those_of_the_host(cupy, pursuit):
    rows, D, grams, _ = problem(pursuit)
    assert_same_on_device(cupy, kernels.encode, rows, D, grams, None, pursuit)


@pytest.mark.parametrize("centred", [True, False])
def test_codes_are_decoded_as_on_the_host(cupy, centred):
    encoding, D = encoded(PURSUITS[0])
    mean = np.arange(N_FEATURES, dtype=float) if centred else None
    assert_same_on_device(cupy, kernels.reconstruct, encoding.chunk.indices, encoding.chunk.values, D, mean)


def test_what_the_host_refuses_the_device_refuses(cupy):
    encoding, D = encoded(PURSUITS[0])
    indices, values, _ = moved(cupy, parts(encoding.chunk))
    with pytest.raises(ValueError, match="but the dictionary has 3"):
        kernels.reconstruct(indices, values, cupy.asarray(D[:3]), None)
    rows, D, grams, _ = moved(cupy, problem(PURSUITS[0], np.float32))
    rows[1][2, 3] = 1e30
    with pytest.raises(ValueError, match=r"a row has norm 1e\+30, but computation in float32 overflows beyond"):
        kernels.encode(rows, D, grams, None, PURSUITS[0])


# --- update ----------------------------------------------------------------------------------------------------------


def inner_batch(rng):
    """Some atoms in any order, and the place of each of all atoms among them."""
    batch = rng.permutation(N_ATOMS)[: N_ATOMS // 2]
    members = np.full(N_ATOMS, -1, np.int32)
    members[batch] = np.arange(len(batch))
    return batch, members


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pursuit", [PURSUITS[0], PURSUITS[5]], ids=str)
def test_passes_are_those_of_the_host(cupy, pursuit, dtype):
    encoding, D = encoded(pursuit, dtype)
    groups = pursuit.groups(N_ATOMS)
    assert_same_on_device(cupy, passes.first_pass, encoding, D, groups)
    batch, members = inner_batch(np.random.default_rng(2))
    vectors = oracle.random_atoms(np.random.default_rng(3), len(batch), N_FEATURES, dtype)
    assert_same_on_device(cupy, passes.atom_pass, encoding.chunk, members, D[batch], vectors)
    vectors[[0, 2]] = 0
    assert_same_on_device(cupy, passes.atom_pass, encoding.chunk, members, D[batch], vectors)
    assert_same_on_device(cupy, passes.with_contributions, encoding.chunk, D, slice(1, 3), -1)

    def chunks(chunk, D):
        return [EncodedChunk(*(array.copy() for array in parts(c))) for _, c in passes.group_by_group(chunk, D, groups)]

    assert_same_on_device(cupy, chunks, encoding.chunk, D)


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_projections_in_turn_are_those_of_the_host(cupy, dtype, nonnegative):
    encoding, D = encoded(Pursuit(3, nonnegative=nonnegative), dtype)
    batch, members = inner_batch(np.random.default_rng(2))
    new = oracle.random_atoms(np.random.default_rng(3), len(batch), N_FEATURES, dtype)
    device_chunk = moved(cupy, encoding.chunk)
    passes.project_in_turn(device_chunk, *moved(cupy, (members, D[batch], new)), nonnegative)
    for given, left in zip(parts(encoding.chunk), parts(device_chunk), strict=True):
        np.testing.assert_array_equal(left.get(), given)  # what is given stays as it is
    assert_same_on_device(cupy, passes.project_in_turn, encoding.chunk, members, D[batch], new, nonnegative)


@pytest.mark.parametrize(("dtype", "tol"), [(np.float32, 0.3), (np.float64, 0.0)])
def test_new_atoms_are_those_of_the_host(cupy, dtype, tol):
    rng = np.random.default_rng(4)
    old = oracle.random_atoms(rng, N_ATOMS, N_FEATURES, dtype)
    errors = rng.standard_normal((N_ATOMS, 6, N_FEATURES)) * 0.5 ** np.arange(6)[:, np.newaxis]
    errors[3] = 0

    def through(vectors):
        return np.stack([E.T @ (E @ v) for E, v in zip(errors, vectors, strict=True)]).astype(dtype)

    basis, products = [old], [through(old)]
    for _ in range(2):
        assert_same_on_device(cupy, krylov.next_direction, basis, products, tol, rounding=1000)
        assert_same_on_device(cupy, krylov.ritz_vectors, basis, products, old, rounding=1000)
        basis.append(krylov.next_direction(basis, products, tol))
        products.append(through(basis[-1]))
    assert 1 <= np.count_nonzero(~basis[-1].any(axis=1)) < N_ATOMS


@pytest.mark.parametrize(
    ("pursuit", "dtype"), [(Pursuit(4), np.float32), (Pursuit(7, group_sizes=GROUPS), np.float64)], ids=str
)
def test_atoms_move_together_as_on_the_host(cupy, pursuit, dtype):
    encoding, old = encoded(pursuit, dtype)
    chunk, groups = encoding.chunk, pursuit.groups(N_ATOMS)
    chunk = EncodedChunk(chunk.indices, np.abs(chunk.values), chunk.residual)  # of one sign: they overshoot
    new = oracle.unit_rows(old + 0.3 * oracle.random_atoms(np.random.default_rng(5), N_ATOMS, N_FEATURES)).astype(dtype)
    assert_same_on_device(cupy, coupling.code_sums, chunk, N_ATOMS)
    sums = coupling.code_sums(chunk, N_ATOMS)
    assert_same_on_device(cupy, coupling.first_directions, sums, groups)
    directions = coupling.first_directions(sums, groups)
    assert_same_on_device(cupy, coupling.coupling_products, chunk, sums, directions, groups)
    for _ in range(4):
        products = coupling.coupling_products(chunk, sums, directions, groups)
        directions = coupling.orthonormal(products, groups)
    basis = coupling.orthonormal(cupy.asarray(products), groups).get()
    for group in groups:  # the signs of the columns are anybody's
        q, p = basis[group.atoms][:, : group.atoms.stop - group.atoms.start], products[group.atoms]
        np.testing.assert_allclose(q.T @ q, np.eye(q.shape[1]), atol=1e-12)
        np.testing.assert_allclose(q @ (q.T @ p), p, atol=1e-12)
    products = coupling.coupling_products(chunk, sums, directions, groups)
    assert_same_on_device(cupy, coupling.move_together, old, new, sums, directions, products, groups)
    moved_less = coupling.move_together(old, new, sums, directions, products, groups) - new
    assert all(np.abs(moved_less[group.atoms]).max() > 0.01 for group in groups)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gram_matrix_is_that_of_the_host(cupy, dtype):
    D = oracle.random_atoms(np.random.default_rng(6), N_ATOMS, N_FEATURES, dtype)

    def of_panels(D, threshold):
        panels = [gram.gram_panel(D, start, threshold) for start in gram.panel_starts(len(D))]
        assert len(panels) == 3
        near = [panel.near for panel in panels]
        return gram.assemble_gram(panels), gram.panels_coherence([panel.largest for panel in panels]), near

    assert sum(map(len, of_panels(D, 0.3)[2])) > 0
    assert_same_on_device(cupy, of_panels, D, 0.3)
    assert_same_on_device(cupy, of_panels, D, None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_known_supports_are_encoded_as_on_the_host(cupy, dtype):
    rows, D, (products,), mean = problem(PURSUITS[0], dtype)
    rng = np.random.default_rng(7)
    indices = support.support_slots(csr_array(rng.random((N_SAMPLES, N_ATOMS)) < 0.2))
    usable = rng.random(N_ATOMS) < 0.7
    assert_same_on_device(cupy, support.encode_on_support, rows, D, products, mean, indices, usable, rounding=1000)
    chunk = support.encode_on_support(rows, D, products, mean, indices, usable)
    assert_same_on_device(cupy, support.sum_of_users, chunk, N_ATOMS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_averages_of_atoms_are_those_of_the_host(cupy, dtype):
    rng = np.random.default_rng(8)
    dictionaries = [oracle.random_atoms(rng, N_ATOMS, N_FEATURES, dtype)]
    for _ in range(3):
        near = oracle.unit_rows(dictionaries[-1] + 0.1 * rng.standard_normal((N_ATOMS, N_FEATURES))).astype(dtype)
        near[0] = dictionaries[-1][0]  # stays
        near[1] *= -1  # is another one
        dictionaries.append(near)
    here, there = LearnedAtoms.of(dictionaries[0]), LearnedAtoms.of(cupy.asarray(dictionaries[0]))
    for atoms in dictionaries[1:]:
        here, there = here.averaged_with(atoms), there.averaged_with(cupy.asarray(atoms))
    assert isinstance(there.n_averaged, np.ndarray)
    np.testing.assert_array_equal(there.n_averaged, here.n_averaged)
    np.testing.assert_array_equal(there.latest.get(), here.latest)
    np.testing.assert_allclose(there.average.get(), here.average, rtol=0, atol=10 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(there.average.get()[:2], here.average[:2])


# --- what the driver gets --------------------------------------------------------------------------------------------


def test_metrics_of_device_arrays_are_numbers_and_numpy_arrays(cupy):
    encoding, D = encoded(PURSUITS[2])
    chunk, Y = encoding.chunk, np.concatenate(problem(PURSUITS[2])[0])

    def metrics(encoding, chunk, Y, D):
        sums = ErrorSums.from_parts(encoding.squared_norms, encoding.moments, chunk.residual)
        more = sums + ErrorSums.of(Y, chunk.residual)
        of_sums = [getattr(more, name) for name in ErrorSums.__dataclass_fields__]
        errors = relative_errors(encoding.squared_norms, chunk.residual)
        numbers = [more.relative_error, more.variance_explained, l0(chunk.indices), relative_error(Y, chunk.residual)]
        return [*of_sums, *numbers, errors, atom_usage(chunk.indices, N_ATOMS), coherence(D)]

    found, expected = (
        metrics(*arguments) for arguments in (moved(cupy, (encoding, chunk, Y, D)), (encoding, chunk, Y, D))
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert type(ours) is type(theirs)
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype


def test_chunks_travel_with_their_device_arrays_and_tell_their_size(cupy):
    chunk = encoded(PURSUITS[0], np.float32)[0].chunk
    there = moved(cupy, chunk)
    assert getsizeof(there) == getsizeof(chunk)
    arrived = pickle.loads(pickle.dumps(there))
    for ours, theirs in zip(parts(arrived), parts(chunk), strict=True):
        assert on_device(ours)
        np.testing.assert_array_equal(ours.get(), theirs)


def test_a_stage_on_a_device_takes_the_time_and_memory_of_the_device(cupy, monkeypatch):
    from dbksvd_dask.kernels import cuda

    times = iter([1.0, 3.5, 10.0, 10.25])
    memories = iter([ProcessMemory(2**40, 2**40), ProcessMemory(2**39, 2**39)])
    monkeypatch.setattr(cuda, "clock", lambda: next(times))
    monkeypatch.setattr(cuda, "memory", lambda: next(memories))
    costs = StageCosts()
    for name in ("pursuit", "update"):
        with costs.stage(name, cupy.zeros(3)):
            pass
    with costs.stage("read", np.zeros(3)):
        pass
    assert costs.seconds["pursuit"] == 2.5
    assert costs.seconds["update"] == 0.25
    assert 0 <= costs.seconds["read"] < 1
    assert (costs.peak_memory["pursuit"], costs.peak_memory["update"]) == (2**40, 2**39)
    assert costs.peak_memory["read"] < 2**39
    assert pickle.loads(pickle.dumps(costs)).seconds == costs.seconds
