"""What a fit does besides the numerics: batches, history, callbacks, stopping, failing, going on, reading ahead."""

import os
import signal
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from types import SimpleNamespace

import dask
import dask.array as da
import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from threadpoolctl import threadpool_info, threadpool_limits

from dbksvd_dask import DBKSVD, Callback, ProgressBar, StopOnPlateau, TimeBudget, metrics
from dbksvd_dask.history import QUANTILES, STAGES, Iteration
from dbksvd_dask.kernels import chunk

N_SAMPLES, N_FEATURES, N_ATOMS, K, BATCH = 200, 8, 12, 3, 50
N_BATCHES = N_SAMPLES // BATCH


def example(dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((N_SAMPLES, 4)) @ rng.standard_normal((4, N_FEATURES))).astype(dtype)


def model(**parameters):
    return DBKSVD(N_ATOMS, K, **({"max_iter": 6, "batch_size": BATCH, "random_state": 0} | parameters))


def in_chunks(Y, seen, rows=BATCH):
    """A dask array whose tasks call `seen` with the number of their chunk before they return it."""

    def read(block, block_info):
        seen(block_info[0]["chunk-location"][0])
        return block

    return da.from_array(Y, chunks=(rows, -1)).map_blocks(read, meta=np.empty((0, 0), Y.dtype))


# --- iterations ------------------------------------------------------------------------------------------------------


def test_the_history_has_a_record_of_every_iteration():
    history = model().fit(example(), validation=example(seed=1)).history_
    assert history.sizes == {"iteration": 6, "quantile": len(QUANTILES), "stage": len(STAGES)}
    assert history.iteration.values.tolist() == list(range(6))
    assert tuple(history["quantile"].values) == QUANTILES
    assert tuple(history["stage"].values) == STAGES
    assert set(history.data_vars) == {f.name for f in fields(Iteration)} - {"iteration"}
    for name, variable in history.data_vars.items():
        other = {"coherence": ("quantile",), "stage_seconds": ("stage",)}.get(name, ())
        assert variable.dims == ("iteration", *other), name
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
    assert history.validation_relative_error[-1] < 0.7 * history.validation_relative_error[0]


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
    timings = ["seconds", "stage_seconds"]
    xr.testing.assert_identical(fitted.history_.drop_vars(timings), expected.history_.drop_vars(timings))
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
    timings = ["seconds", "stage_seconds"]
    xr.testing.assert_identical(in_steps.history_.drop_vars(timings), in_one_go.history_.drop_vars(timings))


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


# --- stopping --------------------------------------------------------------------------------------------------------


def third_time(model, iteration):
    return iteration.iteration == 2


@pytest.mark.parametrize(
    ("callback", "name"),
    [
        (third_time, "third_time"),
        (lambda model, iteration: model.n_iter_ == 3, "<lambda>"),
        (lambda model, iteration: np.bool_(model.n_iter_ == 3), "<lambda>"),
    ],
)
def test_a_function_that_returns_true_ends_the_fit(callback, name):
    stopped = model(callbacks=[callback]).fit(example())
    assert (stopped.n_iter_, stopped.stopped_by_) == (3, name)
    np.testing.assert_array_equal(stopped.components_, model(max_iter=3).fit(example()).components_)


def test_all_callbacks_are_called_when_one_of_them_asks_to_stop():
    calls = []
    several = [third_time, lambda model, iteration: calls.append(iteration.iteration), lambda model, iteration: True]
    stopped = model(callbacks=several[:2]).fit(example())
    assert calls == [0, 1, 2]
    assert stopped.stopped_by_ == "third_time"
    assert model(callbacks=several).fit(example()).n_iter_ == 1


def test_a_callback_is_given_the_model_as_it_is_after_the_iteration():
    seen = []

    def look(model, iteration):
        assert isinstance(iteration, Iteration)
        assert model.n_iter_ == iteration.iteration + 1 == model.history_.sizes["iteration"]
        assert model.history_.train_relative_error[-1] == iteration.train_relative_error
        seen.append(model.transform(example()).toarray())

    fitted = model(callbacks=(look,)).fit(example())
    assert len(seen) == 6
    np.testing.assert_array_equal(seen[-1], fitted.transform(example()).toarray())


def errors(*values):
    return [SimpleNamespace(validation_relative_error=value) for value in values]


@pytest.mark.parametrize(
    ("patience", "tolerance", "validation_errors", "stops_at"),
    [
        (1, 0.0, [0.5, 0.4, 0.4], 2),
        (1, 0.0, [0.5, 0.6], 1),
        (2, 0.0, [0.5, 0.5, 0.5], 2),
        (2, 0.0, [0.5, 0.5, 0.4, 0.4, 0.4], 4),
        (2, 0.0, [0.5, 0.6, 0.55, 0.1], 2),
        (1, 0.1, [0.5, 0.46], 1),
        (1, 0.1, [0.5, 0.44, 0.41], 2),
        (3, 1e-3, [0.5, 0.4, 0.3, 0.2], None),
    ],
)
def test_stop_on_plateau_waits_for_the_best_error_to_fall(patience, tolerance, validation_errors, stops_at):
    callback = StopOnPlateau(patience, tolerance)
    for _ in range(2):  # a second fit begins anew
        callback.begin(None, 100)
        asked = [callback(None, iteration) for iteration in errors(*validation_errors)]
        assert (asked.index(True) if True in asked else None) == stops_at


def test_stop_on_plateau_ends_a_fit():
    fitted = model(max_iter=200, callbacks=[StopOnPlateau(patience=2)]).fit(example(), validation=example())
    assert fitted.n_iter_ < 200
    assert fitted.stopped_by_ == "StopOnPlateau"
    assert fitted.dictionary_.provenance["stopped_by"] == "StopOnPlateau"


def test_a_time_budget_ends_the_fit_with_the_first_iteration_after_it():
    spent = model(max_iter=10_000, callbacks=[TimeBudget(0.3)]).fit(example())
    assert spent.stopped_by_ == "TimeBudget"
    seconds = spent.history_.seconds.values
    assert seconds[:-1].sum() < 0.3
    assert model(callbacks=[TimeBudget(0.0)]).fit(example()).n_iter_ == 1
    assert model(callbacks=[TimeBudget(1000.0)]).fit(example()).stopped_by_ == "max_iter"


def test_a_progress_bar_shows_the_error(capsys):
    model(callbacks=[ProgressBar()]).fit(example(), validation=example())
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert "error=" in shown
    assert "validation=" in shown


# --- begin and end ---------------------------------------------------------------------------------------------------


class Noting(Callback):
    """Notes when it is called."""

    def __init__(self, notes, failure=None):
        self.notes = notes
        self.failure = failure

    def begin(self, model, n_iterations):
        self.notes.append(("begin", n_iterations, model.n_iter_, model.components_.shape))

    def __call__(self, model, iteration):
        self.notes.append(iteration.iteration)
        if iteration.iteration == 1 and self.failure is not None:
            raise self.failure

    def end(self, model):
        self.notes.append(("end", model.n_iter_))


SHAPE = (N_ATOMS, N_FEATURES)


def test_callbacks_are_told_when_a_fit_begins_and_ends():
    notes = []
    fitted = model(max_iter=2, callbacks=[Noting(notes)]).fit(example())
    assert notes == [("begin", 2, 0, SHAPE), 0, 1, ("end", 2)]
    notes.clear()
    fitted.partial_fit(example())
    assert notes == [("begin", N_BATCHES, 2, SHAPE), 2, 3, 4, 5, ("end", 6)]


@pytest.mark.parametrize("failure", [RuntimeError("broken"), KeyboardInterrupt(), None], ids=repr)
def test_callbacks_are_told_of_the_end_of_a_fit_that_fails_or_is_stopped(failure):
    first, second = [], []
    failing = Noting(second, failure) if failure else lambda model, iteration: iteration.iteration == 1
    fitted = model(callbacks=[Noting(first), failing])
    if isinstance(failure, RuntimeError):
        with pytest.raises(RuntimeError, match="broken"):
            fitted.fit(example())
    else:
        fitted.fit(example())
    assert first == [("begin", 6, 0, SHAPE), 0, 1, ("end", 2)]
    assert second == (first if failure else [])
    assert fitted.n_iter_ == 2


def test_callbacks_are_told_of_the_end_when_the_embeddings_cannot_be_read():
    notes = []

    def fail(chunk):
        if chunk == 2:
            raise OSError("the disk is gone")

    broken = model(callbacks=[Noting(notes)], init="random")
    with pytest.raises(OSError, match="the disk is gone"):
        broken.fit(in_chunks(example(), fail))
    assert notes == [("begin", 6, 0, SHAPE), 0, 1, ("end", 2)]
    np.testing.assert_array_equal(broken.components_, model(max_iter=2, init="random").fit(example()).components_)


def test_callbacks_that_have_begun_are_told_of_the_end_when_another_fails_to_begin():
    notes = []

    class Failing(Callback):
        def begin(self, model, n_iterations):
            raise RuntimeError("cannot begin")

    with pytest.raises(RuntimeError, match="cannot begin"):
        model(callbacks=[Noting(notes), Failing()]).fit(example())
    assert notes == [("begin", 6, 0, SHAPE), ("end", 0)]


# --- interrupting ----------------------------------------------------------------------------------------------------


def interrupt_from_a_callback(fit):
    def interrupt(model, iteration):
        if iteration.iteration == 1:
            raise KeyboardInterrupt

    return fit(model(callbacks=[interrupt], init="random"), example())


def interrupt_while_reading(fit):
    def interrupt(chunk):
        if chunk == 2:
            raise KeyboardInterrupt

    return fit(model(init="random"), in_chunks(example(), interrupt))


def interrupt_while_computing(fit):
    """From the scheduler, in the computation after the second iteration."""
    main = threading.current_thread()
    fitting = model(init="random")

    def get(graph, keys, **options):
        if threading.current_thread() is main and getattr(fitting, "n_iter_", 0) == 2:
            raise KeyboardInterrupt
        return dask.get(graph, keys, **options)

    with dask.config.set(scheduler=get):
        return fit(fitting, example())


def interrupt_by_a_signal(fit):
    """The real one: SIGINT while the third batch is read."""

    def interrupt(chunk):
        if chunk == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    return fit(model(init="random"), in_chunks(example(), interrupt))


INTERRUPTS = [interrupt_from_a_callback, interrupt_while_reading, interrupt_while_computing, interrupt_by_a_signal]


@pytest.mark.parametrize("interrupted", INTERRUPTS)
def test_an_interrupt_ends_the_fit_and_the_model_is_usable(interrupted):
    fitted = interrupted(lambda model, Y: model.fit(Y))
    assert fitted.stopped_by_ == "interrupt"
    assert fitted.dictionary_.provenance["stopped_by"] == "interrupt"
    assert fitted.history_.sizes["iteration"] == fitted.n_iter_
    assert fitted.n_iter_ == 2 or interrupted is interrupt_by_a_signal
    same = model(max_iter=fitted.n_iter_, init="random").fit(example())
    np.testing.assert_array_equal(fitted.components_, same.components_)
    np.testing.assert_array_equal(fitted.transform(example()).toarray(), same.transform(example()).toarray())
    fitted.set_params(callbacks=()).partial_fit(example())
    assert fitted.n_iter_ == same.n_iter_ + N_BATCHES
    assert fitted.stopped_by_ == "max_iter"


def test_an_interrupt_before_the_first_iteration_is_not_swallowed():
    def interrupt(chunk):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model(init="random").fit(in_chunks(example(), interrupt))


@pytest.mark.parametrize("ended", [*INTERRUPTS, lambda fit: fit(model(), example())])
def test_no_thread_is_left_behind(ended):
    with dask.config.set(num_workers=1):
        model().fit(example())  # starts the threads of Dask's pool, which stay
        before = set(threading.enumerate())
        ended(lambda model, Y: model.fit(Y))
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert not [name for name in left if "read-ahead" in name], left


# --- BLAS threads ----------------------------------------------------------------------------------------------------


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture(params=["here", "elsewhere"])
def two_blas_threads(request):
    """Set by the thread that fits or by one that has ended: threadpoolctl heeds one thread, as long as that lives."""
    if request.param == "here":
        with threadpool_limits(2, user_api="blas"):
            yield
        return
    with ThreadPoolExecutor(1) as other:
        limits = other.submit(threadpool_limits, 2, user_api="blas").result()
    yield
    with ThreadPoolExecutor(1) as other:
        other.submit(limits.restore_original_limits).result()


def fail_in_a_callback(fit):
    def fail(model, iteration):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fit(model(callbacks=[fail]), example())


@pytest.mark.usefixtures("two_blas_threads")
@pytest.mark.parametrize("ended", [lambda fit: fit(model(), example()), fail_in_a_callback, *INTERRUPTS])
def test_blas_has_its_threads_back_after_a_fit(ended):
    assert blas_threads() == {2}
    ended(lambda model, Y: model.fit(Y))
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_blas_threads")
@pytest.mark.parametrize("num_workers", [1, 4])
def test_blas_has_its_threads_back_after_transform_score_and_encode(num_workers):
    Y = np.tile(example(), (500, 1))
    with dask.config.set(num_workers=num_workers):
        fitted = model(init="random", max_iter=1).fit(example())
        fitted.transform(Y)
        fitted.score(Y)
        fitted.dictionary_.encode(da.from_array(Y, chunks=(8192, -1))).compute()
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_blas_threads")
def test_blas_has_one_thread_during_a_fit():
    during = []
    model(callbacks=[lambda model, iteration: during.append(blas_threads())]).fit(example())
    assert during == [{1}] * 6


# --- reading ahead ---------------------------------------------------------------------------------------------------


def test_the_next_batch_is_being_read_while_an_iteration_is_computed():
    """Every computation of an iteration waits here until the reading of the next batch has begun."""
    main = threading.current_thread()
    reading = [threading.Event() for _ in range(N_BATCHES)]
    ahead = []

    def get(graph, keys, **options):
        upcoming = fitting.n_iter_ + 1
        if threading.current_thread() is main and begun and upcoming < N_BATCHES:
            ahead.append(reading[upcoming].wait(timeout=20))
        return dask.get(graph, keys, **options)

    begun = []
    fitting = model(max_iter=N_BATCHES, init="random", callbacks=[Noting(begun)])
    with dask.config.set(scheduler=get):
        fitting.fit(in_chunks(example(), lambda chunk: reading[chunk].set()))
    assert len(ahead) >= N_BATCHES - 1
    assert all(ahead)


def test_reading_ahead_goes_no_further_than_the_next_batch_and_not_beyond_the_last():
    read = []
    at_most = []

    def look(model, iteration):
        time.sleep(0.05)
        at_most.append(max(read) <= iteration.iteration + 1)

    model(max_iter=3, init="random", callbacks=[look]).fit(in_chunks(example(), read.append))
    assert all(at_most)
    assert sorted(read) == [0, 1, 2]


def test_a_batch_that_was_read_ahead_but_is_not_needed_may_be_broken():
    Y = example()
    Y[2 * BATCH :] = np.nan
    stopped = model(init="random", callbacks=[lambda model, iteration: iteration.iteration == 1])
    stopped.fit(da.from_array(Y, chunks=(BATCH, -1)))
    assert (stopped.n_iter_, stopped.stopped_by_) == (2, "<lambda>")


class Alive:
    """Counts the arrays that are alive, and the most that were at once."""

    def __init__(self):
        self.made = self.alive = self.most = 0
        self._lock = threading.RLock()  # reentrant: a garbage collection may free an array while another is counted

    def track(self, block):
        block = block.copy()
        with self._lock:
            self.made += 1
            self.alive += 1
            self.most = max(self.most, self.alive)
        weakref.finalize(block, self._free)
        return block

    def _free(self):
        with self._lock:
            self.alive -= 1


N_CHUNKS = 40


@pytest.mark.parametrize(
    "use",
    [
        lambda m, Y, tracked: m.fit(tracked),
        lambda m, Y, tracked: m.fit(tracked, validation=Y[:BATCH]),
        lambda m, Y, tracked: m.set_params(shuffle="chunks").fit(tracked),
        lambda m, Y, tracked: m.set_params(center=True).fit(tracked),
        lambda m, Y, tracked: m.partial_fit(tracked),
        lambda m, Y, tracked: m.set_params(max_iter=1).fit(Y).score(tracked),
        lambda m, Y, tracked: m.set_params(max_iter=1).fit(Y).transform(tracked).to_csr(),
    ],
    ids=["fit", "validated", "shuffled", "centred", "partial_fit", "score", "transform"],
)
@pytest.mark.parametrize("num_workers", [1, 4])
def test_only_a_few_chunks_of_the_embeddings_are_in_memory_at_once(use, num_workers, monkeypatch):
    """Also while one worker makes the Gram matrix, and the others have nothing to do but read."""
    monkeypatch.setattr("dbksvd_dask.batches.ROWS_PER_TASK", BATCH)
    chunks = Alive()
    Y = da.from_array(np.tile(example(), (N_CHUNKS // N_BATCHES, 1)), chunks=(BATCH, -1))
    tracked = Y.map_blocks(chunks.track, meta=np.empty((0, 0), Y.dtype))
    with dask.config.set(scheduler="threads", num_workers=num_workers):
        use(model(max_iter=N_CHUNKS, init="random").set_params(n_components=1024), Y, tracked)
    assert chunks.made >= N_CHUNKS
    assert chunks.most <= N_CHUNKS // 3
