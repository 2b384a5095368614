"""What takes the place of hidden states: reconstructions by a dictionary, a sparse autoencoder, or a function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from dbksvd_dask.dictionary import Dictionary
from dbksvd_dask.metrics import ErrorSums, atom_usage

_ROWS_OF_CODES = 1024
"""Whose codes an autoencoder makes at a time: they are dense, in memory m values a row."""


class Reconstruction(ABC):
    """Rows to rows of the same width, and what is counted on the way.

    Parameters
    ----------
    name : str
        What results call it.
    k : int
        n_nonzero_coefs; 0 where sparsity is its own affair.
    """

    n_atoms: float = np.nan
    """m; NaN for a function."""

    def __init__(self, name: str, k: int = 0) -> None:
        self.name = name
        self.k = k
        self.errors: ErrorSums | None = None
        self._n_nonzero = 0
        self._usage: np.ndarray | None = None

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The (n, d) reconstruction of (n, d) rows, which is added to the counts.

        Raises
        ------
        ValueError
            If the reconstruction has another shape, or is not finite.
        """
        found = np.array(self._reconstruct(rows))  # a copy, for torch writes to no view
        if found.shape != rows.shape:
            raise ValueError(f"{self.name} gives an array of shape {found.shape} for hidden states of {rows.shape}")
        finite = np.isfinite(found).all(axis=1)
        if not finite.all():
            n_bad = np.count_nonzero(~finite)
            raise ValueError(
                f"{self.name} gives NaN or infinity for {n_bad} of {len(rows)} hidden states, first for "
                f"row {np.argmin(finite)} of those it was given"
            )
        errors = ErrorSums.of(rows, rows - found)
        self.errors = errors if self.errors is None else self.errors + errors
        return found

    @abstractmethod
    def _reconstruct(self, rows: np.ndarray) -> np.ndarray:
        """The reconstruction; calls `_count` where there are codes."""

    def _count(self, n_nonzero: int, usage: np.ndarray) -> None:
        self._n_nonzero += n_nonzero
        self._usage = usage if self._usage is None else self._usage + usage

    @property
    def l0(self) -> float:
        """Mean number of atoms a row has used; NaN where that is not known."""
        return np.nan if self._usage is None or self.errors is None else self._n_nonzero / self.errors.n_samples

    @property
    def alive_atoms(self) -> float:
        """Number of atoms that any row has used; NaN where that is not known."""
        return np.nan if self._usage is None else float(np.count_nonzero(self._usage))


class OfDictionary(Reconstruction):
    """By the pursuit of a dictionary."""

    def __init__(self, name: str, dictionary: Dictionary, k: int, encoder: Literal["mp", "omp"] | None) -> None:
        super().__init__(name, k)
        self.n_atoms = dictionary.n_atoms
        self._dictionary = dictionary
        self._encoder = encoder

    def _reconstruct(self, rows: np.ndarray) -> np.ndarray:
        codes = self._dictionary.encode(rows, self.k, encoder=self._encoder)
        self._count(int(np.count_nonzero(codes.indices >= 0)), atom_usage(codes.indices, self._dictionary.n_atoms))
        return np.asarray(self._dictionary.decode(codes))


class OfAutoencoder(Reconstruction):
    """By the encoder and the decoder of a torch module, as SAELens' ``SAE`` has them."""

    def __init__(self, name: str, autoencoder: Any) -> None:
        super().__init__(name)
        self._autoencoder = autoencoder

    def _reconstruct(self, rows: np.ndarray) -> np.ndarray:
        import torch

        weights = next(iter(self._autoencoder.parameters()), torch.empty(0))
        every, found = torch.from_numpy(rows), []
        with torch.inference_mode():
            for some in every.split(_ROWS_OF_CODES):
                codes = self._autoencoder.encode(some.to(weights))
                found.append(self._autoencoder.decode(codes).to(every.dtype).cpu())
                used = (codes.to_dense() if codes.layout != torch.strided else codes) != 0
                self.n_atoms = used.shape[1]
                self._count(int(used.sum()), used.sum(0).cpu().numpy())
        return torch.cat(found).numpy()


class OfFunction(Reconstruction):
    """By any function of (n, d) NumPy arrays."""

    def __init__(self, name: str, function: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(name)
        self._function = function

    def _reconstruct(self, rows: np.ndarray) -> np.ndarray:
        return self._function(rows.copy())


def reconstructions_by(
    dictionaries: Any,
    n_features: int,
    n_nonzero_coefs: int | Sequence[int] | None,
    encoder: Literal["mp", "omp"] | None,
) -> list[Reconstruction]:
    """One reconstruction for each dictionary and sparsity, and for each autoencoder and function.

    Parameters
    ----------
    dictionaries : Dictionary, autoencoder, function, or mapping of str to these
    n_features : int
        d, the width of what is to be reconstructed.
    n_nonzero_coefs : int, sequence of int, optional
        k; by default each dictionary's own.
    encoder : "mp" or "omp", optional
        By default each dictionary's own.

    Raises
    ------
    TypeError
        If one of them is none of these, or k no whole number.
    ValueError
        If there are none, or they are of another width, or k is out of range, or the pursuit is unknown.

    Examples
    --------
    >>> found = reconstructions_by({"a": Dictionary(np.eye(3)), "b": np.zeros_like}, 3, (1, 2), None)
    >>> [(one.name, one.k) for one in found]
    [('a', 1), ('a', 2), ('b', 0)]
    """
    named = dictionaries if isinstance(dictionaries, Mapping) else {_kind(dictionaries): dictionaries}
    if not named:
        raise ValueError("dictionaries is empty: pass at least one")
    if isinstance(n_nonzero_coefs, Sequence) and not n_nonzero_coefs:
        raise ValueError(f"n_nonzero_coefs={n_nonzero_coefs!r} is empty: pass at least one, or None for each one's own")
    ks: Sequence[int | None] = tuple(n_nonzero_coefs) if isinstance(n_nonzero_coefs, Iterable) else (n_nonzero_coefs,)
    found: list[Reconstruction] = []
    for name, one in named.items():
        kind = _kind(one)
        width = one.n_features if kind == "dictionary" else getattr(getattr(one, "cfg", None), "d_in", n_features)
        if width != n_features:
            raise ValueError(f"{name} is over {width} features, but the hidden states of the model have {n_features}")
        if kind == "dictionary":
            found += [_of_dictionary(str(name), one, k, encoder) for k in ks]
        else:
            found.append((OfAutoencoder if kind == "autoencoder" else OfFunction)(str(name), one))
    return found


def _of_dictionary(
    name: str, dictionary: Dictionary, k: int | None, encoder: Literal["mp", "omp"] | None
) -> OfDictionary:
    try:
        codes = dictionary.encode(dictionary.atoms[:1], k, encoder=encoder)  # refuses what is out of range
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return OfDictionary(name, dictionary, codes.n_nonzero_coefs, encoder)


def _kind(one: Any) -> str:
    if isinstance(one, Dictionary):
        return "dictionary"
    if all(callable(getattr(one, method, None)) for method in ("encode", "decode", "parameters")):
        return "autoencoder"
    if callable(one):
        return "function"
    raise TypeError(
        f"dictionaries has a {type(one).__name__}: pass a Dictionary, an SAE with encode and decode, a function of "
        "(n, d) arrays, or a mapping of names to these"
    )
