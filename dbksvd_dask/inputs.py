"""What the estimator is given: embeddings, parameters and a first dictionary, checked before any work."""

import os
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import xarray as xr
from scipy.sparse import csr_array, issparse
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from dbksvd_dask.atoms import check_atoms
from dbksvd_dask.batches import Segment, check_finite
from dbksvd_dask.bounds import welch_bound
from dbksvd_dask.device import refuse_cupy
from dbksvd_dask.embeddings import open_embeddings
from dbksvd_dask.embeddings.opening import Source
from dbksvd_dask.embeddings.several import are_paths
from dbksvd_dask.kernels.backend import on_device
from dbksvd_dask.matryoshka import group_sizes

if TYPE_CHECKING:
    from dbksvd_dask.estimator import DBKSVD


def is_lazy(Y: Source) -> bool:
    """Whether the embeddings are read on Dask rather than in memory already."""
    return are_paths(Y) or isinstance(Y, str | os.PathLike | da.Array | xr.DataArray | xr.Dataset)


def open_rows(model: "DBKSVD", Y: Source, *, reset: bool, name: str = "Y") -> xr.DataArray:
    """The embeddings as a lazy DataArray.

    Parameters
    ----------
    model : DBKSVD
    Y : (n, d) embeddings
    reset : bool
        Let the model expect as many features as these have, rather than check them against those that it expects.
    name : str
        What errors call the embeddings.
    """
    if is_lazy(Y) or on_device(Y):
        rows: Any = Y
        embeddings = open_embeddings(Y)
        if reset:
            model.n_features_in_ = embeddings.shape[1]
            model.__dict__.pop("feature_names_in_", None)  # those of a DataFrame that it was fitted to before
        _check_features(model, embeddings.shape[1], name)
        if is_lazy(Y):
            return embeddings
    else:
        rows = _checked_in_memory(model, Y, reset, name)
        embeddings = open_embeddings(rows)
    # What is in memory is checked before any work; what is read later, when it is read.
    starts = np.cumsum([0, *embeddings.data.chunks[0]])
    bounds = enumerate(pairwise(starts.tolist()))
    segments = [Segment(chunk, 0, slice(start, stop), rows.shape) for chunk, (start, stop) in bounds]
    check_finite([rows[segment.rows] for segment in segments], segments, name)
    return embeddings


def _checked_in_memory(model: "DBKSVD", Y: Any, reset: bool, name: str) -> np.ndarray:
    """What scikit-learn takes for an array, as an array."""
    if isinstance(Y, np.ma.MaskedArray):
        raise TypeError(f"{name} is a MaskedArray, whose mask would be lost: drop or fill what it masks first")
    if name == "Y":
        return validate_data(model, Y, reset=reset, dtype=None, ensure_all_finite=False)
    rows = check_array(Y, dtype=None, ensure_all_finite=False, input_name=name)
    _check_features(model, rows.shape[1], name)
    return rows


def open_held_out(model: "DBKSVD", validation: Source | None, embeddings: xr.DataArray) -> xr.DataArray | None:
    """The held-out embeddings, if there are some, of as many features as the model expects, and beside the others."""
    if validation is None:
        return None
    held_out = open_rows(model, validation, reset=False, name="validation")
    if on_device(held_out.data) != on_device(embeddings.data):
        there, other = ("Y", "validation") if on_device(embeddings.data) else ("validation", "Y")
        raise ValueError(
            f'{there} is on a GPU, but {other} is not: pass open_embeddings({other}, device="cuda"), or both on the '
            "host"
        )
    return held_out


def _check_features(model: "DBKSVD", n_features: int, name: str) -> None:
    if n_features != model.n_features_in_:
        raise ValueError(f"{name} has {n_features} features, but DBKSVD is expecting {model.n_features_in_} features")


def check_parameters(model: "DBKSVD", n_samples: int, n_learned: int | None = None) -> None:
    """Refuse what scikit-learn's declarative constraints cannot say; `n_learned` atoms are there to go on with."""
    if n_learned is not None and n_learned != model.n_components:
        raise ValueError(
            f"n_components={model.n_components} differs from the {n_learned} atoms learned so far: "
            "fit anew, or set it back"
        )
    if n_learned is None and n_samples < model.n_components:
        raise ValueError(
            f"n_samples={n_samples} is smaller than n_components={model.n_components}: "
            "pass more samples, or ask for fewer atoms"
        )
    if model.n_nonzero_coefs > model.n_components:
        raise ValueError(f"n_nonzero_coefs={model.n_nonzero_coefs} exceeds n_components={model.n_components}")
    if model.dtype is not None and np.dtype(model.dtype) not in (np.float32, np.float64):
        raise ValueError(
            f"The 'dtype' parameter of DBKSVD must be float32, float64 or None. Got {model.dtype!r} instead."
        )
    _ = model._pursuit  # refuses what does not go together
    if n_learned is None:
        group_sizes(model.matryoshka, int(model.n_components), int(model.n_nonzero_coefs))
    if model.max_coherence is not None:
        _check_max_coherence(model, model.max_coherence)
    for callback in model.callbacks:
        if isinstance(callback, type):
            raise TypeError(f"callback {callback.__name__} is a class: pass an instance, {callback.__name__}()")
        if not callable(callback):
            raise TypeError(f"callback {callback!r} cannot be called: pass callables (model, iteration)")


def _check_max_coherence(model: "DBKSVD", max_coherence: float) -> None:
    if model.replace_unused is None:
        raise ValueError("max_coherence replaces atoms, but replace_unused=None says that none is: set one of them")
    m, d = model.n_components, model.n_features_in_
    if max_coherence <= welch_bound(m, d):
        raise ValueError(
            f"max_coherence={max_coherence} is below what any {m} atoms over {d} features can have, "
            f"{welch_bound(m, d):.3g} (Welch): raise it"
        )


def refuse_second_argument(y: Any) -> None:
    """Say that held-out embeddings go by keyword; scikit-learn's own targets pass."""
    rows = isinstance(y, list) and len(y) > 0 and isinstance(y[0], list)
    if rows or isinstance(y, str | os.PathLike) or getattr(y, "ndim", 1) == 2:
        raise TypeError("the second argument is ignored, for scikit-learn's sake: pass validation=… by keyword")


def known_atoms(model: "DBKSVD", dtype: np.dtype) -> np.ndarray:
    """The atoms that `fixed_atoms`, `known_atoms` and `init` give, checked: (≤ n_components, d) floats, unit rows."""
    m, d = int(model.n_components), model.n_features_in_
    given = [np.empty((0, d), dtype)]
    for name in ("fixed_atoms", "known_atoms"):
        atoms = getattr(model, name)
        if atoms is not None:
            atoms = _unit_atoms(atoms, name, dtype)
            n_given = sum(map(len, given))
            if atoms.shape[1] != d or len(atoms) > m - n_given:
                raise ValueError(
                    f"{name} has shape {atoms.shape}, but n_components and the features of Y leave room for "
                    f"{m - n_given} atoms over {d} features"
                )
            given.append(atoms)
    if model.fixed_atoms is not None and len(given[1]) == m:
        raise ValueError(f"fixed_atoms are all {m} atoms of n_components: nothing is left to learn")
    names = [name for name in ("fixed_atoms", "known_atoms") if getattr(model, name) is not None]
    if not isinstance(model.init, str):
        atoms = _unit_atoms(model.init, "init", dtype)
        shape = m - sum(map(len, given)), d
        if atoms.shape != shape:
            others = f" besides {' and '.join(names)}" if names else ""
            raise ValueError(
                f"init has shape {atoms.shape}: n_components and the features of Y make it {shape}{others}"
            )
        given.append(atoms)
        names.append("init")
    together = np.concatenate(given)
    _check_rank(together, " with ".join(names))
    return together


def _unit_atoms(atoms: Any, name: str, dtype: np.dtype) -> np.ndarray:
    """Unit rows in the precision of the computation."""
    atoms = check_atoms(atoms, name)
    norms = np.linalg.norm(atoms.astype(np.float64), axis=1, keepdims=True)
    # What is of unit norm to rounding stays as it is, to the last bit.
    norms[np.abs(norms - 1) <= 4 * np.finfo(dtype).eps] = 1
    return (atoms / norms).astype(dtype)


def _check_rank(atoms: np.ndarray, name: str) -> None:
    """Refuse atoms that are not as different as can be."""
    smaller = min(atoms.shape)
    if smaller == 0:
        return
    # Eigenvalues of the Gram matrix of the shorter side are the squared singular values. In float64 throughout: those
    # of a learned dictionary reach down to where float32 would have nothing but rounding.
    exact = atoms.astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(exact.T @ exact if atoms.shape[0] > atoms.shape[1] else exact @ exact.T)
    rounding = max(smaller * np.finfo(np.float64).eps, (16 * np.finfo(atoms.dtype).eps) ** 2)
    rank = np.count_nonzero(eigenvalues > rounding * eigenvalues[-1])
    if rank < smaller:
        raise ValueError(
            f"{name} has rank {rank}, but {atoms.shape[0]} atoms over {atoms.shape[1]} features should have {smaller}: "
            "some of its atoms depend on the others"
        )


def check_support(support: Any, shape: tuple[int, int]) -> csr_array:
    """Which samples use which atoms, as far as that is known.

    Parameters
    ----------
    support : (n, m) SciPy sparse array or matrix, or NumPy array, of 0 and 1
    shape : tuple of int
        (n, m) as they should be.

    Returns
    -------
    csr_array
        Without explicit zeros.
    """
    refuse_cupy(support, "support")
    dense = isinstance(support, np.ndarray) and not isinstance(support, np.ma.MaskedArray)
    if not issparse(support) and not dense:
        raise TypeError(f"support is a {type(support).__name__}: pass a SciPy sparse array of 0 and 1")
    if support.dtype.kind not in "buif":
        raise TypeError(f"support has dtype {support.dtype}: it holds 0 and 1")
    if support.shape != shape:
        raise ValueError(f"support has shape {support.shape}: the samples of Y and n_components make it {shape}")
    if not dense:
        _check_indices(support)
    rows = csr_array(support.astype(np.float64))
    rows.sum_duplicates()
    rows.eliminate_zeros()
    wrong = rows.data[rows.data != 1]
    if wrong.size:
        raise ValueError(f"support holds {wrong[0]:g}: it is 1 where a sample uses an atom, and 0 elsewhere")
    return rows


def _check_indices(support: Any) -> None:
    """Refuse indices out of range, which SciPy would follow beyond its memory."""
    try:
        if support.format in ("csr", "csc"):
            support.check_format(full_check=True)
            return
    except ValueError as error:
        raise ValueError(f"support is no valid sparse array of shape {support.shape}: {error}") from error
    for name, index, size in zip(("row", "column"), support.tocoo().coords, support.shape, strict=True):
        if index.size and not 0 <= index.min() <= index.max() < size:
            raise ValueError(
                f"support is no valid sparse array of shape {support.shape}: {name} indices run from {index.min()} to "
                f"{index.max()}"
            )
