"""Seconds of one iteration beside the bare product ``Y Dᵀ``, as JSON.

    python benchmarks/iteration.py --n 65536 --d 2304 --m 4096 --k 20

Everything runs on `--workers` cores: NumPy's BLAS threads for the product, Dask's threads for the iteration, and with
`--cluster` as many processes of a LocalCluster. The product is timed again after the iterations; the median counts.
Set `DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False` for a cluster without the profiler that samples its workers.
"""

import json
import platform
import tempfile
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter

import click
import dask
import numpy as np
from distributed import Client, LocalCluster
from threadpoolctl import threadpool_limits

from dbksvd_dask import DBKSVD

BLOCK = 8192


def write_embeddings(path: Path, n: int, d: int) -> np.ndarray:
    """Rows of a power-law spectrum plus noise, float32, as a mapped file."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((512, d), dtype=np.float32) / np.sqrt(np.arange(1, 513, dtype=np.float32))[:, None]
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, d))
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        rows[start : start + size] = rng.standard_normal((size, 512), dtype=np.float32) @ directions
        rows[start : start + size] += rng.standard_normal((size, d), dtype=np.float32)
    return rows


def time_product(rows: np.ndarray, atoms: np.ndarray, workers: int) -> float:
    """Seconds of ``Y Dᵀ``, in blocks of rows so that the products fit in memory."""
    products = np.zeros((min(BLOCK, len(rows)), len(atoms)), np.float32)
    with threadpool_limits(workers):
        start = perf_counter()
        for first in range(0, len(rows), BLOCK):
            block = rows[first : first + BLOCK]
            np.matmul(block, atoms.T, out=products[: len(block)])
        return perf_counter() - start


def time_encoding(model: DBKSVD, path: Path) -> float:
    """Seconds of encoding the file, through the public API."""
    start = perf_counter()
    codes = model.dictionary_.encode(path)
    dask.persist(codes.indices, codes.values)
    return perf_counter() - start


@click.command()
@click.option("--n", default=65536, help="Samples of the outer batch.")
@click.option("--d", default=2304, help="Features.")
@click.option("--m", default=4096, help="Atoms.")
@click.option("--k", default=20, help="Nonzero coefficients.")
@click.option("--inner-batch-size", type=int, help="Atoms updated simultaneously; all by default.")
@click.option("--iterations", default=4, help="Iterations; the first, which may compile, does not count.")
@click.option("--workers", default=2, help="Cores.")
@click.option("--cluster", is_flag=True, help="A LocalCluster of single-threaded processes rather than threads.")
def main(
    n: int, d: int, m: int, k: int, inner_batch_size: int | None, iterations: int, workers: int, cluster: bool
) -> None:
    """Time one iteration beside the bare product."""
    with tempfile.TemporaryDirectory() as folder, dask.config.set(num_workers=workers):
        path = Path(folder) / "embeddings.npy"
        rows = write_embeddings(path, n, d)
        atoms = np.array(rows[:m]) if n >= m else np.random.default_rng(1).standard_normal((m, d), dtype=np.float32)
        products = [time_product(rows, atoms, workers) for _ in range(3)]
        model = DBKSVD(
            m, k, batch_size=n, max_iter=iterations, inner_batch_size=inner_batch_size, init="random", random_state=0
        )
        processes = (
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") if cluster else nullcontext()
        )
        with processes as started, Client(started) if cluster else nullcontext():
            model.fit(path)
            encodings = [] if cluster else [time_encoding(model, path) for _ in range(3)]
        products += [time_product(rows, atoms, workers) for _ in range(3)]
    history = model.history_.isel(iteration=slice(1, None))
    stages = (history.stage_seconds.median("iteration") / workers).to_series()
    product, whole = median(products), float(history.seconds.median())
    encoding = median(encodings) if encodings else None
    click.echo(
        json.dumps(
            {
                "n": n,
                "d": d,
                "m": m,
                "k": k,
                "inner_batch_size": inner_batch_size,
                "workers": workers,
                "scheduler": "LocalCluster" if cluster else "threads",
                "product_seconds": round(product, 3),
                "encoding_seconds": encoding and round(encoding, 3),
                "encoding_ratio": encoding and round(encoding / product, 3),
                "update_seconds": round(float(stages["update"]), 3),
                "iteration_seconds": round(whole, 3),
                "iteration_ratio": round(whole / product, 3),
                "stage_seconds_per_worker": {stage: round(seconds, 3) for stage, seconds in stages.items()},
                "products": [round(seconds, 3) for seconds in products],
                "iterations": [round(seconds, 3) for seconds in history.seconds.values.tolist()],
                "cpu": model.dictionary_.provenance["cpu"],
                "python": platform.python_version(),
                "versions": {name: version(name) for name in ("dbksvd-dask", "dask", "numba", "numpy")},
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
