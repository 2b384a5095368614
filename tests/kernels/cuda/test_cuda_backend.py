"""Both backends are one to those who use them."""

from inspect import signature
from types import FunctionType

import pytest

from dbksvd_dask.kernels import cpu


def test_the_backends_have_the_same_names_and_parameters(cupy):
    from dbksvd_dask.kernels import cuda

    assert cuda.__all__ == cpu.__all__
    for name in cpu.__all__:
        if isinstance(getattr(cuda, name), FunctionType) and name != "clock":
            assert [*signature(getattr(cuda, name)).parameters] == [*signature(getattr(cpu, name)).parameters], name


def test_the_arrays_of_the_backend_are_on_the_device(cupy):
    from dbksvd_dask.kernels import cuda
    from dbksvd_dask.kernels.backend import on_device

    assert on_device(cuda.xp.zeros(3))


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("n_atoms", [1, 1024, 4096, 16_384, 2**20])
def test_products_of_a_block_of_rows_take_half_a_gibibyte_at_most(cupy, n_atoms, itemsize):
    from dbksvd_dask.kernels import cuda

    n_rows = cuda.rows_per_block(n_atoms, itemsize)
    assert n_rows == 1024 or n_rows * n_atoms * itemsize <= 2**29 < (n_rows + 1) * n_atoms * itemsize
    assert n_rows >= 1024


def test_the_clock_waits_for_the_device(cupy, monkeypatch):
    from dbksvd_dask.kernels import cuda

    events = []

    class Stream:
        def synchronize(self):
            events.append("done")

    monkeypatch.setattr(cupy.cuda, "get_current_stream", Stream)
    monkeypatch.setattr(cuda, "perf_counter", lambda: events.append("read") or 2.0)
    assert cuda.clock() == 2.0
    assert events == ["done", "read"]


def test_memory_is_what_is_taken_on_the_device(cupy, monkeypatch):
    from dbksvd_dask.kernels import cuda

    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: (30, 100))
    assert cuda.memory() == (70, 70)
