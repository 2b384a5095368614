"""Command line: ``dbksvd`` with ``harvest``, ``fit``, ``resume``, ``encode``, ``evaluate``, ``export`` and ``info``."""

import click

from dbksvd_dask.cli import encode, evaluate, export, fit, harvest, info


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="dbksvd-dask")
def main() -> None:
    """Sparse dictionaries of transformer embeddings by Double-Batch K-SVD."""


for command in (
    harvest.harvest,
    fit.fit,
    fit.resume,
    encode.encode,
    evaluate.evaluate,
    export.export,
    info.info,
):
    main.add_command(command)
