"""Graphs: each call is made once, inside the task that takes it where it should be, and on the worker it is for.

So rows and dictionary travel no more than they must, and a worker computes while it reads.
"""

import gc
import io
import pickle
import threading
import time
import weakref
from collections import Counter
from operator import add, mul

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask.utils import key_split
from distributed import Client, LocalCluster, get_worker

from dbksvd_dask import DBKSVD, Dictionary, open_embeddings
from dbksvd_dask.batches import OuterBatches
from dbksvd_dask.encoding import share_dictionary
from dbksvd_dask.graph import FAN_IN, READS_AT_ONCE, delayed_of, homes, inner_calls, task, tree_sum
from dbksvd_dask.iteration import Update, iterate
from dbksvd_dask.kernels.pursuit import Pursuit

NOWHERE = "tcp://127.0.0.1:1"


@pytest.fixture(scope="module")
def cluster():
    options = {"n_workers": 2, "threads_per_worker": 2, "processes": False, "dashboard_address": ":0"}
    with LocalCluster(**options) as started:
        yield started


@pytest.fixture
def client(cluster):
    with Client(cluster) as connected:
        yield connected


class Counted:
    """Adds, and counts how often it was asked for each sum."""

    __name__ = "counted"

    def __init__(self):
        self.calls = Counter()

    def __call__(self, a, b):
        self.calls[a, b] += 1
        return a + b


def compute(*calls):
    return dask.compute(*delayed_of(*calls), scheduler="synchronous")


def test_a_call_that_several_take_is_made_once():
    counted = Counted()
    three = task(counted, 1, 2)
    assert compute(task(mul, three, three), task(add, three, 1), three) == (9, 4, 3)
    assert counted.calls == {(1, 2): 1}


def test_arguments_may_be_lists_of_calls_and_outputs_may_be_several():
    quotient, remainder = task(divmod, 17, 5, outputs=2)
    assert compute(task(sum, [quotient, remainder, 4])) == (9,)


def test_inner_calls_are_made_inside_the_task_that_takes_them():
    counted = Counted()
    inner = inner_calls(*(task(counted, i, task(counted, i, 10)) for i in range(1, 4)))
    outer = delayed_of(*(task(mul, call, 2) for call in inner))
    assert len(outer[0].dask) == 3
    assert dask.compute(*outer, scheduler="synchronous") == (24, 28, 32)
    assert set(counted.calls.values()) == {1}


def test_what_several_inner_calls_need_is_made_once_beside_them():
    counted = Counted()
    shared = task(counted, 5, 5)
    inner = inner_calls(*(task(counted, task(counted, shared, i), 100) for i in range(3)))
    outer = delayed_of(*(task(mul, call, 2) for call in inner))
    assert len(outer[0].dask) == 4
    assert dask.compute(*outer, scheduler="synchronous") == (220, 222, 224)
    assert counted.calls[5, 5] == 1


def test_inner_calls_stand_for_themselves_too():
    assert compute(*inner_calls(task(add, 1, task(add, 2, 3)), task(add, 1, 1))) == (6, 2)


@pytest.mark.parametrize("n_parts", [1, 2, FAN_IN, FAN_IN + 1, 3 * FAN_IN * FAN_IN + 2])
def test_a_tree_sum_is_the_sum_and_leaves_its_parts_as_they_are(n_parts):
    parts = [np.full(3, float(i)) for i in range(n_parts)]
    (total,) = compute(tree_sum([task(np.asarray, part) for part in parts]))
    np.testing.assert_array_equal(total, np.full(3, n_parts * (n_parts - 1) / 2))
    np.testing.assert_array_equal(parts, np.arange(n_parts)[:, np.newaxis] * np.ones(3))


def test_without_a_cluster_there_are_no_homes():
    assert homes(3) == [None, None, None]


def test_on_a_cluster_neighbours_share_a_home_and_threads_count(client):
    first, second = client.nthreads()
    assert homes(8) == [first] * 4 + [second] * 4
    assert homes(2) == [first, second]
    assert homes(0) == []


def where():
    return get_worker().address


def test_calls_are_made_at_home(client):
    expected = homes(20)
    assert list(dask.compute(*delayed_of(*(task(where, home=home) for home in expected)))) == expected
    inner = inner_calls(*(task(where, home=home) for home in expected))
    assert list(dask.compute(*delayed_of(*inner))) == expected
    one_tuple_each = [task(lambda: (where(), 1), outputs=2, home=home)[0] for home in expected]
    assert list(dask.compute(*delayed_of(*one_tuple_each))) == expected


@pytest.mark.usefixtures("client")
def test_a_home_that_is_gone_does_not_keep_a_call_from_being_made():
    assert dask.compute(*delayed_of(task(add, 1, 2, home=NOWHERE))) == (3,)


# --- what the driver sends, and what travels between workers ----------------------------------------------------------

M, D, BATCH = 300, 128, 4096


@pytest.fixture(scope="module", params=["npy", "zarr"])
def stored(request, tmp_path_factory):
    rows = np.random.default_rng(0).standard_normal((2 * BATCH, D), dtype=np.float32)
    path = tmp_path_factory.mktemp("embeddings") / f"rows.{request.param}"
    if request.param == "npy":
        np.save(path, rows)
    else:
        xr.DataArray(rows, dims=("sample", "feature"), name="embeddings").chunk(sample=1024).to_zarr(
            path, consolidated=False
        )
    return path


def arrays_in(graph):
    """Sizes of the arrays that a graph carries, each time that it does."""
    sizes = []

    class Noting(pickle.Pickler):
        def reducer_override(self, thing):
            if isinstance(thing, np.ndarray):
                sizes.append(thing.nbytes)
            return NotImplemented

    Noting(io.BytesIO(), protocol=5).dump(graph)
    return sizes


def test_the_graph_of_a_batch_holds_no_rows(stored):
    batches = OuterBatches(open_embeddings(stored).data, BATCH, "chunks", seed=0)
    sent = pickle.dumps(batches.read(0)[0].dask.to_dict())
    row_numbers = BATCH * np.dtype(np.int64).itemsize
    assert len(sent) < 50_000 + row_numbers < BATCH * D


def test_the_dictionary_is_in_the_graph_of_an_iteration_once(stored):
    batches = OuterBatches(open_embeddings(stored).data, BATCH, None, seed=0)
    atoms = np.eye(M, D, dtype=np.float32)
    tasks = iterate(batches.read(0), share_dictionary(atoms, None, Pursuit(3)), M, Pursuit(3), Update(), [0])
    graph = tasks.atoms.dask.to_dict()
    sizes = arrays_in(graph)
    assert sizes.count(atoms.nbytes) == 1
    assert len(pickle.dumps(graph)) < atoms.nbytes + 100_000 < 2 * atoms.nbytes


@pytest.fixture
def processes():
    options = {"n_workers": 3, "threads_per_worker": 1, "dashboard_address": ":0"}
    with LocalCluster(**options) as cluster, Client(cluster) as connected:
        yield connected


def received(dask_worker):
    """Bytes that a worker was sent by others, by the name of the task that made them."""
    total = Counter()
    for transfer in dask_worker.transfer_incoming_log:
        for key, n_bytes in transfer["keys"].items():
            total[key_split(key)] += n_bytes
    return total


@pytest.mark.parametrize("stored", ["zarr"], indirect=True)  # a chunk for each task
def test_most_rows_are_read_where_they_are_needed(stored, processes):
    model = DBKSVD(M, 3, batch_size=BATCH, max_iter=3, init="random", random_state=0).fit(stored)
    assert model.n_iter_ == 3
    travelled = sum(processes.run(received).values(), Counter())
    dictionary = M * D * 4
    assert dictionary < travelled["wrap"] < 1.01 * 3 * 3 * dictionary  # at most once an iteration to each worker
    # An idle worker may have stolen the encoding of a chunk.
    assert travelled["read-rows"] + travelled["embeddings"] <= 3 * BATCH * D * 4 / 2


def test_homes_follow_the_workers_that_come_and_go(cluster):
    with Client(cluster) as client:
        before = set(homes(12))
        cluster.scale(3)
        client.wait_for_workers(3)
        assert set(homes(12)) == set(client.nthreads()) > before
        cluster.scale(2)
        while len(client.nthreads()) > 2:
            time.sleep(0.05)
        assert set(homes(12)) == set(client.nthreads())


def test_what_a_graph_held_is_let_go_of_without_a_garbage_collection():
    rows = np.zeros(10)
    gone = weakref.ref(rows)
    gc.disable()
    try:
        (made,) = delayed_of(task(add, task(np.sum, rows), [1, 2]))
        del rows, made
        assert gone() is None
    finally:
        gc.enable()


# --- reading beside the computation ----------------------------------------------------------------------------------


def slowly(block):
    time.sleep(1.0)
    return block


def test_the_only_thread_of_a_worker_computes_while_it_reads():
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with LocalCluster(**options) as cluster, Client(cluster):
        rows = da.zeros((40, 2), chunks=(10, 2)).map_blocks(slowly, meta=np.empty((0, 0)))
        (chunks,) = dask.persist(*OuterBatches(rows, 40, None, seed=0).read(0))
        assert dask.compute(*delayed_of(task(add, 1, 2))) == (3,)
        (future,) = chunks.dask.values()
        assert not future.done()
        np.testing.assert_array_equal(np.concatenate(chunks.compute()), np.zeros((40, 2)))


class MostAtOnce:
    """Counts how many callers are inside, and the most that were at once."""

    def __init__(self):
        self.lock = threading.Lock()
        self.inside = self.most = 0

    def __call__(self, block):
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        time.sleep(0.05)
        with self.lock:
            self.inside -= 1
        return block


_most = MostAtOnce()


def counted_in_this_process(block):
    return _most(block)


def test_a_worker_reads_a_few_chunks_at_once():
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with LocalCluster(**options) as cluster, Client(cluster):
        rows = da.zeros((8 * 1024, 2), chunks=(1024, 2)).map_blocks(counted_in_this_process, meta=np.empty((0, 0)))
        done = dask.compute(*OuterBatches(rows, len(rows), None, seed=0).read(0))
    assert sum(len(piece) for pieces in done for piece in pieces) == len(rows)
    assert 1 < _most.most <= READS_AT_ONCE


def test_lazy_codes_keep_persisted_embeddings_alive(client):
    rows = np.random.default_rng(0).standard_normal((100, 3))
    persisted = da.from_array(rows, chunks=10).persist()
    codes = Dictionary(np.eye(3), 1).encode(persisted)
    del persisted
    gc.collect()
    client.run_on_scheduler(lambda dask_scheduler: None)  # what was released is gone by the time this returns
    np.testing.assert_array_equal(codes.compute().indices[:, 0], np.abs(rows).argmax(axis=1))
