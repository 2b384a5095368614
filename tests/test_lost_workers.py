"""Workers may die while a fit runs: what they held is made again, and the dictionary is the same bits."""

import logging
import os
import signal
from threading import Timer

import numpy as np
import pytest
from distributed import Client, LocalCluster

from dbksvd_dask import DBKSVD

PARAMETERS = {"n_components": 256, "n_nonzero_coefs": 6, "batch_size": 10_000, "random_state": 0}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    rows = np.random.default_rng(0).standard_normal((20_000, 64), dtype=np.float32)
    path = tmp_path_factory.mktemp("embeddings") / "rows.npy"
    np.save(path, rows)
    return path


@pytest.fixture(scope="module")
def undisturbed(path):
    return DBKSVD(**PARAMETERS, max_iter=5).fit(path, validation=path)


def kill(client, n_workers):
    for pid in list(client.run(os.getpid).values())[:n_workers]:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("n_workers", "n_killed"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("delay", [0.0, 0.1])
def test_a_fit_outlives_its_workers(n_workers, n_killed, delay, path, undisturbed):
    options = {"n_workers": n_workers, "threads_per_worker": 1, "dashboard_address": ":0"}
    with LocalCluster(**options, silence_logs=logging.CRITICAL) as cluster, Client(cluster) as client:

        def kill_later(model, iteration):
            if iteration.iteration == 1:
                Timer(delay, kill, (client, n_killed)).start()  # while the next iteration is computed

        model = DBKSVD(**PARAMETERS, max_iter=5, callbacks=[kill_later]).fit(path, validation=path)
    np.testing.assert_array_equal(model.components_, undisturbed.components_)
    errors = model.history_.validation_relative_error
    np.testing.assert_array_equal(errors, undisturbed.history_.validation_relative_error)
