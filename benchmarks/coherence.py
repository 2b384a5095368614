"""What Matryoshka groups and `max_coherence` do to coherence and fidelity, as JSON.

    python benchmarks/coherence.py train.npy validation.npy
    python benchmarks/coherence.py --setting '{"matryoshka": true, "flat_share": 0}' train.npy validation.npy

TRAIN and VALIDATION are any (n, d) arrays that `open_embeddings` takes. Variance explained is that of held-out rows: by
one pursuit over all atoms, group by group, and by the first group alone with its share of k.
"""

import json

import click
import dask
import numpy as np

from dbksvd_dask import DBKSVD, Dictionary, open_embeddings
from dbksvd_dask.matryoshka import default_group_sizes
from dbksvd_dask.metrics import variance_explained

SETTINGS = (
    "{}",
    '{"matryoshka": true}',
    '{"matryoshka": true, "flat_share": 0}',
    '{"max_coherence": 0.9}',
    '{"max_coherence": 0.7}',
    '{"max_coherence": 0.5}',
)


def explained(held_out: np.ndarray, dictionary: Dictionary, **options: object) -> float:
    """Variance explained of the rows."""
    return round(variance_explained(held_out, dictionary.decode(dictionary.encode(held_out, **options))), 4)


@click.command()
@click.argument("train")
@click.argument("validation")
@click.option("--m", default=2048, help="Atoms.")
@click.option("--k", default=20, help="Nonzero coefficients.")
@click.option("--batch-size", default=16384, help="Samples of an outer batch.")
@click.option("--iterations", default=36, help="Iterations.")
@click.option("--setting", "settings", multiple=True, default=SETTINGS, help="Other parameters, as JSON; repeat it.")
@click.option("--workers", default=2, help="Threads.")
def main(
    train: str,
    validation: str,
    m: int,
    k: int,
    batch_size: int,
    iterations: int,
    settings: tuple[str, ...],
    workers: int,
) -> None:
    """Fit TRAIN with each setting and score on VALIDATION."""
    held_out = open_embeddings(validation).values.astype(np.float32)
    groups = default_group_sizes(m)
    parameters = {"batch_size": batch_size, "max_iter": iterations, "center": True, "random_state": 0}
    with dask.config.set(num_workers=workers):
        for setting in settings:
            model = DBKSVD(m, k, **(parameters | json.loads(setting))).fit(train)
            atoms, mean = model.components_, model.mean_
            coherence = model.dictionary_.coherence()
            first = Dictionary(atoms[: groups[0]], -(-k // len(groups)), mean=mean)
            figures = {
                "variance_explained_mp": explained(held_out, model.dictionary_),
                "variance_explained_omp": explained(held_out, model.dictionary_, encoder="omp"),
                "group_wise": explained(held_out, Dictionary(atoms, k, mean=mean, group_sizes=groups), group_wise=True),
                "first_group": explained(held_out, first),
                "coherence_quantiles": np.quantile(coherence, [0.5, 0.9, 1]).round(3).tolist(),
                "duplicates_replaced": int(model.history_.n_duplicate_atoms.sum()),
            }
            click.echo(json.dumps(json.loads(setting) | figures))


if __name__ == "__main__":
    main()
