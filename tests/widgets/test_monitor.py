"""The convergence monitor in plain Python: what it sends, when, and what the buttons do."""

import json
import sys
from threading import Thread

import numpy as np
import pytest

from dbksvd_dask import widgets
from dbksvd_dask.history import COHERENCE_BINS, STAGES, Iteration
from dbksvd_dask.widgets import ConvergenceMonitor, monitor
from dbksvd_dask.widgets.monitor import MAX_POINTS, SECONDS_BETWEEN_PUSHES


def an_iteration(number, *, seconds=1.0, validation=np.nan, histogram=None):
    return Iteration(
        iteration=number,
        n_samples_seen=100 * (number + 1),
        train_relative_error=0.5,
        train_variance_explained=0.75,
        train_variance_explained_per_feature=0.7,
        train_l0=4.0,
        validation_relative_error=validation,
        validation_variance_explained=validation,
        validation_variance_explained_per_feature=validation,
        validation_l0=validation,
        n_unused_atoms=3,
        n_duplicate_atoms=0,
        coherence=np.zeros(5),
        coherence_histogram=np.zeros(COHERENCE_BINS, np.int64) if histogram is None else histogram,
        seconds=seconds,
        stage_seconds=np.arange(len(STAGES), dtype=float),
        peak_memory=np.zeros(len(STAGES), np.int64),
    )


def points_of(widget):
    return np.frombuffer(widget.points, "<f4").reshape(-1, len(widget.columns))


def column(widget, name):
    return points_of(widget)[:, widget.columns.index(name)]


@pytest.fixture
def clock(monkeypatch):
    """Stands still until it is set."""
    now = [1000.0]
    monkeypatch.setattr(monitor, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def sent(monkeypatch):
    """The sets of traits that went to the views, one for each message."""
    messages = []
    monkeypatch.setattr(ConvergenceMonitor, "send_state", lambda self, key=None: messages.append(set(key or ())))
    return messages


def test_an_iteration_is_a_row_of_named_columns():
    widget = ConvergenceMonitor()
    widget.add(an_iteration(0, seconds=2.0))
    widget.add(an_iteration(1, seconds=3.0, validation=0.25))
    widget.set_status("paused")
    assert points_of(widget).dtype.str == "<f4"
    expected = {
        "iteration": [0, 1],
        "elapsed": [2, 5],
        "n_samples_seen": [100, 200],
        "train_relative_error": [0.5, 0.5],
        "validation_relative_error": [np.nan, 0.25],
        "train_variance_explained": [0.75, 0.75],
        "validation_variance_explained": [np.nan, 0.25],
        "train_l0": [4, 4],
        "validation_l0": [np.nan, 0.25],
        "n_unused_atoms": [3, 3],
        "seconds": [2, 3],
        **{f"stage {stage}": [i, i] for i, stage in enumerate(STAGES)},
    }
    assert widget.columns == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(column(widget, name), values, err_msg=name)


def kept(n):
    """Which of n iterations are shown: multiples of the least power of two that leaves few enough, and the last."""
    stride = 1
    while len(shown := sorted({*range(0, n, stride), n - 1})) > MAX_POINTS:
        stride *= 2
    return shown


@pytest.mark.parametrize("n", [1, 2, 1023, 1024, 1025, 1026, 1027, 2047, 2048, 2049, 2050, 4095, 4096, 4097, 10_000])
def test_of_long_fits_every_second_iteration_is_shown_or_every_fourth(n):
    widget = ConvergenceMonitor()
    for number in range(n):
        widget.add(an_iteration(number))
    widget.set_status("finished")
    np.testing.assert_array_equal(column(widget, "iteration"), kept(n))
    np.testing.assert_array_equal(column(widget, "elapsed"), np.array(kept(n)) + 1)
    assert widget.status["n_done"] == n


def test_it_sends_at_most_ten_times_a_second(clock, sent):
    widget = ConvergenceMonitor()
    widget.begin(1000)
    widget.set_status("running")
    clock[0] += 1
    del sent[:]
    for number in range(1000):  # three seconds of iterations
        widget.add(an_iteration(number, seconds=0.003))
        clock[0] += 0.003
    assert 3 / SECONDS_BETWEEN_PUSHES - 2 <= len(sent) <= 3 / SECONDS_BETWEEN_PUSHES
    assert len(points_of(widget)) == widget.status["n_done"] < 1000
    widget.set_status("finished")
    assert len(points_of(widget)) == widget.status["n_done"] == 1000


def test_what_is_held_back_goes_along_with_the_next(clock):
    widget = ConvergenceMonitor()
    for number in range(3):
        widget.add(an_iteration(number))
    assert column(widget, "iteration").tolist() == [0]
    clock[0] += SECONDS_BETWEEN_PUSHES
    widget.add(an_iteration(3))
    assert column(widget, "iteration").tolist() == [0, 1, 2, 3]
    widget.add(an_iteration(4))
    widget.set_status("pausing")
    assert column(widget, "iteration").tolist() == [0, 1, 2, 3, 4]


def test_one_message_holds_all_that_belongs_together(sent):
    widget = ConvergenceMonitor()
    del sent[:]
    widget.add(an_iteration(0, histogram=np.arange(COHERENCE_BINS)))
    assert sent == [{"points", "histogram", "status"}]


def test_the_histogram_is_that_of_the_last_iteration():
    widget = ConvergenceMonitor()
    assert widget.histogram == [0] * COHERENCE_BINS
    for number in range(3):
        widget.add(an_iteration(number, histogram=number * np.arange(COHERENCE_BINS)))
    widget.set_status("paused")
    assert widget.histogram == (2 * np.arange(COHERENCE_BINS)).tolist()


def test_the_time_left_is_that_of_recent_iterations(clock):
    widget = ConvergenceMonitor()
    widget.begin(30)
    assert widget.status["remaining"] is widget.status["samples_per_second"] is None
    clock[0] += 60
    widget.add(an_iteration(0, seconds=60.0))  # compiles
    assert widget.status["remaining"] == 29 * 60
    for number in range(1, 20):
        widget.add(an_iteration(number, seconds=8.0 if number < 13 else 2.0))  # three of the last ten
    widget.set_status("running")
    assert widget.status["elapsed"] == 60 + 12 * 8 + 7 * 2
    assert widget.status["remaining"] == 10 * 2
    assert widget.status["samples_per_second"] == 100 / 2
    widget.set_status("finished")
    assert widget.status["remaining"] is None


def test_the_status_is_plain_json():
    widget = ConvergenceMonitor()
    widget.begin(5, "http://127.0.0.1:8787/status")
    for number in range(3):
        widget.add(an_iteration(number, seconds=np.float64(0.5)))
    widget.set_status("stopping", "stopped by the Stop button")
    status = json.loads(json.dumps([widget.status, widget.histogram], allow_nan=False))[0]
    assert status == {
        "state": "stopping",
        "message": "stopped by the Stop button",
        "n_iterations": 5,
        "n_done": 3,
        "elapsed": 1.5,
        "remaining": 1.0,
        "samples_per_second": 200.0,
    }
    assert widget.dashboard == "http://127.0.0.1:8787/status"
    assert repr(widget) == "<ConvergenceMonitor: stopping, 3 of 5 iterations>"


@pytest.mark.parametrize("final", ["finished", "failed"])
def test_nothing_overwrites_how_a_fit_ended(final, clock):
    widget = ConvergenceMonitor()
    widget.begin(5)
    widget.add(an_iteration(0))
    widget.set_status(final, "why it ended")
    before = widget.get_state()
    clock[0] += 1
    widget.set_status("stopping")
    widget.add(an_iteration(1))
    widget.begin(7, "http://127.0.0.1:8787/status")
    widget.set_status("finished", "again")
    assert widget.get_state() == before
    assert (before["status"]["state"], before["status"]["message"]) == (final, "why it ended")


@pytest.fixture
def hasty_threads():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_the_fit_and_the_buttons_may_meet():
    widget, n, seen = ConvergenceMonitor(), 3000, []
    widget.begin(n)
    widget.observe(lambda change: seen.append((*column(widget, "iteration")[-1:], change.new["n_done"] - 1)), "status")

    def fit():
        for number in range(n):
            widget.add(an_iteration(number))
        widget.set_status("finished", "all iterations are done")

    thread = Thread(target=fit)
    thread.start()
    while thread.is_alive():
        widget.set_status("pausing")
        widget.set_status("running")
    thread.join()
    assert widget.status["message"] == "all iterations are done"
    assert column(widget, "iteration").tolist() == kept(n)
    assert all(last == latest for last, latest in filter(lambda pair: len(pair) == 2, seen))


@pytest.mark.parametrize("command", ["stop", "pause", "resume"])
def test_buttons_reach_the_fit(command):
    heard = []
    widget = ConvergenceMonitor(heard.append)
    widget._handle_custom_msg({"command": command}, [])
    assert heard == [command]


@pytest.mark.parametrize("content", [{"command": "delete"}, {"kind": "other"}, {}])
def test_other_messages_are_nothing_to_it(content):
    heard = []
    ConvergenceMonitor(heard.append)._handle_custom_msg(content, [])
    assert heard == []


def test_buttons_without_a_fit_do_nothing():
    ConvergenceMonitor()._handle_custom_msg({"command": "stop"}, [])


def test_a_button_may_set_the_status():
    widget = ConvergenceMonitor(lambda command: widget.set_status("stopping", command))
    widget._handle_custom_msg({"command": "stop"}, [])
    assert (widget.status["state"], widget.status["message"]) == ("stopping", "stop")


def test_a_page_holds_what_is_shown_and_links_to_nothing(tmp_path, monkeypatch):
    pages = []
    monkeypatch.setattr(monitor, "write_page", lambda *arguments: pages.append(arguments))
    widget = ConvergenceMonitor()
    widget.begin(9, "http://127.0.0.1:8787/status")
    for number in range(3):
        widget.add(an_iteration(number))
    widget.to_html(tmp_path / "fit.html")
    ((path, _, name, state),) = pages
    assert (path, name) == (tmp_path / "fit.html", "monitor")
    assert len(state["points"]) == 3 * 4 * len(state["columns"])
    assert (state["static"], state["dashboard"], state["status"]["n_done"]) == (True, "", 3)
    assert state == {**{key: getattr(widget, key) for key in state}, "static": True, "dashboard": ""}


def test_the_page_of_a_fit_is_one_file_without_the_dashboard(tmp_path):
    widget = ConvergenceMonitor()
    widget.begin(9, "http://127.0.0.1:8787/status")
    widget.set_status("failed", "ValueError: </script> in row 3")
    widget.to_html(tmp_path / "fit.html")
    assert [path.name for path in tmp_path.iterdir()] == ["fit.html"]
    text = (tmp_path / "fit.html").read_text(encoding="utf-8")
    assert r"ValueError: \u003c/script> in row 3" in text
    assert "127.0.0.1" not in text


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "dbksvd_dask.widgets.monitor")
    with pytest.raises(ImportError, match=r'ConvergenceMonitor needs anywidget.*pip install "dbksvd-dask\[notebook\]"'):
        _ = widgets.ConvergenceMonitor
    with pytest.raises(AttributeError, match="Other"):
        _ = widgets.Other
