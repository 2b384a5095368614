"""Seconds of an iteration over the grid of the paper's Tables 1 and 2, beside classic K-SVD, as a Markdown table.

    python benchmarks/paper_tables.py --n 65536 --m 4096 --k 20 --k 80 --json paper_tables.json

DB-KSVD: the median over iterations, the first of which, which may compile, does not count. An iteration sees all n
samples; where these are more than 65,536 it is that many outer batches, and its seconds are their sum. Classic K-SVD is
extrapolated, as in the paper: a few atoms are updated one after the other, each by a full SVD of an error matrix of the
size that it has with n samples, and take m times their mean; encoding is timed on the first 65,536. It encodes by the
same matching pursuit as DB-KSVD. Everything runs on `--workers` cores: Dask's threads, or BLAS's for the SVD.

Samples are those of `iteration.py`; more than 65,536 are kept as float16 in a temporary folder, if the disk has room.
"""

import json
import platform
import shutil
import tempfile
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import mean, median
from time import perf_counter

import click
import dask
import numpy as np
from iteration import BLOCK, write_embeddings
from threadpoolctl import threadpool_limits

from dbksvd_dask import DBKSVD, Dictionary, SparseCodes
from dbksvd_dask.baseline import update_in_turn
from dbksvd_dask.metrics import atom_usage

BATCH = 2**16
PAPER_SECONDS = {(2**16, 4096, 80): 337.6}
"""By (n, m, k): a whole iteration at d = 2304 on the 128 vCPUs of the paper."""
COLUMNS = "n", "m", "k", "DB-KSVD, s", "DB-KSVD of the paper, s", "classic K-SVD, extrapolated, s", "classic / DB-KSVD"


def bytes_needed(n: int, d: int) -> int:
    """Most bytes that `write_rows` takes: float32, and float16 beside them where they are many."""
    return n * d * (4 if n <= BATCH else 6)


def write_rows(folder: Path, n: int, d: int) -> Path:
    """The samples as a file, float16 where they are many."""
    path = folder / "embeddings.npy"
    rows = write_embeddings(path, n, d)
    if n <= BATCH:
        return path
    half_path = folder / "half.npy"
    half = np.lib.format.open_memmap(half_path, mode="w+", dtype=np.float16, shape=rows.shape)
    for start in range(0, n, BLOCK):
        half[start : start + BLOCK] = rows[start : start + BLOCK]
    path.unlink()
    return half_path


def fit(
    path: Path, n: int, m: int, k: int, inner_batch_size: int | None, iterations: int
) -> tuple[DBKSVD, list[float]]:
    """A fit, and the seconds of its iterations over all n samples; one outer batch before them does not count."""
    n_batches = -(-n // BATCH)
    model = DBKSVD(
        m,
        k,
        batch_size=BATCH,
        max_iter=1 + (iterations - 1) * n_batches,
        inner_batch_size=inner_batch_size,
        init="random",
        random_state=0,
    ).fit(path)
    seconds = model.history_.seconds.values[1:].reshape(iterations - 1, n_batches).sum(axis=1)
    return model, seconds.tolist()


def time_encoding(dictionary: Dictionary, rows: np.ndarray) -> tuple[SparseCodes, float]:
    """Codes of the rows, and the seconds that they take."""
    start = perf_counter()
    codes = dictionary.encode(rows)
    return codes, perf_counter() - start


def time_svd_update(dictionary: Dictionary, rows: np.ndarray, j: int, n_users: int) -> float:
    """Seconds of the update of one atom with so many users; an SVD takes as long whatever the residuals are."""
    residual = np.array(rows[:n_users], np.float32)
    codes = SparseCodes(np.full((n_users, 1), j, np.int32), np.ones((n_users, 1), np.float32), dictionary.n_atoms)
    atoms = dictionary.atoms.copy()
    start = perf_counter()
    update_in_turn([j], atoms, codes, residual)
    return perf_counter() - start


def extrapolate_baseline(dictionary: Dictionary, path: Path, n_timed: int, workers: int) -> dict[str, object]:
    """Seconds of an iteration of classic K-SVD over all samples, from a subset of them and some of its atoms."""
    rows = np.load(path, mmap_mode="r")
    subset = np.array(rows[:BATCH], np.float32)
    scale = len(rows) / len(subset)
    codes, seconds = time_encoding(dictionary, subset)
    users = np.rint(atom_usage(codes.indices, dictionary.n_atoms) * scale).astype(int)
    # From the least used to the most used at even distances, so that their mean is that of all atoms.
    ranks = (np.arange(n_timed) + 0.5) * dictionary.n_atoms / n_timed
    chosen = np.argsort(users, kind="stable")[ranks.astype(int)]
    with threadpool_limits(workers):
        # The first one, which starts BLAS's threads, does not count.
        updates = [time_svd_update(dictionary, rows, j, users[j]) for j in chosen[[0, *range(n_timed)]].tolist()][1:]
    return {
        "baseline_encoding_seconds": round(seconds * scale, 3),
        "baseline_update_seconds": round(mean(updates) * dictionary.n_atoms, 1),
        "baseline_users_of_atoms": users[chosen].tolist(),
        "baseline_seconds_of_atoms": [round(update, 4) for update in updates],
        "baseline_seconds": round(seconds * scale + mean(updates) * dictionary.n_atoms, 1),
    }


def table_row(record: dict) -> str:
    """The cells of one (n, m, k)."""
    ours, baseline = record["iteration_seconds"], record["baseline_seconds"]
    paper = PAPER_SECONDS.get((record["n"], record["m"], record["k"])) if record["d"] == 2304 else None
    cells = [f"{record[name]:,}" for name in ("n", "m", "k")]
    cells += [f"{ours:.1f}", "—" if paper is None else f"{paper}", f"{baseline:,.0f}", f"{baseline / ours:,.0f}×"]
    return f"| {' | '.join(cells)} |"


@click.command()
@click.option("--n", "ns", type=int, multiple=True, default=(2**16, 2**20), help="Samples; repeat it.")
@click.option("--m", "ms", type=int, multiple=True, default=(4096, 16384), help="Atoms; repeat it.")
@click.option("--k", "ks", type=int, multiple=True, default=(20, 40, 80), help="Nonzero coefficients; repeat it.")
@click.option("--d", default=2304, help="Features.")
@click.option("--inner-batch-size", type=int, help="Atoms updated simultaneously; all by default.")
@click.option("--iterations", type=click.IntRange(2), default=4, help="Iterations; the first does not count.")
@click.option("--baseline-atoms", default=8, help="Atoms that classic K-SVD is extrapolated from.")
@click.option("--workers", default=2, help="Cores.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Where to keep all figures.")
def main(
    ns: tuple[int, ...],
    ms: tuple[int, ...],
    ks: tuple[int, ...],
    d: int,
    inner_batch_size: int | None,
    iterations: int,
    baseline_atoms: int,
    workers: int,
    json_path: Path | None,
) -> None:
    """Time the grid, cell by cell."""
    records = []
    click.echo(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for n in ns:
        with tempfile.TemporaryDirectory() as folder, dask.config.set(num_workers=workers):
            free = shutil.disk_usage(folder).free
            if free < bytes_needed(n, d):
                room = f"{bytes_needed(n, d) / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB"
                click.echo(f"n = {n:,} is left out: its samples take {room}", err=True)
                continue
            path = write_rows(Path(folder), n, d)
            for m, k in product(ms, ks):
                model, seconds = fit(path, n, m, k, inner_batch_size, iterations)
                record = {
                    "n": n,
                    "d": d,
                    "m": m,
                    "k": k,
                    "inner_batch_size": inner_batch_size,
                    "workers": workers,
                    "iteration_seconds": round(median(seconds), 3),
                    "iterations": [round(second, 3) for second in seconds],
                    **extrapolate_baseline(model.dictionary_, path, baseline_atoms, workers),
                    "cpu": model.dictionary_.provenance["cpu"],
                    "python": platform.python_version(),
                    "versions": {name: version(name) for name in ("dbksvd-dask", "dask", "numba", "numpy")},
                }
                records.append(record)
                click.echo(table_row(record))
                if json_path is not None:  # after each cell: the grid takes hours
                    json_path.write_text(json.dumps(records, indent=2))


if __name__ == "__main__":
    main()
