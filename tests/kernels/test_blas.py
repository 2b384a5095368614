"""``single_threaded``: one BLAS thread while anybody is inside, as many as before when the last one has left."""

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from types import ModuleType

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_info, threadpool_limits

from dbksvd_dask.kernels import blas
from dbksvd_dask.kernels.blas import single_threaded


def blas_threads():
    np.ones((2, 2)) @ np.ones((2, 2))
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def two_threads_before():
    # Set from a thread that ends: threadpoolctl listens to one thread at a time, as long as that thread lives.
    with ThreadPoolExecutor(1) as other:
        limits = other.submit(threadpool_limits, limits=2, user_api="blas").result()
    assert blas_threads() == {2}
    yield
    with ThreadPoolExecutor(1) as other:
        other.submit(limits.restore_original_limits).result()


def test_one_thread_inside_and_the_same_as_before_outside():
    with single_threaded():
        assert blas_threads() == {1}
        with single_threaded():
            assert blas_threads() == {1}
        assert blas_threads() == {1}
    assert blas_threads() == {2}


def test_an_error_inside_restores_the_threads_too():
    with pytest.raises(ZeroDivisionError), single_threaded():
        raise ZeroDivisionError
    assert blas_threads() == {2}


def test_as_a_decorator_it_holds_while_the_function_runs():
    inside = single_threaded()(blas_threads)
    assert [inside(), inside()] == [{1}, {1}]
    assert blas_threads() == {2}


def test_where_blas_has_one_thread_already_none_is_started(monkeypatch):
    """As on a worker of Dask, where every task comes here."""
    with single_threaded(), monkeypatch.context() as patch:
        patch.setattr(blas, "ThreadPoolExecutor", None)
        blas._limit()()
        assert blas_threads() == {1}


def test_libraries_are_looked_for_again_when_a_module_was_imported(monkeypatch):
    searches = []

    def search():
        searches.append(len(sys.modules))
        return ThreadpoolController()

    monkeypatch.setattr(blas, "ThreadpoolController", search)
    blas._libraries.cache_clear()
    for _ in range(3):
        with single_threaded():
            pass
    assert len(searches) == 1
    monkeypatch.setitem(sys.modules, "a module with another library", ModuleType("other"))
    with single_threaded():
        assert blas_threads() == {1}
    assert len(searches) == 2


def test_the_last_of_overlapping_threads_restores():
    entered, first_has_left = Barrier(2, timeout=30), Event()

    def first():
        with single_threaded():
            entered.wait()
        first_has_left.set()

    def last():
        with single_threaded():
            entered.wait()
            assert first_has_left.wait(timeout=30)
            return blas_threads()

    with ThreadPoolExecutor(2) as threads:
        futures = threads.submit(first), threads.submit(last)
        assert [future.result(timeout=60) for future in futures] == [None, {1}]
    assert blas_threads() == {2}


def test_many_threads_that_come_and_go_leave_it_as_it_was():
    def come_and_go(_):
        seen = set()
        for _ in range(50):
            with single_threaded():
                seen |= blas_threads()
        return seen

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(come_and_go, range(4))) == [{1}] * 4
    assert blas_threads() == {2}
