"""Options that several commands have, and what they stand for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import numpy as np
import xarray as xr

from dbksvd_dask.embeddings import open_embeddings


def together(*options: Callable) -> Callable:
    """Several click options as one decorator."""

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


embeddings_options = together(
    click.option("--name", help="Array within the container, where it holds several."),
    click.option("--orientation", type=click.Choice(["samples", "features"]), help="What the rows are; told by shape."),
    click.option("--where", metavar="COORDINATE=VALUE", help="Only the samples with this coordinate: split=train."),
)
device_option = click.option(
    "--device", type=click.Choice(["cuda"]), help="Compute on the GPU of each process; on the CPU by default."
)
held_out_options = together(
    click.option("--validation", metavar="PATH", help="Held-out embeddings."),
    click.option("--validation-where", metavar="COORDINATE=VALUE", help="Held-out samples: split=validation."),
)
ending_options = together(
    click.option("--max-seconds", type=float, help="End with the first iteration after so many seconds."),
    click.option("--patience", type=int, help="End when the validation error stands still for so many iterations."),
)
run_options = together(
    click.option(
        "--scheduler", metavar="ADDRESS", help="tcp://host:port, whose workers see the same paths; threads by default."
    ),
    click.option("--overwrite", is_flag=True, help="Replace what is at --output."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
)


def open_held_out(
    embeddings: str, name: str | None, orientation: Any, device: Any, path: str | None, where: str | None
) -> xr.DataArray | None:
    """Held-out embeddings: at a path of their own, or others of the same; None where none are asked for."""
    if path is None and where is None:
        return None
    return open_selected(path or embeddings, name, orientation, device, where)


def open_selected(path: str, name: str | None, orientation: Any, device: Any, where: str | None) -> xr.DataArray:
    """Embeddings at a path, or those of them whose coordinate has a value."""
    embeddings = open_embeddings(path, name=name, orientation=orientation)
    if where is not None:
        embeddings = _selected(embeddings, where, path)
    # Moved after that: rows that were not chosen stay on the host.
    return embeddings if device is None else open_embeddings(embeddings, device=device)


def _selected(embeddings: xr.DataArray, where: str, path: str) -> xr.DataArray:
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


@contextmanager
def client(address: str | None) -> Iterator[None]:
    """Compute on the cluster at an address, or on threads of this process."""
    if address is None:
        yield
        return
    from dbksvd_dask import cluster  # a second of import that most commands do not need

    with cluster.connect(address):
        yield
