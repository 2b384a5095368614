"""``dbksvd encode``."""

import sys
from typing import Any

import click
from dask.diagnostics import ProgressBar as TaskProgressBar

from dbksvd_dask.cli.dictionaries import open_any_dictionary
from dbksvd_dask.cli.options import client, device_option, embeddings_options, open_selected, run_options
from dbksvd_dask.cli.output import errors_in_one_line, show
from dbksvd_dask.store import check_target


@click.command()
@click.argument("dictionary")
@click.argument("embeddings")
@click.option("-o", "--output", required=True, help="Where the codes go: a zarr store.")
@click.option("-k", "--n-nonzero-coefs", type=int, help="Most atoms a sample may use; the dictionary's own by default.")
@embeddings_options
@click.option("--encoder", type=click.Choice(["mp", "omp"]), help="Pursuit; the dictionary's own by default.")
@click.option("--refit", type=click.Choice(["none", "lstsq"]), default="none", help="Least-squares coefficients.")
@device_option
@run_options
def encode(
    dictionary: str,
    embeddings: str,
    output: str,
    n_nonzero_coefs: int | None,
    name: str | None,
    orientation: Any,
    where: str | None,
    encoder: Any,
    refit: Any,
    device: Any,
    scheduler: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Encode EMBEDDINGS by a DICTIONARY.

    DICTIONARY is a store of `dbksvd fit` or a checkpoint, a .safetensors or .npy file, a folder of SAELens, or a
    downloaded repository of the Hugging Face Hub.
    """
    with errors_in_one_line(), client(scheduler):
        check_target(output, "codes", overwrite=overwrite)
        opened = open_any_dictionary(dictionary)
        codes = opened.encode(
            open_selected(embeddings, name, orientation, device, where), n_nonzero_coefs, encoder=encoder, refit=refit
        )
        with _task_progress():
            codes.to_zarr(output, overwrite=overwrite)
    samples, atoms = codes.shape
    show({"samples": samples, "atoms": atoms, "slots": codes.n_nonzero_coefs, "codes": output}, as_json)


def _task_progress() -> TaskProgressBar:
    """Progress of tasks on threads; on a cluster the dashboard shows it."""
    return TaskProgressBar(out=sys.stderr)
