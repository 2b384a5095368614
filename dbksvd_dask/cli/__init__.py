"""Command line: ``dbksvd fit``, ``resume``, ``encode``, ``info``."""

import click

from dbksvd_dask.cli import encode, fit, info


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="dbksvd-dask")
def main() -> None:
    """Sparse dictionaries of transformer embeddings by Double-Batch K-SVD."""


for command in (fit.fit, fit.resume, encode.encode, info.info):
    main.add_command(command)
