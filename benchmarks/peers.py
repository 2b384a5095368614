"""Seconds until scikit-learn's MiniBatchDictionaryLearning, SPAMS and DBKSVD reach the same held-out score.

    pip install spams-bin
    OMP_WAIT_POLICY=passive taskset -c 0,1 python benchmarks/peers.py --json peers.json

All of them learn from the training rows of the sample data, centred by their mean, on `--threads` threads, and begin
with data rows. Every dictionary on the way is scored alike, off the clock: variance explained of held-out rows that
this package's matching pursuit (MP) and orthogonal matching pursuit (OMP) encode with k atoms a row. What counts is the
time to within `--tolerance` of the best score that a peer reaches in `--peer-seconds`. The peers, as fast as they go:

* Both minimise ``½ ‖y − x D‖² + α ‖x‖₁`` in batches of 512 rows, with α such that codes have about k nonzeros a row.
* scikit-learn: coordinate descent in float64 (in float32 its duality gap never falls below its tolerance, and each row
  takes all 1,000 sweeps); it encodes on `--threads` threads, with BLAS on one (m small products an update).
* SPAMS: `trainDL(mode=2)` in float32. A point of its curve is one call from the first atoms, with that call's seconds.

`OMP_WAIT_POLICY=passive` keeps SPAMS's threads from spinning where others want the cores too.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import count
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from time import perf_counter
from typing import Any

import click
import dask
import joblib
import numpy as np
import spams
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from dbksvd_dask import DBKSVD, Dictionary, open_embeddings
from dbksvd_dask.history import Iteration
from dbksvd_dask.metrics import variance_explained

DATA = Path(__file__).parent.parent / "data" / "minilm-wikitext2.zarr"
PEER_BATCH = 512
SETTINGS = (
    {"batch_size": 10240, "shuffle": "chunks"},
    {"batch_size": 10240, "shuffle": "chunks", "n_passes": 1},
    {"batch_size": 10240, "shuffle": "chunks", "n_passes": 1, "n_nonzero_coefs": 14},
)
PACKAGES = ("dbksvd-dask", "dask", "numba", "numpy", "scipy", "scikit-learn", "spams-bin")
FIRST_FIT = """
from time import perf_counter
start = perf_counter()
import numpy as np
from dbksvd_dask import DBKSVD
DBKSVD(64, 4, max_iter=2, random_state=0).fit(np.random.default_rng(0).standard_normal((512, 32), dtype=np.float32))
print(perf_counter() - start)
"""


@dataclass(frozen=True)
class Point:
    """A dictionary on the way: what it has cost, on all cores, and its scores."""

    seconds: float
    cpu_seconds: float
    n_samples: int
    mp: float
    omp: float


@dataclass
class Curve:
    """A fit against the clock, which runs between `start` and `record`."""

    name: str
    settings: dict[str, Any]
    score: Callable[[np.ndarray], tuple[float, float]] = field(repr=False)
    points: list[Point] = field(default_factory=list)
    l0: float | None = None
    """Nonzeros of a training row's code by the peer's own penalty, under its last dictionary."""

    def start(self, seconds: float = 0.0, cpu_seconds: float = 0.0) -> None:
        """Set the clock."""
        self._start = perf_counter() - seconds, _cpu_seconds() - cpu_seconds

    def record(self, atoms: np.ndarray, n_samples: int) -> None:
        """Score the atoms while the clock stands."""
        seconds, cpu_seconds = perf_counter() - self._start[0], _cpu_seconds() - self._start[1]
        self.points.append(Point(seconds, cpu_seconds, n_samples, *self.score(atoms)))
        click.echo(f"{self.name}: {self.points[-1]}", err=True)
        self.start(seconds, cpu_seconds)

    def best(self, encoder: str) -> float:
        """The best score on the way."""
        return max(getattr(point, encoder) for point in self.points)

    def first(self, encoder: str, score: float) -> Point | None:
        """The quickest dictionary with this score, or None."""
        reached = [point for point in self.points if getattr(point, encoder) >= score]
        return min(reached, key=lambda point: point.seconds, default=None)


def _cpu_seconds() -> float:
    return sum(usage.ru_utime + usage.ru_stime for usage in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))


def run_dbksvd(rows: np.ndarray, settings: dict[str, Any], epochs: int, score: Callable) -> Curve:
    """DBKSVD, scored after each iteration."""
    curve = Curve("DBKSVD " + " ".join(f"{name}={value}" for name, value in settings.items()), settings, score)

    def record(model: DBKSVD, iteration: Iteration) -> None:
        curve.record(model.components_, iteration.n_samples_seen)

    max_iter = epochs * -(-len(rows) // settings["batch_size"])
    curve.start()
    DBKSVD(**settings, max_iter=max_iter, random_state=0, callbacks=[record]).fit(rows)
    return curve


def run_sklearn(rows: np.ndarray, atoms: np.ndarray, alpha: float, threads: int, budget: float, score: Any) -> Curve:
    """MiniBatchDictionaryLearning until the budget is spent, scored after every tenth batch."""
    settings = {"alpha": alpha, "fit_algorithm": "cd", "batch_size": PEER_BATCH, "n_jobs": threads, "random_state": 0}
    model = MiniBatchDictionaryLearning(len(atoms), dict_init=atoms.astype(np.float64), **settings)
    curve = Curve("scikit-learn", settings | {"joblib": "threading", "BLAS threads": 1}, score)
    with threadpool_limits(1), joblib.parallel_config("threading", n_jobs=threads), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        curve.start()
        for end in count(PEER_BATCH, PEER_BATCH):  # row after row, as its fit does: the rows are shuffled
            model.partial_fit(rows.take(range(end - PEER_BATCH, end), axis=0, mode="wrap").astype(np.float64))
            if end % (10 * PEER_BATCH) == 0:
                curve.record(model.components_, end)
                if curve.points[-1].seconds > budget:
                    break
    curve.l0 = penalised_l0(rows[:4096], model.components_.astype(np.float32), alpha, threads)
    return curve


def run_spams(rows: np.ndarray, atoms: np.ndarray, alpha: float, threads: int, budget: float, score: Any) -> Curve:
    """Calls of 20, 28, 40, 57 … iterations from the same atoms, for as long as the next fits into the budget."""
    settings = {"mode": 2, "lambda1": alpha, "batchsize": PEER_BATCH, "numThreads": threads}
    curve, spent = Curve("SPAMS", settings, score), 0.0
    for power in count():
        iterations = round(20 * 2 ** (power / 2))
        curve.start()
        learned = train_spams(rows, atoms, iterations, settings)
        curve.record(learned, iterations * PEER_BATCH)
        spent += curve.points[-1].seconds
        if spent + 1.4 * curve.points[-1].seconds > budget:
            break
    curve.l0 = penalised_l0(rows[:4096], learned, alpha, threads)
    return curve


def train_spams(rows: np.ndarray, atoms: np.ndarray, iterations: int, settings: dict[str, Any]) -> np.ndarray:
    """Online dictionary learning: (m, d) atoms."""
    columns, D = np.asfortranarray(rows.T), np.asfortranarray(atoms.T)
    return np.ascontiguousarray(spams.trainDL(columns, D=D, iter=iterations, verbose=False, **settings).T)


def penalised_l0(rows: np.ndarray, atoms: np.ndarray, alpha: float, threads: int) -> float:
    """Mean number of nonzeros of a row's L1-penalised code."""
    columns, D = np.asfortranarray(rows.T), np.asfortranarray(atoms.T)
    return spams.lasso(columns, D=D, lambda1=alpha, mode=2, numThreads=threads).nnz / len(rows)


def first_fit_seconds() -> list[float]:
    """Seconds of import and a tiny fit in a new process: with nothing compiled yet, and with all of it cached."""
    with tempfile.TemporaryDirectory() as cache:
        environment, command = os.environ | {"NUMBA_CACHE_DIR": cache}, [sys.executable, "-c", FIRST_FIT]
        return [float(subprocess.check_output(command, env=environment, text=True)) for _ in range(2)]


def compare(peer: Curve, ours: Curve, encoder: str, tolerance: float) -> dict[str, Any]:
    """What the peer took to its final score, and what DBKSVD took to the same; None where it did not get there."""
    target = peer.best(encoder) - tolerance
    theirs, same = peer.first(encoder, target), ours.first(encoder, target)
    even_best = ours.first(encoder, peer.best(encoder))
    return {
        "peer, encoder": f"{peer.name}, {encoder}",
        "score": target,
        "peer's seconds": theirs.seconds,
        "DBKSVD": ours.name.removeprefix("DBKSVD "),
        "best": ours.best(encoder),
        "seconds": same and same.seconds,
        "ratio": same and same.seconds / theirs.seconds,
        "CPU ratio": same and same.cpu_seconds / theirs.cpu_seconds,
        "seconds to peer's best": even_best and even_best.seconds,
    }


def table(records: list[dict[str, Any]]) -> str:
    """A Markdown table."""
    shown = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in r.values()] for r in records]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [list(records[0]), ["---"] * len(records[0]), *shown])


@click.command()
@click.option("--m", default=2048, help="Atoms.")
@click.option("--k", default=20, help="Nonzero coefficients.")
@click.option("--epochs", default=80, help="Passes of DBKSVD over the rows.")
@click.option("--setting", "texts", multiple=True, help="Parameters of DBKSVD as JSON; may be given several times.")
@click.option("--peer-seconds", default=300.0, help="Training time of each peer.")
@click.option("--alpha", default=0.9, help="Penalty of the peers, for about k nonzeros a row: see l0 in the output.")
@click.option("--tolerance", default=0.001, help="A score this close to the best is final.")
@click.option("--threads", default=2, help="Threads of each.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="File for settings and curves.")
def main(
    m: int, k: int, epochs: int, texts: Any, peer_seconds: float, threads: int, path: Any, **options: float
) -> None:
    """Time DBKSVD beside scikit-learn and SPAMS, to the same held-out score."""
    embeddings = open_embeddings(DATA)
    rows = {split: embeddings[(embeddings.split == split).values].values for split in ("train", "validation")}
    mean = rows["train"].mean(axis=0, dtype=np.float64)
    train, held_out = ((part - mean).astype(np.float32) for part in rows.values())

    def score(atoms: np.ndarray) -> tuple[float, float]:
        norms = np.linalg.norm(atoms, axis=1)
        D = Dictionary((atoms[norms > 0] / norms[norms > 0, None]).astype(np.float32), k)
        decoded = (D.decode(D.encode(held_out, encoder=encoder)) for encoder in ("mp", "omp"))
        return tuple(round(variance_explained(held_out, part), 5) for part in decoded)

    first_fit = first_fit_seconds()
    chosen = [{"n_components": m, "n_nonzero_coefs": k, **s} for s in [json.loads(text) for text in texts] or SETTINGS]
    atoms = np.random.default_rng(0).choice(train, m, replace=False)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    with dask.config.set(num_workers=threads), threadpool_limits(threads):
        run_dbksvd(train[:4096], chosen[0] | {"n_components": 64}, 1, score)  # compiles
        ours = [run_dbksvd(train, settings, epochs, score) for settings in chosen]
        peers = [run(train, atoms, options["alpha"], threads, peer_seconds, score) for run in (run_spams, run_sklearn)]
    comparisons = [
        compare(peer, curve, e, options["tolerance"]) for peer in peers for e in ("mp", "omp") for curve in ours
    ]
    lasts = [{"": curve.name} | asdict(curve.points[-1]) | {"l0": curve.l0} for curve in ours + peers]
    click.echo("Import and a first tiny fit: {:.1f} s with nothing compiled, {:.1f} s cached.\n".format(*first_fit))
    click.echo(f"{table(lasts)}\n\n{table(comparisons)}")
    if path:
        curves = [{key: part for key, part in asdict(curve).items() if key != "score"} for curve in ours + peers]
        versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
        report = {"comparisons": comparisons, "curves": curves, "first_fit_seconds": first_fit, "versions": versions}
        path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
