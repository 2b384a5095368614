"""What the threads of a block do together: they share work, and search for a maximum."""

from typing import Any

import numpy as np
from numba import cuda

from dbksvd_dask.kernels.cuda import launching

COLUMNS = 16
"""Threads that search for the maximum of a block before thread 0 does: the square root of `THREADS`."""


def threads_for(n: int) -> int:
    """Threads of a block that has n things to do side by side: whole warps of 32, and no more than there may be."""
    return min(launching.THREADS, 32 * -(-n // 32))


@cuda.jit(device=True)
def share(n: int) -> Any:
    """How many of n things this thread takes, if it takes every blockDim-th.

    Loops count to it and add up their index, which is unsigned: `range` with a step, and indices that might be
    negative, would cost more than what is done in the loop, and keep it from being unrolled. A comparison of signed
    with unsigned numbers would be one of float64.
    """
    return np.int32((n + cuda.blockDim.x - 1 - cuda.threadIdx.x) // cuda.blockDim.x)


@cuda.jit(device=True)
def find_highest(peak: float, place: int, peaks: Any, places: Any) -> None:
    """The highest of the peaks of all threads, and of equal ones the lowest place: in slot 0, for thread 0 to read.

    `peaks` and `places` are shared memory, with a slot for each thread.
    """
    t = np.uint64(cuda.threadIdx.x)
    n_threads = np.uint64(cuda.blockDim.x)
    columns = np.uint64(COLUMNS)
    peaks[t] = peak
    places[t] = place
    # Barrier: the first threads read what all have written.
    cuda.syncthreads()
    if t < columns:
        _gather_highest(peaks, places, t, n_threads, columns)
    # Barrier: thread 0 reads what the first threads have written.
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        _gather_highest(peaks, places, t, min(columns, n_threads), np.uint64(1))


@cuda.jit(device=True)
def _gather_highest(peaks: Any, places: Any, first: int, stop: int, stride: int) -> None:
    peak = peaks[first]
    place = places[first]
    other = first + stride
    while other < stop:
        its_peak, its_place = peaks[other], places[other]
        # Without branches: both loads are on their way before it is known whether they are needed.
        if (its_peak > peak) | ((its_peak == peak) & (its_place < place)):
            peak, place = its_peak, its_place
        other += stride
    peaks[first] = peak
    places[first] = place
