"""Tasks on a device take turns, and end when the device is done; those on the host do neither."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError

import numpy as np
import pytest

from dbksvd_dask.computing import computing
from dbksvd_dask.encoding import AtomVectors


@pytest.fixture
def waits(cupy, monkeypatch):
    """What was computed before each time that somebody waited for the device."""
    from dbksvd_dask.kernels import cuda

    seen, computed = [], []
    monkeypatch.setattr(cuda, "clock", lambda: seen.append(list(computed)))
    return seen, computed


@pytest.mark.parametrize(
    "given",
    [
        lambda array: array,
        lambda array: [np.zeros(3), array],
        lambda array: ((None, [array]), 2),
        lambda array: AtomVectors(array),
        lambda array: [(AtomVectors(array), 3.0)],
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_a_task_ends_when_the_device_is_done_wherever_it_has_its_arrays(cupy, waits, given, there):
    seen, computed = waits

    @computing
    def compute(number, arrays):
        computed.append(number)
        return number

    assert compute(7, given(cupy.zeros(3) if there else np.zeros(3))) == 7
    assert seen == ([[7]] if there else [])


@pytest.mark.parametrize("there", [True, False])
def test_tasks_of_a_process_take_turns_on_a_device(cupy, there):
    both = Barrier(2)

    @computing
    def meets_another(array):
        try:
            both.wait(timeout=0.3 if there else 60)
        except BrokenBarrierError:
            return False
        return True

    array = cupy.zeros(3) if there else np.zeros(3)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(meets_another, [array, array])) == [not there] * 2
