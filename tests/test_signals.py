"""Signals during a fit with checkpoints: one is written, and what should end ends in order."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small_fits import assert_same_fit, example, model

import dbksvd_dask as dbk
from dbksvd_dask import DBKSVD


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fit.zarr"


KILLED = """
import os, signal, sys, zarr
from small_fits import example, model

n_objects = 0

def set(self, *arguments, **options):
    global n_objects
    n_objects += 1
    if n_objects == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *arguments, **options)

original, zarr.storage.LocalStore.set = zarr.storage.LocalStore.set, set
tell = lambda model, iteration: print(model.n_iter_, flush=True)
model(checkpoint=sys.argv[1], callbacks=[tell]).fit(example())
"""

SCRIPT = """
import os, signal, sys, time
import numpy as np
from small_fits import example, model

def kill(model, iteration):
    if iteration.iteration == 2:
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
        time.sleep(30 if sys.argv[2] != "SIGINT" else 0.1)

fitted = model(checkpoint=sys.argv[1], checkpoint_every=100, callbacks=[kill]).fit(example())
print("went on after", fitted.n_iter_, fitted.stopped_by_)
"""


def run(script, *arguments):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize("n_objects", [180, 241, 250])
def test_a_fit_that_is_killed_while_it_writes_loses_one_iteration(n_objects, path):
    killed = run(KILLED, path, n_objects)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert any(name.endswith(".partial") for name in os.listdir(path))
    n_told = int(killed.stdout.split()[-1])  # the killed process was writing the one after
    assert dbk.open_dictionary(path).provenance["n_iter"] == n_told
    assert_same_fit(DBKSVD.resume(path, example()), model().fit(example()))
    assert sorted(os.listdir(path)) == ["iteration-000005", "iteration-000006", "zarr.json"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_writes_a_checkpoint_and_ends_the_fit_in_order(name, path):
    ended = run(SCRIPT, path, name)
    assert "Traceback" not in ended.stderr
    if name == "SIGTERM":
        assert (ended.returncode, ended.stdout) == (128 + signal.SIGTERM, "")
    else:
        assert (ended.returncode, ended.stdout) == (0, "went on after 3 interrupt\n")
    assert dbk.open_dictionary(path).provenance["n_iter"] == 3
    assert_same_fit(DBKSVD.resume(path, example()), model().fit(example()))


SIGNALLED_WHILE_WRITING = """
import os, signal, sys, zarr
from small_fits import example, model

n_objects = 0

def set(self, *arguments, **options):
    global n_objects
    n_objects += 1
    if 180 <= n_objects < 183:
        os.kill(os.getpid(), signal.SIGTERM)
    return original(self, *arguments, **options)

original, zarr.storage.LocalStore.set = zarr.storage.LocalStore.set, set
fitting = model(checkpoint=sys.argv[1])
try:
    fitting.fit(example())
finally:
    print(fitting.n_iter_)
"""


def test_a_signal_while_a_checkpoint_is_written_loses_none(path):
    ended = run(SIGNALLED_WHILE_WRITING, path)
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    assert "Traceback" not in ended.stderr
    assert dbk.open_dictionary(path).provenance["n_iter"] == int(ended.stdout) < 6
    assert not [name for name in os.listdir(path) if name.endswith(".partial")]
    assert_same_fit(DBKSVD.resume(path, example()), model().fit(example()))


SIGNAL_IN_A_COLLECTION = """
import gc, os, signal, sys
from small_fits import example, model

def collected(phase, info):
    if fitting and phase == "stop":
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))

def collect(model, iteration):
    if iteration.iteration == 2:
        fitting.append(True)
        gc.collect()
        fitting.clear()

fitting = []
gc.callbacks.append(collected)
print("went on after", model(checkpoint=sys.argv[1], callbacks=[collect]).fit(example()).n_iter_)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_that_python_loses_ends_the_fit_an_iteration_later(name, path):
    ended = run(SIGNAL_IN_A_COLLECTION, path, name)
    assert "Exception ignored in" in ended.stderr  # Python itself has taken it for an error of the callback
    assert ended.stdout == ("went on after 4\n" if name == "SIGINT" else "")
    assert ended.returncode == (0 if name == "SIGINT" else 128 + signal.SIGTERM)
    assert dbk.open_dictionary(path).provenance["n_iter"] == 4


def test_handlers_of_others_stay_and_ours_does_not(path):
    seen = []
    watched = model(checkpoint=path, callbacks=[lambda model, iteration: seen.append(signal.getsignal(signal.SIGTERM))])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    watched.fit(example())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert all(handler not in (signal.SIG_DFL, None) for handler in seen)

    def own(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, own)
    try:
        seen.clear()
        DBKSVD.resume(path, example(), callbacks=watched.callbacks)
        model(checkpoint=f"{path}2", callbacks=watched.callbacks).fit(example())
        assert set(seen) == {own}
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_run_in_the_background_leaves_signals_alone(path):
    seen = []
    look = [lambda model, iteration: seen.append(signal.getsignal(signal.SIGTERM))]
    model(checkpoint=path, callbacks=look).fit_async(example()).wait(timeout=60)
    assert set(seen) == {signal.SIG_DFL}
