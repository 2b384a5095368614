"""Small pieces that the kernels share: sums over a block, dot products, norms, moments, the search for bad rows.

Sums are taken in an order that is fixed by the number of threads of a block: the same bits run after run, on whatever
device.
"""

from typing import Any

import cupy
import numpy as np
from numba import cuda

from dbksvd_dask.kernels.cuda import launching
from dbksvd_dask.kernels.cuda.launching import THREADS, TILE, launch

ROWS_PER_SEGMENT = 1024
"""Rows that one block adds up: 32 segments of a chunk of 32,768 rows, each in tiles of 64 features, fill a device."""

FEATURES, LANES = TILE


@cuda.jit(device=True)
def block_sum(value: Any, partials: Any) -> Any:
    """The sum of what the threads of a block have, for each of them.

    Parameters
    ----------
    value : number
        Of this thread.
    partials : (threads,) numbers
        Shared memory, free again when this returns. Threads are a power of two, along x.
    """
    thread = cuda.threadIdx.x
    partials[thread] = value
    cuda.syncthreads()
    half = cuda.blockDim.x >> 1
    while half > 0:
        if thread < half:
            partials[thread] += partials[thread + half]
        cuda.syncthreads()
        half >>= 1
    total = partials[0]
    cuda.syncthreads()
    return total


def long_dots(a: cupy.ndarray, b: cupy.ndarray) -> cupy.ndarray:
    """``⟨a_i, b_i⟩`` of each row, summed in float64: two (n, d) floats → (n,) float64."""
    dots = cupy.empty(len(a), np.float64)
    launch(_long_dots, len(a), a, b, dots)
    return dots


@cuda.jit(cache=True)
def _long_dots(a: Any, b: Any, dots: Any) -> None:
    """One block a row."""
    partials = cuda.shared.array(THREADS, dtype=np.float64)
    i = cuda.blockIdx.x
    total = 0.0
    for f in range(np.uint64(cuda.threadIdx.x), np.uint64(a.shape[1]), np.uint64(cuda.blockDim.x)):
        total += np.float64(a[i, f]) * np.float64(b[i, f])
    total = block_sum(total, partials)
    if cuda.threadIdx.x == 0:
        dots[i] = total


def add_multiples(totals: cupy.ndarray, factors: cupy.ndarray, vectors: cupy.ndarray) -> None:
    """``totals_i += factor_i vector_i`` of each row, in the precision of the totals.

    Parameters
    ----------
    totals : (n, d) floats
        Overwritten.
    factors : (n,) floats
    vectors : (n, d) floats
    """
    totals += factors[:, np.newaxis] * vectors


def squared_row_norms(rows: cupy.ndarray) -> cupy.ndarray:
    """``‖row‖²`` of each row, summed in float64: (n, d) floats → (n,) float64."""
    return long_dots(rows, rows)


def feature_moments(rows: cupy.ndarray) -> tuple[cupy.ndarray, cupy.ndarray]:
    """Sum and sum of squares of each feature, in float64: (n, d) floats → two (d,) float64."""
    n_segments = -(-len(rows) // ROWS_PER_SEGMENT)
    moments = cupy.empty((2, n_segments, rows.shape[1]), np.float64)
    tiles = -(-rows.shape[1] // launching.TILE[0])
    launch(_segment_moments, (n_segments, tiles), rows, moments[0], moments[1], threads=launching.TILE)
    total, squares = moments.sum(axis=1)
    return total, squares


@cuda.jit(cache=True)
def _segment_moments(rows: Any, totals: Any, squares: Any) -> None:
    """One block a segment of rows and a tile of features; each lane takes every so many rows of the segment."""
    partial_totals = cuda.shared.array((LANES, FEATURES), dtype=np.float64)
    partial_squares = cuda.shared.array((LANES, FEATURES), dtype=np.float64)
    segment = cuda.blockIdx.x
    column, lane = cuda.threadIdx.x, cuda.threadIdx.y
    f, width = np.uint64(cuda.blockIdx.y * cuda.blockDim.x + column), np.uint64(rows.shape[1])
    total = square = 0.0
    if f < width:
        first = segment * ROWS_PER_SEGMENT
        last = min(first + ROWS_PER_SEGMENT, rows.shape[0])
        for i in range(np.uint64(first + lane), np.uint64(last), np.uint64(cuda.blockDim.y)):
            value = np.float64(rows[i, f])
            total += value
            square += value * value
    partial_totals[lane, column] = total
    partial_squares[lane, column] = square
    cuda.syncthreads()
    if lane == 0 and f < width:
        for other in range(1, cuda.blockDim.y):
            total += partial_totals[other, column]
            square += partial_squares[other, column]
        totals[segment, f] = total
        squares[segment, f] = square


def first_nonfinite_row(*pieces: cupy.ndarray) -> int:
    """Index of the first row that holds NaN or infinity, −1 if none does: (…, d) floats of any precision.

    Waits for the device once, however many pieces there are.
    """
    found = cupy.empty(sum(map(len, pieces)), np.bool_)
    first = 0
    for rows in pieces:
        bits = f"u{rows.itemsize}"
        # All bits of the exponent are set in NaN and infinity, and in no other number.
        exponent = np.array([np.inf], rows.dtype).view(bits)[0]
        its_rows = found[first : first + len(rows)]
        launch(_rows_with_all_bits, len(rows), cupy.ascontiguousarray(rows).view(bits), exponent, its_rows)
        first += len(rows)
    bad = np.flatnonzero(found.get())
    return int(bad[0]) if bad.size else -1


@cuda.jit(cache=True)
def _rows_with_all_bits(rows: Any, bits: Any, found: Any) -> None:
    """One block a row."""
    i = cuda.blockIdx.x
    here = 0
    for f in range(np.uint64(cuda.threadIdx.x), np.uint64(rows.shape[1]), np.uint64(cuda.blockDim.x)):
        if (rows[i, f] & bits) == bits:
            here = 1
    here = cuda.syncthreads_or(here)
    if cuda.threadIdx.x == 0:
        found[i] = here != 0
