"""The plan of a fit's memory on a device is an upper bound of the arrays that the fit has there."""

import weakref
from threading import RLock

import cupy_stand_in
import dask
import numpy as np
import pytest
from numba import config

from dbksvd_dask import DBKSVD, open_embeddings

pytestmark = pytest.mark.skipif(
    not config.ENABLE_CUDASIM, reason="counts the arrays of the stand-in; CuPy deals out larger pieces"
)

N_SAMPLES, N_FEATURES, N_ATOMS, BATCH, ROWS_PER_TASK = 96, 16, 24, 64, 32


class Counted:
    """Bytes of all arrays of the stand-in, now and at most; views take none."""

    def __init__(self):
        self.now, self.most = 0, 0
        self._seen = set()
        self._lock = RLock()

    def add(self, values):
        while isinstance(values.base, np.ndarray):
            values = values.base
        with self._lock:
            if id(values) not in self._seen:
                self._seen.add(id(values))
                weakref.finalize(values, self._remove, id(values), values.nbytes)
                self.now += values.nbytes
                self.most = max(self.most, self.now)

    def _remove(self, key, size):
        with self._lock:
            self._seen.remove(key)
            self.now -= size


@pytest.fixture
def counted(cupy, monkeypatch):
    for module in ("batches", "memory_sizes"):
        monkeypatch.setattr(f"dbksvd_dask.{module}.ROWS_PER_DEVICE_TASK", ROWS_PER_TASK)
    monkeypatch.setattr("dbksvd_dask.kernels.cuda.least_squares.MOST_BLOCKS", 32)
    counted, begin = Counted(), cupy_stand_in.ndarray.__init__

    def begin_counted(array, values):
        begin(array, values)
        if isinstance(values, np.ndarray):
            counted.add(values)

    monkeypatch.setattr(cupy_stand_in.ndarray, "__init__", begin_counted)
    return counted


def on_the_device(n_samples=N_SAMPLES, stored="float32", chunk=8):
    rows = np.random.default_rng(0).standard_normal((n_samples, N_FEATURES)).astype(stored)
    return open_embeddings(open_embeddings(rows).chunk(sample=chunk), device="cuda")


def atoms(n_atoms=N_ATOMS):
    drawn = np.random.default_rng(1).standard_normal((n_atoms, N_FEATURES))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("parameters", "n_held_out"),
    [
        ({}, 0),
        ({"n_nonzero_coefs": 12, "encoder": "omp"}, 0),
        ({"n_components": 64, "init": atoms(64), "matryoshka": [32, 32]}, 0),
        ({"inner_batch_size": 6, "n_passes": 3, "shuffle": "chunks", "center": True}, 0),
        ({"n_components": 4, "n_nonzero_coefs": 4, "init": atoms(4), "batch_size": 2}, ROWS_PER_TASK),
    ],
    ids=["all atoms at once", "least squares", "groups", "inner batches", "more held-out rows"],
)
def test_a_fit_holds_no_more_than_planned(counted, parameters, n_held_out):
    settings = {"n_components": N_ATOMS, "n_nonzero_coefs": 3, "batch_size": BATCH, "init": atoms(), "max_iter": 2}
    model = DBKSVD(**settings | parameters, random_state=0)
    Y = on_the_device()
    held_out = on_the_device(n_held_out) if n_held_out else None
    plan = model.memory_plan(Y, validation=held_out)
    begun = counted.now
    with dask.config.set(num_workers=2):
        model.fit(Y, validation=held_out)
    planned = plan.per_worker - plan.worker["process"]
    assert 0.45 * planned <= counted.most - begun <= planned


@pytest.mark.parametrize("stored", ["float32", "float64"])
def test_rows_read_for_the_mean_are_planned(counted, stored):
    """By all threads at once, since only what computes takes turns."""
    model, Y = DBKSVD(2, 1, batch_size=2, center=True), on_the_device(stored=stored, chunk=4)
    for n_threads in (2, 20):
        with dask.config.set(num_workers=n_threads):
            planned = model.memory_plan(Y).worker["rows for the mean"]
        n_rows = min(n_threads * ROWS_PER_TASK, N_SAMPLES)
        assert planned == n_rows * N_FEATURES * np.dtype(stored).itemsize
