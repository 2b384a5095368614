"""Fits of a few rows, and what interrupts them."""

import os
import signal
import threading
import time

import dask
import dask.array as da
import numpy as np
import xarray as xr

from dbksvd_dask import DBKSVD, Callback

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


def assert_same_fit(one, other):
    np.testing.assert_array_equal(one.components_, other.components_)
    assert one.n_iter_ == other.n_iter_
    measured = ["seconds", "stage_seconds", "peak_memory"]
    xr.testing.assert_identical(
        one.history_.drop_vars(measured, errors="ignore"), other.history_.drop_vars(measured, errors="ignore")
    )
