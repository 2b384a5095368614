"""``dbksvd harvest``."""

from pathlib import Path
from typing import Any

import click

from dbksvd_dask.cli.output import errors_in_one_line, show


@click.command()
@click.argument("model")
@click.argument("texts", nargs=-1, required=True)
@click.option("-o", "--output", required=True, help="Where the embeddings go: a zarr store.")
@click.option(
    "-l", "--layer", type=int, required=True, help="0 is what goes into the first block, i what block i gives."
)
@click.option("--tokenizer", help="Folder or name; by default that of the model.")
@click.option("--column", default="text", help="Where the text is in a .jsonl file or data set.")
@click.option("--dtype", type=click.Choice(["float16", "bfloat16", "float32"]), default="float16", help="Of the store.")
@click.option("--context-length", type=int, help="Tokens of a window; what the model reads, up to 512, by default.")
@click.option("--batch-size", default=32, help="Windows of a forward pass.")
@click.option("--shuffle-buffer", default=2**17, help="Most samples in memory.")
@click.option("--keep-bos", is_flag=True, help="Keep the special token at the beginning of each window.")
@click.option("--max-tokens", type=int, help="End with so many samples.")
@click.option("--random-state", default=0, help="Seed of the order.")
@click.option("--device", help="cpu, cuda, cuda:1, …; the first GPU, or else the CPU, by default.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier harvest at --output.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def harvest(model: str, texts: tuple[str, ...], output: str, as_json: bool, **parameters: Any) -> None:
    """Harvest the embeddings of the tokens of TEXTS from a layer of a MODEL.

    MODEL is a folder or a name on the Hugging Face Hub. TEXTS are text files (blank lines part the documents), .jsonl
    files, or folders saved by `datasets`. Called again after it was killed, it goes on where it was.
    """
    with errors_in_one_line():
        from dbksvd_dask.language.harvesting import harvest  # torch: seconds of import that other commands do not need

        embeddings = harvest(model, [Path(path) for path in texts], out=output, **parameters)
    samples, features = embeddings.shape
    facts = {"samples": samples, "features": features, "dtype": str(embeddings.dtype)}
    show(facts | {"documents": int(embeddings.document.max()) + 1, "embeddings": output}, as_json)
