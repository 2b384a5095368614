"""Small pieces that the kernels share: compilation, running maxima, tiles of features, dot products, norms, moments."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

FEATURES_PER_TILE = 64
"""Features taken at a time where atoms are gathered: an (m, 64) tile stays in cache, the residual is read once."""

BYTES_PER_LINE = 64
"""Of cache."""

compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
"""For kernels. Arrays are allocated by their callers: each allocation in a kernel would take 0.05 s to compile."""

compiled_sum = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
"""For kernels whose inner loop is a sum: its order is left to the compiler, so that it vectorises."""


def maximum(a: float, b: float) -> float:
    """``max(a, b)`` of two numbers that are not NaN, in a form that loops vectorise."""
    return max(a, b)


@intrinsic
def _fast_maximum(typing_context, a, b):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        float_type = arguments[0].type
        function_type = ir.FunctionType(float_type, [float_type, float_type])
        maxnum = builder.module.declare_intrinsic("llvm.maxnum", [float_type], function_type)
        return builder.call(maxnum, arguments, fastmath=("nnan", "nsz"))

    return a(a, a), codegen


@overload(maximum)
def _overload_maximum(a, b):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    # LLVM vectorises a running maximum only where it may ignore NaN and the sign of zero, which numba's own max()
    # does not allow: 20 times faster on AVX-512.
    return lambda a, b: _fast_maximum(a, b)


def prefetch_row(array: np.ndarray, row: int) -> None:
    """Ask for a row of a large array to be brought into cache; changes no value."""


@intrinsic
def _prefetch_element(typing_context, array, row, column):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        pointer_type, int32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        element = cgutils.get_item_pointer(context, builder, signature.args[0], view, list(arguments[1:]))
        function_type = ir.FunctionType(ir.VoidType(), [pointer_type, int32, int32, int32])
        prefetch = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        to_read, into_level_2, data = int32(0), int32(2), int32(1)
        builder.call(prefetch, [builder.bitcast(element, pointer_type), to_read, into_level_2, data])
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint64), codegen


@overload(prefetch_row)
def _overload_prefetch_row(array, row):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    elements_per_line = np.uint64(BYTES_PER_LINE // (array.dtype.bitwidth // 8))

    def prefetch(array, row):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        for column in range(np.uint64(0), np.uint64(array.shape[1]), elements_per_line):
            _prefetch_element(array, row, column)

    return prefetch


def empty_tile(vectors: np.ndarray) -> np.ndarray:
    """Room for `FEATURES_PER_TILE` features of vectors, which begins with a cache line.

    Kernels take 1.3 times as long where their vectors lie across two lines. They reuse one tile: a fresh one each time
    would be fresh pages each time where the allocator gives memory back at once, as in workers of a cluster, and page
    faults took a sixth of an iteration there.
    """
    n_bytes = len(vectors) * FEATURES_PER_TILE * vectors.itemsize
    buffer = np.empty(n_bytes + BYTES_PER_LINE, np.uint8)
    first = -buffer.ctypes.data % BYTES_PER_LINE
    return buffer[first : first + n_bytes].view(vectors.dtype).reshape(len(vectors), FEATURES_PER_TILE)


@compiled
def load_tile(vectors: Any, first: int, tile: Any) -> int:
    """Copy ``vectors[:, first : first + FEATURES_PER_TILE]`` to the left of `tile`, and return how many features."""
    width = vectors.shape[1] - first
    if width > FEATURES_PER_TILE:
        width = FEATURES_PER_TILE
    offset = np.uint64(first)
    for j in range(vectors.shape[0]):
        for f in range(np.uint64(width)):
            tile[j, f] = vectors[j, offset + f]
    return width


def long_dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``⟨a_i, b_i⟩`` of each row, summed in float64: two (n, d) floats → (n,) float64."""
    dots = np.empty(len(a))
    _long_dots(a, b, dots)
    return dots


@compiled_sum
def _long_dots(a: Any, b: Any, dots: Any) -> None:
    for i in range(a.shape[0]):
        total = 0.0
        for f in range(np.uint64(a.shape[1])):
            total += np.float64(a[i, f]) * np.float64(b[i, f])
        dots[i] = total


@compiled
def add_multiples(totals: Any, factors: Any, vectors: Any) -> None:
    """``totals_i += factor_i vector_i`` of each row, in the precision of the totals.

    Parameters
    ----------
    totals : (n, d) floats
        Overwritten.
    factors : (n,) floats
    vectors : (n, d) floats
    """
    for i in range(totals.shape[0]):
        factor = factors[i]
        for f in range(np.uint64(totals.shape[1])):
            totals[i, f] += factor * vectors[i, f]


def squared_row_norms(rows: np.ndarray) -> np.ndarray:
    """``‖row‖²`` of each row, summed in float64: (n, d) floats → (n,) float64."""
    return long_dots(rows, rows)


def feature_moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and sum of squares of each feature, in float64: (n, d) floats → two (d,) float64."""
    total, squares = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    _add_moments(rows, total, squares)
    return total, squares


@compiled
def _add_moments(rows: Any, total: Any, squares: Any) -> None:
    for i in range(rows.shape[0]):
        for f in range(np.uint64(rows.shape[1])):
            value = np.float64(rows[i, f])
            total[f] += value
            squares[f] += value * value


_EXPONENTS: dict[np.dtype, Any] = {
    np.dtype(np.float16): np.uint16(0x7C00),
    np.dtype(np.float32): np.uint32(0x7F800000),
    np.dtype(np.float64): np.uint64(0x7FF0000000000000),
}
"""The exponent bits: all of them are set in NaN and infinity, and in no other number."""


def first_nonfinite_row(*pieces: np.ndarray) -> int:
    """Index of the first row that holds NaN or infinity, −1 if none does: (…, d) floats of any precision.

    Examples
    --------
    >>> import numpy as np
    >>> rows = np.array([[1.0, 2.0], [np.inf, 0.0]], np.float16)
    >>> first_nonfinite_row(rows), first_nonfinite_row(rows[:1], rows), first_nonfinite_row(rows[:1])
    (1, 2, -1)
    """
    n_before = 0
    for rows in pieces:
        known = rows if rows.dtype in _EXPONENTS else rows.astype(np.float64)  # another byte order, or bfloat16
        exponent = _EXPONENTS[known.dtype]
        bad = _first_row_with_all_bits(np.ascontiguousarray(known).view(exponent.dtype), exponent)
        if bad >= 0:
            return n_before + int(bad)
        n_before += len(rows)
    return -1


@compiled
def _first_row_with_all_bits(rows: Any, bits: Any) -> int:
    for i in range(rows.shape[0]):
        found = False
        for f in range(np.uint64(rows.shape[1])):
            found |= (rows[i, f] & bits) == bits
        if found:
            return i
    return -1
