"""What theory says of a dictionary: coherence, Welch bound, guaranteed k, restricted isometry, sample-size planning."""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from dbksvd_dask import metrics
from dbksvd_dask.atoms import check_atoms

_COHERENCE_ROUNDING = 1e-6  # relative; what float32 leaves
_REASONS = {
    "sparsity": "k ≤ best_guaranteed_k(m, d), up to which the best dictionary of this size has unique codes (paper, "
    "eq. 5, with the Welch bound); a worst-case guarantee, which learned dictionaries exceed in practice",
    "counting": "n ≥ m (d − 1) / (d − k) and k < d, for as many equations, n d, as unknowns, m (d − 1) + n k "
    "(degrees of freedom, supports known)",
    "coverage": "n ≥ ln(m / 0.05) / −ln(1 − k/m), for every atom to have a user with probability 95 % "
    "(union bound, supports uniform)",
    "noise": "n ≥ m² / snr, for an expected total squared error of the atoms of one "
    "(Jung, Eldar, Görtz, arXiv 1507.05498; order of magnitude)",
}


@dataclass(frozen=True)
class Condition:
    """One thing that learning a dictionary asks for, and whether it is given."""

    name: str
    """"sparsity", "counting", "coverage" or "noise"."""
    needed: float
    """The largest k ("sparsity") or the smallest n (all others) that would do; infinite where no n would."""
    given: int
    """The k or n that there is."""
    met: bool
    """Whether that does."""
    reason: str
    """What is asked for, why, and who says so."""

    def __str__(self) -> str:
        """One line."""
        verdict = "met" if self.met else "NOT MET"
        return f"{self.name}: {verdict}, needed {self.needed:,}, given {self.given:,}: {self.reason}"


@dataclass(frozen=True, repr=False)
class Plan:
    """What `plan` has found."""

    conditions: tuple[Condition, ...]
    """Sparsity, counting, coverage, noise."""
    atom_error: float
    """Expected root-mean-square ``‖d̂ − d‖`` of an atom, ``√(m / (n snr))``, with supports and coefficients known."""

    @property
    def ok(self) -> bool:
        """Whether all conditions are met."""
        return all(condition.met for condition in self.conditions)

    def __repr__(self) -> str:
        """A line for each condition, and one for the error of an atom."""
        error = f"expected root-mean-square error of an atom: {self.atom_error:.3g}"
        return "\n".join([*map(str, self.conditions), error])


@dataclass(frozen=True, eq=False)
class RestrictedIsometry:
    """Extreme eigenvalues of the Gram matrix of each support, (n_supports,) float64."""

    smallest: np.ndarray
    largest: np.ndarray

    @property
    def delta(self) -> float:
        """``max(largest − 1, 1 − smallest)`` over these supports: δ_k is at least this."""
        return float(max(self.largest.max() - 1, 1 - self.smallest.min()))


def mutual_coherence(atoms: np.ndarray) -> float:
    """The largest ``|⟨d_i, d_j⟩|`` of any two atoms, μ, from 0 to 1; 0 for a single atom.

    Holds 1,024 rows of ``D Dᵀ`` at a time: 256 MiB for 65,536 atoms in float32, where all would be 16 GiB.

    Parameters
    ----------
    atoms : (m, d) floats
        Unit rows.

    Raises
    ------
    TypeError, ValueError
        If the atoms are not two-dimensional, floating, finite and of unit norm.

    Examples
    --------
    >>> import numpy as np
    >>> mutual_coherence(np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
    0.8
    """
    # Rounding takes the product of equal atoms above 1.
    return min(float(metrics.coherence(check_atoms(atoms, "atoms")).max()), 1.0)


def welch_bound(m: int, d: int) -> float:
    """The least mutual coherence that m atoms over d features could have: ``√((m − d) / (d (m − 1)))``, 0 if m ≤ d.

    Above d atoms only equiangular tight frames attain it. Source: Welch, "Lower bounds on the maximum cross correlation
    of signals", IEEE Trans. Inf. Theory 20(3), 1974.

    Raises
    ------
    TypeError, ValueError
        If m or d is not a whole number of at least 1.

    Examples
    --------
    >>> welch_bound(3, 2)  # three lines in a plane, 60° apart
    0.5
    """
    m, d = _whole(m, "m"), _whole(d, "d")
    return math.sqrt((m - d) / (d * (m - 1))) if m > d else 0.0


def guaranteed_k(coherence: float) -> int:
    """The largest k below ``(1 + 1/μ) / 2`` (paper, eq. 5), and ``sys.maxsize`` for μ = 0: no limit but m.

    No sample has two codes of k or fewer nonzero coefficients, and where it has one OMP and basis pursuit find it. This
    is what holds for every code; most with many more nonzero coefficients are found, too. Sources: Donoho, Elad,
    "Optimally sparse representation in general (nonorthogonal) dictionaries via ℓ1 minimization", PNAS 100(5), 2003;
    Tropp, "Greed is good", IEEE Trans. Inf. Theory 50(10), 2004.

    Parameters
    ----------
    coherence : float
        μ, from 0 to 1. A bound that is a whole number but for the rounding of float32 is taken for that number.

    Raises
    ------
    ValueError
        If the coherence is not a number from 0 to 1.

    Examples
    --------
    >>> guaranteed_k(0.25), guaranteed_k(1 / 3), guaranteed_k(1.0)
    (2, 1, 0)
    """
    if not isinstance(coherence, Real) or isinstance(coherence, bool) or not 0 <= coherence <= 1:
        raise ValueError(f"coherence={coherence!r} must be a number from 0 to 1")
    if coherence < 1 / sys.maxsize:
        return sys.maxsize
    # Rounding must not put k = (1 + 1/μ) / 2, for which there is no guarantee, below the bound.
    return math.ceil((1 + 1 / float(coherence)) / 2 * (1 - _COHERENCE_ROUNDING)) - 1


def best_guaranteed_k(m: int, d: int) -> int:
    """`guaranteed_k` of the best m atoms over d features that could exist: those at the Welch bound; m if m ≤ d.

    Raises
    ------
    TypeError, ValueError
        If m or d is not a whole number of at least 1.

    Examples
    --------
    >>> best_guaranteed_k(4096, 2304)
    36
    """
    m, d = _whole(m, "m"), _whole(d, "d")
    if m <= d:
        return m
    # k < (1 + 1/μ) / 2 in whole numbers: (2k − 1)² (m − d) < d (m − 1).
    return (math.isqrt((d * (m - 1) - 1) // (m - d)) + 1) // 2


def plan(d: int, m: int, k: int, n: int, snr: float) -> Plan:
    """Whether n samples are enough to learn m atoms over d features, k of them a sample (paper, section 3.3).

    No condition promises that a fit finds them; constants are those of the sources named here, orders of magnitude.

    * "sparsity": ``k ≤ best_guaranteed_k(m, d)``, a worst-case guarantee, which learned dictionaries exceed.
    * "counting": ``n ≥ m (d − 1) / (d − k)``. Even with supports known, n d equations have to determine d − 1 unknowns
      of each atom and k of each sample.
    * "coverage": ``n ≥ ln(m / 0.05) / −ln(1 − k/m)``. A uniform support leaves an atom out with probability 1 − k/m; by
      the union bound, n of them leave out any atom with at most 5 %.
    * "noise": ``n ≥ m² / snr``. The least expected error ``‖D̂ − D‖²`` of any method is of the order ``m² / (n snr)``:
      Jung, Eldar, Görtz, "On the minimax risk of dictionary learning", IEEE Trans. Inf. Theory, 2016.

    Least squares with supports and coefficients known, where it attains the Cramér–Rao bound, has that error if n ≫ m.
    For noise of variance σ² in each feature and independent centred coefficients, an atom with ``n_j = n k / m`` users
    has ``E‖d̂ − d‖² = σ² d / (n_j E x²)``, which is ``m / (n snr)`` since ``snr = k E x² / (d σ²)``.

    Parameters
    ----------
    d, m, k, n : int
        Features, atoms, nonzero coefficients a sample, samples.
    snr : float
        ``E‖x D‖² / E‖noise‖²``: a ratio of powers, not decibels; infinite without noise.

    Raises
    ------
    TypeError, ValueError
        If d, m, k or n is not a whole number of at least 1, k exceeds m, or snr is not a positive number.

    Examples
    --------
    >>> plan(d=384, m=2048, k=10, n=100_000, snr=10)
    sparsity: met, needed 11, given 10: k ≤ best_guaranteed_k(m, d), ...
    counting: met, needed 2,098, given 100,000: n ≥ m (d − 1) / (d − k) ...
    coverage: met, needed 2,170, given 100,000: n ≥ ln(m / 0.05) / −ln(1 − k/m), ...
    noise: NOT MET, needed 419,431, given 100,000: n ≥ m² / snr, ...
    expected root-mean-square error of an atom: 0.0453
    """
    d, m, k, n = _whole(d, "d"), _whole(m, "m"), _whole(k, "k"), _whole(n, "n")
    if k > m:
        raise ValueError(f"k={k} exceeds m={m}: a sample uses no more atoms than there are")
    if not isinstance(snr, Real) or isinstance(snr, bool) or not snr > 0:
        raise ValueError(f"snr={snr!r} must be a positive number, a ratio of powers: 10 ** (decibels / 10)")
    return Plan(tuple(_conditions(d, m, k, n, float(snr))), math.sqrt(m / (n * float(snr))))


def _conditions(d: int, m: int, k: int, n: int, snr: float) -> Iterator[Condition]:
    best_k = best_guaranteed_k(m, d)
    yield Condition("sparsity", best_k, k, k <= best_k, _REASONS["sparsity"])
    bounds = {
        "counting": m * (d - 1) / (d - k) if k < d else math.inf,
        "coverage": math.log(m / 0.05) / -math.log1p(-k / m) if k < m else 1,
        "noise": m**2 / snr,
    }
    for name, bound in bounds.items():
        needed = math.ceil(bound) if math.isfinite(bound) else bound
        yield Condition(name, needed, n, n >= needed, _REASONS[name])


def restricted_isometry(
    atoms: np.ndarray, k: int, *, n_supports: int = 100, random_state: int | np.random.Generator | None = None
) -> RestrictedIsometry:
    """How far from orthonormal the atoms of random supports are: extreme eigenvalues of ``D_Ω D_Ωᵀ``.

    The isometry constant δ_k (Candès, Tao, "Decoding by linear programming", IEEE Trans. Inf. Theory 51(12), 2005) is
    the largest ``|eigenvalue − 1|`` over all supports of k atoms: some of them bound it from below.

    Parameters
    ----------
    atoms : (m, d) floats
        Unit rows.
    k : int
        Atoms in a support, drawn uniformly without replacement.
    n_supports : int
    random_state : int, Generator or None

    Raises
    ------
    TypeError, ValueError
        If the atoms are not as for `mutual_coherence`, k exceeds m, or another parameter is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> round(restricted_isometry(np.array([[1.0, 0.0], [0.6, 0.8]]), k=2, random_state=0).delta, 12)
    0.6
    """
    atoms, k, n_supports = check_atoms(atoms, "atoms"), _whole(k, "k"), _whole(n_supports, "n_supports")
    if k > len(atoms):
        raise ValueError(f"k={k} exceeds the number of atoms, {len(atoms)}")
    if random_state is not None and not isinstance(random_state, np.random.Generator):
        random_state = _whole(random_state, "random_state", least=0)
    rng = np.random.default_rng(random_state)
    extremes = np.empty((2, n_supports))
    for i in range(n_supports):
        support = atoms[rng.choice(len(atoms), k, replace=False, shuffle=False)].astype(np.float64)
        extremes[:, i] = np.linalg.eigvalsh(support @ support.T)[[0, -1]]
    return RestrictedIsometry(*extremes)


def _whole(value: int, name: str, least: int = 1) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be a whole number")
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}")
    return int(value)
