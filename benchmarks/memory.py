"""Peak memory of workers over a store ten times as large as what they may hold together, as JSON.

    python benchmarks/memory.py --n 9000000 --d 2304 --m 4096 --k 20 --batch-size 65536

The store is float16 zarr of few distinct chunks, hard-linked to the names of all others, so that it takes little disk.
A fit with `center=True`, which reads all of it, then walks over the first outer batches; with `--encode` the codes of
all samples are written, too. A thread of this process reads the resident memory and the status of every worker all the
while.
"""

import json
import os
import platform
import tempfile
import threading
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import click
import numpy as np
import psutil  # type: ignore[import-untyped]
import zarr
from dask.utils import parse_bytes
from distributed import Client, LocalCluster, Status

from dbksvd_dask import DBKSVD, open_embeddings

DISTINCT_CHUNKS = 64
SECONDS_BETWEEN_LOOKS = 0.05


def write_embeddings(path: Path, n: int, d: int, rows_per_chunk: int) -> None:
    """Rows of a power-law spectrum plus noise, as a zarr array whose chunks repeat."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((512, d), dtype=np.float32) / np.sqrt(np.arange(1, 513, dtype=np.float32))[:, None]
    n_chunks = n // rows_per_chunk
    shape = n_chunks * rows_per_chunk, d
    rows = zarr.create_array(path, shape=shape, chunks=(rows_per_chunk, d), dtype="float16", compressors=None)
    for chunk in range(min(DISTINCT_CHUNKS, n_chunks)):
        block = rng.standard_normal((rows_per_chunk, 512), dtype=np.float32) @ directions
        block += rng.standard_normal(block.shape, dtype=np.float32)
        rows[chunk * rows_per_chunk : (chunk + 1) * rows_per_chunk] = block
    for chunk in range(DISTINCT_CHUNKS, n_chunks):
        (path / f"c/{chunk}").mkdir()
        os.link(path / f"c/{chunk % DISTINCT_CHUNKS}/0", path / f"c/{chunk}/0")


class Watch:
    """Looks at the workers of a cluster from outside, until it is closed."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._scheduler = cluster.scheduler
        self._done = threading.Event()
        self.peaks: dict[int, int] = {}
        self.spilled = 0
        self.statuses: set[str] = set()
        self.restarted = False
        self._pids = {worker.name: worker.pid for worker in cluster.workers.values()}
        self._cluster = cluster
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Look no more."""
        self._done.set()
        self._thread.join()
        self.restarted = self._pids != {worker.name: worker.pid for worker in self._cluster.workers.values()}

    def _look(self) -> None:
        processes = {pid: psutil.Process(pid) for pid in self._pids.values()}
        while not self._done.wait(SECONDS_BETWEEN_LOOKS):
            for pid, process in processes.items():
                if process.is_running():
                    self.peaks[pid] = max(self.peaks.get(pid, 0), process.memory_info().rss)
            for worker in list(self._scheduler.workers.values()):
                self.statuses.add(worker.status.name)
                self.spilled = max(self.spilled, worker.metrics.get("spilled_bytes", {}).get("disk", 0))

    def report(self) -> dict[str, Any]:
        """What was seen."""
        return {
            "peak_memory_mib": {name: round(self.peaks[pid] / 2**20) for name, pid in self._pids.items()},
            "spilled_mib": round(self.spilled / 2**20),
            "paused": Status.paused.name in self.statuses,
            "killed": self.restarted,
        }


@click.command()
@click.option("--n", default=9_000_000, help="Samples of the store.")
@click.option("--d", default=2304, help="Features.")
@click.option("--m", default=4096, help="Atoms.")
@click.option("--k", default=20, help="Nonzero coefficients.")
@click.option("--batch-size", default=65536, help="Samples of an outer batch.")
@click.option("--rows-per-chunk", default=2048, help="Of the store.")
@click.option("--iterations", default=4)
@click.option("--workers", default=2, help="Processes.")
@click.option("--threads", default=1, help="Of each worker.")
@click.option("--memory-limit", default="2 GB", help="Of each worker.")
@click.option("--encode", is_flag=True, help="Write the codes of all samples, too.")
def main(
    n: int,
    d: int,
    m: int,
    k: int,
    batch_size: int,
    rows_per_chunk: int,
    iterations: int,
    workers: int,
    threads: int,
    memory_limit: str,
    encode: bool,
) -> None:
    """Fit and encode more than fits in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path, codes_path = Path(folder) / "embeddings.zarr", Path(folder) / "codes.zarr"
        write_embeddings(path, n, d, rows_per_chunk)
        Y = open_embeddings(path)
        options = {"n_workers": workers, "threads_per_worker": threads, "memory_limit": memory_limit}
        with LocalCluster(**options, dashboard_address=":0") as cluster, Client(cluster):
            model = DBKSVD(m, k, batch_size=batch_size, max_iter=iterations, center=True, random_state=0)
            plan = model.memory_plan(Y)
            with Watch(cluster) as fitting:
                start = perf_counter()
                model.fit(Y)
                fit_seconds = perf_counter() - start
            encoding = encode_seconds = None
            if encode:
                with Watch(cluster) as watch:
                    start = perf_counter()
                    model.dictionary_.encode(Y).to_zarr(codes_path)
                    encode_seconds = round(perf_counter() - start, 1)
                encoding = watch.report()
    history = model.history_
    click.echo(
        json.dumps(
            {
                "n": len(Y),
                "d": d,
                "m": m,
                "k": k,
                "batch_size": batch_size,
                "store_gb": round(Y.nbytes / 1e9, 1),
                "workers": workers,
                "threads": threads,
                "memory_limit_mib": round(parse_bytes(memory_limit) / 2**20),
                "planned_mib": round(plan.per_worker / 2**20),
                "fits": plan.fits,
                "fit_seconds": round(fit_seconds, 1),
                "fit": fitting.report(),
                "history_peak_memory_mib": {
                    stage: round(peak / 2**20)
                    for stage, peak in history.peak_memory.max("iteration").to_series().items()
                },
                "iterations": [round(seconds, 2) for seconds in history.seconds.values.tolist()],
                "encode_seconds": encode_seconds,
                "encode": encoding,
                "python": platform.python_version(),
                "versions": {name: version(name) for name in ("dbksvd-dask", "dask", "numpy", "zarr")},
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
