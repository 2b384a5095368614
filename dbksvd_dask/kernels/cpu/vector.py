"""Small pieces that the kernels share: compilation, maxima and dot products that vectorise, norms, moments."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

FEATURES_PER_TILE = 64
"""Features taken at a time where atoms are gathered: an (m, 64) tile stays in cache, the residual is read once."""

compiled = njit(nogil=True, cache=True, fastmath={"contract"})
compiled_sum = njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})
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
    elements_per_line = np.uint64(64 // (array.dtype.bitwidth // 8))

    def prefetch(array, row):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        for column in range(np.uint64(0), np.uint64(array.shape[1]), elements_per_line):
            _prefetch_element(array, row, column)

    return prefetch


@compiled
def load_tile(vectors: Any, first: int, tile: Any) -> int:
    """Copy ``vectors[:, first : first + FEATURES_PER_TILE]`` to the left of `tile`, and return how many features.

    The kernels reuse one tile: a fresh one each time would be fresh pages each time where the allocator gives memory
    back at once, as in workers of a cluster, and page faults took a sixth of an iteration there.
    """
    width = min(FEATURES_PER_TILE, vectors.shape[1] - first)
    offset = np.uint64(first)
    for j in range(vectors.shape[0]):
        for f in range(np.uint64(width)):
            tile[j, f] = vectors[j, offset + f]
    return width


@compiled_sum
def dot(a: Any, i: int, b: Any, j: int) -> float:
    """``⟨a_i, b_j⟩`` in the arrays' own precision."""
    total = a.dtype.type(0)
    for f in range(np.uint64(a.shape[1])):
        total += a[i, f] * b[j, f]
    return total


@compiled_sum
def long_dot(a: Any, b: Any) -> float:
    """``⟨a, b⟩`` of two vectors, summed in float64."""
    total = 0.0
    for f in range(np.uint64(a.size)):
        total += np.float64(a[f]) * np.float64(b[f])
    return total


@compiled_sum
def squared_row_norms(rows: Any) -> Any:
    """``‖row‖²`` of each row, summed in float64: (n, d) floats → (n,) float64."""
    norms = np.empty(rows.shape[0], np.float64)
    for i in range(rows.shape[0]):
        norms[i] = long_dot(rows[i], rows[i])
    return norms


@compiled
def feature_moments(rows: Any) -> Any:
    """Sum and sum of squares of each feature, in float64: (n, d) floats → two (d,) float64."""
    n_samples, n_features = rows.shape
    total = np.zeros(n_features, np.float64)
    squares = np.zeros(n_features, np.float64)
    for i in range(n_samples):
        for f in range(np.uint64(n_features)):
            value = np.float64(rows[i, f])
            total[f] += value
            squares[f] += value * value
    return total, squares


_EXPONENTS: dict[np.dtype, Any] = {
    np.dtype(np.float16): np.uint16(0x7C00),
    np.dtype(np.float32): np.uint32(0x7F800000),
    np.dtype(np.float64): np.uint64(0x7FF0000000000000),
}
"""The exponent bits: all of them are set in NaN and infinity, and in no other number."""


def first_nonfinite_row(rows: np.ndarray) -> int:
    """Index of the first row that holds NaN or infinity, −1 if none does: (n, d) floats of any precision.

    Examples
    --------
    >>> import numpy as np
    >>> first_nonfinite_row(np.array([[1.0, 2.0], [np.inf, 0.0]], np.float16))
    1
    """
    if rows.dtype not in _EXPONENTS:  # another byte order, or bfloat16
        rows = rows.astype(np.float64)
    exponent = _EXPONENTS[rows.dtype]
    return _first_row_with_all_bits(np.ascontiguousarray(rows).view(exponent.dtype), exponent)


@compiled
def _first_row_with_all_bits(rows: Any, bits: Any) -> int:
    for i in range(rows.shape[0]):
        found = False
        for f in range(np.uint64(rows.shape[1])):
            found |= (rows[i, f] & bits) == bits
        if found:
            return i
    return -1
