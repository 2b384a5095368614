"""Graphs: each call is made once, inside the task that takes it where it should be, and on the worker it is for."""

import gc
from collections import Counter
from operator import add, mul

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster, get_worker

from dbksvd_dask import Dictionary
from dbksvd_dask.graph import FAN_IN, delayed_of, homes, inner_calls, task, tree_sum

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


def test_lazy_codes_keep_persisted_embeddings_alive(client):
    rows = np.random.default_rng(0).standard_normal((100, 3))
    persisted = da.from_array(rows, chunks=10).persist()
    codes = Dictionary(np.eye(3), 1).encode(persisted)
    del persisted
    gc.collect()
    client.run_on_scheduler(lambda dask_scheduler: None)  # what was released is gone by the time this returns
    np.testing.assert_array_equal(codes.compute().indices[:, 0], np.abs(rows).argmax(axis=1))
