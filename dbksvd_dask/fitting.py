"""How a model is fitted: what it begins with, the iterations with whoever watches them, and what it is in between."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakSet

import numpy as np
import xarray as xr
from scipy.sparse import sparray, spmatrix
from sklearn.utils import check_random_state

from dbksvd_dask.averaging import LearnedAtoms
from dbksvd_dask.batches import OuterBatches
from dbksvd_dask.callbacks import Callback
from dbksvd_dask.checkpoint import Checkpoint, SavedFit, check_same_data
from dbksvd_dask.checkpoint_store import check_new_checkpoint
from dbksvd_dask.device import device_of, warn_of_slow_float64
from dbksvd_dask.embeddings.opening import Source
from dbksvd_dask.fingerprint import Fingerprint, fingerprint
from dbksvd_dask.fit_state import FitState, plain_parameters
from dbksvd_dask.history import Iteration
from dbksvd_dask.inputs import check_parameters, check_support, known_atoms, open_held_out, open_rows
from dbksvd_dask.iteration import Update
from dbksvd_dask.kernels.backend import on_device
from dbksvd_dask.known_structure import atoms_of_support
from dbksvd_dask.lost_workers import replayed
from dbksvd_dask.matryoshka import group_sizes
from dbksvd_dask.memory import MemoryPlan, advising, plan_memory
from dbksvd_dask.training import State, Training, embeddings_mean, first_atoms, train
from dbksvd_dask.warning import warn_caller

if TYPE_CHECKING:
    from dbksvd_dask.estimator import DBKSVD

_being_fitted: WeakSet = WeakSet()
_lock = Lock()


def fit(
    model: "DBKSVD",
    Y: Source,
    validation: Source | None,
    support: sparray | spmatrix | np.ndarray | None,
    before: Sequence[Callback] = (),
    after: Sequence[Callback] = (),
) -> None:
    """Fit a model, with callbacks before and after its own."""
    model._validate_params()
    with _unchanged_unless_iterated(model):
        embeddings = open_rows(model, Y, reset=True)
        held_out = open_held_out(model, validation, embeddings)
        check_parameters(model, len(embeddings))
        if support is not None:
            support = check_support(support, (len(embeddings), int(model.n_components)))
        if model.checkpoint is not None:
            check_new_checkpoint(model.checkpoint)
        known = begin(model, embeddings)
        batches, training = batches_of(model, embeddings), training_of_fit(model, len(embeddings))
        atoms = begin_atoms(model, batches, known, training)
        if support is not None:
            start = partial(atoms_of_support, batches, support, atoms, _count_known(model), training)
            atoms = replayed(start, "the first dictionary")
        model._fit_state.state = State(LearnedAtoms.of(atoms))
        watching: list[Callable] = [*before, *model.callbacks, *after]
        if model.checkpoint is not None:
            given = {"Y": embeddings, "validation": held_out}
            known_by = {name: None if rows is None else fingerprint(rows) for name, rows in given.items()}
            watching.insert(0, _checkpoint(model, known_by))
        _iterate(model, batches, held_out, training, model.max_iter, watching)


def resume(
    model: "DBKSVD",
    saved: SavedFit,
    Y: Source,
    validation: Source | None,
    before: Sequence[Callback] = (),
    after: Sequence[Callback] = (),
) -> None:
    """Go on from a checkpoint, with callbacks before and after the model's own."""
    with _unchanged_unless_iterated(model):
        embeddings = open_rows(model, Y, reset=True)
        check_same_data(saved.fingerprints["Y"], embeddings, "Y")
        held_out = open_held_out(model, validation, embeddings)
        check_same_data(saved.fingerprints["validation"], held_out, "validation")
        check_parameters(model, len(embeddings))
        begun, here = (device or "CPUs" for device in (saved.fit_state.device, device_of(embeddings)))
        if begun != here:
            warn_caller(f"the fit was begun on {begun}, and goes on on {here}: last bits differ")
        model._fit_state = saved.fit_state
        model.mean_ = saved.fit_state.mean
        model.n_iter_ = len(saved.fit_state.iterations)
        # The epochs are those of the whole fit, which began with iteration 0.
        batches = OuterBatches(embeddings.data, int(model.batch_size), model.shuffle, model._fit_state.seed)
        training = training_of_fit(model, len(embeddings))
        watching: list[Callable] = [_checkpoint(model, saved.fingerprints), *before, *model.callbacks, *after]
        _iterate(model, batches, held_out, training, model.max_iter - model.n_iter_, watching, resumed=True)


def fit_one_epoch(model: "DBKSVD", Y: Source) -> None:
    """Go on with one pass over the embeddings, or begin with it."""
    model._validate_params()
    if model.checkpoint is not None:
        raise ValueError(
            f"checkpoint={model.checkpoint!r} is for fit: after partial_fit write model.dictionary_.to_zarr(…)"
        )
    fitted = model.__sklearn_is_fitted__()
    with _unchanged_unless_iterated(model):
        embeddings = open_rows(model, Y, reset=not fitted)
        check_parameters(model, len(embeddings), len(model.components_) if fitted else None)
        if not fitted:
            known = begin(model, embeddings)
        elif _group_sizes(model) != model._fit_state.group_sizes:
            raise ValueError(
                f"matryoshka={model.matryoshka} differs from the groups learned so far, "
                f"{list(model._fit_state.group_sizes)}: fit anew, or set it back"
            )
        batches = batches_of(model, embeddings)
        training = _training(model, average=model.average)
        if not fitted:
            model._fit_state.state = State(LearnedAtoms.of(begin_atoms(model, batches, known, training)))
        model._fit_state = replace(model._fit_state, parameters=plain_parameters(model.get_params(deep=False)))
        _iterate(model, batches, None, training, batches.n_batches, model.callbacks)


def plan(model: "DBKSVD", Y: Source, validation: Source | None) -> MemoryPlan:
    """What a fit of this model will hold in memory; it leaves no trace in the model."""
    model._validate_params()
    model = type(model)(**model.get_params(deep=False))
    embeddings = open_rows(model, Y, reset=True)
    held_out = open_held_out(model, validation, embeddings)
    check_parameters(model, len(embeddings))
    dtype = _precision(model, embeddings)
    model._fit_state = _new_state(model, 0, np.zeros(embeddings.shape[1], dtype) if model.center else None)
    training, batches = training_of_fit(model, len(embeddings)), batches_of(model, embeddings)
    return plan_memory(batches, held_out, training, int(model.n_components), dtype)


def begin(model: "DBKSVD", embeddings: xr.DataArray, mean: np.ndarray | None = None) -> np.ndarray:
    """Forget what was learned before, set what stays the same while iterating, and return the known atoms."""
    dtype = _precision(model, embeddings)
    if on_device(embeddings.data):
        warn_of_slow_float64(dtype)
    seed = int(check_random_state(model.random_state).randint(np.iinfo(np.int32).max))
    known = known_atoms(model, dtype)
    model.__dict__.pop("_fit_state", None)
    if model.center and mean is None:
        mean = replayed(partial(embeddings_mean, embeddings.data, dtype), "the mean of the embeddings")
    model._fit_state = replace(_new_state(model, seed, mean), device=device_of(embeddings))
    model.mean_ = mean
    model.n_iter_ = 0
    return known


def training_of_fit(model: "DBKSVD", n_samples: int) -> Training:
    """What stays the same over a fit of so many samples."""
    return _training(
        model,
        # Where all iterations see one and the same batch, it has no noise to average away.
        average=model.average and n_samples > model.batch_size,
        first_flat=model.max_iter - round(float(model.flat_share) * int(model.max_iter)),
    )


def batches_of(model: "DBKSVD", embeddings: xr.DataArray) -> OuterBatches:
    """The outer batches from here on: an epoch begins."""
    first_iteration = len(model._fit_state.iterations)
    return OuterBatches(embeddings.data, int(model.batch_size), model.shuffle, model._fit_state.seed, first_iteration)


def begin_atoms(model: "DBKSVD", batches: OuterBatches, known: np.ndarray, training: Training) -> np.ndarray:
    """The dictionary to begin with."""
    init = model.init if isinstance(model.init, str) else "samples"
    start = partial(first_atoms, batches, int(model.n_components), init, known, training)
    return replayed(start, "the first dictionary")


def go_on_from(model: "DBKSVD", state: State, iteration: Iteration) -> None:
    """Note that an iteration has ended."""
    model._fit_state.go_on_from(state, iteration)
    model.n_iter_ += 1


@contextmanager
def _unchanged_unless_iterated(model: "DBKSVD") -> Iterator[None]:
    """Leave the model as it was, if what happens inside fails before the first iteration has ended."""
    with _lock:
        if model in _being_fitted:
            raise RuntimeError("this model is being fitted already: wait for that, or fit a clone of it")
        _being_fitted.add(model)
    before = vars(model).copy()
    old = before["_fit_state"].iterations if "_fit_state" in before else []
    n_before = len(old)
    try:
        yield
    except BaseException:
        iterations = model._fit_state.iterations if hasattr(model, "_fit_state") else old
        if len(iterations) == (n_before if iterations is old else 0):
            model.__dict__.clear()
            model.__dict__.update(before)
        raise
    finally:
        _being_fitted.discard(model)


def _precision(model: "DBKSVD", embeddings: xr.DataArray) -> np.dtype:
    return np.result_type(embeddings.dtype if model.dtype is None else np.dtype(model.dtype), np.float32)


def _new_state(model: "DBKSVD", seed: int, mean: np.ndarray | None) -> FitState:
    return FitState(
        plain_parameters(model.get_params(deep=False)),
        seed,
        mean,
        n_fixed=0 if model.fixed_atoms is None else len(model.fixed_atoms),
        group_sizes=_group_sizes(model),
    )


def _training(model: "DBKSVD", average: bool, first_flat: int | None = None) -> Training:
    update = Update(
        None if model.inner_batch_size is None else int(model.inner_batch_size),
        int(model.n_passes),
        model.solver,
        model.replace_unused,
        float(model.tol),
        model._fit_state.n_fixed,
    )
    pursuit = replace(model._pursuit, group_sizes=model._fit_state.group_sizes)
    mean, seed = model._fit_state.mean, model._fit_state.seed
    return Training(pursuit, update, mean, seed, average, model.max_coherence, first_flat)


def _iterate(
    model: "DBKSVD",
    batches: OuterBatches,
    validation: xr.DataArray | None,
    training: Training,
    n_iterations: int,
    callbacks: Sequence[Callable],
    resumed: bool = False,
) -> None:
    """So many more iterations; where a fit is resumed, those before belong to it."""
    held_out = None if validation is None else validation.data
    iterations = train(batches, held_out, training, model._fit_state.state, n_iterations)
    before = list(model._fit_state.iterations)
    model.stopped_by_ = None
    learned = model._fit_state.state.learned.latest
    with ExitStack() as stack:
        stack.enter_context(closing(iterations))
        stack.enter_context(advising(batches, validation, training, len(learned), learned.dtype))
        asking: list[Callable] = []
        for callback in callbacks:
            if isinstance(callback, Callback):
                callback.begin(model, n_iterations + len(before) if resumed else n_iterations)
                stack.callback(callback.end, model)
                asking += [callback] if resumed and callback.catch_up(model, before) else []
        try:
            while not asking and (upcoming := next(iterations, None)) is not None:
                state, iteration = upcoming
                go_on_from(model, state, iteration)
                asking = [callback for callback in callbacks if callback(model, iteration)]
            model.stopped_by_ = getattr(asking[0], "__name__", type(asking[0]).__name__) if asking else "max_iter"
        except KeyboardInterrupt:
            if model.n_iter_ == len(before) and not resumed:
                raise
            model.stopped_by_ = "interrupt"
        except BaseException:
            model.stopped_by_ = "error"
            raise
        finally:
            # A model that is not being fitted can be kept and opened where there is no device.
            model._fit_state.state = model._fit_state.state.placed(device=False)


def _group_sizes(model: "DBKSVD") -> tuple[int, ...]:
    return group_sizes(model.matryoshka, int(model.n_components), int(model.n_nonzero_coefs))


def _count_known(model: "DBKSVD") -> int:
    return sum(len(given) for given in (model.fixed_atoms, model.known_atoms) if given is not None)


def _checkpoint(model: "DBKSVD", fingerprints: Mapping[str, Fingerprint | None]) -> Callable:
    assert model.checkpoint is not None
    return Checkpoint(model.checkpoint, model.checkpoint_every, fingerprints)
