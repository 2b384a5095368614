"""A setting of the process is made by the first one in and undone by the last one out, in whatever order they come."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from random import Random

import dask
import pytest

from dbksvd_dask.graph import without_size_warning
from dbksvd_dask.shared_setting import SharedSetting


def setting_of(log):
    return SharedSetting(lambda: log.append("made") or (lambda: log.append("undone")))


def test_those_who_overlap_share_one_setting():
    log = []
    shared = setting_of(log)
    first, second = ExitStack(), ExitStack()
    first.enter_context(shared)
    second.enter_context(shared)
    first.close()
    assert log == ["made"]
    second.close()
    assert log == ["made", "undone"]
    with shared:
        assert log[2:] == ["made"]


def test_an_error_inside_undoes_it():
    log = []
    with pytest.raises(KeyError), setting_of(log):
        raise KeyError
    assert log == ["made", "undone"]


def test_it_decorates_functions():
    log = []
    assert setting_of(log)(lambda: log[:])() == ["made"]
    assert log == ["made", "undone"]


def test_threads_that_come_and_go_leave_the_setting_as_it_was():
    name = "distributed.admin.large-graph-warning-threshold"
    before = dask.config.get(name, None)

    def come_and_go(seed):
        random = Random(seed)
        for _ in range(200):
            with without_size_warning():
                assert dask.config.get(name) == "1 TiB"
                if random.random() < 0.1:
                    with without_size_warning():
                        pass

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(come_and_go, range(8)))
    assert dask.config.get(name, None) == before
