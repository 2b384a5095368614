"""What commands print: results as a table or as JSON, errors in one line."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
import numpy as np

from dbksvd_dask.dictionary import Dictionary
from dbksvd_dask.lost_workers import WorkersLost


def summary(dictionary: Dictionary) -> dict[str, Any]:
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


def show(facts: Mapping[str, Any], as_json: bool) -> None:
    """Print facts, one a line, or all as JSON."""
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
def errors_in_one_line() -> Iterator[None]:
    """Tell a user's mistake by its message rather than by a traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, WorkersLost) as error:
        raise click.ClickException(str(error)) from error
