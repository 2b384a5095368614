"""Kernels are started with what CuPy holds."""

import numpy as np
import pytest
from numba import cuda


def test_a_kernel_runs_over_the_grid(cupy):
    from dbksvd_dask.kernels.cuda.launching import launch

    @cuda.jit
    def add_row_number(rows):
        for f in range(cuda.threadIdx.x, rows.shape[1], cuda.blockDim.x):
            rows[cuda.blockIdx.x, f] += cuda.blockIdx.x

    rows = cupy.zeros((3, 10), np.float32)
    launch(add_row_number, 3, rows)
    np.testing.assert_array_equal(rows.get(), np.arange(3.0)[:, np.newaxis] * np.ones(10))


def test_shared_memory_of_a_size_told_at_the_start(cupy):
    from dbksvd_dask.kernels.cuda.launching import launch

    @cuda.jit
    def reverse(rows):
        row = cuda.shared.array(0, dtype=rows.dtype)
        for f in range(cuda.threadIdx.x, rows.shape[1], cuda.blockDim.x):
            row[f] = rows[cuda.blockIdx.x, f]
        cuda.syncthreads()
        for f in range(cuda.threadIdx.x, rows.shape[1], cuda.blockDim.x):
            rows[cuda.blockIdx.x, f] = row[rows.shape[1] - 1 - f]

    given = np.random.default_rng(0).standard_normal((3, 13_000)).astype(np.float32)
    rows = cupy.asarray(given)
    launch(reverse, 3, rows, shared_bytes=13_000 * 4)
    np.testing.assert_array_equal(rows.get(), given[:, ::-1])


@pytest.mark.parametrize("blocks", [0, (0, 3), (3, 0)])
def test_nothing_is_started_where_there_are_no_blocks(cupy, blocks):
    from dbksvd_dask.kernels.cuda.launching import launch

    no_kernel = None  # cannot be started
    launch(no_kernel, blocks, cupy.zeros((0, 10), np.float32))
