"""Held-out quality and CPU seconds of fits on one set of embeddings, as JSON.

    python benchmarks/minilm.py train.npy validation.npy --batch-size 16384 --setting '{"average": false}' 36 120

The embeddings are any (n, d) arrays that `open_embeddings` takes. The figures in benchmarks/README.md are for layer 3
of all-MiniLM-L6-v2 over the whole WikiText-2 validation text, held out by document (data/README.md tells how).
"""

import json
from resource import RUSAGE_SELF, getrusage

import click
import dask
import numpy as np

from dbksvd_dask import DBKSVD, open_embeddings
from dbksvd_dask.metrics import variance_explained


def cpu_seconds() -> float:
    """CPU seconds of this process so far."""
    usage = getrusage(RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@click.command()
@click.argument("train")
@click.argument("validation")
@click.option("--m", default=2048, help="Atoms.")
@click.option("--k", default=20, help="Nonzero coefficients.")
@click.option("--batch-size", default=32768, help="Samples of an outer batch.")
@click.option("--setting", default="{}", help="Other parameters of DBKSVD, as JSON.")
@click.option("--workers", default=2, help="Threads.")
@click.argument("iterations", type=int, nargs=-1)
def main(
    train: str,
    validation: str,
    m: int,
    k: int,
    batch_size: int,
    setting: str,
    workers: int,
    iterations: tuple[int, ...],
) -> None:
    """Fit TRAIN for each number of ITERATIONS and score on VALIDATION."""
    held_out = open_embeddings(validation).values.astype(np.float32)
    with dask.config.set(num_workers=workers):
        DBKSVD(2, 1, max_iter=1, center=True).fit(held_out)  # compiles
        for n_iterations in iterations:
            parameters = {"batch_size": batch_size, "center": True, "random_state": 0} | json.loads(setting)
            model = DBKSVD(m, k, max_iter=n_iterations, **parameters)
            before = cpu_seconds()
            model.fit(train)
            seconds = cpu_seconds() - before
            dictionary = model.dictionary_
            explained = {
                encoder: variance_explained(held_out, dictionary.decode(dictionary.encode(held_out, encoder=encoder)))
                for encoder in ("mp", "omp")
            }
            samples = int(model.history_.n_samples_seen[-1])
            click.echo(
                json.dumps(
                    {"iterations": n_iterations, "samples": samples, "cpu_seconds": round(seconds, 1)}
                    | {f"variance_explained_{name}": round(value, 4) for name, value in explained.items()}
                )
            )


if __name__ == "__main__":
    main()
