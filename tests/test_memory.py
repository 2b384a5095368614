"""Memory: what stages of a fit held, and a plan of it before the fit, which a fit keeps to."""

import logging
import os
import pickle
import re
import subprocess
import sys
import threading
from contextlib import contextmanager

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster
from small_fits import example, in_chunks, model

from dbksvd_dask import DBKSVD, memory
from dbksvd_dask.batches import OuterBatches
from dbksvd_dask.encoding import Gram
from dbksvd_dask.history import STAGES
from dbksvd_dask.kernels.chunk import encode_with_residual
from dbksvd_dask.kernels.costs import StageCosts, memory_of_process
from dbksvd_dask.kernels.gram import assemble_gram, gram_panel, panel_starts
from dbksvd_dask.kernels.pursuit import Pursuit
from dbksvd_dask.memory import MemoryPlan
from dbksvd_dask.memory_sizes import WORKER_PROCESS

MIB = 2**20
WORKERS = 2


@pytest.fixture(scope="module")
def cluster():
    options = {"threads_per_worker": 1, "memory_limit": "2 GiB", "silence_logs": logging.CRITICAL}
    with LocalCluster(n_workers=WORKERS, dashboard_address=":0", **options) as cluster:
        client = Client(cluster, set_as_default=False)  # for those tests only that make it the current one
        yield client
        client.close()


def zeros(n=10**6, d=512, dtype="float32", rows=4096):
    """Embeddings that would take a while to compute."""
    return da.zeros((n, d), dtype=dtype, chunks=(rows, -1))


# --- what stages cost ------------------------------------------------------------------------------------------------


def test_costs_of_two_tasks_are_the_sum_of_their_seconds_and_the_larger_memory():
    one = StageCosts({"read": 1.0, "update": 2.0}, {"read": 100, "update": 50})
    other = StageCosts({"update": 4.0, "gram": 8.0}, {"update": 70, "gram": 10})
    both = one + other
    assert both.seconds == {"read": 1.0, "update": 6.0, "gram": 8.0}
    assert both.peak_memory == {"read": 100, "update": 70, "gram": 10}
    assert one.seconds == {"read": 1.0, "update": 2.0}
    assert both.as_stage("validation").seconds == {"validation": 15.0}
    assert both.as_stage("validation").peak_memory == {"validation": 100}


def test_the_memory_of_the_process_is_what_psutil_says():
    memory = memory_of_process()
    assert memory.resident == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)
    assert memory.peak >= memory.resident


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only what is held at the end of a stage is seen")
def test_what_is_held_for_a_moment_counts():
    script = f"""
import numpy as np
import dbksvd_dask.kernels.cpu
from dbksvd_dask.kernels.costs import StageCosts, memory_of_process
costs, before = StageCosts(), memory_of_process().resident
with costs.stage("a moment"):
    np.ones(200 * {MIB}, np.int8).sum()
with costs.stage("nothing"):
    pass
with costs.stage("kept"):
    kept = np.ones(100 * {MIB}, np.int8)
print(*((costs.peak_memory[stage] - before) / {MIB} for stage in ("a moment", "nothing", "kept")))
"""
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert [float(value) for value in printed.split()] == pytest.approx([200, 0, 100], abs=20)


def test_the_history_has_the_memory_of_every_stage_that_took_time(cluster):
    before = min(memory.resident for memory in cluster.run(memory_of_process).values())
    with cluster.as_current():
        history = model().fit(example(), validation=example(seed=1)).history_
    marks = [memory.peak for memory in (*cluster.run(memory_of_process).values(), memory_of_process())]
    assert history.peak_memory.dims == ("iteration", "stage")
    assert history.peak_memory.dtype == np.int64
    took_time = history.stage_seconds.sum("iteration") > 0
    assert set(history.stage.values[took_time]) >= set(STAGES) - {"residual"}
    assert np.all(history.peak_memory.values[:, took_time] > before / 2)
    assert history.peak_memory.max() <= max(marks) + 2**20  # what the system has not counted yet


# --- the plan --------------------------------------------------------------------------------------------------------


def planned(model, Y, n_threads=2, **options):
    """What the plan says that threads of this process hold."""
    with dask.config.set(num_workers=n_threads):
        return model.memory_plan(Y, **options).worker


def test_the_plan_counts_the_arrays_of_many_samples():
    n, d, m, k = 16_384, 96, 32, 3
    Y = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    given = da.from_array(Y.astype("float16"), chunks=(2048, -1)) * np.float16(1)
    parts = planned(DBKSVD(m, k, batch_size=n), given, validation=given[:4096], n_threads=1)
    batch = dask.compute(*OuterBatches(given, n, None, seed=0).read(0), scheduler="sync")
    at_the_edges = 2 * 2047 * d * 2  # of chunks that belong to two batches
    assert parts["rows of the batch"] == sum(piece.nbytes for rows in batch for piece in rows)
    assert 0 <= parts["held-out rows"] - 4096 * d * 2 <= at_the_edges
    D = Y[:m] / np.linalg.norm(Y[:m], axis=1, keepdims=True)
    chunks = [encode_with_residual(rows, D, [D @ D.T], None, Pursuit(k)).chunk for rows in batch]
    assert parts["encoded chunks"] == sum(c.indices.nbytes + c.values.nbytes + c.residual.nbytes for c in chunks)
    assert parts["dictionary"] == 3 * D.nbytes  # before an iteration, after it, and the average


@pytest.mark.parametrize("max_coherence", [None, 0.9])
def test_the_plan_counts_the_panels_of_many_atoms(max_coherence):
    m, d = 1500, 4
    D = np.random.default_rng(0).standard_normal((m, d))
    parts = planned(DBKSVD(m, 1, batch_size=2000, max_coherence=max_coherence), zeros(2000, d, "float64"), n_threads=1)
    panels = [gram_panel(D, start) for start in panel_starts(m)]
    arrays = [*(panel.products for panel in panels), assemble_gram(panels)]
    if max_coherence is not None:  # absolute products, whether they are above it, and those above the diagonal
        first = panels[0].products
        arrays += [first, first > max_coherence, first]
    assert parts["Gram matrix and its panels"] == sum(array.nbytes for array in arrays)


def test_the_plan_counts_a_gram_matrix_that_arrives_from_another_worker(cluster):
    gram = Gram((np.zeros((4096, 4096), np.float32),), np.zeros(4096), np.zeros((0, 2), np.int64), StageCosts())
    received, message = sent(gram)
    assert not any(np.shares_memory(received.blocks[0], part) for part in message)  # both are there for a moment
    with cluster.as_current():
        parts = DBKSVD(4096, 1, batch_size=4096).memory_plan(zeros(4096, 4)).worker
    assert parts["Gram matrix, received"] == sum(part.nbytes for part in message if part.nbytes >= MIB) * 2


def sent(value):
    """What a worker makes of a message, and the arrays in that, which begin at any byte."""
    buffers = []
    pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    message = [np.frombuffer(b"?" + buffer.raw(), np.uint8)[1:] for buffer in buffers]
    return pickle.loads(pickled, buffers=message), message


def test_chunks_of_a_store_stay_whole():
    small, large = (planned(DBKSVD(64, 3, batch_size=1000), zeros(d=64, rows=rows)) for rows in (100, 10**5))
    assert small["rows of the batch"] <= (1000 + 200) * 64 * 4
    assert large["rows of the batch"] >= 10**5 * 64 * 4


def test_rows_that_are_there_already_count_once():
    Y = np.zeros((10_000, 64), np.float32)
    assert planned(DBKSVD(64, 3), Y)["rows of the batch"] == 0
    assert planned(DBKSVD(64, 3, shuffle="chunks"), Y)["rows of the batch"] == Y.nbytes  # permuted: copies


def test_planning_reads_nothing(cluster):
    seen = []
    plan = model(center=True).memory_plan(
        in_chunks(example(), seen.append), validation=in_chunks(example(), seen.append)
    )
    assert seen == []
    assert plan.fits
    assert plan.advice == ""


def test_a_plan_shows_its_parts():
    plan = MemoryPlan({"process": 2**28, "rows of the batch": 2**30}, 2**20, 2**29, 2**30, "batch_size=5")
    assert plan.per_worker == 2**28 + 2**30
    assert not plan.fits
    for text in (repr(plan), plan._repr_html_()):
        for part in ("rows of the batch", "1.25 GiB", "256.00 MiB", "512.00 MiB", "batch_size=5"):
            assert part in text
    assert "DOES NOT FIT" in repr(plan)
    assert MemoryPlan({"process": 2**30}, 0, 0, 2**30, "").fits
    assert MemoryPlan({"process": 2**60}, 0, 0, None, "").fits


@pytest.mark.parametrize(
    ("target", "spill", "pause", "limit"),
    [
        (False, 0.5, 0.8, 2**30),
        (False, False, 0.25, 2**29),
        (False, False, False, 2**31),
        (0.25, 0.7, 0.8, 2**29 + WORKER_PROCESS),  # `target` is of what it holds of data
    ],
)
def test_workers_may_be_filled_until_they_spill_by_the_settings_that_they_have(target, spill, pause, limit):
    assert limit_of_worker(target, spill, pause, "2 GiB") == limit


def test_workers_without_a_limit_may_hold_anything():
    assert limit_of_worker(0.6, 0.7, 0.8, None) is None


def limit_of_worker(target, spill, pause, memory_limit):
    """What the plan says that a worker may hold which was started with such settings."""
    shares = {"target": target, "spill": spill, "pause": pause}
    options = {"processes": False, "dashboard_address": ":0", "silence_logs": logging.CRITICAL}
    with dask.config.set({f"distributed.worker.memory.{name}": share for name, share in shares.items()}):
        cluster = LocalCluster(n_workers=1, memory_limit=memory_limit, **options)
    with cluster, Client(cluster):
        return model().memory_plan(example()).limit


# --- a fit keeps to it -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes as Linux shows them")
@pytest.mark.parametrize(
    "parameters",
    [{"n_components": 1024}, {"n_components": 64, "inner_batch_size": 32, "shuffle": "chunks"}],
    ids=["many atoms", "many rows"],
)
def test_workers_hold_no_more_than_planned(cluster, parameters, tmp_path):
    n_rows = 4096 if parameters["n_components"] == 1024 else 32_768
    Y = np.random.default_rng(0).standard_normal((n_rows, 2048), dtype=np.float32)
    np.save(tmp_path / "Y.npy", Y)
    fitting = DBKSVD(n_nonzero_coefs=3, batch_size=n_rows // 2, max_iter=2, init="random", random_state=0, **parameters)
    with cluster.as_current(), looking_at(cluster.run(os.getpid).values()) as peaks:
        plan = fitting.memory_plan(tmp_path / "Y.npy")
        fitting.fit(tmp_path / "Y.npy")
    stages = [stage for stage in STAGES if stage != "wait"]
    in_history = int(fitting.history_.peak_memory.sel(stage=stages).max())
    assert max(*peaks.values(), in_history) <= 1.1 * plan.per_worker
    assert max(peaks.values()) >= 0.4 * plan.per_worker


@contextmanager
def looking_at(pids):
    """The largest resident memory of each process, looked at from outside."""
    peaks, done = dict.fromkeys(pids, 0), threading.Event()

    def look():
        while not done.wait(0.02):
            for pid in peaks:
                peaks[pid] = max(peaks[pid], psutil.Process(pid).memory_info().rss)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield peaks
    finally:
        done.set()
        looking.join()


# --- advice ----------------------------------------------------------------------------------------------------------

PARAMETERS = {"n_components": 256, "n_nonzero_coefs": 8, "batch_size": 2**18}


def advised(plan, pattern):
    found = re.search(pattern, plan.advice)
    assert found, plan.advice
    return int(found[1])


@pytest.fixture
def limited(monkeypatch):
    """Sets threads of a worker, those of all, and the bytes that a worker may hold."""

    def limit(n_threads, all_threads, size):
        monkeypatch.setattr(memory, "_resources", lambda device: (n_threads, all_threads, size))

    return limit


def test_the_batch_size_that_is_advised_is_the_largest_that_fits(limited):
    limited(4, 4, memory_of_process().resident + 700 * MIB)
    plan = DBKSVD(**PARAMETERS).memory_plan(zeros())
    assert not plan.fits
    largest = advised(plan, r"batch_size=(\d+)")
    assert DBKSVD(**PARAMETERS | {"batch_size": int(0.98 * largest)}).memory_plan(zeros()).fits
    assert not DBKSVD(**PARAMETERS | {"batch_size": int(1.1 * largest)}).memory_plan(zeros()).fits


def test_the_number_of_workers_that_is_advised_is_the_least_that_fits(cluster, limited):
    with cluster.as_current():
        limited(1, 2, 800 * MIB)
        plan = DBKSVD(**PARAMETERS).memory_plan(zeros())
        assert not plan.fits
        least = advised(plan, r"(\d+) workers rather than 2")
        limited(1, least, 800 * MIB)
        assert DBKSVD(**PARAMETERS).memory_plan(zeros()).fits
        limited(1, least - 1, 800 * MIB)
        assert not DBKSVD(**PARAMETERS).memory_plan(zeros()).fits


def test_fewer_threads_are_advised_where_tasks_are_large(limited):
    large = {"n_components": 16, "n_nonzero_coefs": 16, "batch_size": 8192}
    Y = zeros(10**7, 16, rows=10**6)
    needed = {}
    for n_threads in (8, 2):
        limited(n_threads, n_threads, None)
        needed[n_threads] = DBKSVD(**large).memory_plan(Y).per_worker
    limited(8, 8, (needed[8] + needed[2]) // 2)
    n_threads = advised(DBKSVD(**large).memory_plan(Y), r"(\d+) rather than 8")
    assert 2 <= n_threads < 8


def test_single_precision_is_advised_where_it_is_enough(limited):
    Y = zeros(dtype="float64")
    needed = [DBKSVD(**PARAMETERS, dtype=dtype).memory_plan(Y).per_worker for dtype in ("float32", "float64")]
    limited(2, 2, sum(needed) // 2)
    assert 'dtype="float32"' in DBKSVD(**PARAMETERS, dtype="float64").memory_plan(Y).advice
    assert DBKSVD(**PARAMETERS, dtype="float32").memory_plan(Y).fits


def test_fewer_held_out_samples_are_advised_where_they_are_enough(limited):
    limited(2, 2, memory_of_process().resident + 500 * MIB)
    small = PARAMETERS | {"batch_size": 4096}
    fewer = advised(DBKSVD(**small).memory_plan(zeros(), validation=zeros()), r"(\d+) held-out samples")
    assert DBKSVD(**small).memory_plan(zeros(), validation=zeros(int(0.99 * fewer))).fits
    assert not DBKSVD(**small).memory_plan(zeros(), validation=zeros(int(1.1 * fewer))).fits


def test_smaller_chunks_are_advised_where_they_are_enough(limited):
    limited(2, 2, memory_of_process().resident + 500 * MIB)
    small = PARAMETERS | {"batch_size": 4096}
    rows = advised(DBKSVD(**small).memory_plan(zeros(rows=10**5)), r"chunks of at most (\d+) rows")
    assert DBKSVD(**small).memory_plan(zeros(rows=int(0.99 * rows))).fits
    assert not DBKSVD(**small).memory_plan(zeros(rows=int(1.1 * rows))).fits


def test_where_no_single_change_is_enough_more_memory_is_advised(limited):
    limited(2, 2, 100 * MIB)
    assert "give workers more memory, or learn fewer atoms" in DBKSVD(**PARAMETERS).memory_plan(zeros()).advice


# --- bad input -------------------------------------------------------------------------------------------------------


def test_a_cluster_without_workers_is_refused():
    options = {"n_workers": 0, "processes": False, "dashboard_address": ":0", "silence_logs": logging.CRITICAL}
    with LocalCluster(**options) as empty, Client(empty), pytest.raises(ValueError, match="wait for them with client"):
        model().memory_plan(example())


@pytest.mark.parametrize(
    ("Y", "error", "message"),
    [
        (np.ones((4, 4), int), TypeError, "int"),
        (np.ones(4), ValueError, "Expected 2D array"),
        ("nowhere.npy", FileNotFoundError, "nowhere"),
    ],
    ids=["integers", "one dimension", "no file"],
)
def test_embeddings_that_cannot_be_fitted_cannot_be_planned_for(Y, error, message):
    with pytest.raises(error, match=message):
        model().memory_plan(Y)
