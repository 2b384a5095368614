"""``dbksvd fit`` and ``dbksvd resume``."""

from typing import Any

import click

from dbksvd_dask.callbacks import Callback, ProgressBar, StopOnPlateau, TimeBudget
from dbksvd_dask.cli.options import (
    client,
    device_option,
    embeddings_options,
    ending_options,
    held_out_options,
    open_held_out,
    open_selected,
    run_options,
)
from dbksvd_dask.cli.output import errors_in_one_line, show, summary
from dbksvd_dask.estimator import DBKSVD
from dbksvd_dask.store import check_target

_DEFAULTS = DBKSVD(n_components=1, n_nonzero_coefs=1).get_params()


@click.command()
@click.argument("embeddings")
@click.option("-o", "--output", required=True, help="Where the dictionary goes: a zarr store.")
@click.option("-m", "--n-components", type=int, required=True, help="Atoms.")
@click.option("-k", "--n-nonzero-coefs", type=int, required=True, help="Most atoms a sample may use.")
@embeddings_options
@held_out_options
@click.option("--batch-size", default=_DEFAULTS["batch_size"], help="Samples of an outer batch.")
@click.option("--max-iter", default=_DEFAULTS["max_iter"], help="Iterations.")
@ending_options
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
@device_option
@run_options
def fit(
    embeddings: str,
    output: str,
    name: str | None,
    orientation: Any,
    where: str | None,
    validation: str | None,
    validation_where: str | None,
    max_seconds: float | None,
    patience: int | None,
    device: Any,
    scheduler: str | None,
    overwrite: bool,
    as_json: bool,
    **parameters: Any,
) -> None:
    """Learn a dictionary of EMBEDDINGS.

    EMBEDDINGS are a zarr store, a file or folder of another format (.npy, .safetensors, .parquet, .h5, .pt, …), or a
    quoted pattern of several.
    """
    with errors_in_one_line(), client(scheduler):
        check_target(output, "dictionary", overwrite=overwrite)  # rather now than after the fit
        model = DBKSVD(**parameters, callbacks=_callbacks(max_seconds, patience))
        held_out = open_held_out(embeddings, name, orientation, device, validation, validation_where)
        model.fit(open_selected(embeddings, name, orientation, device, where), validation=held_out)
        model.dictionary_.to_zarr(output, overwrite=overwrite)
    _show_model(model, output, as_json)


@click.command()
@click.argument("checkpoint")
@click.argument("embeddings")
@click.option("-o", "--output", required=True, help="Where the dictionary goes: a zarr store.")
@embeddings_options
@held_out_options
@ending_options
@device_option
@run_options
def resume(
    checkpoint: str,
    embeddings: str,
    output: str,
    name: str | None,
    orientation: Any,
    where: str | None,
    validation: str | None,
    validation_where: str | None,
    max_seconds: float | None,
    patience: int | None,
    device: Any,
    scheduler: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Go on with a fit of EMBEDDINGS that has ended early, from its CHECKPOINT."""
    with errors_in_one_line(), client(scheduler):
        check_target(output, "dictionary", overwrite=overwrite)
        model = DBKSVD.resume(
            checkpoint,
            open_selected(embeddings, name, orientation, device, where),
            validation=open_held_out(embeddings, name, orientation, device, validation, validation_where),
            callbacks=_callbacks(max_seconds, patience),
        )
        model.dictionary_.to_zarr(output, overwrite=overwrite)
    _show_model(model, output, as_json)


def _callbacks(max_seconds: float | None, patience: int | None) -> list[Callback]:
    callbacks: list[Callback] = [ProgressBar()]
    if max_seconds is not None:
        callbacks.append(TimeBudget(max_seconds))
    if patience is not None:
        callbacks.append(StopOnPlateau(patience))
    return callbacks


def _show_model(model: DBKSVD, output: str, as_json: bool) -> None:
    show(summary(model.dictionary_) | {"stopped by": model.stopped_by_, "dictionary": output}, as_json)
