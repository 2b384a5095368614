"""Encoding one chunk: its codes, its residual, and what the metrics and the update of the atoms need.

Whatever arrays these functions are given, all on the host or all on one device, there they compute and leave theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import numpy as np

from dbksvd_dask.kernels.backend import backend_of
from dbksvd_dask.kernels.costs import StageCosts
from dbksvd_dask.kernels.pursuit import Group, Pursuit
from dbksvd_dask.kernels.transfer import Transferable

STEPS_PER_NONZERO = 4
"""Matching pursuit may pick an atom again; it ends after this many steps for each nonzero coefficient."""

MOST_SAMPLES = 2**32
"""Samples of a batch over which sums do not overflow."""


class Codes(NamedTuple):
    """Sparse coefficients of a chunk."""

    indices: np.ndarray
    """(n, k) int32: the atom in each slot, −1 in empty ones, which come last."""
    values: np.ndarray
    """(n, k) floats: its coefficient, 0 in empty slots."""


@dataclass(frozen=True, eq=False)
class EncodedChunk(Transferable):
    """A chunk as the dictionary update needs it."""

    indices: np.ndarray
    """(n, k) int32: the slots of each group side by side, its empty ones last."""
    values: np.ndarray
    """(n, k) floats."""
    residual: np.ndarray
    """(n, d) floats: ``Y − X D``."""

    def codes(self, slots: slice) -> Codes:
        """Those in some of the slots."""
        xp = backend_of(self.indices).xp
        return Codes(*(xp.ascontiguousarray(array[:, slots]) for array in (self.indices, self.values)))


class Encoding(NamedTuple):
    """What encoding a chunk leaves, and what it took."""

    chunk: EncodedChunk
    residual_products: np.ndarray
    """(n, k) floats: ``⟨r, d_j⟩`` for the atom in each slot, with r the residual after its group."""
    squared_norms: np.ndarray
    """(n,) float64: ``‖y‖²``."""
    moments: tuple[np.ndarray, np.ndarray]
    """Sum and sum of squares of each feature, (d,) float64 each."""
    costs: StageCosts


def encode(
    rows: Sequence[np.ndarray],
    dictionary: np.ndarray,
    grams: Sequence[np.ndarray],
    mean: np.ndarray | None,
    pursuit: Pursuit,
) -> Codes:
    """Sparse codes of a chunk.

    Parameters
    ----------
    rows : sequence of (…, d) floats of any precision
        The rows of the chunk, n in all, in one or more pieces.
    dictionary : (m, d) floats
        Gives the precision of the computation.
    grams : sequence of (m_g, m_g) floats
        ``D Dᵀ`` of each group of atoms; of all of them where there are no groups.
    mean : (d,) floats or None
        Taken from the rows first.
    pursuit : Pursuit

    Returns
    -------
    Codes
        Empty slots come last, also where there are groups.
    """
    xp = backend_of(dictionary).xp
    one_block = xp.empty((min(_rows_per_block(grams), _count(rows)), dictionary.shape[1]), dictionary.dtype)
    chunk = _pursue(rows, dictionary, grams, mean, pursuit, one_block).chunk
    if not pursuit.group_sizes:
        return Codes(chunk.indices, chunk.values)
    order = xp.argsort((chunk.indices < 0).view(np.int8), axis=1, kind="stable")  # CuPy may not sort bool
    return Codes(*(xp.take_along_axis(slots, order, axis=1) for slots in (chunk.indices, chunk.values)))


def reconstruct(indices: np.ndarray, values: np.ndarray, dictionary: np.ndarray, mean: np.ndarray | None) -> np.ndarray:
    """``X D`` plus the mean: (n, d) floats."""
    ops = backend_of(dictionary)
    if indices.size and (largest := int(indices.max())) >= len(dictionary):
        raise ValueError(f"the codes use atom {largest}, but the dictionary has {len(dictionary)}")
    rows = ops.xp.zeros((len(indices), dictionary.shape[1]), dictionary.dtype)
    if mean is not None:
        rows += mean
    ops.subtract_reconstruction(rows, dictionary, indices, -values.astype(dictionary.dtype))
    return rows


def encode_with_residual(
    rows: Sequence[np.ndarray],
    dictionary: np.ndarray,
    grams: Sequence[np.ndarray],
    mean: np.ndarray | None,
    pursuit: Pursuit,
) -> Encoding:
    """Sparse codes of a chunk, its residual, and what the metrics and the first pass of the update need.

    Parameters are those of `encode`.
    """
    ops = backend_of(dictionary)
    residual = ops.xp.empty((_count(rows), dictionary.shape[1]), dictionary.dtype)
    encoding = _pursue(rows, dictionary, grams, mean, pursuit, residual)
    slots = pursuit.groups(len(dictionary))[-1].slots
    with encoding.costs.stage("residual", residual):
        ops.subtract_reconstruction(residual, dictionary, *encoding.chunk.codes(slots))
    return encoding


def _count(rows: Sequence[np.ndarray]) -> int:
    return sum(map(len, rows))


def _rows_per_block(grams: Sequence[np.ndarray]) -> int:
    return int(backend_of(grams[0]).rows_per_block(max(map(len, grams)), grams[0].itemsize))


def _pursue(
    rows: Sequence[np.ndarray],
    dictionary: np.ndarray,
    grams: Sequence[np.ndarray],
    mean: np.ndarray | None,
    pursuit: Pursuit,
    left: np.ndarray,
) -> Encoding:
    """Encode a block of rows after the other; those of the host stay in cache from their reading to their codes.

    Parameters
    ----------
    rows, dictionary, grams, mean, pursuit
        Those of `encode`.
    left : (n, d) or (rows of a block, d) floats
        Takes the rows in the precision of the computation, without the mean: all of them, or one block after the other;
        in the end what all groups but the last leave of them. It stands for the residual in what is returned.
    """
    ops = backend_of(left)
    xp = ops.xp
    n_samples, n_features = _count(rows), dictionary.shape[1]
    chunk = EncodedChunk(*_empty_codes(xp, n_samples, pursuit.n_nonzero_coefs, dictionary.dtype), left)
    encoding = Encoding(
        chunk,
        residual_products=xp.empty_like(chunk.values),
        squared_norms=xp.empty(n_samples),
        moments=(xp.zeros(n_features), xp.zeros(n_features)),
        costs=StageCosts(),
    )
    groups = pursuit.groups(len(dictionary))
    rows_per_block = _rows_per_block(grams)
    products = xp.empty(min(rows_per_block, n_samples) * max(map(len, grams)), dictionary.dtype)
    for start in range(0, n_samples, rows_per_block):
        block = slice(start, min(start + rows_per_block, n_samples))
        block_rows = left[block] if len(left) == n_samples else left[: block.stop - start]
        with encoding.costs.stage("read", left):
            _centre(rows, block, mean, block_rows)
            encoding.squared_norms[block] = ops.squared_row_norms(block_rows)
            _check_norms(encoding.squared_norms[block], left.dtype)
            for total, part in zip(encoding.moments, ops.feature_moments(block_rows), strict=True):
                total += part
        squared_residuals = encoding.squared_norms[block]
        for group, gram in zip(groups, grams, strict=True):
            shape = len(block_rows), len(gram)
            with encoding.costs.stage("product", left):
                out = products[: shape[0] * shape[1]].reshape(shape)
                block_products = xp.matmul(block_rows, dictionary[group.atoms].T, out=out)
            with encoding.costs.stage("pursuit", left):
                norms = encoding.squared_norms[block], squared_residuals
                codes, residual_products = _pursue_block(block_products, gram, *norms, pursuit, group)
                chunk.indices[block, group.slots], chunk.values[block, group.slots] = codes
                encoding.residual_products[block, group.slots] = residual_products
            if group is not groups[-1]:
                with encoding.costs.stage("residual", left):
                    ops.subtract_reconstruction(block_rows, dictionary, *codes)
                    squared_residuals = ops.squared_row_norms(block_rows)
    return encoding


def centred_rows(rows: Sequence[np.ndarray], dtype: np.dtype, mean: np.ndarray | None) -> np.ndarray:
    """All rows of a chunk in the precision of the computation, without the mean: (n, d) floats."""
    ops, n_samples = backend_of(rows[0]), _count(rows)
    centred = ops.xp.empty((n_samples, rows[0].shape[1]), dtype)
    _centre(rows, slice(0, n_samples), mean, centred)
    _check_norms(ops.squared_row_norms(centred), centred.dtype)
    return centred


def _check_norms(squared_norms: np.ndarray, dtype: np.dtype) -> None:
    """Refuse rows whose products, summed over the samples of a batch, could overflow."""
    largest, limit = np.sqrt(float(squared_norms.max())), np.sqrt(np.finfo(dtype).max / MOST_SAMPLES)
    if not largest <= limit:
        raise ValueError(
            f"a row has norm {largest:.3g}, but computation in {dtype} overflows beyond {limit:.3g}: "
            "scale the embeddings"
        )


def _empty_codes(xp: ModuleType, n_samples: int, n_nonzero_coefs: int, dtype: np.dtype) -> Codes:
    shape = n_samples, n_nonzero_coefs
    return Codes(xp.full(shape, -1, np.int32), xp.zeros(shape, dtype))


def _centre(rows: Sequence[np.ndarray], block: slice, mean: np.ndarray | None, out: np.ndarray) -> None:
    """Fill `out` with a block of the rows, without the mean."""
    first = 0
    for piece in rows:
        start, stop = max(block.start - first, 0), min(block.stop - first, len(piece))
        if start < stop:
            with np.errstate(over="ignore"):  # the norms tell
                out[first + start - block.start : first + stop - block.start] = piece[start:stop]
        first += len(piece)
    if mean is not None:
        out -= mean


def _pursue_block(
    products: np.ndarray,
    gram: np.ndarray,
    squared_norms: np.ndarray,
    squared_residuals: np.ndarray,
    pursuit: Pursuit,
    group: Group,
) -> tuple[Codes, np.ndarray]:
    """Codes of a block over the atoms of a group from ``R Dᵀ``, and ``⟨r, d_j⟩`` for the atom in each slot."""
    ops = backend_of(products)
    xp = ops.xp
    n_slots = group.slots.stop - group.slots.start
    indices, values = codes = _empty_codes(xp, len(products), n_slots, products.dtype)
    norms = squared_norms, squared_residuals
    if pursuit.encoder == "omp":
        ops.orthogonal_matching_pursuit(products, gram, *norms, pursuit.rtol, indices, values)
        residual_products = xp.zeros_like(values)  # least squares: the residual is orthogonal to its atoms
    else:
        max_steps = STEPS_PER_NONZERO * n_slots
        ops.matching_pursuit(products, gram, *norms, max_steps, pursuit.rtol, pursuit.nonnegative, indices, values)
        residual_products = xp.take_along_axis(products, xp.maximum(indices, 0), axis=1)
        if pursuit.refit == "lstsq":
            ops.refit_least_squares(residual_products, gram, indices, values)
            residual_products = xp.zeros_like(values)
    indices += group.atoms.start * (indices >= 0).astype(indices.dtype)
    return codes, residual_products
