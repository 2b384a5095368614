"""Write ``minilm-wikitext2.zarr``, the sample embeddings of this folder, from the ``.npz`` they were harvested into."""

from __future__ import annotations

import warnings
from pathlib import Path

import click
import numpy as np
import xarray as xr

STORE = Path(__file__).with_name("minilm-wikitext2.zarr")
ROWS_PER_CHUNK = 4096

ATTRIBUTES = {
    "title": "Hidden states of all-MiniLM-L6-v2, layer 3, on WikiText-2",
    "source": "WikiText-2 validation text (Merity et al. 2016, Pointer Sentinel Mixture Models)",
    "model": "sentence-transformers/all-MiniLM-L6-v2, hidden_states[3]",
    "licence": "text: CC BY-SA 3.0; model: Apache-2.0",
}


def build_dataset(arrays: np.lib.npyio.NpzFile) -> xr.Dataset:
    """Arrange the arrays of the harvest as one Dataset: a sample is one token in its context."""
    # StringDType, because zarr 3 has no specified data type for NumPy's fixed-length strings.
    text = np.dtypes.StringDType()
    return xr.Dataset(
        data_vars={
            "embeddings": (("sample", "feature"), arrays["embeddings"], {"long_name": "hidden state of the token"}),
            "context_tokens": (
                ("context_window", "window_position"),
                arrays["context_tokens"],
                {"long_name": "token ids of a whole window of text, without [CLS] and [SEP]"},
            ),
            "vocabulary": (("token",), arrays["vocabulary"].astype(text), {"long_name": "the token as a string"}),
        },
        coords={
            "document": ("sample", arrays["document"], {"long_name": "article the token is from"}),
            "context": ("sample", arrays["context"], {"long_name": "row of context_tokens the token is in"}),
            "position": ("sample", arrays["position"], {"long_name": "column of context_tokens the token is in"}),
            "token_id": ("sample", arrays["token_id"], {"long_name": "the token, a label of vocabulary"}),
            "split": ("sample", np.array(["train", "validation"], dtype=text)[arrays["split"]]),
            "token": ("token", arrays["vocabulary_id"], {"long_name": "token id"}),
        },
        attrs=ATTRIBUTES,
    )


@click.command()
@click.argument("harvest", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(harvest: Path) -> None:
    """Write the sample embeddings from the arrays in HARVEST, an .npz file."""
    with np.load(harvest, allow_pickle=False) as arrays:
        dataset = build_dataset(arrays)
    with warnings.catch_warnings():
        # Consolidated metadata is not in the zarr 3 specification yet, but without it xarray warns at every opening.
        warnings.filterwarnings("ignore", "Consolidated metadata")
        dataset.chunk(sample=ROWS_PER_CHUNK).to_zarr(
            STORE,
            mode="w",
            zarr_format=3,
            consolidated=True,
            # The embeddings are finite: with no fill value xarray need not look for missing ones whenever it reads.
            encoding={"embeddings": {"_FillValue": None}},
        )
    click.echo(f"{STORE.name}: {dict(dataset.sizes)}")


if __name__ == "__main__":
    main()
