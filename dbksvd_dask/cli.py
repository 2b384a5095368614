"""Command line: ``dbksvd fit``, ``dbksvd resume``, ``dbksvd encode``, ``dbksvd info``."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
import numpy as np
import xarray as xr
from dask.diagnostics import ProgressBar as TaskProgressBar

from dbksvd_dask.callbacks import Callback, ProgressBar, StopOnPlateau, TimeBudget
from dbksvd_dask.codes import open_codes
from dbksvd_dask.dictionary import Dictionary, open_dictionary
from dbksvd_dask.embeddings import open_embeddings
from dbksvd_dask.estimator import DBKSVD
from dbksvd_dask.lost_workers import WorkersLost
from dbksvd_dask.store import check_target, store_kind

_DEFAULTS = DBKSVD(n_components=1, n_nonzero_coefs=1).get_params()


def _options(*options: Callable) -> Callable:
    """Several click options as one decorator."""

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_embeddings_options = _options(
    click.option("--name", help="Array within the container, where it holds several."),
    click.option("--where", metavar="COORDINATE=VALUE", help="Only the samples with this coordinate: split=train."),
)
_held_out_options = _options(
    click.option("--validation", metavar="PATH", help="Held-out embeddings."),
    click.option("--validation-where", metavar="COORDINATE=VALUE", help="Held-out samples: split=validation."),
)
_ending_options = _options(
    click.option("--max-seconds", type=float, help="End with the first iteration after so many seconds."),
    click.option("--patience", type=int, help="End when the validation error stands still for so many iterations."),
)
_run_options = _options(
    click.option(
        "--scheduler", metavar="ADDRESS", help="tcp://host:port, whose workers see the same paths; threads by default."
    ),
    click.option("--overwrite", is_flag=True, help="Replace what is at --output."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="dbksvd-dask")
def main() -> None:
    """Sparse dictionaries of transformer embeddings by Double-Batch K-SVD."""


@main.command()
@click.argument("embeddings")
@click.option("-o", "--output", required=True, help="Where the dictionary goes: a zarr store.")
@click.option("-m", "--n-components", type=int, required=True, help="Atoms.")
@click.option("-k", "--n-nonzero-coefs", type=int, required=True, help="Most atoms a sample may use.")
@_embeddings_options
@_held_out_options
@click.option("--batch-size", default=_DEFAULTS["batch_size"], help="Samples of an outer batch.")
@click.option("--max-iter", default=_DEFAULTS["max_iter"], help="Iterations.")
@_ending_options
@click.option("--inner-batch-size", type=int, help="Atoms updated simultaneously; all by default.")
@click.option("--matryoshka", is_flag=True, help="In groups of 256, 256, 512, … atoms, each fitted to what is left.")
@click.option("--max-coherence", type=float, help="Replace the less used one of two atoms nearer than this.")
@click.option("--init", type=click.Choice(["samples", "random"]), default=_DEFAULTS["init"], help="First dictionary.")
@click.option("--center/--no-center", default=_DEFAULTS["center"], help="Take the mean from the samples.")
@click.option("--encoder", type=click.Choice(["mp", "omp"]), default=_DEFAULTS["encoder"], help="Pursuit.")
@click.option("--nonnegative", is_flag=True, help="Positive coefficients only.")
@click.option("--rtol", default=_DEFAULTS["rtol"], help="A sample is done at this relative error.")
@click.option(
    "--dtype", type=click.Choice(["float32", "float64"]), help="Precision; that of the embeddings by default."
)
@click.option("--shuffle", type=click.Choice(["chunks"]), help="Permute chunks and rows in every epoch.")
@click.option("--random-state", type=int, default=0, help="Seed.")
@click.option("--checkpoint", metavar="PATH", help="Where checkpoints are kept, for `dbksvd resume`.")
@click.option("--checkpoint-every", default=_DEFAULTS["checkpoint_every"], help="Iterations between checkpoints.")
@_run_options
def fit(
    embeddings: str,
    output: str,
    name: str | None,
    where: str | None,
    validation: str | None,
    validation_where: str | None,
    max_seconds: float | None,
    patience: int | None,
    scheduler: str | None,
    overwrite: bool,
    as_json: bool,
    **parameters: Any,
) -> None:
    """Learn a dictionary of EMBEDDINGS: a zarr store, .npy, .npz or .safetensors."""
    with _errors_in_one_line(), _client(scheduler):
        check_target(output, "dictionary", overwrite=overwrite)  # rather now than after the fit
        model = DBKSVD(**parameters, callbacks=_callbacks(max_seconds, patience))
        held_out = _held_out(embeddings, name, validation, validation_where)
        model.fit(_open(embeddings, name, where), validation=held_out)
        model.dictionary_.to_zarr(output, overwrite=overwrite)
    _show_model(model, output, as_json)


@main.command()
@click.argument("checkpoint")
@click.argument("embeddings")
@click.option("-o", "--output", required=True, help="Where the dictionary goes: a zarr store.")
@_embeddings_options
@_held_out_options
@_ending_options
@_run_options
def resume(
    checkpoint: str,
    embeddings: str,
    output: str,
    name: str | None,
    where: str | None,
    validation: str | None,
    validation_where: str | None,
    max_seconds: float | None,
    patience: int | None,
    scheduler: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Go on with a fit of EMBEDDINGS that has ended early, from its CHECKPOINT."""
    with _errors_in_one_line(), _client(scheduler):
        check_target(output, "dictionary", overwrite=overwrite)
        model = DBKSVD.resume(
            checkpoint,
            _open(embeddings, name, where),
            validation=_held_out(embeddings, name, validation, validation_where),
            callbacks=_callbacks(max_seconds, patience),
        )
        model.dictionary_.to_zarr(output, overwrite=overwrite)
    _show_model(model, output, as_json)


@main.command()
@click.argument("dictionary")
@click.argument("embeddings")
@click.option("-o", "--output", required=True, help="Where the codes go: a zarr store.")
@click.option("-k", "--n-nonzero-coefs", type=int, help="Most atoms a sample may use; the dictionary's own by default.")
@_embeddings_options
@click.option("--encoder", type=click.Choice(["mp", "omp"]), help="Pursuit; the dictionary's own by default.")
@click.option("--refit", type=click.Choice(["none", "lstsq"]), default="none", help="Least-squares coefficients.")
@_run_options
def encode(
    dictionary: str,
    embeddings: str,
    output: str,
    n_nonzero_coefs: int | None,
    name: str | None,
    where: str | None,
    encoder: Any,
    refit: Any,
    scheduler: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Encode EMBEDDINGS by a DICTIONARY that `dbksvd fit` has written."""
    with _errors_in_one_line(), _client(scheduler):
        check_target(output, "codes", overwrite=overwrite)
        opened = open_dictionary(dictionary)
        codes = opened.encode(_open(embeddings, name, where), n_nonzero_coefs, encoder=encoder, refit=refit)
        with _task_progress():
            codes.to_zarr(output, overwrite=overwrite)
    samples, atoms = codes.shape
    _show({"samples": samples, "atoms": atoms, "slots": codes.n_nonzero_coefs, "codes": output}, as_json)


@main.command()
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def info(path: str, as_json: bool) -> None:
    """Tell what is at PATH: a dictionary, a checkpoint, codes or embeddings."""
    with _errors_in_one_line():
        kind = store_kind(path)
        if kind in ("dictionary", "checkpoint"):
            dictionary = open_dictionary(path)
            facts = {"kind": kind, "atoms": dictionary.n_atoms, "features": dictionary.n_features}
            facts |= {"dtype": str(dictionary.dtype)} | _summary(dictionary) | dictionary.provenance
        elif kind == "codes":
            codes = open_codes(path)
            samples, atoms = codes.shape
            facts = {"kind": kind, "samples": samples, "atoms": atoms, "slots": codes.n_nonzero_coefs}
            facts |= {"dtype": str(codes.dtype)}
        else:
            array = open_embeddings(path)
            samples, features = array.shape
            facts = {"kind": "embeddings", "samples": samples, "features": features, "dtype": str(array.dtype)}
            facts |= {"chunks": len(array.data.chunks[0]), "coordinates": [str(name) for name in array.coords]}
    _show(facts, as_json)


def _callbacks(max_seconds: float | None, patience: int | None) -> list[Callback]:
    callbacks: list[Callback] = [ProgressBar()]
    if max_seconds is not None:
        callbacks.append(TimeBudget(max_seconds))
    if patience is not None:
        callbacks.append(StopOnPlateau(patience))
    return callbacks


def _held_out(embeddings: str, name: str | None, path: str | None, where: str | None) -> xr.DataArray | None:
    return None if path is None and where is None else _open(path or embeddings, name, where)


def _open(path: str, name: str | None, where: str | None) -> xr.DataArray:
    """Embeddings at a path, or those of them whose coordinate has a value."""
    embeddings = open_embeddings(path, name=name)
    if where is None:
        return embeddings
    coordinate, equals, value = where.partition("=")
    if not equals:
        raise ValueError(f"{where!r} selects nothing: write COORDINATE=VALUE")
    if coordinate not in embeddings.coords:
        known = ", ".join(map(str, embeddings.coords)) or "none"
        raise ValueError(f"{path} has no coordinate {coordinate!r} to select {where!r} by; it has {known}")
    values = embeddings[coordinate].values
    try:
        wanted: Any
        if values.dtype == bool:
            wanted = {"True": True, "False": False}[value]
        else:  # as text, and not cut to the length of the longest value
            wanted = value if values.dtype.kind in "UO" else np.array(value).astype(values.dtype)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{where}: the values of {coordinate} are {values.dtype}") from error
    chosen = np.flatnonzero(values == wanted)
    if chosen.size == 0:
        raise ValueError(f"no sample of {path} has {where}")
    return embeddings.isel(sample=chosen)


def _summary(dictionary: Dictionary) -> dict[str, Any]:
    """Figures of the last iteration, held-out ones where there are any, and of the dictionary itself."""
    history = dictionary.history
    if not history.sizes.get("iteration"):
        return {"median coherence": float(np.median(dictionary.coherence()))}
    last = history.isel(iteration=-1)
    held_out = not np.isnan(last.validation_relative_error)
    split, of = ("validation", "held-out") if held_out else ("train", "training")
    return {
        f"{of} relative error": float(last[f"{split}_relative_error"]),
        f"{of} variance explained": float(last[f"{split}_variance_explained"]),
        f"{of} L0": float(last[f"{split}_l0"]),
        "unused atoms": int(last.n_unused_atoms),
        "median coherence": float(np.median(dictionary.coherence())),
        "iterations": history.sizes["iteration"],
        "samples seen": int(last.n_samples_seen),
        "seconds": float(history.seconds.sum()),
    }


def _show_model(model: DBKSVD, output: str, as_json: bool) -> None:
    _show(_summary(model.dictionary_) | {"stopped by": model.stopped_by_, "dictionary": output}, as_json)


def _show(facts: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        names = str.maketrans(" -", "__")
        figures = {key.translate(names): None if value != value else value for key, value in facts.items()}  # no NaN
        click.echo(json.dumps(figures, indent=2))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        text = f"{value:.4g}" if isinstance(value, float) else value
        if isinstance(value, Mapping):
            text = ", ".join(f"{name}={part}" for name, part in value.items())
        click.echo(f"{key:<{width}}  {text}")


@contextmanager
def _client(address: str | None) -> Iterator[None]:
    """Compute on the cluster at an address, or on threads of this process."""
    if address is None:
        yield
        return
    from dbksvd_dask import cluster  # a second of import that most commands do not need

    with cluster.connect(address):
        yield


def _task_progress() -> TaskProgressBar:
    """Progress of tasks on threads; on a cluster the dashboard shows it."""
    return TaskProgressBar(out=sys.stderr)


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Tell a user's mistake by its message rather than by a traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, WorkersLost) as error:
        raise click.ClickException(str(error)) from error
