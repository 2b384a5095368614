"""How a fit scales over workers: time, reading ahead, memory over iterations, and graphs for many workers, as JSON.

    taskset -c 0,1 python benchmarks/scaling.py workers 1:32768 2:65536    # weak scaling
    taskset -c 0,1 python benchmarks/scaling.py workers 2:32768 8:32768    # more workers than cores
    taskset -c 0,1 python benchmarks/scaling.py reading
    python benchmarks/scaling.py flat
    python benchmarks/scaling.py graphs

Runs of what is compared alternate. Of their iterations both the median and the fastest are given: the latter is what
hardly changes when something else is computed on the same machine.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import click
import dask
import dask.array as da
import numpy as np
import psutil
from dask._expr import FinalizeCompute
from dask.base import collections_to_expr
from dask.core import flatten
from distributed import Client, Scheduler, futures_of, wait
from distributed.core import Status
from distributed.protocol.serialize import Serialized, serialize, to_serialize
from distributed.scheduler import ClientState, WorkerState
from iteration import write_embeddings

from dbksvd_dask import DBKSVD, open_embeddings
from dbksvd_dask import cluster as dbk_cluster
from dbksvd_dask.batches import OuterBatches
from dbksvd_dask.encoding import share_dictionary
from dbksvd_dask.iteration import Update, iterate
from dbksvd_dask.kernels.pursuit import Pursuit

ROWS_PER_WORKER = 8192


@click.group()
def main() -> None:
    """Measure how a fit scales over workers."""


@contextmanager
def local_workers(workers: int) -> Iterator[Client | None]:
    """Client of single-threaded processes; none for 0, where two threads of this process compute."""
    if workers == 0:
        with dask.config.set(num_workers=2):
            yield None
        return
    with dbk_cluster.local(n_workers=workers, threads_per_worker=1) as client:
        yield client


def fitted(embeddings: Any, batch_size: int, m: int, k: int, iterations: int) -> DBKSVD:
    """A fit whose iterations all have the same number of rows."""
    model = DBKSVD(m, k, batch_size=batch_size, max_iter=iterations, init="random", random_state=0)
    return model.fit(embeddings)


def iteration_seconds(model: DBKSVD) -> list[float]:
    """Of all iterations but the first, which may compile, and the last, during which nothing is read ahead."""
    return model.history_.seconds.values[1:-1].tolist()


def summary(seconds: list[float]) -> dict[str, float]:
    """Their median and the fastest."""
    return {"median": round(median(seconds), 3), "fastest": round(min(seconds), 3)}


@main.command()
@click.argument("cases", nargs=-1, required=True, metavar="WORKERS:ROWS…")
@click.option("--d", default=1024, help="Features.")
@click.option("--m", default=4096, help="Atoms.")
@click.option("--k", default=20, help="Nonzero coefficients.")
@click.option("--iterations", default=5, help="Iterations of a run; the first and the last do not count.")
@click.option("--runs", default=3, help="Runs of each case.")
@click.option("--pin", is_flag=True, help="Give a case no more cores than it has workers.")
def workers(cases: tuple[str, ...], d: int, m: int, k: int, iterations: int, runs: int, pin: bool) -> None:
    """Time one iteration with so many single-threaded workers on an outer batch of so many rows."""
    seconds: dict[str, list[float]] = defaultdict(list)
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "embeddings.npy"
        write_embeddings(path, max(int(case.split(":")[1]) for case in cases), d)
        for _ in range(runs):
            for case in cases:
                n_workers, n = map(int, case.split(":"))
                os.sched_setaffinity(0, cores[:n_workers] if pin else cores)
                with local_workers(n_workers):
                    seconds[case] += iteration_seconds(fitted(open_embeddings(path)[:n], n, m, k, iterations))
                os.sched_setaffinity(0, cores)
    times = {case: summary(measured) for case, measured in seconds.items()}
    first = times[cases[0]]
    ratios = {case: {how: round(found[how] / first[how], 3) for how in found} for case, found in times.items()}
    report({"d": d, "m": m, "k": k, "pin": pin, "iteration_seconds": times, "to_the_first": ratios})


class SlowRows:
    """Rows of a file each of whose chunks takes so many seconds more to read."""

    def __init__(self, path: Path, latency: float) -> None:
        self.path, self.latency = path, latency
        mapped = np.load(path, mmap_mode="r")
        self.shape, self.dtype, self.ndim = mapped.shape, mapped.dtype, 2

    def __getitem__(self, index: Any) -> np.ndarray:
        """Wait, then read."""
        time.sleep(self.latency)
        return np.array(np.load(self.path, mmap_mode="r")[index])


@main.command()
@click.option("--n", default=32768, help="Samples of the outer batch.")
@click.option("--d", default=1024, help="Features.")
@click.option("--m", default=4096, help="Atoms.")
@click.option("--k", default=20, help="Nonzero coefficients.")
@click.option("--latency", default=0.7, help="Seconds that a chunk of 8192 rows takes to read in the slow store.")
@click.option("--runs", default=3, help="Runs of each case.")
def reading(n: int, d: int, m: int, k: int, latency: float, runs: int) -> None:
    """Time an iteration with a fast and a slow store, and reading alone: how much of it is hidden."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "embeddings.npy"
        write_embeddings(path, n, d)
        for n_workers in (0, 2):
            seconds: dict[str, list[float]] = defaultdict(list)
            for _ in range(runs):
                for case, chunk_seconds in {"fast": 0.0, "slow": latency}.items():
                    rows = da.from_array(SlowRows(path, chunk_seconds), (ROWS_PER_WORKER, d), asarray=False)
                    with local_workers(n_workers):
                        seconds[case] += iteration_seconds(fitted(rows, n, m, k, 5))
                        seconds[f"{case}_reading_alone"] += reading_seconds(rows)
            best = {case: min(measured) for case, measured in seconds.items()}
            hidden = best["fast"] + best["slow_reading_alone"] - best["slow"]
            results["2 processes" if n_workers else "threads"] = {
                **{case: summary(measured) for case, measured in seconds.items()},
                "hidden_share": round(hidden / min(best["fast"], best["slow_reading_alone"]), 3),
            }
    report({"n": n, "d": d, "m": m, "k": k, "latency_per_chunk": latency, **results})


def reading_seconds(rows: da.Array) -> list[float]:
    """Seconds of reading a batch while nothing is computed, twice."""
    seconds = []
    for iteration in range(2):
        start = time.perf_counter()
        chunks = dask.persist(*OuterBatches(rows, len(rows), None, seed=0).read(iteration))
        if futures := futures_of(chunks):  # without a cluster they are read by now
            wait(futures)
        seconds.append(time.perf_counter() - start)
        del chunks
    return seconds


@main.command()
@click.option("--iterations", default=200, help="Iterations of the fit.")
def flat(iterations: int) -> None:
    """Sample what scheduler, workers and driver hold over many iterations of a small fit, each in its own process."""
    settings = os.environ | dbk_cluster.environment()
    with tempfile.TemporaryDirectory() as folder, started_cluster(Path(folder), settings) as (client, processes):
        path = Path(folder) / "embeddings.npy"
        np.save(path, np.random.default_rng(0).standard_normal((8192, 32), dtype=np.float32))
        samples = []

        def sample(model: DBKSVD, iteration: Any) -> None:
            number = iteration.iteration + 1
            if number % 20 == 0:
                memory = {name: process.memory_info().rss / 2**20 for name, process in processes.items()}
                known = client.run_on_scheduler(scheduler_state)
                samples.append({"iteration": number, "MiB": {name: round(m, 1) for name, m in memory.items()}, **known})

        DBKSVD(64, 4, batch_size=4096, max_iter=iterations, random_state=0, callbacks=[sample]).fit(path)
    growth = {name: round(samples[-1]["MiB"][name] / samples[0]["MiB"][name] - 1, 4) for name in processes}
    report({"iterations": iterations, "growth_since_the_20th": growth, "samples": samples})


def scheduler_state(dask_scheduler: Scheduler) -> dict[str, int]:
    """Counts of what a scheduler knows."""
    spans = dask_scheduler.extensions["spans"].spans
    return {
        "tasks": len(dask_scheduler.tasks),
        "groups": len(dask_scheduler.task_groups),
        "prefixes": len(dask_scheduler.task_prefixes),
        "spans": len(spans),
        "groups_of_spans": sum(len(span.groups) for span in spans.values()),
    }


@contextmanager
def started_cluster(folder: Path, environment: dict[str, str]) -> Iterator[tuple[Client, dict[str, psutil.Process]]]:
    """A scheduler and two workers in processes of their own, and a client of theirs."""
    place = folder / "scheduler.json"
    dask_command = [sys.executable, "-m", "dask"]
    commands = [
        ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(place)],
        *[["worker", "--scheduler-file", str(place), "--nthreads", "1", "--no-nanny", "--no-dashboard"]] * 2,
    ]
    started = []
    try:
        for command in commands:
            started.append(subprocess.Popen([*dask_command, *command], env=environment, stderr=subprocess.DEVNULL))
            while not place.exists():
                time.sleep(0.1)
        with Client(scheduler_file=str(place)) as client:
            client.wait_for_workers(2)
            names = ["scheduler", "worker 1", "worker 2"]
            processes = {name: psutil.Process(one.pid) for name, one in zip(names, started, strict=True)}
            yield client, processes | {"driver": psutil.Process()}
    finally:
        for one in started:
            one.terminate()
            one.wait()


@main.command()
@click.argument("counts", nargs=-1, type=int)
@click.option("--d", default=1024, help="Features.")
@click.option("--m", default=4096, help="Atoms.")
@click.option("--inner-batch-size", type=int, help="Atoms updated simultaneously; all by default.")
def graphs(counts: tuple[int, ...], d: int, m: int, inner_batch_size: int | None) -> None:
    """Count tasks and bytes of an iteration's graph for so many workers, and time a scheduler with it."""
    results = [graph_facts(n_workers, d, m, inner_batch_size) for n_workers in counts or (2, 8, 64, 512)]
    report({"d": d, "m": m, "inner_batch_size": inner_batch_size, "graphs": results})


def graph_facts(n_workers: int, d: int, m: int, inner_batch_size: int | None) -> dict[str, Any]:
    """Facts about the graph of one iteration, reading included, with 8192 rows for each worker."""
    addresses = [f"tcp://10.0.{i // 256}.{i % 256}:40000" for i in range(n_workers)]
    rows = da.zeros((ROWS_PER_WORKER * n_workers, d), chunks=(ROWS_PER_WORKER, d), dtype=np.float32)
    atoms = np.zeros((m, d), np.float32)
    pursuit = Pursuit(20)
    with patch(
        "dbksvd_dask.graph.active_client", lambda: SimpleNamespace(nthreads=lambda: dict.fromkeys(addresses, 1))
    ):
        start = time.perf_counter()
        chunks = OuterBatches(rows, len(rows), None, seed=0).read(0)
        tasks = iterate(chunks, share_dictionary(atoms, None, pursuit), m, pursuit, Update(inner_batch_size), [0])
        built = time.perf_counter()
    graph = FinalizeCompute(collections_to_expr(list(tasks))).optimize()
    packed = Serialized(*serialize(to_serialize(graph)))
    sent = time.perf_counter()
    size = sum(memoryview(frame).nbytes for frame in packed.frames)
    keys = set(flatten(graph.__dask_keys__()))
    with dask.config.set({"distributed.scheduler.active-memory-manager.start": False}):
        arrival, transitions, n_tasks = asyncio.run(schedule(packed, keys, addresses))
    return {
        "workers": n_workers,
        "tasks": n_tasks,
        "MB": round(size / 1e6, 2),
        "MB_without_the_dictionary": round((size - atoms.nbytes) / 1e6, 2),
        "building_seconds": round(built - start, 3),
        "packing_seconds": round(sent - built, 3),
        "scheduler_seconds_on_arrival": round(arrival, 3),
        "scheduler_seconds_while_computing": round(transitions, 3),
        "scheduler_ms_per_task": round(1000 * (arrival + transitions) / n_tasks, 3),
    }


async def schedule(packed: Serialized, keys: set[str], addresses: list[str]) -> tuple[float, float, int]:
    """Let a scheduler take a graph, and workers that do nothing say at once that they have done what it tells them.

    Returns
    -------
    arrival, transitions : float
        Seconds that the scheduler took to take in the graph, and to deal out all of its tasks.
    n_tasks : int
    """
    outbox: deque[tuple[str, dict[str, Any]]] = deque()
    async with Scheduler(dashboard=False, port=0, host="127.0.0.1") as scheduler:
        for address in addresses:
            join(scheduler, address, outbox)
        scheduler.clients["driver"] = ClientState("driver")
        start = time.perf_counter()
        await scheduler.update_graph("driver", packed, keys, {"collections": []}, None, None)
        arrival = time.perf_counter() - start
        n_tasks = len(scheduler.tasks)
        start = time.perf_counter()
        while outbox:
            address, message = outbox.popleft()
            if message["op"] == "compute-task":
                finish(scheduler, address, message)
        transitions = time.perf_counter() - start
        assert all(scheduler.tasks[key].state == "memory" for key in keys)
        for address in addresses:
            del scheduler.stream_comms[address]
        scheduler.workers.clear()
    return arrival, transitions, n_tasks


def join(scheduler: Scheduler, address: str, outbox: deque[tuple[str, dict[str, Any]]]) -> None:
    """Make a worker known to the scheduler, whose messages go to the outbox."""
    worker = WorkerState(
        address=address,
        status=Status.running,
        pid=0,
        name=address,
        nthreads=1,
        memory_limit=2**34,
        local_directory="",
        nanny=None,
        server_id=address,
        scheduler=scheduler,
    )
    scheduler.workers[address] = worker
    scheduler.running.add(worker)
    scheduler.total_nthreads += 1
    scheduler.host_info[address.split(":")[1].strip("/")] = {"addresses": {address}, "nthreads": 1}
    scheduler.check_idle_saturated(worker)
    scheduler.extensions["stealing"].add_worker(scheduler, address)
    scheduler.stream_comms[address] = SimpleNamespace(
        send=lambda *messages: outbox.extend((address, message) for message in messages)
    )


def finish(scheduler: Scheduler, address: str, message: dict[str, Any]) -> None:
    """Say that a task is done."""
    now = time.time()
    scheduler.handle_task_finished(
        message["key"],
        address,
        "finished",
        run_id=message["run_id"],
        metadata={},
        nbytes=1000,
        type=b"",
        typename="object",
        startstops=({"action": "compute", "start": now, "stop": now + 0.1},),
        thread=0,
        status="OK",
    )


def report(facts: dict[str, Any]) -> None:
    """Print the facts."""
    click.echo(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
