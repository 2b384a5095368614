"""Rows from the host to the device: through pinned memory, beside what is computed there."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from weakref import finalize

import cupy
import numpy as np

from dbksvd_dask.kernels.cuda.out_of_memory import explained_memory_errors

PIECE_BYTES = 4 * 2**20
"""Rows are staged in pieces of this size, or of one row: large enough for full speed, and two of them a thread."""

_idle: defaultdict[int, list[cupy.cuda.Stream]] = defaultdict(list)
"""Streams of each device on which nothing is moved just now.

Each has memory in CuPy's pool that no other one gets. So none is left behind by a thread that ends, as that of each
task does which reads beside what a worker of a cluster computes.
"""

_being_read: deque[tuple[cupy.cuda.Event, cupy.cuda.MemoryPointer]] = deque()
"""Memory that goes back to the pool when what was in the queue of the device at that time is done."""


def upload(array: np.ndarray) -> cupy.ndarray:
    """Move an array to the current device, and return when it is there.

    While one piece is transferred, the next one is copied into pinned memory. Both happen beside what other threads
    compute: the transfer has a stream of its own.

    Parameters
    ----------
    array : (n, …) array
        In any byte order and memory layout.

    Returns
    -------
    (n, …) cupy.ndarray
        C-contiguous, of the same dtype in the byte order of this computer.
    """
    _forget_what_is_read()
    dtype = array.dtype.newbyteorder("=")
    row = dtype.itemsize * int(np.prod(array.shape[1:]))
    size = max(1, PIECE_BYTES // max(1, row))
    staging = [_pinned((size, *array.shape[1:]), dtype) for _ in range(2 if len(array) > size else 1)]
    with _own_stream() as stream:
        with stream, explained_memory_errors(len(array), row):
            rows = cupy.empty(array.shape, dtype)
        finalize(rows, _give_back, rows.data).atexit = False

        transferred: list[cupy.cuda.Event] = []
        for piece, start in enumerate(range(0, len(array), size)):
            part = array[start : start + size]
            staged = staging[piece % 2][: len(part)]
            if piece >= 2:
                transferred[piece - 2].synchronize()
            np.copyto(staged, part)
            rows[start : start + size].set(staged, stream=stream)
            transferred.append(stream.record())
    return rows


@contextmanager
def _own_stream() -> Iterator[cupy.cuda.Stream]:
    """A stream on the current device, which does not wait for the default one; in the end all in it is done."""
    idle = _idle[cupy.cuda.Device().id]
    try:
        stream = idle.pop()
    except IndexError:
        stream = cupy.cuda.Stream(non_blocking=True)
    try:
        yield stream
    finally:
        stream.synchronize()
        idle.append(stream)


def _pinned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array in pinned memory; it goes back to CuPy's pool, which keeps it for the next of the same size."""
    count = int(np.prod(shape))
    return np.frombuffer(cupy.cuda.alloc_pinned_memory(count * dtype.itemsize), dtype, count).reshape(shape)


def _give_back(memory: cupy.cuda.MemoryPointer) -> None:
    """Let go of the memory of rows that Python has forgotten, once what is queued, and may read them, is done.

    CuPy's pool gives memory that was taken while a stream was current to whoever asks next on that stream, and relies
    on the stream to keep the order. But these rows are read on another one. Who forgets them there while a product of
    them is still in the queue would find the next rows in it. (A task that computes ends when the device
    is done. What a user maps over the chunks does not.) To wait here would keep a thread that has computed from reading
    on, while the device is busy with the task of another one.
    """
    stream = cupy.cuda.get_current_stream()
    if not stream.done:
        _being_read.append((stream.record(), memory))


def _forget_what_is_read() -> None:
    for _ in range(len(_being_read)):
        with suppress(IndexError):  # another thread was faster
            event, memory = _being_read.popleft()
            if not event.done:
                _being_read.append((event, memory))
