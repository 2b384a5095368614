"""Held-out error by iteration for inner batches of several sizes, as JSON.

    python benchmarks/inner_batches.py --validation validation.npy train.npy
    python benchmarks/inner_batches.py --m 1024 --k 10 patches

EMBEDDINGS is anything that `open_embeddings` takes, or "patches" for 8 x 8 colour patches of the two sample images of
scikit-learn (which needs pillow). Sizes of inner batches are those of `--size`, 0 for all atoms at once.
"""

import json

import click
import dask
import numpy as np
from sklearn.datasets import load_sample_images
from sklearn.feature_extraction.image import extract_patches_2d

from dbksvd_dask import DBKSVD, open_embeddings

N_PATCHES, N_HELD_OUT = 131_072, 4096


def sample_patches() -> tuple[np.ndarray, np.ndarray]:
    """Patches to learn from and held-out ones, (n, 192) float32 each."""
    images = load_sample_images().images
    per_image = (N_PATCHES + N_HELD_OUT) // len(images)
    patches = [extract_patches_2d(image, (8, 8), max_patches=per_image, random_state=0) for image in images]
    rows = np.concatenate(patches).reshape(-1, 192).astype(np.float32) / 255
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    return rows[N_HELD_OUT:], rows[:N_HELD_OUT]


@click.command()
@click.argument("embeddings")
@click.option("--validation", help="Held-out embeddings.")
@click.option("--m", default=2048, help="Atoms.")
@click.option("--k", default=20, help="Nonzero coefficients.")
@click.option("--batch-size", default=16384, help="Samples of an outer batch.")
@click.option("--iterations", default=24, help="Iterations.")
@click.option("--size", "sizes", type=int, multiple=True, default=(32, 128, 512, 0), help="Inner batches; repeat it.")
@click.option("--setting", default="{}", help="Other parameters of DBKSVD, as JSON.")
@click.option("--workers", default=2, help="Threads.")
def main(
    embeddings: str,
    validation: str | None,
    m: int,
    k: int,
    batch_size: int,
    iterations: int,
    sizes: tuple[int, ...],
    setting: str,
    workers: int,
) -> None:
    """Fit EMBEDDINGS with inner batches of each size."""
    if embeddings == "patches":
        train, held_out = sample_patches()
    else:
        train, held_out = embeddings, open_embeddings(validation).values.astype(np.float32)
    parameters = {"batch_size": batch_size, "max_iter": iterations, "random_state": 0} | json.loads(setting)
    with dask.config.set(num_workers=workers):
        for size in sizes:
            DBKSVD(16, 2, max_iter=1, inner_batch_size=(size and 4) or None).fit(held_out)  # compiles
            model = DBKSVD(m, k, inner_batch_size=size or None, **parameters)
            history = model.fit(train, validation=held_out).history_
            figures = {
                "held_out_relative_error": history.validation_relative_error.values.round(4).tolist(),
                "variance_explained": round(float(history.validation_variance_explained[-1]), 4),
                "median_coherence": round(float(np.median(model.dictionary_.coherence())), 3),
                "seconds_per_iteration": round(float(history.seconds[1:].median()), 3),
            }
            click.echo(json.dumps({"inner_batch_size": size or "all"} | figures))


if __name__ == "__main__":
    main()
