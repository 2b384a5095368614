"""What is said where a device has too little memory."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import cupy

_GIBIBYTE = 2**30


@contextmanager
def explained_memory_errors(n_rows: int, row_bytes: int) -> Iterator[None]:
    """Say in errors of a device's memory how much is missing, and how many rows a chunk may have.

    Parameters
    ----------
    n_rows : int
        Rows of the chunk that is moved to the device, or computed on; 0 where there is none.
    row_bytes : int
        Bytes of each.

    Raises
    ------
    MemoryError
    """
    try:
        yield
    except MemoryError as error:
        free, total = cupy.cuda.runtime.memGetInfo()
        free += cupy.get_default_memory_pool().free_bytes()
        asked = re.search(r"allocating ([\d,]+) bytes", str(error))  # an allocator of another library does not tell
        wanted = int(asked[1].replace(",", "")) if asked else 0
        more = f"{wanted / _GIBIBYTE:.3g} GiB more are needed, and " if wanted else ""
        fits = n_rows + min(free - wanted, 0) // row_bytes if wanted and n_rows else n_rows // 2
        advice = (
            f". Of the {n_rows} rows of this chunk {fits} would fit: rechunk them before they are moved, "
            f'open_embeddings(Y.chunk(sample={fits}), device="cuda")'
        )
        raise MemoryError(
            f"the device is out of memory: {more}{free / _GIBIBYTE:.3g} of {total / _GIBIBYTE:.3g} GiB are free"
            f"{advice if 0 < fits < n_rows else ''}"
        ) from error
