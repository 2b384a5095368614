"""What ends a fit: callbacks, a plateau, a budget, an interrupt, a failure; and who is told."""

from types import SimpleNamespace

import numpy as np
import pytest
from small_fits import (
    INTERRUPTS,
    N_ATOMS,
    N_BATCHES,
    N_FEATURES,
    Noting,
    example,
    in_chunks,
    interrupt_by_a_signal,
    model,
)

from dbksvd_dask import Callback, ProgressBar, StopOnPlateau, TimeBudget
from dbksvd_dask.history import Iteration

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
