"""Dictionary update: sums over the samples that use an atom, and samples projected on their new atoms.

An entry is a place in the codes that holds an atom of the inner batch. Entries are sorted by atom, so that one block
has all of an atom and nothing is added by two blocks at once: no atomics, and the same bits run after run.
"""

from typing import Any

import cupy
import numpy as np
from numba import cuda

from dbksvd_dask.kernels.cuda import launching
from dbksvd_dask.kernels.cuda.launching import THREADS, TILE, launch
from dbksvd_dask.kernels.cuda.pursuit import subtract_reconstruction
from dbksvd_dask.kernels.cuda.vector import block_sum

FEATURES, LANES = TILE

IN_FLIGHT = 4
"""Numbers that a thread asks for before it waits for the first of them."""

ONE, AHEAD = np.uint64(1), np.uint64(IN_FLIGHT - 1)
"""Indices are unsigned, and so is what is added to them or compared: numba would take the difference of an unsigned
number and one with a sign in float64, and test one with a sign for counting from the end at each access."""


def support_entries(indices: cupy.ndarray, position: cupy.ndarray) -> tuple[cupy.ndarray, cupy.ndarray, cupy.ndarray]:
    """The entries of the codes that use an atom of the inner batch, atom by atom; those of an atom row by row.

    Waits for the device once, for their number.

    Parameters
    ----------
    indices : (n, k) int32
    position : (m,) int32
        Place of each atom in the inner batch, −1 for atoms outside it.

    Returns
    -------
    rows, slots, atoms : three (entries,) int32
        `atoms` counts within the inner batch, in ascending order.
    """
    places = _places(indices, position).ravel()
    order = cupy.argsort(places, kind="stable")
    order = order[int(cupy.count_nonzero(places < 0)) :]
    rows, slots = cupy.divmod(order, max(indices.shape[1], 1))
    return rows.astype(np.int32), slots.astype(np.int32), places[order]


def _places(indices: cupy.ndarray, position: cupy.ndarray) -> cupy.ndarray:
    """Place in the inner batch of what stands in each slot, −1 where it is empty: (n, k) int32."""
    return cupy.where(indices >= 0, position[indices], np.int32(-1))


def support_products(
    residual: cupy.ndarray, vectors: cupy.ndarray, rows: cupy.ndarray, atoms: cupy.ndarray
) -> cupy.ndarray:
    """``⟨r_i, v_j⟩`` for each entry (i, j).

    Parameters
    ----------
    residual : (n, d) floats
    vectors : (w, d) floats
    rows, atoms : (entries,) int32
        In any order. Neighbours of one atom share what they read of its vector.

    Returns
    -------
    (entries,) floats
    """
    products = cupy.empty(len(rows), residual.dtype)
    blocks = -(-len(rows) // launching.TILE[1])
    launch(_support_products, blocks, residual, vectors, rows, atoms, products, threads=launching.TILE)
    return products


@cuda.jit(cache=True)
def _support_products(residual: Any, vectors: Any, rows: Any, atoms: Any, products: Any) -> None:
    """An entry a lane: its threads take every so many features."""
    partials = cuda.shared.array((LANES, FEATURES), dtype=residual.dtype)
    thread, lane = cuda.threadIdx.x, cuda.threadIdx.y
    entry = cuda.blockIdx.x * cuda.blockDim.y + lane
    total = residual.dtype.type(0)
    if entry < rows.size:
        i, j = np.uint64(rows[entry]), np.uint64(atoms[entry])
        f, threads, width = np.uint64(thread), np.uint64(cuda.blockDim.x), np.uint64(residual.shape[1])
        while f + AHEAD * threads < width:
            for _ in range(IN_FLIGHT):
                total += residual[i, f] * vectors[j, f]
                f += threads
        while f < width:
            total += residual[i, f] * vectors[j, f]
            f += threads
    partials[lane, thread] = total
    cuda.syncthreads()
    half = cuda.blockDim.x >> 1
    while half > 0:
        if thread < half:
            partials[lane, thread] += partials[lane, thread + half]
        cuda.syncthreads()
        half >>= 1
    if thread == 0 and entry < rows.size:
        products[entry] = partials[lane, 0]


def accumulate_residual(
    residual: cupy.ndarray, rows: cupy.ndarray, atoms: cupy.ndarray, weights: cupy.ndarray, sums: cupy.ndarray
) -> None:
    """``sums_j += Σ_i weight_ij r_i`` over the entries (i, j), in an order that the number of lanes fixes.

    Parameters
    ----------
    residual : (n, d) floats
    rows, atoms : (entries,) int32
        Sorted by atom, as `support_entries` has them.
    weights : (entries,) floats
    sums : (w, d) floats
    """
    starts = _starts(atoms, len(sums))
    # Blocks run in the order of x first: all atoms on one tile of features, which of 32,768 rows stays in the cache of
    # the device. So the residual comes from its memory once, not once for each entry of a row.
    blocks = len(sums), -(-sums.shape[1] // (2 * launching.TILE[0]))
    launch(_accumulate_residual, blocks, residual, rows, starts, weights, sums, threads=launching.TILE)


@cuda.jit(cache=True)
def _accumulate_residual(residual: Any, rows: Any, starts: Any, weights: Any, sums: Any) -> None:
    """One block an atom and a tile of features; each lane takes every so many entries of the atom.

    A thread has two features: to find a row takes it more instructions than to read a number there.
    """
    partials = cuda.shared.array((2, LANES, FEATURES), dtype=residual.dtype)
    atom = np.uint64(cuda.blockIdx.x)
    column, lane, lanes = cuda.threadIdx.x, cuda.threadIdx.y, np.uint64(cuda.blockDim.y)
    width = np.uint64(residual.shape[1])
    f = np.uint64(cuda.blockIdx.y * 2 * cuda.blockDim.x + column)
    g = f + np.uint64(cuda.blockDim.x)
    has_two = g < width
    if not has_two:
        g = f
    first, last = np.uint64(starts[atom]), np.uint64(starts[atom + ONE])
    if first == last:
        return
    total_f = total_g = residual.dtype.type(0)
    if f < width:
        entry = first + np.uint64(lane)
        while entry < last:
            for _ in range(IN_FLIGHT):
                there = min(entry, last - ONE)
                i = np.uint64(rows[there])
                weight = weights[there]
                if entry >= last:  # without a branch, so that nothing waits for what is read here
                    weight = residual.dtype.type(0)
                total_f += weight * residual[i, f]
                total_g += weight * residual[i, g]
                entry += lanes
    partials[0, lane, column] = total_f
    partials[1, lane, column] = total_g
    cuda.syncthreads()
    if lane == 0 and f < width:
        for other in range(np.uint64(1), lanes):
            total_f += partials[0, other, column]
            total_g += partials[1, other, column]
        sums[atom, f] += total_f
        if has_two:
            sums[atom, g] += total_g


def _starts(atoms: cupy.ndarray, n_atoms: int) -> cupy.ndarray:
    """Where the entries of each atom begin among all that are sorted by atom, and their end: (n_atoms + 1,) int64."""
    return cupy.searchsorted(atoms, cupy.arange(n_atoms + 1, dtype=np.int32))


def sum_by_atom(atoms: cupy.ndarray, weights: cupy.ndarray, n_atoms: int) -> cupy.ndarray:
    """``Σ_i weight_ij`` of each atom over the entries (i, j), in float64.

    Parameters
    ----------
    atoms : (entries,) int32
        In ascending order, as `support_entries` has them.
    weights : (entries,) floats
    n_atoms : int

    Returns
    -------
    (n_atoms,) float64
    """
    sums = cupy.empty(n_atoms, np.float64)
    launch(_sum_by_atom, n_atoms, _starts(atoms, n_atoms), weights, sums)
    return sums


@cuda.jit(cache=True)
def _sum_by_atom(starts: Any, weights: Any, sums: Any) -> None:
    """One block an atom."""
    partials = cuda.shared.array(THREADS, dtype=np.float64)
    atom = np.uint64(cuda.blockIdx.x)
    first, last = np.uint64(starts[atom]), np.uint64(starts[atom + ONE])
    total = 0.0
    for entry in range(first + np.uint64(cuda.threadIdx.x), last, np.uint64(cuda.blockDim.x)):
        total += np.float64(weights[entry])
    total = block_sum(total, partials)
    if cuda.threadIdx.x == 0:
        sums[atom] = total


def normal_products(indices: cupy.ndarray, values: cupy.ndarray, vectors: cupy.ndarray) -> cupy.ndarray:
    """``XᵀX V`` of the codes X.

    Parameters
    ----------
    indices, values : (n, k) int32 and floats
    vectors : (m, t) float64

    Returns
    -------
    (m, t) float64
    """
    reconstruction = cupy.zeros((len(indices), vectors.shape[1]))
    subtract_reconstruction(reconstruction, vectors, indices, -values)
    rows, slots, atoms = support_entries(indices, cupy.arange(len(vectors), dtype=np.int32))
    products = cupy.zeros_like(vectors)
    accumulate_residual(reconstruction, rows, atoms, values[rows, slots], products)
    return products


def project_in_turn(
    residual: cupy.ndarray,
    values: cupy.ndarray,
    indices: cupy.ndarray,
    position: cupy.ndarray,
    old: cupy.ndarray,
    new: cupy.ndarray,
    nonnegative: bool,
) -> None:
    """Bring residual and coefficients up to date with the new atoms of an inner batch, sample by sample.

    For each sample: take out the old contributions of the batch's atoms, then project what is left on each new atom
    in turn (Gauss-Seidel).

    Parameters
    ----------
    residual : (n, d) floats
        Overwritten.
    values : (n, k) floats
        Overwritten.
    indices : (n, k) int32
    position : (m,) int32
        Place of each atom in the inner batch, −1 for atoms outside it.
    old, new : (w, d) floats
    nonnegative : bool
        Clip coefficients at zero.
    """
    places = _places(indices, position)
    row_bytes = residual.shape[1] * residual.itemsize
    if row_bytes + THREADS * residual.itemsize <= launching.most_shared_memory():
        kernel, shared_bytes = _project_in_shared_memory, row_bytes
    else:
        kernel, shared_bytes = _project_in_place, 0
    launch(kernel, len(residual), residual, values, places, old, new, nonnegative, shared_bytes=shared_bytes)


@cuda.jit(cache=True)
def _project_in_shared_memory(residual: Any, values: Any, places: Any, old: Any, new: Any, nonnegative: bool) -> None:
    """One block a sample, whose residual waits in shared memory."""
    partials = cuda.shared.array(THREADS, dtype=residual.dtype)
    row = cuda.shared.array(0, dtype=residual.dtype)
    i = cuda.blockIdx.x
    if not _uses_any(places[i]):
        return
    for f in range(np.uint64(cuda.threadIdx.x), np.uint64(residual.shape[1]), np.uint64(cuda.blockDim.x)):
        row[f] = residual[i, f]
    _project_row(row, values[i], places[i], old, new, nonnegative, partials)
    for f in range(np.uint64(cuda.threadIdx.x), np.uint64(residual.shape[1]), np.uint64(cuda.blockDim.x)):
        residual[i, f] = row[f]


@cuda.jit(cache=True)
def _project_in_place(residual: Any, values: Any, places: Any, old: Any, new: Any, nonnegative: bool) -> None:
    """One block a sample, of more features than shared memory holds."""
    partials = cuda.shared.array(THREADS, dtype=residual.dtype)
    i = cuda.blockIdx.x
    if _uses_any(places[i]):
        _project_row(residual[i], values[i], places[i], old, new, nonnegative, partials)


@cuda.jit(device=True)
def _uses_any(places: Any) -> bool:
    """Whether any slot of a sample holds an atom of the inner batch."""
    uses = 0
    for slot in range(cuda.threadIdx.x, places.size, cuda.blockDim.x):
        if places[slot] >= 0:
            uses = 1
    return cuda.syncthreads_or(uses) != 0


@cuda.jit(device=True)
def _project_row(row: Any, values: Any, places: Any, old: Any, new: Any, nonnegative: bool, partials: Any) -> None:
    """Each thread has features of its own: the only thing that it needs of the others is their share of a product."""
    thread, threads = np.uint64(cuda.threadIdx.x), np.uint64(cuda.blockDim.x)
    width = np.uint64(old.shape[1])
    for slot in range(places.size):
        j = places[slot]
        if j >= 0:
            atom = np.uint64(j)
            x = values[slot]
            for f in range(thread, width, threads):
                row[f] += x * old[atom, f]
    for slot in range(places.size):
        j = places[slot]
        if j >= 0:
            atom = np.uint64(j)
            share = row.dtype.type(0)
            for f in range(thread, width, threads):
                share += row[f] * new[atom, f]
            x = block_sum(share, partials)
            if nonnegative and x < 0:
                x = row.dtype.type(0)
            if thread == 0:
                values[slot] = x
            for f in range(thread, width, threads):
                row[f] -= x * new[atom, f]
