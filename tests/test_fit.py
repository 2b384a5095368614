"""What a fit does besides the numerics: iterations, history, sources, centring, shuffling, going on."""

import time
from dataclasses import fields

import dask
import dask.array as da
import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from small_fits import BATCH, N_ATOMS, N_BATCHES, N_FEATURES, N_SAMPLES, K, example, in_chunks, model

from dbksvd_dask import DBKSVD, Callback, metrics
from dbksvd_dask.history import COHERENCE_BINS, QUANTILES, STAGES, Iteration
from dbksvd_dask.kernels import chunk

# --- iterations ------------------------------------------------------------------------------------------------------


def test_the_history_has_a_record_of_every_iteration():
    history = model().fit(example(), validation=example(seed=1)).history_
    assert history.sizes == {"iteration": 6, "quantile": len(QUANTILES), "bin": COHERENCE_BINS, "stage": len(STAGES)}
    assert history.iteration.values.tolist() == list(range(6))
    assert tuple(history["quantile"].values) == QUANTILES
    assert tuple(history["stage"].values) == STAGES
    assert set(history.data_vars) == {f.name for f in fields(Iteration)} - {"iteration"}
    for name, variable in history.data_vars.items():
        dims = {"coherence": ("quantile",), "coherence_histogram": ("bin",)}
        dims |= {"stage_seconds": ("stage",), "peak_memory": ("stage",)}
        assert variable.dims == ("iteration", *dims.get(name, ())), name
        assert np.isfinite(variable).all(), name
    assert np.all(history.train_l0 <= K)
    assert np.all(np.diff(history.coherence, axis=1) >= 0)
    assert np.all(history.seconds > 0)
    assert np.all(history.stage_seconds >= 0)


def test_validation_figures_are_nan_without_validation_embeddings():
    history = model().fit(example()).history_
    for name, variable in history.data_vars.items():
        assert np.isnan(variable).all() == name.startswith("validation_"), name


def test_figures_of_training_and_validation_are_those_of_the_dictionaries_before_and_after():
    Y, held_out = example(), example(seed=1)
    dictionaries = []
    keep = Keeping(dictionaries)
    history = model(average=False, callbacks=[keep]).fit(Y, validation=held_out).history_
    assert len(dictionaries) == 7
    for i in range(6):
        before, after = dictionaries[i], dictionaries[i + 1]
        batch = Y[i % N_BATCHES * BATCH :][:BATCH]
        for split, rows, D in (("train", batch, before), ("validation", held_out, after)):
            codes = D.encode(rows)
            decoded = D.decode(codes)
            record = history.isel(iteration=i)
            np.testing.assert_allclose(record[f"{split}_relative_error"], metrics.relative_error(rows, decoded), 1e-5)
            explained = metrics.variance_explained(rows, decoded)
            np.testing.assert_allclose(record[f"{split}_variance_explained"], explained, 1e-5)
            explained = metrics.variance_explained(rows, decoded, per_feature=True)
            np.testing.assert_allclose(record[f"{split}_variance_explained_per_feature"], explained, 1e-5)
            assert record[f"{split}_l0"] == metrics.l0(codes.indices)
        np.testing.assert_allclose(record.coherence, np.quantile(before.coherence(), QUANTILES), rtol=1e-5)
        bins = np.minimum(before.coherence() * COHERENCE_BINS, COHERENCE_BINS - 1).astype(int)
        np.testing.assert_array_equal(record.coherence_histogram, np.bincount(bins, minlength=COHERENCE_BINS))
        used = dictionaries[i].encode(batch).indices
        assert record.n_unused_atoms == np.count_nonzero(metrics.atom_usage(used, N_ATOMS) == 0)


class Keeping(Callback):
    """Keeps the dictionary before the first iteration and after each."""

    def __init__(self, dictionaries):
        self.dictionaries = dictionaries

    def begin(self, model, n_iterations):
        self.dictionaries.append(model.dictionary_)

    def __call__(self, model, iteration):
        self.dictionaries.append(model.dictionary_)


def test_first_atoms_are_samples_from_as_many_batches_as_it_takes():
    """Only every fourth row is a direction of its own: those of two batches of 50 make the 25 atoms."""
    Y = np.zeros((200, 30))
    Y[::4] = np.random.default_rng(0).standard_normal((50, 30))
    seen = []
    DBKSVD(25, 1, batch_size=50, max_iter=1, callbacks=[First(seen)], random_state=0).fit(Y)
    cosines = (seen[0] @ Y[::4].T / np.linalg.norm(Y[::4], axis=1)).max(axis=1)
    np.testing.assert_allclose(cosines, 1, rtol=1e-6)


class First(Callback):
    """Keeps the dictionary that a fit begins with."""

    def __init__(self, seen):
        self.seen = seen

    def begin(self, model, n_iterations):
        self.seen.append(model.components_)


def test_a_dictionary_is_its_own():
    fitted = model().fit(example())
    D = fitted.dictionary_
    lazy = D.encode(da.from_array(example(), chunks=(BATCH, -1)))
    expected = D.encode(example())
    fitted.components_[:] = fitted.components_[::-1].copy()
    np.testing.assert_array_equal(lazy.compute().indices, expected.indices)


def test_names_of_columns_are_those_of_the_last_fit():
    fitted = model().fit(pd.DataFrame(example(), columns=list("abcdefgh")))
    assert list(fitted.feature_names_in_) == list("abcdefgh")
    fitted.fit(da.from_array(example(), chunks=(BATCH, -1)))
    assert not hasattr(fitted, "feature_names_in_")


def test_the_error_falls():
    history = model(max_iter=20).fit(example(), validation=example(seed=0)).history_
    assert history.validation_relative_error[-1] < 0.8 * history.validation_relative_error[0]


@pytest.mark.parametrize("max_iter", [1, 3, 4, 9])
def test_batches_walk_on_through_the_samples_and_begin_again(max_iter):
    read = []
    with dask.config.set(scheduler="synchronous"):
        fitted = model(max_iter=max_iter, init="random").fit(in_chunks(example(), read.append))
    assert read == [i % N_BATCHES for i in range(max_iter)]
    assert fitted.n_iter_ == max_iter
    assert fitted.history_.n_samples_seen.values.tolist() == [BATCH * (i + 1) for i in range(max_iter)]
    assert fitted.stopped_by_ == "max_iter"


def test_batches_need_not_be_the_chunks_of_the_embeddings():
    expected = model(init="random").fit(example()).components_
    for rows in (7, 64, N_SAMPLES):
        fitted = model(init="random").fit(da.from_array(example(), chunks=(rows, -1)))
        np.testing.assert_array_equal(fitted.components_, expected)


def test_a_new_fit_forgets_the_one_before():
    Y, other = example(), example(seed=1)[:, :5]
    fitted = model(center=True).fit(other).set_params(center=False).fit(Y)
    fresh = model().fit(Y)
    np.testing.assert_array_equal(fitted.components_, fresh.components_)
    assert fitted.n_iter_ == fitted.history_.sizes["iteration"] == 6
    assert fitted.mean_ is None
    assert fitted.n_features_in_ == N_FEATURES


def test_atoms_have_unit_norm_and_nothing_given_is_changed():
    Y, init = example(), np.eye(N_ATOMS, N_FEATURES, dtype="float32") + 0.1
    init /= np.linalg.norm(init, axis=1, keepdims=True)
    copies = Y.copy(), init.copy()
    fitted = model(init=init, center=True).fit(Y, validation=Y)
    np.testing.assert_allclose(np.linalg.norm(fitted.components_, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(Y, copies[0])
    np.testing.assert_array_equal(init, copies[1])


# --- the same embeddings from anywhere -------------------------------------------------------------------------------


def as_numpy(folder, Y):
    return Y


def as_fortran_array(folder, Y):
    return np.asfortranarray(Y)


def as_view(folder, Y):
    wide = np.zeros((2 * N_SAMPLES, 2 * N_FEATURES), Y.dtype)
    wide[::2, ::2] = Y
    return wide[::2, ::2]


def as_read_only(folder, Y):
    Y = Y.copy()
    Y.flags.writeable = False
    return Y


def as_list(folder, Y):
    return Y.astype("float64").tolist()


def as_big_endian(folder, Y):
    return Y.astype(Y.dtype.newbyteorder(">"))


def as_dask(folder, Y):
    return da.from_array(Y, chunks=(64, -1))


def as_xarray(folder, Y):
    return xr.DataArray(Y, dims=("sample", "feature"))


def as_transposed_xarray(folder, Y):
    return xr.DataArray(Y.T, dims=("feature", "sample"))


def as_dataset(folder, Y):
    return xr.Dataset({"embeddings": as_xarray(folder, Y), "token": ("sample", np.arange(len(Y)))})


def as_npy(folder, Y):
    np.save(folder / "rows.npy", Y)
    return str(folder / "rows.npy")


def as_memory_map(folder, Y):
    return np.load(as_npy(folder, Y), mmap_mode="r")


def as_zarr(folder, Y):
    da.to_zarr(as_dask(folder, Y), folder / "rows.zarr")
    return folder / "rows.zarr"


SOURCES = [
    as_fortran_array,
    as_view,
    as_read_only,
    as_list,
    as_big_endian,
    as_dask,
    as_xarray,
    as_transposed_xarray,
    as_dataset,
    as_npy,
    as_memory_map,
    as_zarr,
]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("source", SOURCES)
def test_the_same_rows_give_the_same_bits_wherever_they_lie(source, dtype, tmp_path):
    Y = example(dtype)
    given = source(tmp_path, Y)
    parameters = {"dtype": dtype} if source is as_list and dtype == "float32" else {}
    if source is as_list and dtype == "float16":
        parameters = {"dtype": "float32"}
    expected = model(**parameters).fit(Y, validation=Y)
    fitted = model(**parameters).fit(given, validation=given)
    np.testing.assert_array_equal(fitted.components_, expected.components_)
    costs = ["seconds", "stage_seconds", "peak_memory"]
    xr.testing.assert_identical(fitted.history_.drop_vars(costs), expected.history_.drop_vars(costs))
    np.testing.assert_array_equal(csr(fitted.transform(given)).toarray(), expected.transform(Y).toarray())
    assert fitted.score(given) == expected.score(Y)


def test_the_residual_of_a_large_chunk_is_never_whole_in_memory(monkeypatch):
    Y = example()
    fitted = model().fit(Y)
    expected = fitted.score(Y)
    monkeypatch.setattr("dbksvd_dask.encoding.ROWS_PER_TASK", 60)
    encode, seen = chunk.encode_with_residual, []

    def recorded(rows, *arguments):
        seen.append(sum(map(len, rows)))
        return encode(rows, *arguments)

    monkeypatch.setattr(chunk, "encode_with_residual", recorded)
    assert fitted.score(da.from_array(Y, chunks=-1)) == pytest.approx(expected, rel=1e-6)
    assert seen == [60, 60, 60, 20]


@pytest.mark.parametrize("source", [as_numpy, as_dask])
def test_bfloat16_is_taken_for_the_float32_it_is(source):
    Y = example().astype(ml_dtypes.bfloat16)
    expected = model().fit(Y.astype("float32"))
    fitted = model().fit(source(None, Y))
    np.testing.assert_array_equal(fitted.components_, expected.components_)
    codes = csr(fitted.transform(source(None, Y)))
    np.testing.assert_array_equal(codes.toarray(), expected.transform(Y.astype("float32")).toarray())


def csr(codes):
    return codes.to_csr() if hasattr(codes, "to_csr") else codes


# --- centring --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [as_numpy, as_dask, as_npy])
def test_centring_takes_the_mean_of_all_samples(source, tmp_path):
    Y = example("float64")
    offset = np.arange(N_FEATURES) * 100.0
    fitted = model(center=True).fit(source(tmp_path, Y + offset))
    np.testing.assert_allclose(fitted.mean_, Y.mean(axis=0) + offset, rtol=1e-12)
    np.testing.assert_array_equal(fitted.dictionary_.mean, fitted.mean_)
    centred = model().fit(Y - Y.mean(axis=0))
    np.testing.assert_allclose(fitted.components_, centred.components_, atol=1e-8)
    np.testing.assert_allclose(fitted.inverse_transform(fitted.transform(Y + offset)) - offset, Y, atol=2)
    assert fitted.score(Y + offset) == pytest.approx(centred.score(Y - Y.mean(axis=0)))


def test_a_large_mean_loses_no_digits_that_matter():
    Y = example("float32")
    fitted = model(center=True).fit(Y + np.float32(1000))
    np.testing.assert_allclose(fitted.mean_, (Y + np.float32(1000)).mean(axis=0, dtype="float64"), rtol=1e-7)


def test_without_centring_there_is_no_mean():
    fitted = model().fit(example() + 5)
    assert fitted.mean_ is None
    assert fitted.dictionary_.mean is None


# --- shuffling -------------------------------------------------------------------------------------------------------


def test_shuffling_is_reproducible_and_differs_from_storage_order():
    Y = da.from_array(example(), chunks=(20, -1))
    first, second = (model(shuffle="chunks", init="random").fit(Y) for _ in range(2))
    np.testing.assert_array_equal(first.components_, second.components_)
    other_seed = model(shuffle="chunks", init="random", random_state=1).fit(Y)
    in_order = model(init="random").fit(Y)
    for other in (other_seed, in_order):
        assert not np.array_equal(first.components_, other.components_)


def orders_of_reading(fits, n_chunks=10):
    """The order of the chunks in each of some fits, epoch by epoch."""
    read = []
    Y = in_chunks(example(), read.append, rows=N_SAMPLES // n_chunks)
    orders = []
    with dask.config.set(scheduler="synchronous"):
        for fit in fits:
            read.clear()
            fit(Y)
            orders += [tuple(read[i : i + n_chunks]) for i in range(0, len(read), n_chunks)]
    return orders


def test_every_epoch_is_shuffled_anew_and_holds_every_chunk_once():
    shuffled = model(shuffle="chunks", init="random", batch_size=20, max_iter=30)
    orders = orders_of_reading([shuffled.fit])
    assert [sorted(order) for order in orders] == [list(range(10))] * 3
    assert len(set(orders)) == 3


def test_every_partial_fit_is_shuffled_anew():
    shuffled = model(shuffle="chunks", init="random", batch_size=20)
    orders = orders_of_reading([shuffled.partial_fit] * 3)
    assert [sorted(order) for order in orders] == [list(range(10))] * 3
    assert len(set(orders)) == 3


# --- going on --------------------------------------------------------------------------------------------------------


def test_partial_fit_goes_on_where_the_fit_ended():
    Y = example()
    in_one_go = model(max_iter=3 * N_BATCHES).fit(Y)
    in_steps = model(max_iter=N_BATCHES).fit(Y).partial_fit(Y).partial_fit(Y)
    np.testing.assert_array_equal(in_steps.components_, in_one_go.components_)
    assert in_steps.n_iter_ == 3 * N_BATCHES
    costs = ["seconds", "stage_seconds", "peak_memory"]
    xr.testing.assert_identical(in_steps.history_.drop_vars(costs), in_one_go.history_.drop_vars(costs))


def test_a_first_partial_fit_is_a_fit_of_one_epoch():
    Y = example()
    one_epoch = model(max_iter=N_BATCHES, center=True).fit(Y)
    partial = model(center=True).partial_fit(Y)
    np.testing.assert_array_equal(partial.components_, one_epoch.components_)
    np.testing.assert_array_equal(partial.mean_, one_epoch.mean_)
    assert partial.n_iter_ == N_BATCHES


def test_partial_fit_takes_other_embeddings_and_fewer_than_atoms():
    fitted = model().fit(example())
    fitted.partial_fit(example(seed=1)[: N_ATOMS - 5])
    assert fitted.n_iter_ == 7
    assert fitted.history_.n_samples_seen.values.tolist()[-2:] == [6 * BATCH, 6 * BATCH + N_ATOMS - 5]
    assert fitted.history_.iteration.values.tolist() == list(range(7))


def test_what_made_the_dictionary_stays_what_it_was():
    fitted = model().fit(example())
    provenance = fitted.dictionary_.provenance
    time.sleep(1.1)  # the time of the fit is kept in seconds
    assert fitted.dictionary_.provenance == provenance


def test_the_provenance_has_the_parameters_of_the_fit_not_those_set_later():
    fitted = model().fit(example()).set_params(max_iter=1000, batch_size=1, random_state=9)
    parameters = fitted.dictionary_.provenance["parameters"]
    assert (parameters["max_iter"], parameters["batch_size"], parameters["random_state"]) == (6, BATCH, 0)
    fitted.set_params(batch_size=BATCH).partial_fit(example())
    assert fitted.dictionary_.provenance["parameters"]["max_iter"] == 1000
