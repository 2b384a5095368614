"""What one task does with one chunk: encode it, and pass over it for the atoms of an inner batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from time import perf_counter
from typing import Literal, NamedTuple

import numpy as np

from dbksvd_dask.kernels import cpu
from dbksvd_dask.kernels.transfer import Transferable

ROWS_PER_BLOCK = 1024
"""Rows whose products ``Y Dᵀ`` are formed at a time: enough for BLAS, few enough to stay in cache for the pursuit."""

STEPS_PER_NONZERO = 4
"""Matching pursuit may pick an atom again; it ends after this many steps for each nonzero coefficient."""


MOST_SAMPLES = 2**32
"""Samples of a batch over which sums do not overflow."""


@dataclass(frozen=True)
class Pursuit:
    """How samples are encoded."""

    n_nonzero_coefs: int
    """k, the most atoms a sample may use."""
    encoder: Literal["mp", "omp"] = "mp"
    """Matching pursuit, or orthogonal matching pursuit."""
    nonnegative: bool = False
    """Positive coefficients only."""
    rtol: float = 0.0
    """Ends a sample at ``‖r‖ ≤ rtol ‖y‖``."""
    refit: Literal["none", "lstsq"] = "none"
    """``"lstsq"``: least-squares coefficients on the support found."""

    def __post_init__(self) -> None:
        """Refuse what is no option, and what does not go together."""
        if self.encoder not in ("mp", "omp"):
            raise ValueError(f'encoder={self.encoder!r} is unknown: choose "mp" or "omp"')
        if self.refit not in ("none", "lstsq"):
            raise ValueError(f'refit={self.refit!r} is unknown: choose "none" or "lstsq"')
        if not isinstance(self.rtol, Real) or not 0 <= self.rtol < 1:
            raise ValueError(f"rtol={self.rtol!r} must be a number from 0 to below 1")
        if not isinstance(self.nonnegative, bool | np.bool_):
            raise TypeError(f"nonnegative={self.nonnegative!r} must be True or False")
        if self.nonnegative and (self.encoder == "omp" or self.refit == "lstsq"):
            raise ValueError(
                'nonnegative=True needs encoder="mp" and refit="none": least-squares coefficients may be negative'
            )


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
    """(n, k) int32."""
    values: np.ndarray
    """(n, k) floats."""
    residual: np.ndarray
    """(n, d) floats: ``Y − X D``."""


class Encoding(NamedTuple):
    """What encoding a chunk leaves, and what it took."""

    chunk: EncodedChunk
    residual_products: np.ndarray
    """(n, k) floats: ``⟨r, d_j⟩`` for the atom in each slot."""
    squared_norms: np.ndarray
    """(n,) float64: ``‖y‖²``."""
    moments: tuple[np.ndarray, np.ndarray]
    """Sum and sum of squares of each feature, (d,) float64 each."""
    seconds: dict[str, float]
    """Task seconds by stage."""


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time spent inside to ``seconds[stage]``."""
    start = perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + perf_counter() - start


def encode(
    rows: Sequence[np.ndarray], dictionary: np.ndarray, gram: np.ndarray, mean: np.ndarray | None, pursuit: Pursuit
) -> Codes:
    """Sparse codes of a chunk.

    Parameters
    ----------
    rows : sequence of (…, d) floats of any precision
        The rows of the chunk, n in all, in one or more pieces.
    dictionary : (m, d) floats
        Gives the precision of the computation.
    gram : (m, m) floats
    mean : (d,) floats or None
        Taken from the rows first.
    pursuit : Pursuit
    """
    one_block = np.empty((min(ROWS_PER_BLOCK, _count(rows)), dictionary.shape[1]), dictionary.dtype)
    chunk = _pursue(rows, dictionary, gram, mean, pursuit, one_block).chunk
    return Codes(chunk.indices, chunk.values)


def reconstruct(indices: np.ndarray, values: np.ndarray, dictionary: np.ndarray, mean: np.ndarray | None) -> np.ndarray:
    """``X D`` plus the mean: (n, d) floats."""
    if indices.size and indices.max() >= len(dictionary):
        raise ValueError(f"the codes use atom {indices.max()}, but the dictionary has {len(dictionary)}")
    rows = np.zeros((len(indices), dictionary.shape[1]), dictionary.dtype)
    if mean is not None:
        rows += mean
    cpu.subtract_reconstruction(rows, dictionary, indices, -values.astype(dictionary.dtype))
    return rows


def encode_with_residual(
    rows: Sequence[np.ndarray], dictionary: np.ndarray, gram: np.ndarray, mean: np.ndarray | None, pursuit: Pursuit
) -> Encoding:
    """Sparse codes of a chunk, its residual, and what the metrics and the first pass of the update need.

    Parameters are those of `encode`.
    """
    residual = np.empty((_count(rows), dictionary.shape[1]), dictionary.dtype)
    encoding = _pursue(rows, dictionary, gram, mean, pursuit, residual)
    with timed(encoding.seconds, "residual"):
        cpu.subtract_reconstruction(residual, dictionary, encoding.chunk.indices, encoding.chunk.values)
    return encoding


def _count(rows: Sequence[np.ndarray]) -> int:
    return sum(map(len, rows))


def _pursue(
    rows: Sequence[np.ndarray],
    dictionary: np.ndarray,
    gram: np.ndarray,
    mean: np.ndarray | None,
    pursuit: Pursuit,
    centred: np.ndarray,
) -> Encoding:
    """Encode a block of rows after the other, so that each stays in cache from its reading to its codes.

    Parameters
    ----------
    rows, dictionary, gram, mean, pursuit
        Those of `encode`.
    centred : (n, d) or (ROWS_PER_BLOCK, d) floats
        Takes the rows in the precision of the computation, without the mean: all of them, or one block after the other.
        It stands for the residual in what is returned.
    """
    n_samples, n_features = _count(rows), dictionary.shape[1]
    chunk = EncodedChunk(*_empty_codes(n_samples, pursuit.n_nonzero_coefs, dictionary.dtype), centred)
    encoding = Encoding(
        chunk,
        residual_products=np.empty_like(chunk.values),
        squared_norms=np.empty(n_samples),
        moments=(np.zeros(n_features), np.zeros(n_features)),
        seconds={},
    )
    products = np.empty((min(ROWS_PER_BLOCK, n_samples), len(dictionary)), dictionary.dtype)
    for start in range(0, n_samples, ROWS_PER_BLOCK):
        block = slice(start, min(start + ROWS_PER_BLOCK, n_samples))
        block_rows = centred[block] if len(centred) == n_samples else centred[: block.stop - start]
        with timed(encoding.seconds, "read"):
            _centre(rows, block, mean, block_rows)
            encoding.squared_norms[block] = cpu.squared_row_norms(block_rows)
            _check_norms(encoding.squared_norms[block], centred.dtype)
            for total, part in zip(encoding.moments, cpu.feature_moments(block_rows), strict=True):
                total += part
        with timed(encoding.seconds, "product"):
            block_products = np.matmul(block_rows, dictionary.T, out=products[: len(block_rows)])
        with timed(encoding.seconds, "pursuit"):
            encoding.residual_products[block] = _pursue_block(
                block_products, gram, encoding.squared_norms[block], pursuit, chunk.indices[block], chunk.values[block]
            )
    return encoding


def _check_norms(squared_norms: np.ndarray, dtype: np.dtype) -> None:
    """Refuse rows whose products, summed over the samples of a batch, could overflow."""
    largest, limit = np.sqrt(squared_norms.max()), np.sqrt(np.finfo(dtype).max / MOST_SAMPLES)
    if not largest <= limit:
        raise ValueError(
            f"a row has norm {largest:.3g}, but computation in {dtype} overflows beyond {limit:.3g}: "
            "scale the embeddings"
        )


def _empty_codes(n_samples: int, n_nonzero_coefs: int, dtype: np.dtype) -> Codes:
    shape = n_samples, n_nonzero_coefs
    return Codes(np.full(shape, -1, np.int32), np.zeros(shape, dtype))


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
    pursuit: Pursuit,
    indices: np.ndarray,
    values: np.ndarray,
) -> np.ndarray:
    """Fill `indices` and `values` from ``Y Dᵀ`` and return ``⟨r, d_j⟩`` for the atom in each slot."""
    if pursuit.encoder == "omp":
        cpu.orthogonal_matching_pursuit(products, gram, squared_norms, pursuit.rtol, indices, values)
        return np.zeros_like(values)  # least squares: the residual is orthogonal to its atoms
    max_steps = STEPS_PER_NONZERO * pursuit.n_nonzero_coefs
    cpu.matching_pursuit(products, gram, squared_norms, max_steps, pursuit.rtol, pursuit.nonnegative, indices, values)
    residual_products = np.take_along_axis(products, np.maximum(indices, 0), axis=1)
    if pursuit.refit == "lstsq":
        cpu.refit_least_squares(residual_products, gram, indices, values)
        return np.zeros_like(values)
    return residual_products


def first_pass(encoding: Encoding, dictionary: np.ndarray) -> np.ndarray:
    """``E_jᵀE_j d_j`` summed over a chunk for every atom, with the inner products that the pursuit left.

    Returns
    -------
    (m, d) floats
    """
    chunk = encoding.chunk
    everything = np.arange(len(dictionary), dtype=np.int32)
    rows, slots, atoms = cpu.support_entries(chunk.indices, everything)
    values = chunk.values[rows, slots]
    # e_i = r_i + x_i d_j, so ⟨e_i, d_j⟩ = ⟨r_i, d_j⟩ + x_i for unit atoms.
    weights = encoding.residual_products[rows, slots] + values
    return _accumulate(chunk.residual, rows, atoms, weights, values, dictionary)


def atom_pass(chunk: EncodedChunk, members: np.ndarray, atoms: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """``E_jᵀE_j v_j`` summed over a chunk, for the atoms of one inner batch.

    Parameters
    ----------
    chunk : EncodedChunk
    members : (m,) int32
        Place of each atom in the inner batch, −1 for atoms outside it.
    atoms : (w, d) floats
        The atoms d_j of the inner batch, as the residual has them.
    vectors : (w, d) floats
        v_j.

    Returns
    -------
    (w, d) floats
    """
    rows, slots, places = cpu.support_entries(chunk.indices, members)
    values = chunk.values[rows, slots]
    # ⟨e_i, v_j⟩ = ⟨r_i, v_j⟩ + x_i ⟨d_j, v_j⟩
    overlap = np.einsum("jf,jf->j", atoms, vectors)
    weights = cpu.support_products(chunk.residual, vectors, rows, places) + values * overlap[places]
    return _accumulate(chunk.residual, rows, places, weights, values, atoms)


def _accumulate(
    residual: np.ndarray,
    rows: np.ndarray,
    places: np.ndarray,
    weights: np.ndarray,
    values: np.ndarray,
    atoms: np.ndarray,
) -> np.ndarray:
    """``Σ_i w_ij e_i = Σ_i w_ij r_i + (Σ_i w_ij x_ij) d_j``."""
    along_atom = np.bincount(places, weights=weights.astype(np.float64) * values, minlength=len(atoms))
    sums = atoms * along_atom.astype(atoms.dtype)[:, np.newaxis]
    cpu.accumulate_residual(residual, rows, places, weights, sums)
    return sums


def project_in_turn(
    chunk: EncodedChunk, members: np.ndarray, old: np.ndarray, new: np.ndarray, nonnegative: bool
) -> EncodedChunk:
    """The chunk with the new atoms of an inner batch in its residual and coefficients (Gauss-Seidel).

    Parameters
    ----------
    chunk : EncodedChunk
        Left as it is.
    members : (m,) int32
        Place of each atom in the inner batch, −1 for atoms outside it.
    old, new : (w, d) floats
    nonnegative : bool
    """
    rows, slots, places = cpu.support_entries(chunk.indices, members)
    values = chunk.values.copy()
    residual = chunk.residual.copy()
    cpu.project_in_turn(residual, values, rows, slots, places, old, new, nonnegative)
    return EncodedChunk(chunk.indices, values, residual)
