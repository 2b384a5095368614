"""Peak memory of workers over a store ten times as large as what they may hold together, as JSON.

    python benchmarks/memory.py

The store is float16 zarr of few distinct chunks, hard-linked to the names of all others, so that it takes little disk.
A fit with `center=True`, which reads all of it, then walks over the first outer batches; and the codes of a part of the
samples are written. A thread of this process reads the resident memory and the status of every worker all the while.
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
from distributed import Client, Status

import dbksvd_dask as dbk

DISTINCT_CHUNKS = 64
SECONDS_BETWEEN_LOOKS = 0.02


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
    """Looks at the workers of a local cluster from outside, until it is closed."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._scheduler = client.cluster.scheduler
        self._done = threading.Event()
        self._pids = client.run(os.getpid)
        self._peaks = dict.fromkeys(self._pids.values(), 0)
        self._spilled = 0
        self._statuses: set[Status] = set()
        self._killed = False
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        """Begin to look."""
        self._start = perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Look no more."""
        self._seconds = perf_counter() - self._start
        self._done.set()
        self._thread.join()
        self._killed = self._pids != self._client.run(os.getpid)

    def _look(self) -> None:
        processes = {pid: psutil.Process(pid) for pid in self._peaks}
        while not self._done.wait(SECONDS_BETWEEN_LOOKS):
            for pid, process in processes.items():
                if process.is_running():
                    self._peaks[pid] = max(self._peaks[pid], process.memory_info().rss)
            for worker in list(self._scheduler.workers.values()):
                self._statuses.add(worker.status)
                self._spilled = max(self._spilled, worker.metrics.get("spilled_bytes", {}).get("disk", 0))

    def report(self) -> dict[str, Any]:
        """What was seen."""
        return {
            "seconds": round(self._seconds, 1),
            "peak_memory_mib": [mib(peak) for peak in self._peaks.values()],
            "spilled_mib": mib(self._spilled),
            "paused": Status.paused in self._statuses,
            "killed": self._killed,
        }


def mib(size: int) -> int:
    """So many bytes in MiB."""
    return round(size / 2**20)


@click.command()
@click.option("--n", default=9_000_000, help="Samples of the store.")
@click.option("--d", default=2304, help="Features.")
@click.option("--m", default=4096, help="Atoms.")
@click.option("--k", default=20, help="Nonzero coefficients.")
@click.option("--batch-size", default=46_216, help="Samples of an outer batch: what the plan advises for 65,536.")
@click.option("--rows-per-chunk", default=2048, help="Of the store.")
@click.option("--iterations", default=4)
@click.option("--workers", default=2, help="Processes.")
@click.option("--threads", default=1, help="Of each worker.")
@click.option("--memory-limit", default="2 GB", help="Of each worker.")
@click.option("--encode", default=500_000, help="Samples whose codes are written.")
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
    encode: int,
) -> None:
    """Fit and encode more than fits in memory."""
    with tempfile.TemporaryDirectory() as folder:
        write_embeddings(Path(folder) / "embeddings.zarr", n, d, rows_per_chunk)
        Y = dbk.open_embeddings(Path(folder) / "embeddings.zarr")
        with dbk.cluster.local(workers, threads, memory_limit) as client:
            model = dbk.DBKSVD(m, k, batch_size=batch_size, max_iter=iterations, center=True, random_state=0)
            plan = model.memory_plan(Y)
            advice_for_default = dbk.DBKSVD(m, k, center=True).memory_plan(Y).advice
            with Watch(client) as fitting:
                model.fit(Y)
            codes = model.dictionary_.encode(Y[:encode])
            with Watch(client) as encoding:
                codes.to_zarr(Path(folder) / "codes.zarr")
    history = model.history_
    click.echo(
        json.dumps(
            {
                "n": len(Y),
                "d": d,
                "m": m,
                "k": k,
                "batch_size": batch_size,
                "advice_for_65536": advice_for_default.splitlines(),
                "store_gb": round(Y.nbytes / 1e9, 1),
                "workers": workers,
                "threads": threads,
                "memory_limit_mib": mib(parse_bytes(memory_limit)),
                "may_hold_mib": plan.limit and mib(plan.limit),
                "planned_mib": mib(plan.per_worker),
                "parts_mib": {part: mib(size) for part, size in plan.worker.items()},
                "fits": plan.fits,
                "fit": fitting.report(),
                "history_peak_memory_mib": {
                    stage: mib(peak) for stage, peak in history.peak_memory.max("iteration").to_series().items()
                },
                "iteration_seconds": [round(seconds, 2) for seconds in history.seconds.values.tolist()],
                "encoded_samples": encode,
                "encoding": encoding.report(),
                "python": platform.python_version(),
                "versions": {name: version(name) for name in ("dbksvd-dask", "dask", "numpy", "zarr")},
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
