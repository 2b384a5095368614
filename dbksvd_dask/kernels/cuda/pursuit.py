"""Sparse encoding on a device, a block of threads for each sample: matching pursuits, and reconstruction."""

from typing import Any

import cupy
import numpy as np
from numba import cuda

from dbksvd_dask.kernels.cpu.least_squares import pivot_limit
from dbksvd_dask.kernels.cuda import launching
from dbksvd_dask.kernels.cuda.blocks import find_highest, share, threads_for
from dbksvd_dask.kernels.cuda.launching import THREADS
from dbksvd_dask.kernels.cuda.least_squares import empty_scratch, extend_solution


def matching_pursuit(
    products: Any,
    gram: Any,
    squared_norms: Any,
    squared_residuals: Any,
    max_steps: int,
    rtol: float,
    nonnegative: bool,
    indices: Any,
    values: Any,
) -> None:
    """Matching pursuit on precomputed products, as `kernels.cpu.matching_pursuit`.

    The products of a sample stay in shared memory where they fit. In float32 a step takes 2 m flops, 8 m bytes of
    shared memory and 4 m bytes of a row of G, so it is as fast as G comes; an H100 caches all of G for m up to 3,500.

    Parameters
    ----------
    products : (n, m) floats
        ``Y Dᵀ``; overwritten by ``R Dᵀ``, the products of what is left.
    gram : (m, m) floats
        ``D Dᵀ``.
    squared_norms, squared_residuals : (n,) float64
        ``‖y‖²``, and the ``‖r‖²`` to begin with.
    max_steps : int
    rtol : float
    nonnegative : bool
        Pick only positive products.
    indices, values : (n, k) int32 and floats
        Filled in the order of first picking; empty slots stay as they were given (−1 and 0).
    """
    ends = squared_residuals, max_steps, *_ends(squared_norms, rtol, products.dtype)
    arguments = products, gram, *ends, nonnegative, indices, values
    threads, n_bytes = threads_for(len(gram)), len(gram) * products.itemsize
    # Peaks and places of the threads are there, too.
    if n_bytes + THREADS * (products.itemsize + 4) <= launching.most_shared_memory():
        launching.launch(_pursue_in_shared_memory, len(products), *arguments, threads=threads, shared_bytes=n_bytes)
    else:
        launching.launch(_pursue_in_place, len(products), *arguments, threads=threads)


def orthogonal_matching_pursuit(
    products: Any,
    gram: Any,
    squared_norms: Any,
    squared_residuals: Any,
    rtol: float,
    indices: Any,
    values: Any,
) -> None:
    """Orthogonal matching pursuit on precomputed products, as `kernels.cpu.orthogonal_matching_pursuit`.

    Parameters
    ----------
    products : (n, m) floats
        ``Y Dᵀ``; left as given.
    gram, squared_norms, squared_residuals, rtol, indices, values
        As in `matching_pursuit`.
    """
    scratch = empty_scratch(*indices.shape)
    ends = squared_residuals, *_ends(squared_norms, rtol, products.dtype), pivot_limit(gram)
    arguments = products, gram, *ends, indices, values, *scratch
    launching.launch(_pursue_orthogonally, len(scratch[0]), *arguments, threads=threads_for(len(gram)))


def subtract_reconstruction(rows: Any, dictionary: Any, indices: Any, values: Any) -> None:
    """``rows ← rows − X D`` in place.

    Parameters
    ----------
    rows : (n, d) floats
        Embeddings; overwritten by the residual.
    dictionary : (m, d) floats
    indices, values : (n, k) int32 and floats
    """
    arguments = rows, dictionary, indices, values
    launching.launch(_subtract_reconstruction, len(rows), *arguments, threads=threads_for(rows.shape[1]))


def _ends(squared_norms: Any, rtol: float, dtype: np.dtype) -> tuple[Any, Any]:
    """The best product that is below rounding, and the ``‖r‖²`` that is small enough, of each row: (n,) float64."""
    smallest = float(np.finfo(dtype).eps) * cupy.sqrt(squared_norms)
    goal = rtol * rtol * squared_norms if rtol > 0 else cupy.full(len(squared_norms), -np.inf)
    return smallest, goal


# Two kernels of one pursuit: in each of them the compiler knows what memory `p` is in.


@cuda.jit(cache=True)
def _pursue_in_shared_memory(
    products: Any,
    gram: Any,
    squared_residuals: Any,
    max_steps: int,
    smallest: Any,
    goal: Any,
    nonnegative: bool,
    indices: Any,
    values: Any,
) -> None:
    i = cuda.blockIdx.x
    p = cuda.shared.array(0, dtype=products.dtype)
    # A thread loads, changes and stores the same products all along: they need no barrier.
    _copy(products[i], p, gram.shape[0])
    ends = squared_residuals[i], smallest[i], goal[i]
    _pursue(p, gram, max_steps, ends, nonnegative, indices[i], values[i])
    _copy(p, products[i], gram.shape[0])


@cuda.jit(cache=True)
def _pursue_in_place(
    products: Any,
    gram: Any,
    squared_residuals: Any,
    max_steps: int,
    smallest: Any,
    goal: Any,
    nonnegative: bool,
    indices: Any,
    values: Any,
) -> None:
    i = cuda.blockIdx.x
    ends = squared_residuals[i], smallest[i], goal[i]
    _pursue(products[i], gram, max_steps, ends, nonnegative, indices[i], values[i])


@cuda.jit(device=True)
def _pursue(
    p: Any, gram: Any, max_steps: int, ends: tuple[float, float, float], nonnegative: bool, support: Any, x: Any
) -> None:
    """One sample. A thread owns every blockDim-th product and every blockDim-th slot, and nobody else writes those."""
    peaks = cuda.shared.array(THREADS, dtype=p.dtype)
    places = cuda.shared.array(THREADS, dtype=np.int32)
    t = cuda.threadIdx.x
    squared_residual, smallest, goal = ends  # thread 0 alone keeps it up to date
    n_own = share(gram.shape[0])
    n_slots = np.uint64(support.shape[0])
    n_used = np.uint64(0)
    atom = np.int32(0)
    c = p.dtype.type(0)
    for step in range(max_steps + 1):
        peak, place = _subtract_and_peak(p, gram[np.uint64(atom)], c, n_own, nonnegative)
        if step == max_steps:
            break
        find_highest(peak, place, peaks, places)
        if t == 0:
            if peaks[0] <= smallest or squared_residual <= goal:
                places[0] = -1
            else:
                # The product itself takes the place of its size. Its owner left it before the barriers of the search.
                peaks[0] = p[np.uint64(places[0])]
                squared_residual -= np.float64(peaks[0]) * np.float64(peaks[0])
        # Barrier: everybody reads the pick after thread 0 has written it.
        cuda.syncthreads()
        atom = places[0]
        c = peaks[0]
        if atom < 0:
            break
        slot = np.uint64(t)
        mine = n_slots
        while slot < n_used:
            if support[slot] == atom:
                mine = slot
            slot += np.uint64(cuda.blockDim.x)
        # Barrier: nobody goes on to write products and peaks before everybody has read the pick.
        if not cuda.syncthreads_or(np.int32(mine < n_slots)):
            if n_used == n_slots:
                break
            if slot == n_used:  # the first empty one is of this thread
                mine = slot
                support[mine] = atom
            n_used += np.uint64(1)
        if mine < n_slots:
            x[mine] += c


@cuda.jit(device=True)
def _copy(source: Any, target: Any, n: int) -> None:
    stride = np.uint64(cuda.blockDim.x)
    atom = np.uint64(cuda.threadIdx.x)
    for _ in range(share(n)):
        target[atom] = source[atom]
        atom += stride


@cuda.jit(device=True)
def _subtract_and_peak(p: Any, g: Any, c: float, n_own: int, nonnegative: bool) -> tuple[float, Any]:
    """``p -= c * g`` for the atoms of this thread, the largest ``|p|`` (or ``p``) of them, and the first to have it."""
    peak = p.dtype.type(0)
    place = np.int32(0)
    stride = np.uint64(cuda.blockDim.x)
    atom = np.uint64(cuda.threadIdx.x)
    for _ in range(n_own):
        q = p[atom] - c * g[atom]
        p[atom] = q
        size = q if nonnegative else abs(q)
        if size > peak:
            peak = size
            place = np.int32(atom)
        atom += stride
    return peak, place


@cuda.jit(cache=True)
def _pursue_orthogonally(
    products: Any,
    gram: Any,
    squared_residuals: Any,
    smallest: Any,
    goal: Any,
    limit: float,
    indices: Any,
    values: Any,
    factors: Any,
    vectors: Any,
) -> None:
    peaks = cuda.shared.array(THREADS, dtype=products.dtype)
    places = cuda.shared.array(THREADS, dtype=np.int32)
    factor = factors[cuda.blockIdx.x]
    work = vectors[cuda.blockIdx.x]
    solution = work[2]
    for i in range(cuda.blockIdx.x, products.shape[0], cuda.gridDim.x):
        support = indices[i]
        squared_residual = squared_residuals[i]
        size = np.uint64(0)
        while size < np.uint64(support.shape[0]) and squared_residual > goal[i]:
            peak, place = _peak_off_support(products[i], gram, support, values[i], size)
            find_highest(peak, place, peaks, places)
            # Barrier: everybody reads the pick after thread 0 has written it.
            cuda.syncthreads()
            picked = places[0]
            if peaks[0] <= smallest[i]:
                break
            # Its barriers also keep everybody from writing peaks before all have read the pick.
            pivot, last = extend_solution(factor, work, size, gram, support, picked, products[i, picked], limit)
            if pivot <= limit:
                break
            squared_residual -= last * last * pivot
            slot = np.uint64(cuda.threadIdx.x)
            while slot <= size:
                values[i, slot] = solution[slot]
                if slot == size:
                    support[slot] = picked
                slot += np.uint64(cuda.blockDim.x)
            size += np.uint64(1)
            # Barrier: everybody reads the support and its coefficients after their owners have written them.
            cuda.syncthreads()
        # Barrier: nobody writes the peaks of the next row before everybody has read the pick that ended this one.
        cuda.syncthreads()


@cuda.jit(device=True)
def _peak_off_support(products: Any, gram: Any, support: Any, x: Any, size: int) -> tuple[float, Any]:
    """The largest ``|y Dᵀ − x G|`` of the atoms of this thread off the support, and the first atom to have it."""
    peak = products.dtype.type(0)
    place = np.int32(0)
    stride = np.uint64(cuda.blockDim.x)
    atom = np.uint64(cuda.threadIdx.x)
    for _ in range(share(gram.shape[0])):
        p = products[atom]
        free = True
        for slot in range(size):
            taken = np.uint64(support[slot])
            p -= x[slot] * gram[taken, atom]
            if taken == atom:
                free = False
        if free and abs(p) > peak:
            peak = abs(p)
            place = np.int32(atom)
        atom += stride
    return peak, place


@cuda.jit(cache=True)
def _subtract_reconstruction(rows: Any, dictionary: Any, indices: Any, values: Any) -> None:
    i = cuda.blockIdx.x
    stride = np.uint64(cuda.blockDim.x)
    f = np.uint64(cuda.threadIdx.x)
    for _ in range(share(rows.shape[1])):
        left = rows[i, f]
        for slot in range(np.uint64(indices.shape[1])):
            atom = indices[i, slot]
            if atom >= 0:
                left -= values[i, slot] * dictionary[np.uint64(atom), f]
        rows[i, f] = left
        f += stride
