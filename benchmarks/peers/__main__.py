"""DBKSVD beside scikit-learn, SPAMS and SAELens, on the same rows and with as many atoms and nonzeros.

    pip install -e . matplotlib spams-bin sae-lens
    export OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive TQDM_DISABLE=1
    for name in $(python benchmarks/peers names); do
        taskset -c 0,1 python benchmarks/peers learn $name train.npy validation.npy --out results
    done
    python benchmarks/peers report results docs/_static

TRAIN and VALIDATION are any (n, d) arrays that `open_embeddings` takes, the training rows in random order. All learners
see them less the mean of the training rows, on two threads, and are scored so, when they are done: what counts is the
time that their process spends from reading the rows to each dictionary that it shows. `OMP_WAIT_POLICY=passive` keeps
threads of SPAMS and PyTorch that have nothing to do from spinning, which would count as CPU seconds.
"""

import importlib
import json
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
import numpy as np
from clock import Clock
from rows import centred, mean_of
from runs import RUNS
from score import atoms_coherence, by_sparsity, scores

PACKAGES = ("dbksvd-dask", "numpy", "scipy", "numba", "dask", "scikit-learn", "spams-bin", "sae-lens", "torch")


@click.group()
def main() -> None:
    """Peers side by side."""


@main.command()
@click.option("--only", default="", help="Those that begin so.")
def names(only: str) -> None:
    """Print what `learn` can run, in order."""
    click.echo("\n".join(name for name in RUNS if name.startswith(only)))


@main.command()
@click.argument("name", type=click.Choice(list(RUNS)))
@click.argument("train", type=click.Path(exists=True, path_type=Path))
@click.argument("validation", type=click.Path(exists=True, path_type=Path))
@click.option("--m", default=2048, help="Atoms.")
@click.option("--out", default="results", type=click.Path(path_type=Path), help="Folder for NAME.json.")
def learn(name: str, train: Path, validation: Path, m: int, out: Path) -> None:
    """Run one learner in this process, score what it showed, and write NAME.json and the last atoms, NAME.npy."""
    run, clock, mean = RUNS[name], Clock(), mean_of(train)
    importlib.import_module(run.learner).learn(train, mean, m, run.k, run.settings, clock)
    held_out, last = centred(validation, mean), clock.snapshots[-1]
    result = asdict(run) | {
        "m": m,
        "idle_megabytes": clock.idle_megabytes,
        "peak_megabytes": clock.peak_megabytes,
        "curve": [scores(snapshot, run.k, held_out) for snapshot in clock.snapshots],
        "by_sparsity": by_sparsity(last, run.by_sparsity, held_out),
        "coherence": atoms_coherence(last),
        "versions": versions(),
    }
    out.mkdir(exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    np.save(out / f"{name}.npy", last.atoms)
    click.echo(json.dumps({"name": name} | result["curve"][-1]))


@main.command()
@click.argument("results", type=click.Path(exists=True, path_type=Path))
@click.argument("figures", required=False, type=click.Path(exists=True, path_type=Path))
def report(results: Path, figures: Path | None) -> None:
    """Print the tables of RESULTS, and write the plots, peers-*.svg, into FIGURES."""
    from report import read, tables

    found = read(results)
    click.echo(tables(found))
    if figures:
        from plots import write

        write(found, figures)


def versions() -> dict[str, str]:
    """Versions of what took part, as far as it is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
