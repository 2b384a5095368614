"""How alike dictionaries are: atoms matched one to one up to sign, of two dictionaries or of several fits."""

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy.optimize import linear_sum_assignment

from dbksvd_dask.atoms import check_atoms
from dbksvd_dask.dictionary import Dictionary

BIN_EDGES = np.arange(21) / 20
"""Of the bins of |cos| in [0, 1]."""

CLOSE = 0.9
"""Atoms with a larger |cos| count as the same."""


def compare(D1: Dictionary | np.ndarray, D2: Dictionary | np.ndarray) -> xr.Dataset:
    """Match the atoms of two dictionaries one to one up to sign, so that the sum of ``|cos|`` is the largest possible.

    Every atom of the smaller dictionary is matched. Takes the m₁ × m₂ cosines in memory, about 24 bytes each with what
    the assignment adds, and at worst time that grows with the cube of m.

    Parameters
    ----------
    D1, D2 : Dictionary or (m₁, d) and (m₂, d) floats
        Unit rows.

    Returns
    -------
    xarray.Dataset
        Over "atom", the m₁ of `D1`:

        * `match`, int: its partner in `D2`; −1 where there is none, since `D1` has more atoms;
        * `cosine`: that of the two, with its sign; NaN where there is no match;
        * `nearest_cosine`: the largest ``|cos|`` with any atom of `D2`, matched to it or not.

        Over "bin", whose coordinate is the left edges: `count`, the matched atoms by ``|cos|`` in 20 equal bins of
        [0, 1], the last of which includes 1.

        Scalars: `mean_cosine` and `median_cosine` of the matched atoms' ``|cos|``, and `matched_above`, the fraction of
        the matched atoms with ``|cos| > 0.9``.

    Raises
    ------
    TypeError
        If atoms are not floating.
    ValueError
        If atoms are not two-dimensional, finite and of unit norm, or the dictionaries have different features.

    References
    ----------
    D. F. Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Trans. Aerosp. Electron. Syst. 52(4),
    2016: the assignment, as SciPy has it.

    Examples
    --------
    >>> import numpy as np
    >>> D = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    >>> comparison = compare(D, -D[[2, 0]])
    >>> comparison.match.values, comparison.cosine.values, comparison.nearest_cosine.values
    (array([ 1, -1,  0]), array([-1., nan, -1.]), array([1. , 0.8, 1. ]))
    >>> comparison["count"].sel(bin=0.95).item(), comparison.mean_cosine.item(), comparison.matched_above.item()
    (2, 1.0, 1.0)
    """
    first, second = atoms_of(D1, "D1"), atoms_of(D2, "D2")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"D2 has {second.shape[1]} features, but D1 has {first.shape[1]}: compare what has the same")
    cosines = _cosines(first, second)
    matching = _match(cosines)
    match, cosine = np.full(len(first), -1), np.full(len(first), np.nan, cosines.dtype)
    match[matching.first] = matching.second
    cosine[matching.first] = matching.cosines
    matched = np.abs(matching.cosines)
    return xr.Dataset(
        {
            "match": ("atom", match),
            "cosine": ("atom", cosine),
            "nearest_cosine": ("atom", np.abs(cosines).max(axis=1)),
            "count": ("bin", np.histogram(matched, BIN_EDGES)[0]),
            "mean_cosine": matched.mean(),
            "median_cosine": np.median(matched),
            "matched_above": np.mean(matched > CLOSE),
        },
        coords={"bin": BIN_EDGES[:-1]},
    )


def stability(
    dictionaries: Sequence[Dictionary | np.ndarray] | Mapping[Hashable, Dictionary | np.ndarray],
) -> xr.Dataset:
    """How much of a dictionary comes back in other fits, of other seeds, say: each pair is matched as by `compare`.

    Parameters
    ----------
    dictionaries : sequence of, or mapping from names to, Dictionary or (m, d) floats
        Two or more, of unit rows over the same features.

    Returns
    -------
    xarray.Dataset
        Over "dictionary" and "other", which are the names, or 0, 1, … for a sequence: `mean_cosine`, the mean
        ``|cos|`` of matched atoms; symmetric, 1 on the diagonal.

        Over "dictionary" and "atom": `atom_cosine`, the mean ``|cos|`` of an atom with its matches in the other
        dictionaries; NaN where there is none, and beyond the last atom of dictionaries that have fewer than others.

    Raises
    ------
    TypeError
        If `dictionaries` is neither a sequence nor a mapping, or atoms are not floating.
    ValueError
        If there are fewer than two, their atoms are not two-dimensional, finite and of unit norm, or they have
        different features.

    References
    ----------
    G. Paulo, N. Belrose, "Sparse autoencoders trained on the same data learn different features", arXiv 2501.16615,
    2025: sparse autoencoders compared so.

    Examples
    --------
    >>> import numpy as np
    >>> D = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> fits = stability({"mine": D, "swapped": -D[::-1], "turned": np.array([[0.6, 0.8], [0.8, -0.6]])})
    >>> fits.mean_cosine.sel(dictionary="mine").values
    array([1. , 1. , 0.8])
    >>> fits.atom_cosine.sel(dictionary="turned").values
    array([0.8, 0.8])
    """
    if not isinstance(dictionaries, Sequence | Mapping):
        raise TypeError(
            f"dictionaries is a {type(dictionaries).__name__}: pass a list of them, or names mapped to them"
        )
    if len(dictionaries) < 2:
        raise ValueError(f"dictionaries has {len(dictionaries)} entries: compare two or more")
    named = dictionaries if isinstance(dictionaries, Mapping) else dict(enumerate(dictionaries))
    atoms = [atoms_of(D, f"dictionaries[{name!r}]") for name, D in named.items()]
    features = [D.shape[1] for D in atoms]
    if len(set(features)) > 1:
        raise ValueError(f"the dictionaries have {features} features: compare what has the same")
    means = np.eye(len(atoms))
    sums, n_matches = np.zeros((2, len(atoms), max(len(D) for D in atoms)))
    for i, j in combinations(range(len(atoms)), 2):
        matching = _match(_cosines(atoms[i], atoms[j]))
        matched = np.abs(matching.cosines)
        means[i, j] = means[j, i] = matched.mean()
        for dictionary, partners in ((i, matching.first), (j, matching.second)):
            sums[dictionary, partners] += matched
            n_matches[dictionary, partners] += 1
    return xr.Dataset(
        {
            "mean_cosine": (("dictionary", "other"), means),
            "atom_cosine": (
                ("dictionary", "atom"),
                np.divide(sums, n_matches, out=np.full_like(sums, np.nan), where=n_matches > 0),
            ),
        },
        coords={"dictionary": list(named), "other": list(named)},
    )


def atoms_of(D: Dictionary | np.ndarray, name: str) -> np.ndarray:
    """(m, d) atoms of a dictionary, or those given as an array and checked; errors call them `name`.

    Examples
    --------
    >>> import numpy as np
    >>> atoms_of(Dictionary(np.eye(2)), "D1").shape, atoms_of(np.eye(3), "D1").shape
    ((2, 2), (3, 3))
    """
    return D.atoms if isinstance(D, Dictionary) else check_atoms(D, name)


class _Matching(NamedTuple):
    """Pairs of atoms: as many as the smaller dictionary has."""

    first: np.ndarray
    second: np.ndarray
    cosines: np.ndarray


def _cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(m₁, m₂) cosines, of atoms whose norms are 1 only to the tolerance of `check_atoms`."""
    first, second = (atoms / np.linalg.norm(atoms, axis=1, keepdims=True) for atoms in (first, second))
    return np.clip(first @ second.T, -1, 1)  # rounding would leave the last bin


def _match(cosines: np.ndarray) -> _Matching:
    first, second = linear_sum_assignment(np.abs(cosines), maximize=True)
    return _Matching(first, second, cosines[first, second])
