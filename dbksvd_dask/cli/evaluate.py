"""``dbksvd evaluate``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dbksvd_dask.cli.dictionaries import open_any_dictionary
from dbksvd_dask.cli.output import errors_in_one_line

if TYPE_CHECKING:
    import xarray as xr

COLUMNS = {
    "dictionary": "dictionary",
    "n_nonzero_coefs": "k",
    "l0": "L0",
    "loss": "loss",
    "loss_recovered": "loss recovered",
    "kl": "KL",
    "variance_explained": "variance explained",
    "relative_error": "relative error",
    "alive_atoms": "alive atoms",
}


@click.command()
@click.argument("model")
@click.argument("text", type=click.Path(path_type=Path))
@click.argument("dictionaries", nargs=-1, required=True, metavar="DICTIONARY...")
@click.option(
    "-l", "--layer", type=int, required=True, help="0 is what goes into the first block, i what block i gives."
)
@click.option(
    "-k",
    "--n-nonzero-coefs",
    type=int,
    multiple=True,
    help="Most atoms a token may use; repeat it for several. The dictionary's own by default.",
)
@click.option("--encoder", type=click.Choice(["mp", "omp"]), help="Pursuit; the dictionary's own by default.")
@click.option("--tokenizer", help="Folder or name; by default that of the model.")
@click.option("--column", default="text", help="Where the text is in a .jsonl file or data set.")
@click.option("--context-length", type=int, help="Tokens of a window; what the model reads, up to 512, by default.")
@click.option("--batch-size", default=8, help="Windows of a forward pass.")
@click.option("--max-tokens", type=int, help="End with so many tokens.")
@click.option("--device", help="cpu, cuda, cuda:1, …; the first GPU, or else the CPU, by default.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def evaluate(
    model: str,
    text: Path,
    dictionaries: tuple[str, ...],
    n_nonzero_coefs: tuple[int, ...],
    as_json: bool,
    **parameters: Any,
) -> None:
    """Put what each DICTIONARY reconstructs into a MODEL, and see how well it still predicts TEXT.

    MODEL is the folder of a causal model of transformers, or its name on the Hugging Face Hub. TEXT is a text file
    (blank lines part the documents), a .jsonl file, or a folder saved by `datasets`. A DICTIONARY is one that `dbksvd
    fit` has written, or one of another format; the folder of an SAE of SAELens encodes by itself.
    """
    with errors_in_one_line():
        from dbksvd_dask.language.splicing import evaluate_splicing  # torch, which other commands do not need

        opened = {path: _open(path) for path in dictionaries}
        result = evaluate_splicing(
            model, [text], opened, n_nonzero_coefs=n_nonzero_coefs or None, progress=not as_json, **parameters
        )
    _show(result, as_json)


def _open(path: str) -> Any:
    """A dictionary, or an SAE of SAELens."""
    if not (Path(path) / "cfg.json").exists():
        return open_any_dictionary(path)
    try:
        from sae_lens import SAE
    except ImportError as error:
        raise ImportError(f'{path} is an SAE of SAELens: pip install "dbksvd-dask[interop]" ({error})') from error
    return SAE.load_from_disk(path)


def _show(result: "xr.Dataset", as_json: bool) -> None:
    table = result[[name for name, variable in result.variables.items() if variable.dims]].to_dataframe()
    scalars = {str(name): float(variable) for name, variable in result.data_vars.items() if not variable.dims}
    if as_json:
        rows = json.loads(table.to_json(orient="records", double_precision=15))  # null rather than NaN
        click.echo(json.dumps(result.attrs | scalars | {"reconstructions": rows}, indent=2))
        return
    columns = table[list(COLUMNS)].rename(columns=COLUMNS)
    columns["k"] = columns["k"].replace(0, "").astype(str)
    click.echo(
        f"{result.n_tokens} tokens replaced, {result.n_predictions} predictions, loss {scalars['loss_clean']:.4f}"
    )
    click.echo(f"with zeros instead {scalars['loss_zero']:.4f}, with their mean {scalars['loss_mean']:.4f}\n")
    click.echo(columns.to_string(index=False, na_rep="", float_format="{:.4g}".format))
