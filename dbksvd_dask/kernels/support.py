"""Codes of one chunk where it is known which atoms each sample uses."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from dbksvd_dask.kernels.backend import backend_of
from dbksvd_dask.kernels.chunk import EncodedChunk, centred_rows


def support_slots(support: csr_array) -> np.ndarray:
    """The atoms of each sample side by side, in ascending order: (n, most of a sample) int32, −1 in empty slots.

    Examples
    --------
    >>> import numpy as np
    >>> support_slots(csr_array(np.array([[0, 1, 1], [0, 0, 0], [1, 0, 0]])))
    array([[ 1,  2],
           [-1, -1],
           [ 0, -1]], dtype=int32)
    """
    counts = np.diff(support.indptr)
    indices = np.full((len(counts), max(counts.max(initial=0), 1)), -1, np.int32)
    indices[np.arange(indices.shape[1]) < counts[:, np.newaxis]] = support.indices
    return indices


def encode_on_support(
    rows: Sequence[np.ndarray],
    dictionary: np.ndarray,
    gram: np.ndarray,
    mean: np.ndarray | None,
    indices: np.ndarray,
    usable: np.ndarray,
) -> EncodedChunk:
    """Least-squares coefficients of the usable atoms among those of each sample; of the others zero.

    A sample whose usable atoms depend on each other has zeros only.

    Parameters
    ----------
    rows : sequence of (…, d) floats
        The rows of the chunk, n in all.
    dictionary : (m, d) floats
    gram : (m, m) floats
    mean : (d,) floats or None
        Taken from the rows first.
    indices : (n, w) int32
        Those of `support_slots`.
    usable : (m,) bool
        Atoms whose direction is known by now.
    """
    ops = backend_of(dictionary)
    xp = ops.xp
    residual = centred_rows(rows, dictionary.dtype, mean)
    used = xp.where((indices >= 0) & usable[indices], indices, np.int32(-1))
    # Empty slots last, for the least squares. CuPy may not sort bool.
    order = xp.argsort((used < 0).view(np.int8), axis=1, kind="stable")
    used = xp.ascontiguousarray(xp.take_along_axis(used, order, axis=1))
    products, coefficients = xp.zeros(used.shape, residual.dtype), xp.zeros(used.shape, residual.dtype)
    samples, slots, atoms = ops.support_entries(used, xp.arange(len(dictionary), dtype=np.int32))
    products[samples, slots] = ops.support_products(residual, dictionary, samples, atoms)
    ops.refit_least_squares(products, gram, used, coefficients)
    ops.subtract_reconstruction(residual, dictionary, used, coefficients)
    values = xp.take_along_axis(coefficients, xp.argsort(order, axis=1), axis=1)
    return EncodedChunk(indices, values, residual)


def sum_of_users(chunk: EncodedChunk, n_atoms: int) -> np.ndarray:
    """Sum of the residuals of the samples that use each atom: (m, d) floats."""
    ops = backend_of(chunk.residual)
    xp = ops.xp
    sums = xp.zeros((n_atoms, chunk.residual.shape[1]), chunk.residual.dtype)
    samples, _, atoms = ops.support_entries(chunk.indices, xp.arange(n_atoms, dtype=np.int32))
    ops.accumulate_residual(chunk.residual, samples, atoms, xp.ones(len(samples), sums.dtype), sums)
    return sums
