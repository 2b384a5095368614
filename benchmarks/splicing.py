"""How much of a small language model's loss its layer keeps when dictionaries or SAEs reconstruct it, as JSON.

    python benchmarks/small_model.py wikitext2-valid.txt small-model
    python benchmarks/splicing.py small-model wikitext2-valid.txt splicing --json splicing.json

Rows of `--layer` are harvested from the training documents; ours is fitted with `--iterations` outer batches, and the
TopK SAE of SAELens (its `SAETrainer`) sees ten times as many rows of the same, in random order, with equal m and k.
Scores are those of the held-out documents. The folder keeps rows, dictionaries and SAEs: what is there is not made
again. A dictionary is scored with the pursuits MP and OMP; an SAE with its own encoder, and its decoder with them.

What is done for the SAE: the learning rate is the best of `--learning-rate` by held-out variance explained, each tried
on a tenth of the samples, which are not counted; the decoder's bias begins at the mean of the rows; rows are scaled to
the norm √d (`expected_average_only_in`); the decoder is normalised (`rescale_acts_by_decoder_norm`); the auxiliary loss
has its standard coefficient, latents being dead after `--dead-window` steps; the rate decays over the last fifth.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import dask
import numpy as np
import torch
from sae_lens import SAE, SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from small_model import documents, split

import dbksvd_dask as dbk
from dbksvd_dask.metrics import variance_explained

BATCH = 1024
"""Rows of a training step of the SAE."""


def fitted(rows: np.ndarray, m: int, k: int, options: dict[str, Any]) -> tuple[dbk.Dictionary, dict[str, float]]:
    """Our dictionary, and what it took."""
    start = time.perf_counter(), time.process_time()
    model = dbk.DBKSVD(m, k, center=True, random_state=0, **options).fit(rows)
    took = {"seconds": time.perf_counter() - start[0], "cpu_seconds": time.process_time() - start[1]}
    return model.dictionary_, took | {"samples": float(model.dictionary_.history.n_samples_seen[-1])}


def shuffled_batches(rows: np.ndarray, seed: int) -> Iterator[torch.Tensor]:
    """Batches of the rows in random order, anew each epoch, for ever."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(rows))
        for start in range(0, len(rows) - BATCH + 1, BATCH):
            yield torch.from_numpy(rows[order[start : start + BATCH]])


def trained(
    rows: np.ndarray, m: int, k: int, samples: int, learning_rate: float, dead_window: int
) -> tuple[TopKTrainingSAE, dict[str, float]]:
    """SAELens' TopK SAE, and what it took."""
    torch.manual_seed(0)
    steps = samples // BATCH
    d = rows.shape[1]
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=m, k=k, normalize_activations="expected_average_only_in"))
    scale = np.sqrt(d) / np.linalg.norm(rows, axis=1).mean()  # to which the trainer scales the rows
    with torch.no_grad():
        sae.b_dec.copy_(torch.from_numpy(rows.mean(axis=0) * scale))
    config = SAETrainerConfig(
        total_training_samples=steps * BATCH,
        train_batch_size_samples=BATCH,
        lr=learning_rate,
        lr_warm_up_steps=steps // 20,
        lr_decay_steps=steps // 5,
        lr_end=learning_rate / 1000,
        dead_feature_window=dead_window,
        n_batches_for_norm_estimate=100,
    )
    start = time.perf_counter(), time.process_time()
    trainer = SAETrainer(config, sae, shuffled_batches(rows, seed=0))
    sae = trainer.fit().eval()
    return sae, {
        "seconds": time.perf_counter() - start[0],
        "cpu_seconds": time.process_time() - start[1],
        "samples": float(trainer.n_training_samples),
        "learning_rate": learning_rate,
        "dead": float(trainer.dead_neurons.sum()),
    }


@torch.no_grad()
def explained_by(sae: Any, rows: np.ndarray) -> float:
    """Variance explained of rows by an SAE."""
    return variance_explained(rows, sae.decode(sae.encode(torch.from_numpy(rows))).numpy())


def best_rate(rows: np.ndarray, held_out: np.ndarray, rates: tuple[float, ...], **settings: Any) -> dict[float, float]:
    """Held-out variance explained with each learning rate."""
    return {rate: explained_by(trained(rows, learning_rate=rate, **settings)[0], held_out) for rate in rates}


def harvested(model: str, texts: list[str], layer: int, out: Path) -> np.ndarray:
    """Rows of the texts, from the store where it is there."""
    if not out.exists():
        dbk.harvest(model, texts, layer=layer, out=out, dtype="float32")
    return dbk.open_embeddings(out).values.astype(np.float32)


def write(path: Path, figures: dict[str, Any]) -> None:
    """Write figures as JSON."""
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, file_okay=False))
@click.argument("text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--layer", default=2, show_default=True)
@click.option("--m", default=2048, show_default=True, help="Atoms, or latents.")
@click.option("--k", "ks", multiple=True, type=int, default=(20, 40, 80), show_default=True, help="L0; repeat it.")
@click.option("--iterations", default=40, show_default=True, help="Outer batches of ours.")
@click.option("--batch-size", default=8192, show_default=True, help="Samples of an outer batch.")
@click.option(
    "--learning-rate",
    "rates",
    multiple=True,
    type=float,
    default=(4e-4, 1e-3, 2e-3),
    show_default=True,
    help="Of the SAE; repeat it.",
)
@click.option("--dead-window", default=250, show_default=True, help="Steps after which a silent latent is dead.")
@click.option("--setting", default="{}", help="Other parameters of ours, as JSON.")
@click.option("--threads", default=2, show_default=True)
@click.option("--train-only", is_flag=True, help="Do not score.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Where the figures go.")
def main(
    model: str,
    text: Path,
    folder: Path,
    layer: int,
    m: int,
    ks: tuple[int, ...],
    iterations: int,
    batch_size: int,
    rates: tuple[float, ...],
    dead_window: int,
    setting: str,
    threads: int,
    train_only: bool,
    out: Path | None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    training, held_out_texts = split(documents(text.read_text(encoding="utf-8")))
    rows = harvested(model, training, layer, folder / "training.zarr")
    held_out = harvested(model, held_out_texts, layer, folder / "held-out.zarr")
    figures: dict[str, Any] = {"rows": len(rows), "held_out": len(held_out), "m": m, "layer": layer, "took": {}}
    dictionaries: dict[str, Any] = {}
    with dask.config.set(num_workers=threads):
        for k in ks:
            ours = _ours(folder, rows, m, k, {"max_iter": iterations, "batch_size": batch_size} | json.loads(setting))
            sae = _sae(folder, rows, held_out, m, k, 10 * iterations * batch_size, rates, dead_window)
            for encoder in ("mp", "omp"):
                for name, known in (("ours", ours), ("SAE", dbk.interop.from_saelens(sae))):
                    dictionaries[f"{name} k={k} {encoder}"] = dbk.Dictionary(
                        known.atoms, k, mean=known.mean, encoder=encoder
                    )
            dictionaries[f"SAE k={k} native"] = sae
            figures["took"][k] = {
                name: json.loads((folder / f"{name}-{k}.json").read_text(encoding="utf-8")) for name in ("ours", "sae")
            }
            click.echo(json.dumps(figures["took"][k]))
        if not train_only:
            scores = dbk.evaluate_splicing(model, held_out_texts, dictionaries, layer=layer)
            figures["scores"] = scores.to_dataframe().reset_index(drop=True).to_dict("records")
            figures |= {name: scores.attrs[name] for name in scores.attrs}
    click.echo(json.dumps(figures, indent=1))
    if out:
        write(out, figures)


def _ours(folder: Path, rows: np.ndarray, m: int, k: int, options: dict[str, Any]) -> dbk.Dictionary:
    path = folder / f"ours-{k}.zarr"
    if not path.exists():
        dictionary, took = fitted(rows, m, k, options)
        dictionary.to_zarr(path)
        write(folder / f"ours-{k}.json", took)
    return dbk.open_dictionary(path)


def _sae(
    folder: Path,
    rows: np.ndarray,
    held_out: np.ndarray,
    m: int,
    k: int,
    samples: int,
    rates: tuple[float, ...],
    dead_window: int,
) -> Any:
    path = folder / f"sae-{k}"
    if not path.exists():
        settings = {"m": m, "k": k, "dead_window": dead_window}
        tried = best_rate(rows, held_out, rates, samples=samples // 10, **settings)
        rate = max(tried, key=lambda rate: tried[rate])
        sae, took = trained(rows, samples=samples, learning_rate=rate, **settings)
        sae.save_inference_model(path)
        write(folder / f"sae-{k}.json", took | {"tried": tried, "variance_explained": explained_by(sae, held_out)})
    return SAE.load_from_disk(path, device="cpu")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
