"""What a scheduler, its workers and the client know does not grow with the number of iterations."""

import time

import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster

from dbksvd_dask import DBKSVD

N_ITERATIONS = 100
N_CHUNKS = 2
"""Tasks that one outer batch is read by."""


def known_by_scheduler(dask_scheduler):
    spans = dask_scheduler.extensions["spans"].spans.values()
    return {
        "tasks": len(dask_scheduler.tasks),
        "task groups": len(dask_scheduler.task_groups),
        "prefixes": len(dask_scheduler.task_prefixes),
        "unrunnable": len(dask_scheduler.unrunnable),
        "queued": len(dask_scheduler.queued),
        "replicated": len(dask_scheduler.replicated_tasks),
        "wanted": sum(len(client.wants_what) for client in dask_scheduler.clients.values()),
        "held": sum(len(worker.has_what) for worker in dask_scheduler.workers.values()),
        "spans": len(spans),
        "groups of spans": sum(len(span.groups) for span in spans),
        "digests of spans": sum(len(span._cumulative_worker_metrics) for span in spans),
        "topics": len(dask_scheduler._broker._topics),
        "plugins": len(dask_scheduler.plugins),
    }


def known_by_worker(dask_worker):
    state = dask_worker.state
    return {
        "tasks": len(state.tasks),
        "data": len(state.data),
        "in flight": len(state.in_flight_tasks),
        "long-running": len(state.long_running),
        "digests": len(dask_worker.digests_total),
        "threads": psutil.Process().num_threads(),
    }


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """What is known after some of the iterations."""
    path = tmp_path_factory.mktemp("embeddings") / "rows.npy"
    np.save(path, np.random.default_rng(0).standard_normal((4096, 8), dtype=np.float32))
    found = {}
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with LocalCluster(**options) as cluster, Client(cluster) as client:

        def look(model, iteration):
            if iteration.iteration + 1 in range(20, N_ITERATIONS, 10):
                time.sleep(0.3)  # what is let go of is forgotten a moment later
                found[iteration.iteration + 1] = {
                    "scheduler": client.run_on_scheduler(known_by_scheduler),
                    "workers": list(client.run(known_by_worker).values()),
                    "client": {"futures": len(client.futures), "references": len(client.refcount)},
                }

        DBKSVD(16, 2, batch_size=2048, max_iter=N_ITERATIONS, random_state=0, callbacks=[look]).fit(path)
    return found


def largest(samples, where):
    """The most that was known of each kind in a number of samples: reading ahead makes them differ by a few tasks."""
    return {what: max(sample[where][what] for sample in samples) for what in samples[0][where]}


def early_and_late(samples):
    values = [samples[number] for number in sorted(samples)]
    return values[:3], values[-3:]


@pytest.mark.parametrize("where", ["scheduler", "client"])
def test_as_many_tasks_and_futures_are_known_after_the_last_iteration_as_after_the_20th(samples, where):
    early, late = early_and_late(samples)
    before, after = largest(early, where), largest(late, where)
    slack = {"tasks", "wanted", "held", "futures", "references", "task groups", "groups of spans", "replicated"}
    grown = {what: (before[what], n) for what, n in after.items() if n > before[what] + N_CHUNKS * (what in slack)}
    assert not grown


def test_workers_keep_nothing_of_iterations_that_are_over(samples):
    for sample in samples.values():
        for worker in sample["workers"]:
            assert worker["data"] <= 4 * N_CHUNKS  # two batches, and what is just being released
            assert worker["in flight"] == 0
            assert worker["long-running"] <= N_CHUNKS
    early, late = early_and_late(samples)
    for number in range(2):
        first, last = ([sample["workers"][number] for sample in part] for part in (early, late))
        assert max(w["digests"] for w in last) <= max(w["digests"] for w in first)
        assert max(w["threads"] for w in last) <= max(w["threads"] for w in first) + N_CHUNKS


def test_no_more_than_two_batches_are_wanted_at_once(samples):
    """The one that was computed, and the next."""
    assert max(sample["client"]["futures"] for sample in samples.values()) <= 2 * N_CHUNKS
