"""``dbksvd export``."""

import click

from dbksvd_dask.cli.dictionaries import open_any_dictionary
from dbksvd_dask.cli.output import errors_in_one_line, show

_NAMED = ("saelens", "hub")


@click.command()
@click.argument("dictionary")
@click.option("-o", "--output", required=True, help="Where it goes: a folder, or a file for safetensors.")
@click.option("--to", type=click.Choice(["saelens", "hub", "safetensors", "zarr"]), required=True, help="Format.")
@click.option("--model-name", help="Model whose embeddings it is of, for saelens and hub.")
@click.option("--hook-name", help="Where in the model they are from, for saelens and hub: blocks.3.hook_resid_pre.")
@click.option("-k", "--n-nonzero-coefs", type=int, help="Most atoms a sample may use; the dictionary's own by default.")
@click.option("--license", help="License of the dictionary as the Hub calls it, for hub: mit.")
@click.option("--dataset", "datasets", multiple=True, help="Data set of the embeddings on the Hub, for hub.")
@click.option("--overwrite", is_flag=True, help="Replace what is at --output.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def export(
    dictionary: str,
    output: str,
    to: str,
    model_name: str | None,
    hook_name: str | None,
    n_nonzero_coefs: int | None,
    license: str | None,
    datasets: tuple[str, ...],
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a DICTIONARY in another format.

    DICTIONARY is a store of `dbksvd fit` or a checkpoint, a .safetensors or .npy file, a folder of SAELens, or a
    downloaded repository of the Hugging Face Hub.
    """
    from dbksvd_dask import interop

    with errors_in_one_line():
        model, hook = model_name or "", hook_name or ""
        if to in _NAMED and not (model and hook):
            raise ValueError(f"--to {to} needs --model-name and --hook-name")
        opened = open_any_dictionary(dictionary)
        if n_nonzero_coefs is not None:
            opened.n_nonzero_coefs = opened._k(n_nonzero_coefs)
        if to == "saelens":
            interop.to_saelens(opened, output, model_name=model, hook_name=hook, overwrite=overwrite)
        elif to == "hub":
            interop.to_hub(
                opened,
                output,
                model_name=model,
                hook_name=hook,
                license=license,
                datasets=datasets,
                overwrite=overwrite,
            )
        elif to == "safetensors":
            interop.to_safetensors(opened, output, overwrite=overwrite)
        else:
            opened.to_zarr(output, overwrite=overwrite)
    facts = {"atoms": opened.n_atoms, "features": opened.n_features, "k": opened.n_nonzero_coefs}
    show(facts | {"format": to, "output": output}, as_json)
