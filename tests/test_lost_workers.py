"""Workers may die while a fit runs: what they held is made again, and the dictionary is the same bits."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import Timer
from types import SimpleNamespace

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, KilledWorker, LocalCluster
from distributed.client import FutureCancelledError, FuturesCancelledError

from dbksvd_dask import DBKSVD, lost_workers
from dbksvd_dask.lost_workers import MOST_REPLAYS, WorkersLost, replayed

PARAMETERS = {"n_components": 256, "n_nonzero_coefs": 6, "batch_size": 10_000, "random_state": 0}


@pytest.fixture(scope="module", autouse=True)
def workers_start_fast():
    """As forks of a process that has imported Dask: many are started here, and how is no matter."""
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    rows = np.random.default_rng(0).standard_normal((20_000, 64), dtype=np.float32)
    path = tmp_path_factory.mktemp("embeddings") / "rows.npy"
    np.save(path, rows)
    return path


@pytest.fixture(scope="module")
def undisturbed(path):
    return DBKSVD(**PARAMETERS, max_iter=5).fit(path, validation=path)


def workers(count, **options):
    options = {"threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": logging.CRITICAL} | options
    return LocalCluster(n_workers=count, **options)


@pytest.fixture(scope="module")
def two_workers():
    with workers(2) as cluster:
        yield cluster


@contextmanager
def client_of(cluster):
    """When those that a test before has killed have been started again."""
    with Client(cluster) as client:
        client.wait_for_workers(2, timeout=60)
        yield client


def kill(cluster, *numbers):
    """Workers of these numbers, those that just start excepted."""
    for pid in (cluster.workers[number].pid for number in numbers):
        if pid is not None:
            os.kill(pid, signal.SIGKILL)


def assert_same_bits(model, undisturbed):
    np.testing.assert_array_equal(model.components_, undisturbed.components_)
    errors = model.history_.validation_relative_error
    np.testing.assert_array_equal(errors, undisturbed.history_.validation_relative_error)


@pytest.mark.parametrize(("killed", "delay"), [((0,), 0.0), ((1,), 0.1), ((0, 1), 0.1)])
def test_a_fit_outlives_its_workers(killed, delay, path, undisturbed, two_workers):
    with client_of(two_workers):

        def kill_later(model, iteration):
            if iteration.iteration == 1:
                Timer(delay, kill, (two_workers, *killed)).start()  # while the next iteration is computed

        model = DBKSVD(**PARAMETERS, max_iter=5, callbacks=[kill_later]).fit(path, validation=path)
    assert_same_bits(model, undisturbed)


def slowly(block):
    time.sleep(0.2)
    return block


def test_a_fit_outlives_all_its_workers_while_they_read(path):
    """Tasks that become ready while there is no worker wait for one of those that are gone, as far as Dask goes."""
    rows = da.from_array(np.load(path), chunks=(1000, -1))
    parameters = PARAMETERS | {"batch_size": 20_000, "max_iter": 2}
    expected = DBKSVD(**parameters).fit(rows)
    with workers(2) as cluster, Client(cluster):
        timer = Timer(0.7, kill, (cluster, 0, 1))
        timer.start()
        model = DBKSVD(**parameters).fit(rows.map_blocks(slowly, meta=np.empty((0, 0), np.float32)))
        timer.join()
    np.testing.assert_array_equal(model.components_, expected.components_)


def test_a_client_that_is_closed_between_iterations_is_named(path):
    # Dask forgets to take back that it is to compute on a cluster.
    with workers(1) as cluster, dask.config.set(scheduler=None):
        client = Client(cluster)

        def close(model, iteration):
            client.close()

        model = DBKSVD(**PARAMETERS, max_iter=5, callbacks=[close])
        with pytest.raises(WorkersLost, match=r"iteration 1 failed, because the connection to the Dask scheduler"):
            model.fit(path)
    assert model.n_iter_ == 1


def test_a_fit_outlives_its_only_worker(path, undisturbed):
    with workers(1) as cluster, Client(cluster):

        def kill_later(model, iteration):
            if iteration.iteration == 1:
                Timer(0.1, kill, (cluster, 0)).start()

        model = DBKSVD(**PARAMETERS, max_iter=5, callbacks=[kill_later]).fit(path, validation=path)
    assert_same_bits(model, undisturbed)


def test_a_fit_outlives_its_workers_one_after_the_other(path, undisturbed, two_workers):
    with client_of(two_workers):

        def kill_one_later(model, iteration):
            Timer(0.05, kill, (two_workers, iteration.iteration % 2)).start()

        model = DBKSVD(**PARAMETERS, max_iter=5, callbacks=[kill_one_later]).fit(path, validation=path)
    assert_same_bits(model, undisturbed)


def holder_of(client, prefix):
    """The worker that holds what a task of that name has left, once there is such a task."""
    while True:
        for worker, keys in client.has_what().items():
            if any(str(key).startswith(prefix) for key in keys):
                return worker


def test_a_fit_outlives_the_worker_that_holds_the_dictionary(path, undisturbed, two_workers):
    killed = []
    with client_of(two_workers) as client:

        def kill_the_holder():
            worker = holder_of(client, "wrap-")
            os.kill(client.run(os.getpid, workers=[worker])[worker], signal.SIGKILL)
            killed.append(worker)

        def kill_later(model, iteration):
            if iteration.iteration == 1:
                Timer(0, kill_the_holder).start()

        model = DBKSVD(**PARAMETERS, max_iter=5, callbacks=[kill_later]).fit(path, validation=path)
    assert len(killed) == 1
    assert_same_bits(model, undisturbed)


def test_a_fit_outlives_a_restart_of_the_cluster(path, undisturbed, two_workers):
    with client_of(two_workers) as client:
        restart = Timer(0.1, client.restart, kwargs={"wait_for_workers": False})

        def restart_later(model, iteration):
            if iteration.iteration == 1:
                restart.start()

        model = DBKSVD(**PARAMETERS, max_iter=5, callbacks=[restart_later]).fit(path, validation=path)
        restart.join()
    assert_same_bits(model, undisturbed)


def be_killed():
    time.sleep(0.3)  # a worker that dies before its nanny has heard of it is not started again
    os.kill(os.getpid(), signal.SIGKILL)


def be_out_of_memory():
    held = np.ones(100_000_000)
    time.sleep(10)
    return held


def embeddings(path, do, chunk=3):
    """Rows, and what whoever reads one of their chunks has to do first."""

    def read(block, block_info):
        if block_info[0]["chunk-location"][0] == chunk:
            do()
        return block

    rows = np.load(path)
    return da.from_array(rows, chunks=(5000, -1)).map_blocks(read, meta=rows[:0])


@pytest.mark.parametrize(
    ("die", "why"),
    [(be_killed, "killed by signal 9"), (be_out_of_memory, "were out of memory: .* exceeded 95% memory")],
)
def test_what_kills_its_worker_every_time_is_an_error_that_says_so(die, why, path, monkeypatch):
    monkeypatch.setattr(lost_workers, "MOST_REPLAYS", 1)
    monkeypatch.setattr(lost_workers, "_SECONDS_FOR_LOGS", 60)  # of nannies that start a worker on a busy machine
    parameters = PARAMETERS | {"batch_size": 5_000, "init": "random"}
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        cluster = workers(2, memory_limit="700 MB")
    with cluster, Client(cluster):
        model = DBKSVD(**parameters, max_iter=5)
        # It is read ahead while the iteration before is computed.
        with pytest.raises(WorkersLost, match=rf"(?s)iteration [23] failed 2 times.*{why}") as caught:
            model.fit(embeddings(path, die))
    message = str(caught.value)
    assert "workers (tcp://127.0.0.1:" in message
    assert re.search(r"were computing .*\bread", message)  # the task
    assert "DBKSVD.resume" in message
    # What was learned before is kept.
    assert model.n_iter_ in (2, 3)
    before = DBKSVD(**parameters, max_iter=model.n_iter_).fit(path)
    np.testing.assert_array_equal(model.components_, before.components_)


def test_an_error_in_a_task_is_not_tried_again(path, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(lost_workers, "SECONDS_WITHOUT_WORKERS", 0.1)

    def fail():
        with open(tmp_path / "calls", "a") as calls:
            calls.write("called\n")
        raise ValueError("not a number of ours")

    with workers(1) as cluster, Client(cluster), pytest.raises(ValueError, match=r"^not a number of ours$"):
        DBKSVD(**PARAMETERS, max_iter=5, init="random").fit(embeddings(path, fail))
    assert (tmp_path / "calls").read_text() == "called\n"
    assert "the cluster has no worker" not in caplog.text


@contextmanager
def separate_processes(folder, *worker_options, **settings):
    """A scheduler and a worker that nobody restarts, and their client."""
    file, dask_command = folder / "scheduler.json", [sys.executable, "-m", "dask"]
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    folders = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])  # tasks are defined here
    quiet = {"env": os.environ | {"PYTHONPATH": folders} | settings, "stderr": subprocess.DEVNULL}
    with ExitStack() as stack:
        commands = ["scheduler", "--host", "127.0.0.1", "--port", "0"], ["worker", "--no-nanny", "--nthreads", "1"]
        scheduler, worker = (
            stack.enter_context(subprocess.Popen([*dask_command, *command, *common], **quiet)) for command in commands
        )
        for process in (scheduler, worker):
            stack.callback(process.kill)
        while not file.exists():
            time.sleep(0.05)
        client = stack.enter_context(Client(scheduler_file=str(file), timeout=20))
        client.wait_for_workers(1, timeout=20)
        yield scheduler, worker


def test_where_the_scheduler_dies_the_fit_ends_at_once(path, tmp_path):
    with separate_processes(tmp_path) as (scheduler, _):
        model = DBKSVD(**PARAMETERS, max_iter=5, init="random")
        with pytest.raises(
            WorkersLost, match=r"iteration [01] failed, because the connection .* at tcp://127.0.0.1:\d+ was"
        ):
            model.fit(embeddings(path, partial(os.kill, scheduler.pid, signal.SIGKILL)))


def test_where_no_worker_is_left_the_fit_waits_as_long_as_the_cluster_says(path, tmp_path):
    settings = {"DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT": "1s"}
    with separate_processes(tmp_path, **settings):
        model = DBKSVD(**PARAMETERS, max_iter=5, init="random")
        with pytest.raises(WorkersLost, match=r"iteration [01] failed, because workers were lost.* 1.00 s waiting"):
            model.fit(embeddings(path, be_killed))


@pytest.fixture(scope="module")
def client():
    with LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as cluster, Client(cluster) as client:
        yield client


KILLED = KilledWorker("read-1", SimpleNamespace(address="tcp://127.0.0.1:1"), 3)


class Attempt:
    """Fails so often, one way after the other, then returns 42."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.n_calls = 0

    def __call__(self):
        self.n_calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return 42


def test_every_way_in_which_workers_are_lost_is_tried_again(client):
    attempt = Attempt(KILLED, FutureCancelledError("sum-1", "scheduler-restart"), FuturesCancelledError([]))
    assert replayed(attempt, "the sum") == 42
    assert attempt.n_calls == 4


@pytest.mark.parametrize("error", [ValueError("x"), MemoryError(), OSError("x"), TimeoutError(), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [[], [KILLED]])
def test_every_other_error_passes_unchanged(error, before, client):
    attempt = Attempt(*before, error)
    with pytest.raises(type(error)) as caught:
        replayed(attempt, "the sum")
    assert caught.value is error
    assert attempt.n_calls == len(before) + 1


def test_there_are_so_many_replays_and_no_more(client, monkeypatch):
    monkeypatch.setattr(lost_workers, "_SECONDS_FOR_LOGS", 0.1)
    attempt = Attempt(*[KILLED] * (MOST_REPLAYS + 1))
    with pytest.raises(WorkersLost, match=f"^the sum failed {MOST_REPLAYS + 1} times"):
        replayed(attempt, "the sum")
    assert attempt.n_calls == MOST_REPLAYS + 1


def test_without_a_cluster_it_is_a_plain_call():
    attempt = Attempt(KILLED)
    with dask.config.set(scheduler="threads"), pytest.raises(KilledWorker):
        replayed(attempt, "the sum")
    assert attempt.n_calls == 1


def test_a_warning_says_that_there_is_no_worker(client, caplog, monkeypatch):
    monkeypatch.setattr(lost_workers, "SECONDS_WITHOUT_WORKERS", 0.1)
    replayed(lambda: time.sleep(0.5), "the sum")
    assert "the sum waits: the cluster has no worker" in caplog.text
