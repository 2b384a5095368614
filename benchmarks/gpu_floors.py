"""What an iteration takes at least on a device: its flops over the rate of sgemm, its bytes over the memory bandwidth.

All of it is float32, with all atoms as one inner batch and two passes over the residual, the defaults of `DBKSVD`. The
stages are those of the history. They follow each other, so that their floors add up.
"""

from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

from dbksvd_dask.kernels.chunk import STEPS_PER_NONZERO

WIDTH = 4
"""Bytes of a float32."""

PASSES = 2


class Sizes(NamedTuple):
    """Of an iteration."""

    n: int
    """Samples of the outer batch."""
    d: int
    """Features."""
    m: int
    """Atoms."""
    k: int
    """Nonzero coefficients."""


class Rates(NamedTuple):
    """Of a device."""

    sgemm: float
    """Flops a second of ``Y Dᵀ``, what it reads and writes included."""
    memory: float
    """Bytes a second that are read or written on the device."""


def flops(sizes: Sizes) -> dict[str, float]:
    """Of the two matrix products: ``Y Dᵀ``, and ``D Dᵀ``, of which the half is enough, for it is symmetric."""
    n, d, m, _ = sizes
    return {"gram": 1.0 * m * (m + 1) * d, "product": 2.0 * n * m * d}


def bytes_moved(sizes: Sizes, steps: float, *, cached: bool) -> dict[str, float]:
    """Bytes that the other stages read and write.

    Parameters
    ----------
    sizes : Sizes
    steps : float
        Of the pursuit of a sample, in the mean. Each reads a row of the Gram matrix.
    cached : bool
        Whether what is needed again comes from the caches: an atom, a row of the Gram matrix or of the residual is then
        read once a pass, else once for each coefficient or step that needs it. The truth is in between.
    """
    n, d, m, k = sizes
    rows, atoms, coefficients = (count * d * WIDTH for count in (n, m, n * k))
    gram_rows = (m if cached else n * steps) * m * WIDTH
    passes = 2 * PASSES - 1  # the pursuit leaves the inner products of the first one
    return {
        "read": 2 * rows,  # into the array that becomes the residual
        "pursuit": n * m * WIDTH + gram_rows,  # the products stay in shared memory meanwhile
        "residual": 2 * rows + (atoms if cached else coefficients),
        "statistics": rows,
        # and basis and sums of both passes, written and read, and the new atoms
        "update": passes * (rows if cached else coefficients) + (4 * PASSES + 1) * atoms,
    }


def floors(sizes: Sizes, steps: float, rates: Rates, *, cached: bool) -> dict[str, float]:
    """Seconds of each stage at least; parameters are those of `bytes_moved`, and the rates of the device."""
    computed = {stage: count / rates.sgemm for stage, count in flops(sizes).items()}
    return computed | {stage: count / rates.memory for stage, count in bytes_moved(sizes, steps, cached=cached).items()}


def mean_steps(rows: Any, atoms: Any, k: int) -> float:
    """Steps that matching pursuit takes a sample: at least k, since it may pick an atom again.

    Parameters
    ----------
    rows : (n, d) floats on the device
        Few: their products and as many rows of the Gram matrix are in memory at once.
    atoms : (m, d) floats on the device
    k : int
    """
    import cupy

    products, gram = rows @ atoms.T, atoms @ atoms.T
    every = cupy.arange(len(rows))
    chosen = cupy.zeros(products.shape, bool)
    going, steps = cupy.ones(len(rows), bool), cupy.zeros(len(rows), int)
    for _ in range(STEPS_PER_NONZERO * k):
        best = cupy.abs(products).argmax(axis=1)
        again = chosen[every, best]
        going = going & (again | (chosen.sum(axis=1) < k))
        chosen[every, best] = again | going
        products -= (products[every, best] * going)[:, None] * gram[best]
        steps += going
    return float(steps.mean())


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of several runs on the device, after one that does not count."""
    import cupy

    stream = cupy.cuda.get_current_stream()
    seconds = []
    for _ in range(1 + repeats):
        stream.synchronize()
        start = perf_counter()
        work()
        stream.synchronize()
        seconds.append(perf_counter() - start)
    return min(seconds[1:])


def measure_sgemm(n: int, d: int, m: int, repeats: int) -> float:
    """Flops a second of ``Y Dᵀ`` of so many rows; in TF32 where `CUPY_TF32=1`."""
    import cupy

    rng = cupy.random.default_rng(0)
    rows, atoms = (rng.standard_normal((count, d), dtype=cupy.float32) for count in (n, m))
    products = cupy.empty((n, m), cupy.float32)
    return 2.0 * n * m * d / fastest(lambda: cupy.matmul(rows, atoms.T, out=products), repeats)


def measure_memory(n_bytes: int, repeats: int) -> float:
    """Bytes a second that are read or written while an array is copied on the device."""
    import cupy

    source, target = cupy.zeros(n_bytes, cupy.uint8), cupy.empty(n_bytes, cupy.uint8)
    return 2.0 * n_bytes / fastest(lambda: cupy.copyto(target, source), repeats)


def measure_upload(n_bytes: int, repeats: int) -> float:
    """Bytes a second from pinned memory of the host to the device."""
    import cupy
    import cupyx

    source, target = cupyx.zeros_pinned(n_bytes, "uint8"), cupy.empty(n_bytes, cupy.uint8)
    return n_bytes / fastest(lambda: target.set(source), repeats)
