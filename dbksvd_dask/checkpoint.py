"""Checkpoints of a fit: written while it goes on, and read to go on with it."""

import json
import operator
import os
import signal
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from threading import current_thread, main_thread
from typing import Any

import numpy as np
import xarray as xr

from dbksvd_dask.averaging import LearnedAtoms
from dbksvd_dask.callbacks import Callback
from dbksvd_dask.checkpoint_store import checkpoint_place, open_checkpoint, write_checkpoint
from dbksvd_dask.dictionary import dictionary_of
from dbksvd_dask.fingerprint import Fingerprint, differences, fingerprint
from dbksvd_dask.fit_state import BESIDES, SAME_BITS, FitState, plain, this_cpu, versions
from dbksvd_dask.history import Iteration
from dbksvd_dask.kernels.backend import to_host
from dbksvd_dask.retry import DISK_FULL
from dbksvd_dask.training import State

_ARRAYS = ("init", "fixed_atoms", "known_atoms")
"""Parameters that may be arrays."""

_PREFIX = "parameter_"


class Checkpoint(Callback):
    """Writes checkpoints of a fit, and the last one when it ends, however it ends.

    Parameters
    ----------
    path : path or URL
    every : int
        Iterations from one to the next.
    fingerprints : mapping of str to Fingerprint
        Of the embeddings of the fit.
    """

    def __init__(
        self, path: str | os.PathLike[str], every: int, fingerprints: Mapping[str, Fingerprint | None]
    ) -> None:
        self._path = checkpoint_place(path)  # also when somebody changes the folder meanwhile
        self._every = every
        self._fingerprints = fingerprints
        self._handlers: dict[int, Any] = {}
        self._signal: int | None = None

    def begin(self, model: Any, n_iterations: int) -> None:
        """Have SIGTERM end the process in order, as batch systems mean it, and SIGINT the fit."""
        self._n_written = model.n_iter_
        if current_thread() is not main_thread():
            return  # only that one may set a handler
        for number, default in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
            if signal.getsignal(number) is default:  # one that somebody else has set is not replaced
                self._handlers[number] = signal.signal(number, self._end_by)

    def _end_by(self, number: int, frame: Any) -> None:
        self._signal = number
        self._raise_signal()

    def _raise_signal(self) -> None:
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal is not None:
            raise SystemExit(128 + self._signal)  # as shells report it

    def __call__(self, model: Any, iteration: Iteration) -> None:
        """Write one where it is due."""
        if model.n_iter_ % self._every == 0:
            self._write(model)
        self._raise_signal()  # what is raised while Python collects garbage is lost

    def end(self, model: Any) -> None:
        """Write one of the last iteration, if that has not failed already."""
        try:
            for number in self._handlers:
                signal.signal(number, _pass)  # an impatient second one would spoil it
            if model.n_iter_ > self._n_written:
                self._write(model)
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def _write(self, model: Any) -> None:
        try:
            write_checkpoint(_dataset(model, self._every, self._fingerprints), self._path, model.n_iter_)
        except OSError as error:
            self._n_written = model.n_iter_  # it would fail again
            advice = "make room there, or take another place" if error.errno in DISK_FULL else "may it write there?"
            if isinstance(error, FileNotFoundError | FileExistsError):
                advice = "does another fit write there?"
            named = OSError(
                f"the checkpoint of {model.n_iter_} iterations could not be written to {self._path}: {error}"
                f". The fit has ended, and the model keeps what it has learned; {advice}"
            )
            named.errno = error.errno
            raise named from error
        self._n_written = model.n_iter_


def _pass(number: int, frame: Any) -> None:
    """Not SIG_IGN, which processes that are started meanwhile would inherit."""


def _dataset(model: Any, every: int, fingerprints: Mapping[str, Fingerprint | None]) -> xr.Dataset:
    """The dictionary of a model, with all that it takes to go on."""
    fit_state: FitState = model._fit_state
    assert fit_state.state is not None
    learned = fit_state.state.learned
    dataset = model.dictionary_.to_xarray().assign(n_averaged=("atom", learned.n_averaged))
    if learned.latest is not learned.average:
        dataset = dataset.assign(latest_atoms=(("atom", "feature"), to_host(learned.latest)))
    for name in _ARRAYS:
        value = getattr(model, name)
        if value is not None and not isinstance(value, str):
            dataset = dataset.assign({_PREFIX + name: ((f"{name}_atom", "feature"), np.asarray(value))})
    return dataset.assign_attrs(checkpoint=json.dumps({"checkpoint_every": int(every), "fingerprints": fingerprints}))


@dataclass(frozen=True)
class SavedFit:
    """A checkpoint that was read."""

    fit_state: FitState
    parameters: dict[str, Any]
    """As the model is made with them."""
    checkpoint_every: int
    fingerprints: Mapping[str, Fingerprint | None]
    versions: Mapping[str, str]
    cpu: str


def read_checkpoint(path: str | os.PathLike[str]) -> SavedFit:
    """The newest checkpoint that opens.

    Raises
    ------
    FileNotFoundError
        If there is none at `path`.
    ValueError
        If none opens, or one that does is not what it should be.
    """
    dataset = open_checkpoint(path)
    dictionary = dictionary_of(dataset, path)
    provenance = dictionary.provenance
    try:
        facts = json.loads(dataset.attrs["checkpoint"])
        iterations = _iterations(dictionary.history)
        if provenance["n_iter"] != len(iterations):
            raise ValueError(f"n_iter is {provenance['n_iter']}, but the history has {len(iterations)} iterations")
        fingerprints = {name: facts["fingerprints"][name] for name in ("Y", "validation")}
        latest = dataset["latest_atoms"].values if "latest_atoms" in dataset else dictionary.atoms
        learned = LearnedAtoms(latest, dictionary.atoms, dataset["n_averaged"].values)
        parameters = dict(provenance["parameters"])
        arrays = {name: dataset[_PREFIX + name].values for name in _ARRAYS if _PREFIX + name in dataset}
        fit_state = FitState(
            parameters,
            provenance["seed"],
            dictionary.mean,
            len(arrays.get("fixed_atoms", ())),
            dictionary.group_sizes,
            State(learned, len(iterations), operator.index(provenance["n_samples_seen"])),
            iterations,
            dictionary.labels,
            provenance["fitted_at"],
            provenance["device"],
        )
        if isinstance(parameters["random_state"], str):  # a generator, of which the seed was drawn
            parameters = parameters | {"random_state": None}
        described = dict(provenance["versions"]), str(provenance["cpu"])
        return SavedFit(fit_state, parameters | arrays, facts["checkpoint_every"], fingerprints, *described)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)} is not a complete checkpoint: {error!r}") from error


def _iterations(history: xr.Dataset) -> list[Iteration]:
    arrays = [history[f.name].values for f in fields(Iteration)]
    columns = [array.tolist() if array.ndim == 1 else list(array) for array in arrays]
    return [Iteration(*row) for row in zip(*columns, strict=True)]


def check_same_fit(saved: SavedFit, defaults: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse to go on where other bits would come out, or where the fit is another than is expected.

    Parameters
    ----------
    saved : SavedFit
    defaults : mapping
        The parameters that there are.
    expected : mapping
        Values that some of them should have.

    Raises
    ------
    TypeError
        If there is no such parameter.
    ValueError
        If something differs; the message names it.
    """
    unknown = sorted(expected.keys() - defaults.keys()) + sorted(saved.parameters.keys() ^ defaults.keys() - {*BESIDES})
    if unknown:
        raise TypeError(f"{', '.join(unknown)}: no parameter of DBKSVD, or of this version of it")
    differing = [
        f"{name}={_short(value)}, but the fit had {_short(saved.parameters[name])}"
        for name, value in expected.items()
        if name not in BESIDES and not _equal(value, saved.parameters[name])
    ]
    here = versions()
    computing = "dbksvd-dask", *SAME_BITS
    differing += [
        f"{name} is {here[name]}, but the fit had {saved.versions.get(name)}: install that"
        for name in computing
        if here[name] != saved.versions.get(name)
    ]
    if differing:
        raise ValueError(
            f"the fit cannot go on with the same bits: {'; '.join(differing)}. To begin another fit from its atoms "
            "pass init=open_dictionary(checkpoint).atoms"
        )
    if saved.cpu != this_cpu():
        warnings.warn(
            f"the fit was begun on {saved.cpu}, and goes on on {this_cpu()}: last bits may differ",
            UserWarning,
            stacklevel=4,
        )


def check_same_data(saved: Fingerprint | None, embeddings: xr.DataArray | None, name: str) -> None:
    """Refuse to go on with other embeddings.

    Parameters
    ----------
    saved : Fingerprint or None
        Of those that the fit had.
    embeddings : (n, d) xarray.DataArray or None
    name : str
        The argument that they are passed as.

    Raises
    ------
    ValueError
        The message names what differs.
    """
    differing = differences(saved, None if embeddings is None else fingerprint(embeddings), name)
    if differing:
        raise ValueError(f"these are not the embeddings of the fit: {'; '.join(differing)}")


def _equal(value: Any, saved: Any) -> bool:
    if isinstance(saved, np.ndarray) or isinstance(value, np.ndarray):
        return np.array_equal(np.asarray(value), np.asarray(saved))
    return plain(value) == saved


def _short(value: Any) -> str:
    return f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else repr(value)
