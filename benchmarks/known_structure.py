"""The toy problem of the paper (A.2, Fig. 3): how known users of some atoms shorten the way to the minimum, as JSON.

    python benchmarks/known_structure.py --iterations 450
    python benchmarks/known_structure.py --iterations 500 --batch-size 16384 --setting '{"average": false}'

The first line is what we recommend, smaller outer batches, drawn anew, and duplicates replaced; the second the paper's
setting, all samples in one batch. Errors are those of all samples under the dictionary after each iteration.
"""

import json

import click
import dask
import dask.array as da
import numpy as np

from dbksvd_dask import DBKSVD, toy_problem
from dbksvd_dask.plotting import plot_known_structure

ROWS_PER_CHUNK = 1024


@click.command()
@click.option(
    "--fraction", "fractions", type=float, multiple=True, default=(0, 0.25, 0.5, 0.75, 1), help="γ; repeat it."
)
@click.option("--iterations", default=450, help="Iterations.")
@click.option("--batch-size", default=8192, help="Samples of an outer batch; 16384 is all of them.")
@click.option("--setting", default='{"max_coherence": 0.8, "shuffle": "chunks"}', help="Other parameters, as JSON.")
@click.option("--seed", default=0, help="Of the problem and the fits.")
@click.option("--workers", default=2, help="Threads.")
@click.option("--figure", help="Write Fig. 3 here.")
def main(
    fractions: tuple[float, ...],
    iterations: int,
    batch_size: int,
    setting: str,
    seed: int,
    workers: int,
    figure: str | None,
) -> None:
    """Fit the toy problem for each fraction of atoms whose users are known."""
    problem = toy_problem(random_state=seed)
    n_atoms = len(problem.atoms)
    Y = da.from_array(problem.embeddings, chunks=(ROWS_PER_CHUNK, -1))
    parameters = {"init": "random", "batch_size": batch_size, "max_iter": iterations, "random_state": seed}
    errors, recovered = {}, {}
    with dask.config.set(num_workers=workers):
        for fraction in fractions:
            model = DBKSVD(n_atoms, 20, **(parameters | json.loads(setting)))
            model.fit(Y, support=problem.support(fraction), validation=problem.embeddings)
            errors[fraction] = model.history_.validation_relative_error.values
            cosines = np.abs(model.components_ @ problem.atoms.T).max(axis=0)
            recovered[fraction] = float(np.mean(cosines > 0.95))
    common = min(error.min() for fraction, error in errors.items() if fraction < 1)
    click.echo(json.dumps({"error_of_the_planted": round(problem.noise_error, 5), "common_minimum": round(common, 5)}))
    for fraction, error in errors.items():
        near = np.flatnonzero(error <= 1.01 * common)
        figures = {
            "minimum": round(float(error.min()), 5),
            "above_common": round(float(error.min() / common - 1), 4),
            "iterations_to_within_1_percent": int(near[0]) + 1 if near.size else None,
            "atoms_recovered": round(recovered[fraction], 4),
        }
        click.echo(json.dumps({"known": fraction} | figures))
    if figure:
        plot_known_structure(errors).savefig(figure, dpi=150)


if __name__ == "__main__":
    main()
