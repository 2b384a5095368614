"""How good a dictionary is: relative error, variance explained, L0, usage and coherence, as pure functions."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from dbksvd_dask.kernels.backend import backend_of, on_device, to_host
from dbksvd_dask.kernels.gram import gram_panel, panel_starts, panels_coherence


@dataclass(frozen=True)
class ErrorSums:
    """Sums over samples from which every reconstruction metric follows; sums of chunks add up.

    All of them are in float64, so that 2²⁰ samples lose no digits that matter.

    Examples
    --------
    >>> import numpy as np
    >>> Y = np.array([[3.0, 4.0], [0.0, 2.0]])
    >>> sums = ErrorSums.of(Y, residual=Y / 2)
    >>> float(sums.relative_error)
    0.5
    >>> half = ErrorSums.of(Y[:1], Y[:1] / 2) + ErrorSums.of(Y[1:], Y[1:] / 2)
    >>> half.variance_explained == sums.variance_explained
    True
    """

    n_samples: int
    """Samples seen."""
    n_nonzero: int
    """Samples that are not zero: those that relative error counts."""
    relative_errors: float
    """Σ ‖r‖ / ‖y‖ over the nonzero samples."""
    feature_sums: np.ndarray
    """(d,) Σ y."""
    feature_squares: np.ndarray
    """(d,) Σ y²."""
    residual_squares: np.ndarray
    """(d,) Σ r²."""

    @classmethod
    def of(cls, embeddings: np.ndarray, residual: np.ndarray) -> Self:
        """Sums of one chunk: two (n, d) float arrays."""
        ops = backend_of(embeddings)
        return cls.from_parts(ops.squared_row_norms(embeddings), ops.feature_moments(embeddings), residual)

    @classmethod
    def from_parts(
        cls, squared_norms: np.ndarray, moments: tuple[np.ndarray, np.ndarray], residual: np.ndarray
    ) -> Self:
        """The same from ``‖y‖²`` (n,) and the feature moments of the embeddings, where these are at hand already."""
        errors = relative_errors(squared_norms, residual)
        return cls(
            n_samples=len(squared_norms),
            n_nonzero=int(np.count_nonzero(to_host(squared_norms))),
            relative_errors=float(errors.sum()),
            feature_sums=to_host(moments[0]),
            feature_squares=to_host(moments[1]),
            residual_squares=to_host(backend_of(residual).feature_moments(residual)[1]),
        )

    def __add__(self, other: Self) -> Self:
        """Sums over both sets of samples."""
        return type(self)(
            *(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__),
        )

    @property
    def relative_error(self) -> float:
        """Mean of ``‖y − x D‖ / ‖y‖`` over the nonzero samples (paper, eq. 6); NaN where there are none."""
        return self.relative_errors / self.n_nonzero if self.n_nonzero else np.nan

    @property
    def _feature_variances(self) -> np.ndarray:
        variances = self.feature_squares - self.feature_sums**2 / self.n_samples
        # A constant feature leaves rounding of this size; it has no variance to explain.
        rounding = self.n_samples * np.finfo(np.float64).eps * self.feature_squares
        return np.where(variances > rounding, variances, 0.0)

    @property
    def variance_explained(self) -> float:
        """``1 − Σ‖r‖² / Σ‖y − ȳ‖²``, features pooled; NaN where the samples do not vary."""
        variance = self._feature_variances.sum()
        return float(1 - self.residual_squares.sum() / variance) if variance > 0 else np.nan

    @property
    def variance_explained_per_feature(self) -> float:
        """Mean over the features that vary of ``1 − Σ r_f² / Σ (y_f − ȳ_f)²`` (paper, eq. 7)."""
        variances = self._feature_variances
        varies = variances > 0
        return float(np.mean(1 - self.residual_squares[varies] / variances[varies])) if varies.any() else np.nan


def relative_errors(squared_norms: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """``‖r‖ / ‖y‖`` of each sample, 0 where y is zero.

    Parameters
    ----------
    squared_norms : (n,) float64
        ``‖y‖²``.
    residual : (n, d) floats

    Returns
    -------
    (n,) float64
        On the host in any case.
    """
    squared_norms = to_host(squared_norms)
    squared_errors = to_host(backend_of(residual).squared_row_norms(residual))
    return np.sqrt(np.divide(squared_errors, squared_norms, out=np.zeros_like(squared_errors), where=squared_norms > 0))


def relative_error(embeddings: np.ndarray, reconstruction: np.ndarray) -> float:
    """Mean of ``‖y − ŷ‖ / ‖y‖`` over the nonzero samples (paper, eq. 6).

    Parameters
    ----------
    embeddings, reconstruction : (n, d) floats

    Examples
    --------
    >>> import numpy as np
    >>> relative_error(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[0.0, 4.0], [0.0, 0.0]]))
    0.6
    """
    return ErrorSums.of(embeddings, _residual(embeddings, reconstruction)).relative_error


def variance_explained(embeddings: np.ndarray, reconstruction: np.ndarray, *, per_feature: bool = False) -> float:
    """``1 − Σ‖y − ŷ‖² / Σ‖y − ȳ‖²``.

    Parameters
    ----------
    embeddings, reconstruction : (n, d) floats
    per_feature : bool
        Average the ratio over features (paper, eq. 7) rather than pool them.

    Examples
    --------
    >>> import numpy as np
    >>> Y = np.array([[0.0, 0.0], [2.0, 4.0]])
    >>> variance_explained(Y, np.array([[1.0, 0.0], [2.0, 4.0]]))
    0.9
    >>> variance_explained(Y, np.array([[1.0, 0.0], [2.0, 4.0]]), per_feature=True)
    0.75
    """
    sums = ErrorSums.of(embeddings, _residual(embeddings, reconstruction))
    return sums.variance_explained_per_feature if per_feature else sums.variance_explained


def _residual(embeddings: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    if on_device(embeddings) != on_device(reconstruction):
        raise ValueError(
            "the embeddings and their reconstruction are one on a GPU and the other not: move one of them, by "
            "cupy.asarray(…) or .get()"
        )
    return embeddings - reconstruction


def l0(indices: np.ndarray) -> float:
    """Mean number of atoms a sample uses.

    Parameters
    ----------
    indices : (n, k) integers
        −1 in empty slots.

    Examples
    --------
    >>> import numpy as np
    >>> l0(np.array([[3, 1], [2, -1]]))
    1.5
    """
    return int((indices >= 0).sum()) / max(len(indices), 1)


def atom_usage(indices: np.ndarray, n_atoms: int) -> np.ndarray:
    """Samples that use each atom.

    Parameters
    ----------
    indices : (n, k) integers
        −1 in empty slots.
    n_atoms : int

    Returns
    -------
    (m,) int64
        On the host in any case.

    Examples
    --------
    >>> import numpy as np
    >>> atom_usage(np.array([[3, 1], [1, -1]]), n_atoms=4)
    array([0, 2, 0, 1])
    """
    return to_host(backend_of(indices).xp.bincount(indices.ravel() + 1, minlength=n_atoms + 1)[1:])


def coherence(atoms: np.ndarray) -> np.ndarray:
    """The largest ``|⟨d_i, d_j⟩|`` of each unit-norm atom with any other, never forming ``D Dᵀ`` whole.

    Parameters
    ----------
    atoms : (m, d) floats

    Returns
    -------
    (m,) floats
        0 for a single atom; on the host in any case.

    Examples
    --------
    >>> import numpy as np
    >>> coherence(np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
    array([0.6, 0.8, 0.8])
    """
    return to_host(panels_coherence([gram_panel(atoms, start).largest for start in panel_starts(len(atoms))]))
