"""Classic K-SVD in memory, one atom after the other by a full SVD each: what DB-KSVD is compared with."""

from collections.abc import Iterable
from time import perf_counter
from typing import Literal, NamedTuple

import numpy as np
import xarray as xr
from sklearn.utils._param_validation import validate_parameter_constraints

from dbksvd_dask import fitting
from dbksvd_dask.codes import SparseCodes
from dbksvd_dask.device import refuse_cupy
from dbksvd_dask.dictionary import Dictionary
from dbksvd_dask.embeddings import open_embeddings
from dbksvd_dask.estimator import DBKSVD
from dbksvd_dask.initialize import distinct_directions
from dbksvd_dask.inputs import check_parameters, is_lazy, open_rows
from dbksvd_dask.kernels.cpu import squared_row_norms
from dbksvd_dask.metrics import ErrorSums, atom_usage


class Baseline(NamedTuple):
    """What classic K-SVD has learned."""

    dictionary: Dictionary
    """The last atoms."""
    codes: SparseCodes
    """Of all samples, with the coefficients that the last update left: they go with the dictionary."""
    history: xr.Dataset
    """Over `iteration`: `relative_error` and `variance_explained` under the atoms that the iteration began with, as the
    training figures of `DBKSVD.history_`; `encoding_seconds`, `update_seconds`."""


def ksvd_baseline(
    Y: np.ndarray,
    n_components: int,
    n_nonzero_coefs: int,
    *,
    max_iter: int = 10,
    encoder: Literal["mp", "omp"] = "omp",
    init: Literal["samples", "random"] | np.ndarray = "samples",
    random_state: int | np.random.RandomState | None = None,
) -> Baseline:
    """Learn a dictionary by classic K-SVD: small and plain, for comparison with `DBKSVD`.

    The method is that of [1]_. Each iteration encodes all samples, then goes through the atoms in storage order: atom j
    becomes the first right singular vector of ``E_j = R_Ω + x_j d_jᵀ``, with ``x_j = s₁ u₁`` and the residual up to
    date before the next atom has its turn. Atoms that no sample uses become the samples of the largest residuals, in
    unit norm.

    Parameters
    ----------
    Y : (n, d) floats
        In memory. float16 becomes float32; all else is computed in its own precision.
    n_components : int
        m, the number of atoms.
    n_nonzero_coefs : int
        k, the most atoms a sample may use.
    max_iter : int, default 10
        Iterations over all samples.
    encoder : {"omp", "mp"}, default "omp"
        Orthogonal matching pursuit, or matching pursuit.
    init : {"samples", "random"} or (n_components, d) array, default "samples"
        The first dictionary: that of a `DBKSVD` with the same `init` and `random_state` and one outer batch of all
        samples.
    random_state : int, RandomState or None, default None
        Seed of the first dictionary.

    Returns
    -------
    Baseline
        The dictionary, the codes of all samples and the history.

    Raises
    ------
    TypeError
        If the embeddings are not in memory or not floating.
    ValueError
        If they are not two-dimensional, empty, have fewer samples than there are atoms, or hold a row that is not
        finite; or if a parameter does not fit.

    References
    ----------
    .. [1] Aharon, Elad, Bruckstein, "K-SVD: An Algorithm for Designing Overcomplete Dictionaries for Sparse
       Representation", IEEE Transactions on Signal Processing 54 (11), 2006.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> Y = rng.standard_normal((500, 3)) @ rng.standard_normal((3, 8))
    >>> dictionary, codes, history = ksvd_baseline(Y, n_components=12, n_nonzero_coefs=2, max_iter=5, random_state=0)
    >>> dictionary
    <Dictionary: 12 atoms x 8 features, float64, k=2>
    >>> codes
    <SparseCodes: 500 samples x 12 atoms, at most 2 nonzero, float64, in memory>
    >>> bool(history.variance_explained[-1] > 0.9)
    True
    """
    rows = _rows_in_memory(Y)
    given = {
        "n_components": n_components,
        "n_nonzero_coefs": n_nonzero_coefs,
        "max_iter": max_iter,
        "encoder": encoder,
        "init": init,
        "random_state": random_state,
    }
    constraints = {name: DBKSVD._parameter_constraints[name] for name in given}
    validate_parameter_constraints(constraints, given, caller_name="ksvd_baseline")
    atoms = _first_atoms(rows, DBKSVD(n_components, n_nonzero_coefs, init=init, random_state=random_state))
    records = []
    for _ in range(max_iter):
        start = perf_counter()
        dictionary = Dictionary(atoms, n_nonzero_coefs, encoder=encoder)
        codes = dictionary.encode(rows)
        residual = rows - dictionary.decode(codes)
        encoded = perf_counter()
        errors = ErrorSums.of(rows, residual)
        begun = perf_counter()
        update_in_turn(range(n_components), atoms, codes, residual)
        _replace_unused(atoms, codes, rows, residual)
        seconds = encoded - start, perf_counter() - begun
        records.append((errors.relative_error, errors.variance_explained, *seconds))
    names = "relative_error", "variance_explained", "encoding_seconds", "update_seconds"
    figures = {name: ("iteration", values) for name, values in zip(names, np.transpose(records), strict=True)}
    history = xr.Dataset(figures, coords={"iteration": np.arange(max_iter)})
    return Baseline(Dictionary(atoms, n_nonzero_coefs, encoder=encoder, history=history), codes, history)


def update_in_turn(order: Iterable[int], atoms: np.ndarray, codes: SparseCodes, residual: np.ndarray) -> None:
    """Update atoms one after the other, each by a full SVD, in the arrays that are given; unused ones stay.

    Parameters
    ----------
    order : iterable of int
        Which atoms, in which order.
    atoms : (m, d) floats
        Unit rows. The new ones are on the side of the old ones.
    codes : SparseCodes
        Of the samples, in memory; their values change.
    residual : (n, d) floats
        ``Y − X D``; stays so.

    Examples
    --------
    >>> import numpy as np
    >>> Y, D = np.array([[3.0, 4.0], [6.0, 8.0]]), np.array([[1.0, 0.0]])
    >>> codes = SparseCodes(np.zeros((2, 1), np.int32), np.array([[3.0], [6.0]]), n_atoms=1)
    >>> update_in_turn([0], D, codes, Y - codes.to_csr() @ D)
    >>> D, codes.values
    (array([[0.6, 0.8]]), array([[ 5.],
           [10.]]))
    """
    for j in order:
        users, slots = np.nonzero(codes.indices == j)
        if not users.size:
            continue
        errors = residual[users] + np.outer(codes.values[users, slots], atoms[j])
        u, s, v = np.linalg.svd(errors, full_matrices=False)
        side = -1 if v[0] @ atoms[j] < 0 else 1
        atoms[j] = side * v[0]
        codes.values[users, slots] = side * s[0] * u[:, 0]
        residual[users] = errors - np.outer(codes.values[users, slots], atoms[j])


def _rows_in_memory(Y: np.ndarray) -> np.ndarray:
    """The embeddings in the precision of the computation."""
    if is_lazy(Y):
        raise TypeError(
            f"Y is a {type(Y).__module__.partition('.')[0]} {type(Y).__name__}, but ksvd_baseline needs all samples in "
            "memory: pass a NumPy array, or fit DBKSVD, which reads them as it goes"
        )
    refuse_cupy(Y, "Y")
    dtype = np.result_type(open_embeddings(Y).dtype, np.float32)  # refuses what are no embeddings
    return np.ascontiguousarray(Y, dtype)


def _first_atoms(rows: np.ndarray, model: DBKSVD) -> np.ndarray:
    """The dictionary that the model would begin with if all rows were one outer batch; refuses what it refuses."""
    model.set_params(batch_size=max(len(rows), 1))
    embeddings = open_rows(model, rows, reset=True)
    check_parameters(model, len(rows))
    known = fitting.begin(model, embeddings)
    training = fitting.training_of_fit(model, len(rows))
    return fitting.begin_atoms(model, fitting.batches_of(model, embeddings), known, training)


def _replace_unused(atoms: np.ndarray, codes: SparseCodes, rows: np.ndarray, residual: np.ndarray) -> None:
    """Put the samples of the largest residuals in the place of unused atoms, each direction once."""
    unused = np.flatnonzero(atom_usage(codes.indices, len(atoms)) == 0)
    # Twice as many as there are unused atoms, since some may be the same direction.
    worst = np.argsort(-squared_row_norms(residual), kind="stable")[: 2 * unused.size]
    directions = distinct_directions(rows[worst], unused.size)
    atoms[unused[: len(directions)]] = directions
