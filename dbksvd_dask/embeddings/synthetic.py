"""Embeddings whose dictionary and codes are known: the toy problem of the paper (appendix A.2)."""

from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, validate_params

_STREAM = 0x70F


class ToyProblem(NamedTuple):
    """Samples of planted atoms, and the truth about them."""

    embeddings: np.ndarray
    """(n, d) float32: ``X D`` plus noise."""
    atoms: np.ndarray
    """(m, d) float32: D, unit rows."""
    codes: csr_array
    """(n, m) float32: X, k nonzeros a row."""

    @property
    def noise_error(self) -> float:
        """Mean of ``‖y − x D‖ / ‖y‖``: what the truth leaves, so no dictionary can do much better."""
        residual = self.embeddings - self.codes @ self.atoms
        return float(np.mean(np.linalg.norm(residual, axis=1) / np.linalg.norm(self.embeddings, axis=1)))

    def support(self, fraction: float) -> csr_array:
        """The users of the first atoms, so many as make up this fraction γ: (n, m) of 0 and 1, for `DBKSVD.fit`.

        Examples
        --------
        >>> problem = toy_problem(n_samples=100, n_atoms=8, n_features=4, n_nonzero_coefs=2, random_state=0)
        >>> problem.support(0.5).nnz, problem.support(1.0).nnz
        (95, 200)
        """
        if not isinstance(fraction, Real) or not 0 <= fraction <= 1:
            raise ValueError(f"fraction={fraction!r} must be from 0 to 1")
        support = (self.codes != 0).astype(np.int8)
        support.data[support.indices >= round(fraction * len(self.atoms))] = 0
        support.eliminate_zeros()
        return support


@validate_params(
    {
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "n_features": [Interval(Integral, 1, None, closed="left")],
        "n_atoms": [Interval(Integral, 1, None, closed="left")],
        "n_nonzero_coefs": [Interval(Integral, 1, None, closed="left")],
        "noise": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def toy_problem(
    n_samples: int = 2**14,
    *,
    n_features: int = 256,
    n_atoms: int = 1024,
    n_nonzero_coefs: int = 20,
    noise: float = 0.05,
    random_state: int | np.random.RandomState | None = None,
) -> ToyProblem:
    """Samples of k planted atoms each, with coefficients evenly spread over [1, 2], and normal noise.

    The sizes are those of the paper's toy problem (appendix A.2) as published with its code.

    Parameters
    ----------
    n_samples : int
        n.
    n_features : int
        d.
    n_atoms : int
        m; directions spread evenly over the sphere.
    n_nonzero_coefs : int
        k, at most m; which atoms, is drawn evenly.
    noise : float
        Standard deviation in each feature.
    random_state : int, RandomState or None
        Seed.

    Returns
    -------
    ToyProblem

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Examples
    --------
    >>> problem = toy_problem(n_samples=100, n_atoms=8, n_features=4, n_nonzero_coefs=2, random_state=0)
    >>> problem.embeddings.shape, problem.codes.shape
    ((100, 4), (100, 8))
    """
    if n_nonzero_coefs > n_atoms:
        raise ValueError(f"n_nonzero_coefs={n_nonzero_coefs} exceeds n_atoms={n_atoms}")
    # A stream of its own: a fit with the same seed must not begin with the planted atoms.
    rng = np.random.default_rng([check_random_state(random_state).randint(np.iinfo(np.int32).max), _STREAM])
    atoms = rng.standard_normal((n_atoms, n_features))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    chosen = np.sort(np.stack([rng.choice(n_atoms, n_nonzero_coefs, replace=False) for _ in range(n_samples)]), axis=1)
    coefficients = rng.uniform(1, 2, chosen.shape)
    starts = np.arange(n_samples + 1) * n_nonzero_coefs
    codes = csr_array((coefficients.ravel(), chosen.ravel(), starts), (n_samples, n_atoms))
    embeddings = codes @ atoms + noise * rng.standard_normal((n_samples, n_features))
    return ToyProblem(embeddings.astype(np.float32), atoms.astype(np.float32), codes.astype(np.float32))
