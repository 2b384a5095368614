"""How kernels are started: on the stream that CuPy uses at the moment, without waiting for anything."""

from functools import cache
from typing import Any

import cupy
from cuda.bindings import driver
from numba import config, cuda

# Small chunks are no fault of the user, whom numba would warn at each launch of fewer than 128 blocks.
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0

THREADS = 256
"""Of a block, at most: kernels take as many as they are given. A power of two."""

TILE = 64, 8
"""Of a block of two dimensions, at most: so many features, and so many threads for each of them."""

SHARED_WITHOUT_ASKING = 40 * 1024
"""Bytes of shared memory that a kernel need not ask for: 48 KiB, less those of the arrays whose size it declares."""


def launch(
    kernel: Any,
    blocks: int | tuple[int, int],
    *arguments: Any,
    threads: int | tuple[int, int] | None = None,
    shared_bytes: int = 0,
) -> None:
    """Run a kernel over a grid of blocks, where there are any; nothing is waited for.

    Parameters
    ----------
    kernel : kernel of numba.cuda
    blocks : int or tuple of int
    *arguments
        CuPy arrays and numbers.
    threads : int or tuple of int, optional
        Of a block; `THREADS` by default.
    shared_bytes : int
        Shared memory for the array of size 0 that the kernel declares.
    """
    if 0 in (blocks if isinstance(blocks, tuple) else (blocks,)):
        return
    pointer = cupy.cuda.get_current_stream().ptr
    stream = cuda.external_stream(pointer) if pointer else 0  # the default stream is the same one
    # Without `sync=False` numba would wait for the stream at each array.
    views = [cuda.as_cuda_array(a, sync=False) if isinstance(a, cupy.ndarray) else a for a in arguments]
    if shared_bytes > SHARED_WITHOUT_ASKING:
        _ask_for_shared_memory(kernel, views, shared_bytes)
    kernel[blocks, THREADS if threads is None else threads, stream, shared_bytes](*views)


def most_shared_memory() -> int:
    """Bytes of shared memory that a block may have at most, on the current device."""
    return _most_shared_memory(cupy.cuda.Device().id)


@cache  # CuPy asks for everything that there is to know of a device
def _most_shared_memory(device: int) -> int:
    return int(cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"])


def _ask_for_shared_memory(kernel: Any, arguments: list[Any], n_bytes: int) -> None:
    compiled = kernel.compile(tuple(map(kernel.typeof_pyval, arguments)))
    function = compiled._codelibrary.get_cufunc()  # numba has no public way to it
    most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    (status,) = driver.cuKernelSetAttribute(most, n_bytes, function.handle, function.device.id)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"the device refuses {n_bytes} bytes of shared memory for a block: {status}")
