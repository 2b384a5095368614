"""Fits and codes of embeddings on a device are those of the same embeddings on the host, to rounding.

Without a GPU the device is the stand-in of cupy_stand_in.py.
"""

import pickle
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster
from scipy.sparse import csr_array

from dbksvd_dask import DBKSVD, Dictionary, known_structure, open_codes, open_embeddings, sweep
from dbksvd_dask.kernels.backend import on_device
from dbksvd_dask.memory_sizes import DEVICE_LIBRARIES

N_SAMPLES, N_FEATURES, N_ATOMS, K, BATCH = 48, 6, 8, 2, 24
N_TASKS = 2


@pytest.fixture
def device(cupy, monkeypatch):
    """Tasks of as many rows on the host as on the device, and few."""
    for name in ("ROWS_PER_TASK", "ROWS_PER_DEVICE_TASK"):
        monkeypatch.setattr(f"dbksvd_dask.batches.{name}", BATCH // N_TASKS)
    monkeypatch.setattr("dbksvd_dask.batches.TASKS_OF_SMALL_BATCHES", 1)
    return cupy


def example(dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((N_SAMPLES, 3)) @ rng.standard_normal((3, N_FEATURES))
    return (latent + 0.5 * rng.standard_normal((N_SAMPLES, N_FEATURES)) + 1).astype(dtype)


def first_atoms():
    """No rows: of a row that is an atom only rounding is left, and whether that is coded is a toss-up."""
    atoms = np.random.default_rng(9).standard_normal((N_ATOMS, N_FEATURES))
    return atoms / np.linalg.norm(atoms, axis=1, keepdims=True)


def model(**parameters):
    settings = {"max_iter": 3, "batch_size": BATCH, "random_state": 0, "init": first_atoms()}
    return DBKSVD(N_ATOMS, K, **(settings | parameters))


def lazily(Y):
    return open_embeddings(da.from_array(Y, chunks=(10, -1)))


def on_the_device(Y):
    return open_embeddings(lazily(Y), device="cuda")


def assert_same_fit(found, expected, dtype="float32"):
    tolerance = 1e4 * np.finfo(dtype).eps
    assert isinstance(found.components_, np.ndarray)
    assert found.components_.dtype == expected.components_.dtype == dtype
    np.testing.assert_allclose(found.components_, expected.components_, atol=tolerance)
    for name, variable in expected.history_.data_vars.items():
        if name not in ("seconds", "stage_seconds", "peak_memory", "coherence_histogram"):
            np.testing.assert_allclose(found.history_[name], variable, atol=tolerance, err_msg=name)


# --- fits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"center": True, "shuffle": "chunks"},
        {"inner_batch_size": 3},
        {"inner_batch_size": 3, "nonnegative": True},
        {"matryoshka": [3, 5], "flat_share": 0.34},
        {"matryoshka": [3, 5], "inner_batch_size": 2},
        {"encoder": "omp", "n_passes": 3, "tol": 1e-3},
        {"solver": "power", "average": False},
        {"rtol": 0.2, "replace_unused": "random"},
        {"init": "random", "max_coherence": 0.95},
    ],
    ids=str,
)
def test_a_fit_on_the_device_is_that_on_the_host(device, parameters):
    Y = example()
    expected = model(**parameters).fit(lazily(Y), validation=lazily(example(seed=1)))
    found = model(**parameters).fit(on_the_device(Y), validation=on_the_device(example(seed=1)))
    assert_same_fit(found, expected)


@pytest.mark.parametrize(("stored", "dtype"), [("float16", "float32"), ("float64", "float64")])
def test_the_precision_is_that_of_the_host(device, stored, dtype):
    Y = example(stored)
    assert_same_fit(model().fit(on_the_device(Y)), model().fit(lazily(Y)), dtype)


def test_the_same_bits_come_again(device):
    first, second = (model().fit(on_the_device(example())).components_ for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_known_structure_and_fixed_atoms(device, monkeypatch):
    monkeypatch.setattr(known_structure, "ROUNDS", 2)
    monkeypatch.setattr(known_structure, "UPDATE", replace(known_structure.UPDATE, n_passes=3))
    Y, fixed = example(), np.eye(1, N_FEATURES, dtype=np.float32)
    support = csr_array((np.arange(N_SAMPLES)[:, np.newaxis] % 7 == np.arange(N_ATOMS) - 1).astype(float))
    begun = {"fixed_atoms": fixed, "init": first_atoms()[1:]}
    expected = model(**begun).fit(lazily(Y), support=support)
    found = model(**begun).fit(on_the_device(Y), support=support)
    assert_same_fit(found, expected)
    np.testing.assert_array_equal(found.components_[:1], fixed)


def test_atoms_stay_on_the_device_while_they_are_learned(device):
    seen = []

    def look(model, iteration):
        learned = model._fit_state.state.learned
        seen.append((on_device(learned.latest), on_device(learned.average), on_device(model.components_)))

    fitted = model(callbacks=[look]).fit(on_the_device(example()))
    assert seen == [(True, True, False)] * 3
    assert isinstance(fitted._fit_state.state.learned.latest, np.ndarray)


def test_a_fitted_model_opens_where_there_is_no_device(device, monkeypatch):
    kept = pickle.dumps(model().fit(on_the_device(example())))
    monkeypatch.setitem(sys.modules, "cupy", None)
    pickle.loads(kept).transform(example())


def test_going_on_elsewhere(device):
    Y = example()
    expected = model().partial_fit(lazily(Y)).partial_fit(lazily(Y))
    assert_same_fit(model().partial_fit(on_the_device(Y)).partial_fit(lazily(Y)), expected)
    assert_same_fit(model().partial_fit(lazily(Y)).partial_fit(on_the_device(Y)), expected)


def test_a_fit_is_resumed_on_the_device(device, tmp_path):
    Y = on_the_device(example())

    def stop(model, iteration):
        return iteration.iteration == 1

    model(callbacks=[stop], checkpoint=tmp_path / "fit").fit(Y)
    resumed = DBKSVD.resume(tmp_path / "fit", Y)
    np.testing.assert_array_equal(resumed.components_, model().fit(Y).components_)


def test_a_fit_that_goes_on_elsewhere_warns(device, tmp_path):
    def stop(model, iteration):
        return iteration.iteration == 1

    model(callbacks=[stop], checkpoint=tmp_path / "fit").fit(on_the_device(example()))
    with pytest.warns(UserWarning, match=r"begun on .* with CuPy .*, and goes on on CPUs: last bits differ"):
        resumed = DBKSVD.resume(tmp_path / "fit", lazily(example()))
    assert "with CuPy" in resumed.dictionary_.provenance["device"]
    np.testing.assert_allclose(resumed.components_, model().fit(lazily(example())).components_, atol=1e-3)


def test_the_provenance_of_a_fit_on_cpus_names_no_device():
    assert model().fit(example()).dictionary_.provenance["device"] is None


def test_a_sweep_on_the_device(device):
    grid = {"n_nonzero_coefs": [1, 2]}
    parameters = {"n_components": N_ATOMS, "max_iter": 2, "batch_size": BATCH, "init": first_atoms()}
    expected, found = (sweep(Y, grid, **parameters) for Y in (lazily(example()), on_the_device(example())))
    np.testing.assert_allclose(found.train_relative_error, expected.train_relative_error, atol=1e-4)
    assert isinstance(found.dictionary.sel(n_nonzero_coefs=2).item().atoms, np.ndarray)


def test_on_a_cluster_the_driver_holds_numpy_arrays(device):
    Y, seen = example(), []

    def look(model, iteration):
        seen.append(on_device(model._fit_state.state.learned.latest))

    expected = model(callbacks=[look]).fit(on_the_device(Y)).components_
    # Workers in this process, where the stand-in is.
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        found = model(callbacks=[look]).fit(on_the_device(Y)).components_
    assert seen == [True] * 3 + [False] * 3
    np.testing.assert_allclose(found, expected, atol=1e-6)


# --- what a dictionary makes of rows on the device -------------------------------------------------------------------


@pytest.fixture
def dictionary():
    return model(center=True).fit(example()).dictionary_


@pytest.mark.parametrize("options", [{}, {"encoder": "omp"}, {"refit": "lstsq"}, {"nonnegative": True}], ids=str)
def test_codes_are_those_of_the_host(device, dictionary, options):
    Y = example(seed=2)
    found, expected = dictionary.encode(on_the_device(Y), **options), dictionary.encode(Y, **options)
    assert isinstance(found.indices._meta, np.ndarray)
    found = found.compute()
    assert isinstance(found.indices, np.ndarray)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-5)


def test_a_store_is_encoded_to_a_store(device, dictionary, tmp_path):
    Y = example(seed=2)
    coords = {"token": ("sample", np.arange(N_SAMPLES))}
    rows = xr.DataArray(Y, dims=("sample", "feature"), coords=coords, name="embeddings").chunk(sample=10)
    rows.to_zarr(tmp_path / "Y.zarr", consolidated=False)
    dictionary.encode(open_embeddings(tmp_path / "Y.zarr", device="cuda")).to_zarr(tmp_path / "codes.zarr")
    opened, expected = open_codes(tmp_path / "codes.zarr"), dictionary.encode(Y)
    np.testing.assert_array_equal(opened.compute().indices, expected.indices)
    np.testing.assert_array_equal(opened.coords["token"], np.arange(N_SAMPLES))


def test_an_array_on_the_device_is_transformed_and_scored(device):
    Y = example()
    fitted = model().fit(device.asarray(Y))
    assert_same_fit(fitted, model().fit(Y))
    codes = fitted.transform(device.asarray(Y))
    np.testing.assert_allclose(codes.toarray(), fitted.transform(Y).toarray(), atol=1e-5)
    assert fitted.score(device.asarray(Y)) == pytest.approx(fitted.score(Y), abs=1e-6)


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("allocator", "limit"), [("CuPy's own", 5 * 2**30), ("another pool", 9 * 2**30)])
def test_the_plan_is_about_the_memory_of_the_device(device, monkeypatch, allocator, limit):
    """What is free and what CuPy keeps; where another pool may have taken the rest, all of it."""
    pool = SimpleNamespace(malloc="CuPy's own", total_bytes=lambda: 2 * 2**30, used_bytes=lambda: 0)
    monkeypatch.setattr(device, "get_default_memory_pool", lambda: pool)
    monkeypatch.setattr(device.cuda, "get_allocator", lambda: allocator)
    monkeypatch.setattr(device.cuda.runtime, "memGetInfo", lambda: (3 * 2**30, 9 * 2**30))
    plan = model().memory_plan(on_the_device(example()))
    assert plan.fits
    assert plan.limit == limit


def test_where_memory_runs_out_the_batch_that_fits_is_named(device, monkeypatch):
    from dbksvd_dask.kernels import cuda

    def refuse(*_):
        raise device.cuda.memory.OutOfMemoryError(10**9, 0)

    monkeypatch.setattr(cuda, "subtract_reconstruction", refuse)
    monkeypatch.setattr("dbksvd_dask.memory._device_memory", lambda: DEVICE_LIBRARIES + 7_000)
    with pytest.raises(MemoryError, match=r"(?s)out of memory.*are free.*batch_size=\d+, the largest that fits"):
        model().fit(on_the_device(example()))


def test_where_memory_runs_out_the_chunk_that_fits_is_named(device, dictionary, monkeypatch):
    from dbksvd_dask.kernels import cuda

    free = device.cuda.runtime.memGetInfo()[0]

    def refuse(*_):
        raise device.cuda.memory.OutOfMemoryError(free + 2 * N_FEATURES * 4, 0)

    monkeypatch.setattr(cuda, "matching_pursuit", refuse)
    codes = dictionary.encode(on_the_device(example()))
    with pytest.raises(MemoryError) as error:
        codes.compute()
    found = re.search(r"Of the (\d+) rows of this chunk (\d+) would fit: .*Y.chunk\(sample=\2\)", str(error.value))
    assert int(found[1]) - int(found[2]) == 2


def test_a_dictionary_stays_on_the_host(device, dictionary):
    dictionary.encode(on_the_device(example())).compute()
    assert isinstance(dictionary.atoms, np.ndarray)
    assert isinstance(Dictionary(dictionary.atoms).atoms, np.ndarray)
