"""Many fits over one pass of the data: every outer batch is read once, and each fit takes its iteration on it."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from itertools import product
from typing import Any

import numpy as np
import xarray as xr

from dbksvd_dask import fitting
from dbksvd_dask.averaging import LearnedAtoms
from dbksvd_dask.embeddings.opening import Source
from dbksvd_dask.estimator import DBKSVD
from dbksvd_dask.fit_state import BESIDES
from dbksvd_dask.inputs import check_parameters, open_held_out, open_rows
from dbksvd_dask.kernels.blas import single_threaded
from dbksvd_dask.training import Reading, State, Training, advance

_SHARED = "batch_size", "max_iter", "shuffle", "random_state", "center", "dtype", *BESIDES
"""Parameters that all fits have in common, since they share what is read; those of `BESIDES` are for a single fit."""


def sweep(
    Y: Source, grid: Mapping[str, Sequence[Any]], *, validation: Source | None = None, **parameters: Any
) -> xr.Dataset:
    """Fit a dictionary for every combination of parameters, reading the data once.

    Each fit is the one that `DBKSVD` makes with these parameters, to the last bit. Fits with the same number of atoms
    begin with one and the same first dictionary, which is made once. A sweep that fails or is interrupted returns
    nothing.

    Parameters
    ----------
    Y : (n, d) embeddings
        As in `DBKSVD.fit`.
    grid : mapping of str to sequence
        Values of some parameters of `DBKSVD`: their combinations are fitted.
    validation : (n, d) embeddings, optional
        As in `DBKSVD.fit`.
    **parameters
        The other parameters of `DBKSVD`, the same for all.

    Returns
    -------
    xarray.Dataset
        The variables of `DBKSVD.history_` over the parameters of the grid and "iteration", and `dictionary` over the
        parameters: a `Dictionary` each (drop it before you save the Dataset). Values that are no numbers, texts or
        truth values are labelled by their text.

    Raises
    ------
    TypeError
        If the grid is no mapping to sequences.
    ValueError
        If it is empty, names a parameter that all fits share, or one that is no parameter; and as `DBKSVD.fit`, before
        any data are read.

    Examples
    --------
    >>> import numpy as np
    >>> Y = np.random.default_rng(0).standard_normal((500, 8))
    >>> grid = {"n_components": [8, 16], "n_nonzero_coefs": [1, 2, 4]}
    >>> results = sweep(Y[:400], grid, validation=Y[400:], max_iter=3, random_state=0)
    >>> results.validation_relative_error.isel(iteration=-1).sizes
    Frozen({'n_components': 2, 'n_nonzero_coefs': 3})
    >>> results.dictionary.sel(n_components=16, n_nonzero_coefs=4).item()
    <Dictionary: 16 atoms x 8 features, float64, k=4>
    """
    names, values = _check_grid(grid, parameters)
    combinations = [dict(zip(names, chosen, strict=True)) for chosen in product(*values)]
    seed = parameters.get("random_state")
    seed = np.random.RandomState() if seed is None else seed
    # A generator of random numbers is copied, so that every fit draws what the first one draws.
    models = [DBKSVD(**(parameters | combination | {"random_state": deepcopy(seed)})) for combination in combinations]
    for model in models:
        model._validate_params()
    _fit_together(models, Y, validation, one_start=not {"init", "fixed_atoms", "known_atoms"} & set(names))
    shape = [len(choices) for choices in values]
    histories = xr.concat([model.history_ for model in models], dim="fit")
    index = {name: _labels(choices) for name, choices in zip(names, values, strict=True)}
    dictionaries = np.empty(len(models), object)
    dictionaries[:] = [model.dictionary_ for model in models]
    results = xr.Dataset(coords=index | dict(histories.coords))
    for name, variable in histories.data_vars.items():
        dims = (*names, *variable.dims[1:])
        results[name] = dims, variable.values.reshape(*shape, *variable.shape[1:])
    results["dictionary"] = tuple(names), dictionaries.reshape(shape)
    return results


def _check_grid(grid: Mapping[str, Sequence[Any]], parameters: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    if not isinstance(grid, Mapping):
        raise TypeError(f"grid is a {type(grid).__name__}: pass a mapping of parameters of DBKSVD to lists of values")
    if not grid:
        raise ValueError('grid is empty: name a parameter and its values, {"n_nonzero_coefs": [10, 20, 40]}')
    known = DBKSVD(1, 1).get_params()
    for name in ("callbacks", "checkpoint"):
        if parameters.get(name):
            raise ValueError(f"{name}={parameters[name]!r} is for one fit: a sweep takes none")
    for name, choices in grid.items():
        if name not in known:
            raise ValueError(f"grid names {name!r}, which is no parameter of DBKSVD")
        if name in _SHARED:
            raise ValueError(f"grid names {name!r}, which all fits share: pass {name}=… by keyword")
        if name in parameters:
            raise ValueError(f"{name!r} is in the grid and among the keywords: leave out one of them")
        if isinstance(choices, str) or not isinstance(choices, Sequence | np.ndarray):
            raise TypeError(f"grid[{name!r}] is {choices!r}: pass a list of values")
        if len(choices) == 0:
            raise ValueError(f"grid[{name!r}] is empty: pass a list of values")
    return list(grid), [list(choices) for choices in grid.values()]


def _labels(choices: list[Any]) -> list[Any]:
    plain = all(isinstance(choice, bool | int | float | str | np.generic) for choice in choices)
    return choices if plain else [str(choice) for choice in choices]


def _fit_together(models: Sequence[DBKSVD], Y: Source, validation: Source | None, one_start: bool) -> None:
    """Fit all models; each outer batch is read once. With `one_start` those of one size begin with the same atoms."""
    embeddings = open_rows(models[0], Y, reset=True)
    held_out = open_held_out(models[0], validation, embeddings)
    held_out_rows = None if held_out is None else held_out.data
    trainings: list[Training] = []
    first_atoms: dict[int, np.ndarray] = {}
    for model in models:
        model.n_features_in_ = embeddings.shape[1]
        check_parameters(model, len(embeddings))
    for model in models:
        known = fitting.begin(model, embeddings, models[0].mean_ if trainings else None)
        trainings.append(fitting.training_of_fit(model, len(embeddings)))
        batches = fitting.batches_of(model, embeddings)
        atoms = first_atoms.get(model.n_components) if one_start else None
        if atoms is None:
            atoms = first_atoms[model.n_components] = fitting.begin_atoms(model, batches, known, trainings[-1])
        model._fit_state.state = State(LearnedAtoms.of(atoms))
        model.stopped_by_ = "max_iter"
    n_iterations = models[0].max_iter
    with single_threaded(), closing(Reading(batches, held_out_rows, n_iterations)) as reading:
        for _ in range(n_iterations):
            for model, training in zip(models, trainings, strict=True):
                fitting.go_on_from(model, *advance(reading, training, model._fit_state.state))
