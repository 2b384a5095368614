"""Fits whose workers, drivers and hosts are lost at random moments, beside undisturbed ones.

    python benchmarks/reliability.py workers --fits 20
    python benchmarks/reliability.py drivers --drivers 50
    python benchmarks/reliability.py hosts

Each prints JSON. `hosts` needs Linux and root: its hosts are network namespaces, tied to a bridge.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median
from threading import Thread
from time import monotonic, sleep, time
from typing import Any, NamedTuple

import click
import numpy as np
from distributed import Client

from dbksvd_dask import DBKSVD, Callback, cluster
from dbksvd_dask.history import Iteration

OWN_TO_A_RUN = ["seconds", "stage_seconds", "peak_memory"]
"""Of the history; all else has to be the same."""

LIMIT = 5
"""Times the undisturbed seconds after which a fit counts as hanging."""


def write_embeddings(path: Path, n: int) -> None:
    rng = np.random.default_rng(0)
    np.save(path, rng.standard_normal((n, 32), dtype=np.float32) @ rng.standard_normal((32, 96), dtype=np.float32))


def unfitted(iterations: int, **parameters: Any) -> DBKSVD:
    return DBKSVD(384, 8, batch_size=16_384, max_iter=iterations, random_state=0, **parameters)


def same_bits(model: DBKSVD, undisturbed: DBKSVD) -> bool:
    """Whether the atoms and all figures of all iterations are equal."""
    histories = [one.history_.drop_vars(OWN_TO_A_RUN) for one in (model, undisturbed)]
    return np.array_equal(model.components_, undisturbed.components_) and histories[0].identical(histories[1])


@contextmanager
def killed_at_the_end(process: BaseProcess) -> Generator[None]:
    """No process is left behind, whatever happens here."""
    try:
        yield
    finally:
        process.kill()
        process.join()


@click.group()
def main() -> None:
    """See what lost workers, drivers and hosts cost."""


@main.command()
@click.option("--fits", default=20, help="So many.")
@click.option("--n", default=49_152, help="Samples.")
@click.option("--iterations", default=8, help="Of each fit.")
def workers(fits: int, n: int, iterations: int) -> None:
    """Kill every worker once at a random moment of each fit."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        write_embeddings(path, n)
        outcomes: list[dict[str, Any]] = []
        for seed in range(fits):
            n_workers = 2 + seed % 2
            with cluster.local(n_workers, 1) as client:
                start = monotonic()
                undisturbed = unfitted(iterations).fit(path, validation=path)
                usual = monotonic() - start
                outcomes.append({"seed": seed, "workers": n_workers, "undisturbed_seconds": round(usual, 2)})
                outcomes[-1] |= fit_with_killed_workers(client, path, undisturbed, usual, seed)
            click.echo(json.dumps(outcomes[-1]), err=True)
    slowdowns = [outcome["seconds"] / outcome["undisturbed_seconds"] for outcome in outcomes]
    summary = {
        "fits": fits,
        "workers_killed": sum(len(outcome["killed_after"]) for outcome in outcomes),
        "same_bits": sum(outcome["same_bits"] for outcome in outcomes),
        "hanging": sum(slowdown > LIMIT for slowdown in slowdowns),
        "times_undisturbed": {"median": round(median(slowdowns), 2), "most": round(max(slowdowns), 2)},
    }
    click.echo(json.dumps(summary | {"outcomes": outcomes}, indent=2))


def fit_with_killed_workers(client: Client, path: Path, undisturbed: DBKSVD, usual: float, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    pids = list(client.run(os.getpid).values())
    moments = sorted(rng.uniform(0, usual) for _ in pids)
    rng.shuffle(pids)
    start = monotonic()

    def kill() -> None:
        for moment, pid in zip(moments, pids, strict=True):
            sleep(max(0, start + moment - monotonic()))
            os.kill(pid, signal.SIGKILL)

    killing = Thread(target=kill)
    killing.start()
    run = unfitted(len(undisturbed.history_.iteration)).fit_async(path, validation=path)
    model = run.wait(timeout=LIMIT * usual)
    seconds = monotonic() - start
    killing.join()
    return {
        "killed_after": [round(moment, 2) for moment in moments],
        "seconds": round(seconds, 2),
        "same_bits": same_bits(model, undisturbed),
    }


@main.command()
@click.option("--drivers", "n_drivers", default=50, help="So many.")
@click.option("--n", default=32_768, help="Samples.")
@click.option("--iterations", default=10, help="Of each fit.")
def drivers(n_drivers: int, n: int, iterations: int) -> None:
    """Kill drivers at random moments, every third while it writes a checkpoint, and resume what they did."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        write_embeddings(path, n)
        undisturbed = unfitted(iterations).fit(path)
        usual = seconds_to_fit(path, Path(folder) / "usual", iterations)
        outcomes = []
        for seed in range(n_drivers):
            outcomes.append(killed_and_resumed(path, Path(folder) / f"{seed}.zarr", iterations, usual, seed))
            model = DBKSVD.resume(Path(folder) / f"{seed}.zarr", path)  # at its end: as it is
            outcomes[-1]["same_bits"] = same_bits(model, undisturbed)
            click.echo(json.dumps(outcomes[-1]), err=True)
    summary = {
        "drivers": n_drivers,
        "undisturbed_seconds": round(usual, 2),
        "killed_while_writing": sum(outcome["while_writing"] for outcome in outcomes),
        "killed_before_a_checkpoint": sum(outcome["resumed_at"] == 0 for outcome in outcomes),
        "same_bits": sum(outcome["same_bits"] for outcome in outcomes),
        "most_iterations_lost": max(outcome["lost"] for outcome in outcomes),
    }
    click.echo(json.dumps(summary | {"outcomes": outcomes}, indent=2))


def seconds_to_fit(path: Path, checkpoint: Path, iterations: int) -> float:
    """Seconds from the first line to the last."""
    process = driver(path, checkpoint, iterations)
    with killed_at_the_end(process):
        process.join()
    lines = told(checkpoint)
    return lines[-1]["time"] - lines[0]["time"]


def driver(path: Path, checkpoint: Path, iterations: int, on_cluster: bool = False) -> BaseProcess:
    """A new process, in which all is imported already."""
    process = get_context("forkserver").Process(target=drive, args=(path, checkpoint, iterations, None, on_cluster))
    process.start()
    return process


def killed_and_resumed(path: Path, checkpoint: Path, iterations: int, usual: float, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    iteration, moment = rng.randrange(iterations), rng.uniform(0, usual / iterations)
    on_cluster = seed % 10 == 9
    process = driver(path, checkpoint, iterations, on_cluster)
    with killed_at_the_end(process):
        while process.is_alive() and not any(line["n_done"] == iteration for line in told(checkpoint)):
            sleep(0.001)
        sleep(moment)
        while seed % 3 == 0 and process.is_alive() and not is_writing(checkpoint):
            pass
    while_writing, n_before = is_writing(checkpoint), len(told(checkpoint))
    n_done = told(checkpoint)[-1]["n_done"]
    process = driver(path, checkpoint, iterations, on_cluster)
    with killed_at_the_end(process):
        process.join()
    resumed_at = told(checkpoint)[n_before]["n_done"]
    return {
        "seed": seed,
        "cluster": on_cluster,
        "killed_in_iteration": iteration,
        "after_seconds": round(moment, 2),
        "while_writing": while_writing,
        "n_done": n_done,
        "resumed_at": resumed_at,
        "lost": max(n_done - resumed_at, 0),
    }


def is_writing(checkpoint: Path) -> bool:
    """Whether something lies there that is not a whole checkpoint yet."""
    return any(checkpoint.glob(".*")) or any(checkpoint.parent.glob(f".{checkpoint.name}*"))


@main.command()
@click.option("--n", default=32_768, help="Samples.")
@click.option("--iterations", default=10, help="Of the fit.")
def hosts(n: int, iterations: int) -> None:
    """Cut one of two hosts off while a fit uses both."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path, checkpoint = Path(folder) / "rows.npy", Path(folder) / "fit.zarr"
        write_embeddings(path, n)
        undisturbed = unfitted(iterations).fit(path)
        here, there = stack.enter_context(namespaces(2))
        address = f"tcp://{here.address}:8786"
        dask = [sys.executable, "-m", "dask"]
        variables = os.environ | cluster.environment()
        for command in [
            [*here.inside, *dask, "scheduler", "--host", here.address, "--port", "8786", "--no-dashboard"],
            [*here.inside, *dask, "worker", address, "--host", here.address, "--nthreads", "1", "--no-dashboard"],
            [*there.inside, *dask, "worker", address, "--host", there.address, "--nthreads", "1", "--no-dashboard"],
        ]:
            process = subprocess.Popen(command, env=variables, start_new_session=True, stderr=subprocess.DEVNULL)
            stack.callback(os.killpg, process.pid, signal.SIGKILL)
        command = [
            *here.inside,
            sys.executable,
            __file__,
            "drive",
            str(path),
            str(checkpoint),
            str(iterations),
            address,
        ]
        driving = stack.enter_context(subprocess.Popen(command))
        stack.callback(driving.kill)
        while driving.poll() is None and not any(line["n_done"] == 2 for line in told(checkpoint)):
            sleep(0.01)
        there.cut_off()
        cut_at = time()
        driving.wait()
        last = told(checkpoint)[-1]
        model = DBKSVD.resume(checkpoint, path)  # at its end: as it is
    summary = {
        "iterations": iterations,
        "usual_seconds_per_iteration": round(float(model.history_.seconds[:2].median()), 2),
        "noticed_after_seconds": [round(when - cut_at, 1) for when in last["lost_workers_at"]],
        "ended_after_seconds": round(last["time"] - cut_at, 1),
        "same_bits": same_bits(model, undisturbed),
        "settings": {
            name: value for name, value in cluster.environment().items() if "TIMEOUT" in name or "TTL" in name
        },
    }
    click.echo(json.dumps(summary, indent=2))


class Host(NamedTuple):
    """A network namespace."""

    inside: list[str]
    """What to write before a command, to run it there."""
    address: str
    cut_off: Callable[[], Any]


@contextmanager
def namespaces(count: int) -> Generator[list[Host]]:
    """Network namespaces, tied to a bridge in one more of them."""
    switch, *names = [f"dbksvd-{os.getpid()}-{i}" for i in range(count + 1)]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    def make_host(i: int, name: str) -> Host:
        port, address = f"port{i}", f"10.77.0.{i + 1}"
        ip("link", "add", port, "netns", switch, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("-n", switch, "link", "set", port, "master", "bridge0", "up")
        ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            ip("-n", name, "link", "set", link, "up")
        # Both ends stay up: nobody is told, as where a cable breaks behind the next switch.
        cut_off = partial(ip, "-n", switch, "link", "set", port, "nomaster")
        return Host(["ip", "netns", "exec", name], address, cut_off)

    with ExitStack() as stack:
        for name in (switch, *names):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
        ip("-n", switch, "link", "add", "bridge0", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge0", "up")
        yield [make_host(i, name) for i, name in enumerate(names)]


class Telling(Callback):
    """Writes into a file how many iterations are done."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    def begin(self, model: DBKSVD, n_iterations: int) -> None:
        """From where it goes on."""
        tell(self.checkpoint, model)

    def __call__(self, model: DBKSVD, iteration: Iteration) -> None:
        """How far it is."""
        tell(self.checkpoint, model)


def tell(checkpoint: Path, model: DBKSVD, **facts: Any) -> None:
    with checkpoint.with_suffix(".told").open("a") as file:
        file.write(json.dumps({"n_done": model.n_iter_, "time": time()} | facts) + "\n")


def told(checkpoint: Path) -> list[dict[str, Any]]:
    """What `drive` has written."""
    path = checkpoint.with_suffix(".told")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@main.command("drive", hidden=True)
@click.argument("path", type=Path)
@click.argument("checkpoint", type=Path)
@click.argument("iterations", type=int)
@click.argument("address")
def drive_there(path: Path, checkpoint: Path, iterations: int, address: str) -> None:
    """Fit on a cluster: what `hosts` watches."""
    drive(path, checkpoint, iterations, address)


def drive(path: Path, checkpoint: Path, iterations: int, address: str | None = None, on_cluster: bool = False) -> None:
    """Fit, or go on with a fit, and tell how far it is: what `drivers` kills."""
    with ExitStack() as stack:
        client = None
        if address is not None:
            client = stack.enter_context(Client(address, timeout=30))
            client.wait_for_workers(2, timeout=30)
        elif on_cluster:
            client = stack.enter_context(cluster.local(2, 1))
        try:
            model = DBKSVD.resume(checkpoint, path, callbacks=[Telling(checkpoint)])
        except FileNotFoundError:  # the first time, or killed before the first checkpoint
            model = unfitted(iterations, checkpoint=checkpoint, callbacks=[Telling(checkpoint)]).fit(path)
        tell(checkpoint, model, lost_workers_at=times_of_losses(client) if client else [])


def times_of_losses(client: Client) -> list[float]:
    return [when for when, event in client.get_events("all") if event["action"] == "remove-worker"]


if __name__ == "__main__":
    main()
