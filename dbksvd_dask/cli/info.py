"""``dbksvd info``."""

import click

from dbksvd_dask.cli.dictionaries import is_folder_of_others, open_any_dictionary
from dbksvd_dask.cli.output import errors_in_one_line, show, summary
from dbksvd_dask.codes import open_codes
from dbksvd_dask.embeddings import open_embeddings
from dbksvd_dask.store import store_kind


@click.command()
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def info(path: str, as_json: bool) -> None:
    """Tell what is at PATH: a dictionary, a checkpoint, codes or embeddings."""
    with errors_in_one_line():
        kind = store_kind(path)
        if kind in ("dictionary", "checkpoint") or is_folder_of_others(path):
            dictionary = open_any_dictionary(path)
            facts = {"kind": kind or "dictionary", "atoms": dictionary.n_atoms, "features": dictionary.n_features}
            facts |= {"dtype": str(dictionary.dtype)} | summary(dictionary) | dictionary.provenance
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
    show(facts, as_json)
