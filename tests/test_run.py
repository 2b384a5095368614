"""`fit_async`: the fit of `fit`, in the background; stopped, paused, awaited, failed, side by side."""

import asyncio
import gc
import pickle
import subprocess
import sys
import time
import weakref
from threading import Event

import numpy as np
import pytest
from dask.distributed import Client, LocalCluster
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from small_fits import N_ATOMS, example, in_chunks, model

from dbksvd_dask import Callback, ProgressBar
from dbksvd_dask.widgets import ConvergenceMonitor

ENDLESS = 10**6


@pytest.fixture(autouse=True)
def no_bar(monkeypatch):
    """What the progress bar writes is looked at by one test only."""
    monkeypatch.setattr("dbksvd_dask.callbacks.ProgressBar.begin", lambda *arguments: None)
    monkeypatch.setattr("dbksvd_dask.callbacks.ProgressBar.__call__", lambda *arguments: None)
    monkeypatch.setattr("dbksvd_dask.callbacks.ProgressBar.end", lambda *arguments: None)


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def endless(**parameters):
    return model(max_iter=ENDLESS, **parameters).fit_async(example(), validation=example(seed=1))


@pytest.fixture
def run():
    run = endless()
    yield run
    run.stop()
    run.wait(30)


# --- the same fit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", [{}, {"matryoshka": [4, 8]}, {"inner_batch_size": 5}, {"center": True}])
def test_it_is_the_fit_of_fit_to_the_last_bit(parameters):
    background = model(**parameters).fit_async(example(), validation=example(seed=1)).wait()
    blocking = model(**parameters).fit(example(), validation=example(seed=1))
    np.testing.assert_array_equal(background.components_, blocking.components_)
    assert background.stopped_by_ == "max_iter"
    costs = {"seconds", "stage_seconds", "peak_memory"}
    figures = [name for name in blocking.history_ if name not in costs]
    assert background.history_[figures].equals(blocking.history_[figures])


def test_a_support_is_heeded():
    support = np.zeros((len(example()), N_ATOMS))
    support[:, 3] = 1
    background = model().fit_async(example(), support=support).wait()
    np.testing.assert_array_equal(background.components_, model().fit(example(), support=support).components_)


def test_it_returns_at_once_and_the_model_is_its_own():
    held = Event()
    fitted = model(callbacks=[lambda model, iteration: not held.wait(30)])
    run = fitted.fit_async(example())
    assert not run.done()
    held.set()
    assert run.wait() is run.model is fitted
    assert run.done()


def test_callbacks_of_the_model_are_called_in_the_background_and_stay_its_own():
    class Noting(Callback):
        notes = []  # noqa: RUF012

        def begin(self, model, n_iterations):
            self.notes.append(n_iterations)

        def __call__(self, model, iteration):
            self.notes.append(iteration.iteration)

        def end(self, model):
            self.notes.append("end")

    noting = Noting()
    fitted = model(max_iter=2, callbacks=[noting]).fit_async(example()).wait()
    assert noting.notes == [2, 0, 1, "end"]
    assert fitted.callbacks == [noting]


def test_a_callback_ends_it_under_its_own_name():
    def enough(model, iteration):
        return iteration.iteration == 1

    run = model(callbacks=[enough]).fit_async(example())
    assert run.wait().stopped_by_ == "enough"
    assert run.n_done == 2
    assert "enough" in run.monitor.status["message"]


# --- stop, pause, resume ---------------------------------------------------------------------------------------------


def test_stop_ends_it_after_the_running_iteration_with_a_usable_model(run):
    until(lambda: run.n_done >= 3)
    run.stop()
    fitted = run.wait(30)
    assert fitted.stopped_by_ == "stop"
    assert run.state == "finished"
    n_iter = fitted.n_iter_
    assert fitted.history_.sizes["iteration"] == run.n_done == n_iter
    assert fitted.transform(example()).shape == (len(example()), N_ATOMS)
    same = model(max_iter=n_iter, average=True).fit(example())
    np.testing.assert_array_equal(fitted.components_, same.components_)


def test_stop_before_the_first_iteration_leaves_a_fitted_model():
    run = endless()
    run.stop()
    assert run.state in ("stopping", "finished")
    assert run.wait(30).n_iter_ >= 1


def test_pause_holds_it_after_an_iteration_and_resume_goes_on(run):
    until(lambda: run.n_done >= 1)
    run.pause()
    assert run.state in ("pausing", "paused")
    until(lambda: run.state == "paused")
    n_done = run.n_done
    assert run.model.transform(example()).shape == (len(example()), N_ATOMS)
    time.sleep(0.2)
    assert run.n_done == n_done
    run.resume()
    until(lambda: run.n_done > n_done)
    assert run.state == "running"


def test_the_model_can_be_looked_at_while_it_is_fitted(run):
    until(lambda: run.n_done >= 1)
    for _ in range(100):
        dictionary = run.model.dictionary_
        assert dictionary.provenance["stopped_by"] is None
        assert dictionary.history.sizes["iteration"] >= 1
        assert "validation" in run._repr_html_() + run.model._repr_html_() + dictionary._repr_html_()
        assert 0 < run.model.score(example()) <= 1


def test_a_paused_run_can_be_stopped(run):
    run.pause()
    until(lambda: run.state == "paused")
    run.stop()
    assert run.wait(30).stopped_by_ == "stop"
    assert run.state == "finished"


def test_pausing_does_not_change_the_bits():
    run = model(max_iter=5).fit_async(example())
    for _ in range(3):
        run.pause()
        run.resume()
    np.testing.assert_array_equal(run.wait().components_, model(max_iter=5).fit(example()).components_)


def test_after_the_end_nothing_changes_any_more():
    run = model(max_iter=2).fit_async(example())
    run.wait()
    for change in (run.pause, run.resume, run.stop, run.pause):
        change()
        assert run.state == "finished"
    assert run.wait().stopped_by_ == "max_iter"


def test_the_states_that_it_goes_through():
    reading, go_on = Event(), Event()
    fitting = model(max_iter=ENDLESS, callbacks=[lambda model, iteration: reading.set() or not go_on.wait(30)])
    run = fitting.fit_async(example())
    assert run.state in ("starting", "running")
    assert reading.wait(30)
    assert run.state == "running"
    run.pause()
    assert run.state == "pausing"
    go_on.set()
    until(lambda: run.state == "paused")
    run.stop()
    run.wait(30)
    assert run.state == "finished"


# --- waiting ---------------------------------------------------------------------------------------------------------


def test_wait_gives_up_after_its_time_and_the_fit_goes_on(run):
    with pytest.raises(TimeoutError, match=r"after 0.05 s the fit goes on .*wait longer, or call stop\(\)"):
        run.wait(0.05)
    n_done = run.n_done
    until(lambda: run.n_done > n_done)


@pytest.mark.parametrize("timeout", [-1, "soon", float("nan"), True])
def test_a_timeout_is_a_number_of_seconds(run, timeout):
    with pytest.raises(ValueError, match="must be a number of seconds of at least 0"):
        run.wait(timeout)


def test_it_can_be_awaited_while_other_coroutines_run():
    async def fit_and_count():
        run = model(max_iter=20).fit_async(example())
        counted = 0
        task = asyncio.ensure_future(await_it(run))
        while not task.done():
            counted += 1
            await asyncio.sleep(0.001)
        return await task, counted

    async def await_it(run):
        return await run

    fitted, counted = asyncio.run(fit_and_count())
    assert fitted.n_iter_ == 20
    assert counted > 1


def test_giving_up_awaiting_leaves_the_fit_alone(run):
    async def give_up():
        async with asyncio.timeout(0.05):
            await run

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    n_done = run.n_done
    until(lambda: run.n_done > n_done)


# --- failure ---------------------------------------------------------------------------------------------------------


def failing(model, iteration):
    if iteration.iteration == 2:
        raise OSError("the disk is full")


def test_what_the_fit_raises_comes_out_of_wait_and_is_shown():
    run = model(callbacks=[failing]).fit_async(example())
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is full"):
            run.wait(30)
    assert run.state == "failed"
    assert run.done()
    assert run.monitor.status["state"] == "failed"
    assert run.monitor.status["message"] == "OSError: the disk is full"
    assert run.model.n_iter_ == 3
    assert run.model.stopped_by_ == "error"


def test_a_timeout_of_the_fit_itself_is_not_taken_for_one_of_waiting():
    def late(model, iteration):
        raise TimeoutError("the store did not answer")

    run = model(callbacks=[late]).fit_async(example())
    with pytest.raises(TimeoutError, match="the store did not answer"):
        run.wait(30)


@pytest.mark.parametrize(
    ("fit", "error", "message"),
    [
        (lambda: model().fit_async(np.full((200, 8), np.nan, "f4")), ValueError, "row 0"),
        (lambda: model().fit_async("nowhere.zarr"), FileNotFoundError, "nothing at"),
        (lambda: model(n_passes=0).fit_async(example()), ValueError, "n_passes"),
        (lambda: model(callbacks=None).fit_async(example()), ValueError, "callbacks"),
        (lambda: model(callbacks=5).fit_async(example()), ValueError, "callbacks"),
        (lambda: model().fit_async(example(), validation=example()[:, :3]), ValueError, "3 features"),
    ],
)
def test_bad_input_is_named_and_leaves_the_model_unfitted(fit, error, message):
    run = fit()
    with pytest.raises(error, match=message):
        run.wait(30)
    assert run.n_done == 0
    assert not hasattr(run.model, "n_iter_")


def test_waiting_for_ever_can_be_said_by_infinity():
    assert model().fit_async(example()).wait(float("inf")).n_iter_ == 6


def test_a_callback_that_runs_out_of_items_is_an_error_of_await_too():
    async def fit():
        return await model(callbacks=[lambda model, iteration: next(iter(()))]).fit_async(example())

    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(asyncio.wait_for(fit(), 30))


def test_the_iteration_of_a_callback_that_fails_is_shown():
    run = model(callbacks=[failing]).fit_async(example())
    with pytest.raises(OSError, match="full"):
        run.wait(30)
    assert run.n_done == run.monitor.status["n_done"] == run.model.n_iter_ == 3


def test_a_failure_that_nobody_waits_for_is_logged_where_no_monitor_shows_it(caplog):
    run = model(callbacks=[failing]).fit_async(example())
    until(run.done)
    assert "the fit has failed: OSError: the disk is full" in caplog.text


def test_the_error_is_raised_by_await():
    async def fit():
        return await model(callbacks=[failing]).fit_async(example())

    with pytest.raises(OSError, match="the disk is full"):
        asyncio.run(fit())


def test_until_there_are_atoms_the_model_is_not_fitted():
    reading, go_on = Event(), Event()

    def read(chunk):
        reading.set()
        assert go_on.wait(30)

    fitting = model(init="random", center=True).fit(example())
    run = fitting.fit_async(in_chunks(example(), read))
    assert reading.wait(30)
    with pytest.raises(NotFittedError):
        fitting.transform(example())
    go_on.set()
    assert run.wait(30).transform(example()).shape == (len(example()), N_ATOMS)


def test_what_a_run_has_used_is_freed_although_widgets_live_on():
    Y = example()
    for callbacks in ((), [failing]):
        run = model(callbacks=callbacks).fit_async(Y)
        monitor = run.monitor
        until(run.done)
        watched = weakref.ref(run.model)
        del run
        gc.collect()
        assert watched() is None
        assert monitor.status["state"] in ("finished", "failed")


def test_a_model_can_be_copied_while_its_bar_is_shown(monkeypatch):
    monkeypatch.undo()
    held = Event()
    run = model(callbacks=[ProgressBar(), lambda model, iteration: not held.wait(30)]).fit_async(example())
    until(lambda: run.n_done >= 1)
    run.model.set_params(callbacks=run.model.callbacks[:1])
    copied = pickle.loads(pickle.dumps(run.model))
    held.set()
    np.testing.assert_array_equal(copied.components_.shape, run.wait(30).components_.shape)


# --- several runs ----------------------------------------------------------------------------------------------------


def test_runs_side_by_side_are_the_fits_one_after_the_other():
    runs = [model(random_state=seed, max_iter=15).fit_async(example()) for seed in range(4)]
    for seed, run in enumerate(runs):
        alone = model(random_state=seed, max_iter=15).fit(example())
        np.testing.assert_array_equal(run.wait().components_, alone.components_)


def test_a_model_is_fitted_by_one_run_at_a_time(run):
    for other in (lambda: run.model.fit(example()), lambda: run.model.fit_async(example()).wait(30)):
        with pytest.raises(RuntimeError, match="being fitted already: wait for that, or fit a clone"):
            other()
    with pytest.raises(RuntimeError, match="being fitted already"):
        run.model.partial_fit(example())
    clone(run.model).set_params(max_iter=1).fit(example())
    n_done = run.n_done
    until(lambda: run.n_done > n_done)


def test_a_model_can_be_fitted_again_after_a_run_be_it_failed():
    run = model(callbacks=[failing]).fit_async(example())
    with pytest.raises(OSError, match="full"):
        run.wait(30)
    assert run.model.set_params(callbacks=()).fit_async(example()).wait().n_iter_ == 6


def test_the_client_of_the_moment_computes_it():
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        with client.as_current():
            run = model(max_iter=3).fit_async(example())
        fitted = run.wait(60)
        assert client.dashboard_link == run.monitor.dashboard
    np.testing.assert_array_equal(fitted.components_, model(max_iter=3).fit(example()).components_)


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_the_monitor_shows_all_iterations_also_when_it_is_made_late():
    run = model().fit_async(example(), validation=example(seed=1))
    run.wait()
    monitor = run.monitor
    assert isinstance(monitor, ConvergenceMonitor)
    assert run.monitor is monitor
    points = np.frombuffer(monitor.points, "<f4").reshape(-1, len(monitor.columns))
    history = run.model.history_
    for name in ("iteration", "train_relative_error", "validation_variance_explained", "train_l0"):
        np.testing.assert_array_equal(points[:, monitor.columns.index(name)], history[name].astype("f4"))
    assert monitor.histogram == history.coherence_histogram[-1].values.tolist()
    assert (monitor.status["state"], monitor.status["n_done"]) == ("finished", 6)


def press(run, command):
    """As the front end says it."""
    run.monitor._handle_custom_msg({"command": command}, [])


@pytest.mark.parametrize(("command", "state"), [("stop", "finished"), ("pause", "paused")])
def test_buttons_of_the_monitor_do_what_they_say(run, command, state):
    press(run, command)
    until(lambda: run.state == state)
    until(lambda: run.monitor.status["state"] == state)
    if command == "pause":
        press(run, "resume")
        until(lambda: run.monitor.status["state"] == "running")


def test_the_last_the_monitor_hears_is_the_end():
    for _ in range(10):
        run = endless()
        monitor = run.monitor
        until(lambda run=run: run.n_done >= 1)
        for change in (run.pause, run.resume, run.stop):
            change()
        run.wait(30)
        assert monitor.status["state"] == "finished"
        assert monitor.status["n_done"] == run.n_done


def test_a_monitor_that_fails_does_not_end_the_fit(monkeypatch, caplog):
    held = Event()
    run = model(callbacks=[lambda model, iteration: not held.wait(30)]).fit_async(example())
    monitor = run.monitor

    def fail(*arguments):
        raise OSError("the browser is gone")

    monkeypatch.setattr(type(monitor), "add", fail)
    held.set()
    np.testing.assert_array_equal(run.wait(30).components_, model().fit(example()).components_)
    assert "the browser is gone" in caplog.text


def test_outside_of_notebooks_there_is_a_progress_bar(monkeypatch, capsys):
    monkeypatch.undo()
    model(max_iter=3).fit_async(example()).wait()
    assert "3/3" in capsys.readouterr().err
    model(max_iter=3, callbacks=[ProgressBar()]).fit_async(example()).wait()
    assert sum("100%" in line for line in capsys.readouterr().err.split("\n")) == 1


def test_its_repr_tells_how_far_it_is():
    run = model().fit_async(example())
    run.wait()
    assert repr(run) == "<Run: finished, 6 of 6 iterations>"
    assert "finished" in run._repr_html_()


def test_a_script_that_does_not_wait_ends():
    script = (
        "import time, numpy as np, dbksvd_dask as dbk\n"
        "Y = np.random.default_rng(0).standard_normal((2000, 8)).astype('f4')\n"
        "run = dbk.DBKSVD(16, 2, max_iter=10**6).fit_async(Y)\n"
        "while run.n_done < 3: time.sleep(0.01)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
