"""Rows for `gpu.py`: those of `iteration.py`, a power-law spectrum plus noise, but drawn on the device."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import zarr

BLOCK = 8192


def blocks_of_rows(n: int, d: int) -> Iterator[Any]:
    """Rows of a power-law spectrum plus noise, made on the device a block after the other."""
    return (block_of_rows(number, min(BLOCK, n - first), d) for number, first in enumerate(range(0, n, BLOCK)))


def block_of_rows(number: int, n: int, d: int) -> Any:
    """One of these blocks."""
    import cupy

    directions = cupy.random.default_rng(0).standard_normal((512, d), dtype=cupy.float32)
    directions /= cupy.sqrt(cupy.arange(1, 513, dtype=cupy.float32))[:, None]
    rng = cupy.random.default_rng(1 + number)
    rows = rng.standard_normal((n, 512), dtype=cupy.float32) @ directions
    rows += rng.standard_normal((n, d), dtype=cupy.float32)
    return rows


def rows_on_device(n: int, d: int) -> Any:
    """All of them: (n, d) float32."""
    import cupy

    rows = cupy.empty((n, d), cupy.float32)
    for number, block in enumerate(blocks_of_rows(n, d)):
        rows[number * BLOCK : (number + 1) * BLOCK] = block
    return rows


def rows_made_by_tasks(n: int, d: int) -> da.Array:
    """The same as a dask array each of whose chunks is made when it is needed."""
    import cupy

    make = dask.delayed(block_of_rows, pure=True)
    starts = enumerate(range(0, n, BLOCK))
    sizes = {number: min(BLOCK, n - first) for number, first in starts}
    meta = cupy.empty((0, 0), cupy.float32)
    return da.concatenate(
        [da.from_delayed(make(number, size, d), (size, d), meta=meta) for number, size in sizes.items()]
    )


def rows_on_host(n: int, d: int, dtype: str) -> np.ndarray:
    """The same in memory of the host."""
    rows = np.empty((n, d), dtype)
    for number, block in enumerate(blocks_of_rows(n, d)):
        rows[number * BLOCK : (number + 1) * BLOCK] = block.astype(dtype).get()
    return rows


def write_store(path: Path, rows: Any) -> None:
    """The rows as float16 zarr, not compressed."""
    array = zarr.create_array(path, shape=rows.shape, chunks=(BLOCK, rows.shape[1]), dtype="float16", compressors=None)
    for first in range(0, len(rows), BLOCK):
        array[first : first + BLOCK] = rows[first : first + BLOCK].astype("float16").get()
