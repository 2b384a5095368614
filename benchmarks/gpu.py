"""How fast one GPU is, beside what it can do at most: Markdown rows for `README.md`.

    python benchmarks/gpu.py floors
    python benchmarks/gpu.py iteration
    python benchmarks/gpu.py fit --source generated
    python benchmarks/gpu.py batch
    python benchmarks/gpu.py encode
    python benchmarks/gpu.py tf32
    python benchmarks/gpu.py data-sheet  # floors computed from peak rates, without a GPU

One process without a cluster, on the first device. Samples are those of `iteration.py`, a power-law spectrum plus
noise, but drawn on the device; `tf32` takes real embeddings. Products are float32; `CUPY_TF32=1` before any command has
them in TF32, as long as CuPy reads it. Compiled kernels are made before anything is timed.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np
from gpu_floors import Rates, Sizes, fastest, floors, mean_steps, measure_memory, measure_sgemm, measure_upload
from gpu_rows import BLOCK, rows_made_by_tasks, rows_on_device, rows_on_host, write_store

import dbksvd_dask as dbk
from dbksvd_dask import metrics
from dbksvd_dask.device import check_gpu

STEPS_SAMPLES = 1024
"""Rows on which the steps of the pursuit are counted."""

GOAL_SECONDS = {(4096, 20): 0.15, (4096, 80): 0.4, (16384, 20): 0.5, (16384, 80): 1.2}
"""Of an iteration of 65,536 samples of 2,304 features, by (m, k)."""
GOALS = {"goal": "< 10 s", "paper": "8 min"}
"""Of 40 iterations over 2,621,440 samples with m = 4096 and k = 20."""
PAPER_SECONDS = {20: 185, 40: 292, 80: 536}
"""Of an iteration of 2^20 samples with m = 4096 in the paper, CPU and GPU, by k."""

SAMPLE_DATA = Path(__file__).parents[1] / "data" / "minilm-wikitext2.zarr"

sizes_m = click.option("--m", "ms", type=int, multiple=True, default=(4096, 16384), help="Atoms; repeat it.")
size_m = click.option("--m", default=4096, help="Atoms.")
size_d = click.option("--d", default=2304, help="Features.")


def sizes_k(*default: int) -> Callable:
    return click.option("--k", "ks", type=int, multiple=True, default=default, help="Nonzero coefficients; repeat it.")


@click.group()
def main() -> None:
    """Measure on one GPU."""


def begin() -> None:
    """Say what is measured on; without a GPU, end."""
    try:
        check_gpu()
    except (ImportError, OSError) as error:
        raise click.ClickException(f"this needs a GPU: {error}") from None
    import cupy

    runtime = cupy.cuda.runtime
    name = runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    versions = ", ".join(f"{name} {version(name)}" for name in ("numba-cuda", "dask", "dbksvd-dask"))
    products = "TF32" if os.environ.get("CUPY_TF32") == "1" else "float32"
    click.echo(
        f"{name}, driver {driver()}, CUDA {cuda_version(runtime.runtimeGetVersion())}, Python "
        f"{platform.python_version()}, CuPy {cupy.__version__}, {versions}; products in {products}\n"
    )


def driver() -> str:
    """Its version, or the newest CUDA that it takes where it does not tell."""
    import cupy

    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        told = subprocess.run(query, capture_output=True, text=True)
        if told.returncode == 0:
            return told.stdout.split()[0]
    return f"for CUDA {cuda_version(cupy.cuda.runtime.driverGetVersion())}"


def cuda_version(number: int) -> str:
    """13000 → 13.0."""
    return f"{number // 1000}.{number % 1000 // 10}"


def echo_head(*titles: str) -> None:
    click.echo(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")


def echo_row(*cells: object) -> None:
    click.echo(f"| {' | '.join(map(str, cells))} |")


def ms_of(seconds: float) -> str:
    """Milliseconds, to three digits or so."""
    return f"{1000 * seconds:.3g}" if seconds < 0.1 else f"{1000 * seconds:,.0f}"


def fitted(rows: Any, m: int, k: int, batch_size: int, iterations: int) -> dbk.DBKSVD:
    model = dbk.DBKSVD(m, k, batch_size=batch_size, max_iter=iterations, init="random", random_state=0)
    return model.fit(rows)


def compile_kernels(d: int, k: int, dtype: str = "float32") -> None:
    """A fit of few rows and atoms, which does not count."""
    fitted(rows_on_device(1024, d).astype(dtype), 256, k, batch_size=512, iterations=2)


def measured_rates(n: int, d: int, m: int, copied: int, repeats: int) -> Rates:
    return Rates(measure_sgemm(n, d, m, repeats), measure_memory(copied, repeats))


@main.command("floors")
@click.option("--n", default=BLOCK, help="Rows of the product.")
@size_d
@sizes_m
@click.option("--copied", default=2**30, help="Bytes of the copies.")
@click.option("--repeats", default=10, help="Of each, of which the fastest counts.")
def measure_floors(n: int, d: int, ms: tuple[int, ...], copied: int, repeats: int) -> None:
    """Rates of sgemm, of copies on the device, and of copies to it from pinned memory."""
    begin()
    echo_head("what", "rate")
    for m in ms:
        echo_row(f"product, {n:,} × {d:,} × {m:,}", f"{measure_sgemm(n, d, m, repeats) / 1e12:.1f} TFLOP/s")
    echo_row("copy on the device, bytes read and written", f"{measure_memory(copied, repeats) / 1e12:.2f} TB/s")
    echo_row("pinned memory of the host to the device", f"{measure_upload(copied, repeats) / 1e9:.1f} GB/s")


@main.command()
@click.option("--n", default=65536, help="Samples of the outer batch.")
@size_d
@sizes_m
@sizes_k(20, 80)
@click.option("--iterations", type=click.IntRange(2), default=8, help="Iterations; the first one does not count.")
@click.option("--copied", default=2**30, help="Bytes of the copies that the memory bandwidth is measured with.")
def iteration(n: int, d: int, ms: tuple[int, ...], ks: tuple[int, ...], iterations: int, copied: int) -> None:
    """Time an iteration with the data on the device beside its floor, the stages in a table of their own."""
    begin()
    rows = rows_on_device(n, d)
    compile_kernels(d, min(ks))
    stages = []
    echo_head(*TITLES, "iteration, ms", "times the floor without", "goal, ms", "most memory, GB")
    for m, k in product(ms, ks):
        rates = measured_rates(min(n, BLOCK), d, m, copied, repeats=5)
        model = fitted(rows, m, k, n, iterations)
        history = model.history_.isel(iteration=slice(1, None))
        whole = float(history.seconds.median())
        steps = steps_of(model, rows, k)
        sizes = Sizes(n, d, m, k)
        goal = GOAL_SECONDS.get((m, k)) if (n, d) == (65536, 2304) else None
        floor = sum(floors(sizes, steps, rates, cached=False).values())
        echo_row(
            *floor_cells(sizes, steps, rates),
            f"**{ms_of(whole)}**",
            f"{whole / floor:.2f}",
            "—" if goal is None else f"≤ {ms_of(goal)}",
            most_memory(history),
        )
        stages.append((sizes, floors(sizes, steps, rates, cached=False), history))
    click.echo()
    echo_stages(stages)


TITLES = "m", "k", "steps", "products, ms", "floor with caches, ms", "floor without, ms"


def floor_cells(sizes: Sizes, steps: float, rates: Rates) -> list[str]:
    """What a row of the table begins with."""
    least, most = (floors(sizes, steps, rates, cached=cached) for cached in (True, False))
    seconds = least["gram"] + least["product"], sum(least.values()), sum(most.values())
    return [f"{sizes.m:,}", f"{sizes.k}", f"{steps:.1f}", *map(ms_of, seconds)]


def steps_of(model: dbk.DBKSVD, rows: Any, k: int) -> float:
    """Steps of the pursuit with what was learned."""
    import cupy

    return mean_steps(rows[:STEPS_SAMPLES], cupy.asarray(model.components_), k)


def most_memory(history: Any) -> str:
    """GB that were taken on the device."""
    return f"{float(history.peak_memory.drop_sel(stage='wait').max()) / 1e9:.1f}"


def echo_stages(measured: list[tuple[Sizes, dict[str, float], Any]]) -> None:
    """Medians of the stages, each beside its floor, and what the iteration takes besides them."""
    names = ("read", "gram", "product", "pursuit", "residual", "statistics", "update")
    echo_head("m", "k", *(f"{name}, ms / floor" for name in names), "besides, ms")
    for sizes, floor, history in measured:
        seconds = history.stage_seconds.median("iteration").to_series()
        besides = float((history.seconds - history.stage_seconds.sum("stage")).median())
        cells = [f"{ms_of(seconds[name])} / {ms_of(floor[name])}" for name in names]
        echo_row(f"{sizes.m:,}", sizes.k, *cells, ms_of(besides))


@main.command("data-sheet")
@click.option("--sgemm", default=67.0, help="Peak of float32, TFLOP/s; that of an H200 SXM by default.")
@click.option("--memory", default=4.8, help="Peak of the memory, TB/s; that of an H200 SXM by default.")
@click.option("--n", default=65536, help="Samples of the outer batch.")
@size_d
@sizes_m
@sizes_k(20, 80)
def data_sheet(sgemm: float, memory: float, n: int, d: int, ms: tuple[int, ...], ks: tuple[int, ...]) -> None:
    """Compute the floors of an iteration from peak rates, with the fewest steps; nothing is measured."""
    echo_head(*TITLES)
    for m, k in product(ms, ks):
        echo_row(*floor_cells(Sizes(n, d, m, k), k, Rates(sgemm * 1e12, memory * 1e12)))


@main.command()
@click.option("--source", type=click.Choice(["generated", "float16", "float32"]), default="generated")
@click.option("--n", default=2_621_440, help="Samples.")
@size_d
@size_m
@click.option("--k", default=20, help="Nonzero coefficients.")
@click.option("--batch-size", default=65536, help="Samples of an outer batch.")
@click.option("--iterations", default=40)
def fit(source: str, n: int, d: int, m: int, k: int, batch_size: int, iterations: int) -> None:
    """Time the paper's full run on rows that tasks make on the device, or that are read from memory of the host."""
    begin()
    if source == "generated":
        rows: Any = rows_made_by_tasks(n, d)
    else:
        rows = dbk.open_embeddings(rows_on_host(n, d, source), device="cuda")
    compile_kernels(d, k, str(rows.dtype))
    start = perf_counter()
    model = dbk.DBKSVD(m, k, batch_size=batch_size, max_iter=iterations, random_state=0).fit(rows)
    seconds = perf_counter() - start
    waited = float(model.history_.stage_seconds.sel(stage="wait").sum())
    variance = float(model.history_.train_variance_explained[-1])
    echo_head("rows", "n", "m", "k", "iterations", "fit, s", "of it waiting for rows, s", "variance explained", *GOALS)
    cells = (f"{n:,}", f"{m:,}", k, iterations, f"**{seconds:.1f}**", f"{waited:.1f}", f"{variance:.3f}")
    as_in_the_paper = (n, d, m, k, iterations) == (2_621_440, 2304, 4096, 20, 40)
    echo_row(source, *cells, *(GOALS.values() if as_in_the_paper else "——"))


@main.command()
@click.option("--n", default=2**20, help="Samples of the outer batch.")
@size_d
@size_m
@sizes_k(20, 40, 80)
@click.option("--iterations", type=click.IntRange(2), default=4, help="Iterations; the first one does not count.")
def batch(n: int, d: int, m: int, ks: tuple[int, ...], iterations: int) -> None:
    """Time an iteration on one large outer batch beside the paper's."""
    begin()
    rows = rows_on_device(n, d)
    compile_kernels(d, min(ks))
    echo_head("n", "m", "k", "iteration, s", "most memory, GB", "paper, s", "paper / ours")
    for k in ks:
        history = fitted(rows, m, k, n, iterations).history_.isel(iteration=slice(1, None))
        seconds = float(history.seconds.median())
        paper = PAPER_SECONDS.get(k) if (n, d, m) == (2**20, 2304, 4096) else None
        ratio = "—" if paper is None else f"{paper / seconds:,.0f}"
        echo_row(f"{n:,}", f"{m:,}", k, f"**{seconds:.2f}**", most_memory(history), paper or "—", ratio)


@main.command()
@click.option("--n", default=2**18, help="Samples.")
@size_d
@click.option("--m", "ms", type=int, multiple=True, default=(4096,), help="Atoms; repeat it.")
@sizes_k(20, 80)
@click.option("--repeats", default=5, help="Of which the fastest counts.")
def encode(n: int, d: int, ms: tuple[int, ...], ks: tuple[int, ...], repeats: int) -> None:
    """Samples a second of `Dictionary.encode`, of the forward pass of a TopK autoencoder, and of a store to a store."""
    begin()
    torch_with_device()
    rows = rows_on_device(n, d)
    compile_kernels(d, min(ks))
    titles = "encode, on the device", "TopK autoencoder", "encode / TopK", "encode, store to store"
    echo_head("m", "k", *(f"{title}, samples/s" if "/" not in title else title for title in titles))
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "rows.zarr"
        write_store(store, rows)
        for m, k in product(ms, ks):
            dictionary = fitted(rows[: 4 * BLOCK], m, k, 4 * BLOCK, iterations=2).dictionary_
            ours = n / fastest(lambda D=dictionary: D.encode(rows).compute(), repeats)
            theirs = n / fastest(topk_forward(rows, m, k), repeats)
            stored = n / fastest(lambda D=dictionary: encode_store(D, store, Path(folder) / "codes.zarr"), repeats)
            rates = (f"**{ours:,.0f}**", f"{theirs:,.0f}", f"{ours / theirs:.2f}", f"{stored:,.0f}")
            echo_row(f"{m:,}", k, *rates)


def encode_store(dictionary: dbk.Dictionary, source: Path, target: Path) -> None:
    dictionary.encode(dbk.open_embeddings(source, device="cuda")).to_zarr(target, overwrite=True)


def torch_with_device() -> Any:
    try:
        import torch
    except ImportError as error:
        raise click.ClickException(
            f"the autoencoder is PyTorch's, which is missing ({error}): pip install torch"
        ) from None
    if not torch.cuda.is_available():
        raise click.ClickException("PyTorch finds no device: install its build for CUDA")
    return torch


def topk_forward(rows: Any, m: int, k: int) -> Callable[[], None]:
    """The forward pass of a TopK autoencoder of random weights up to its codes, in plain PyTorch, block by block."""
    torch = torch_with_device()
    device = torch.device("cuda")
    Y = torch.as_tensor(rows.get(), device=device)
    weights = torch.randn(m, Y.shape[1], device=device)
    bias, bias_in = torch.randn(m, device=device), torch.randn(Y.shape[1], device=device)

    @torch.inference_mode()
    def forward() -> None:
        for block in Y.split(BLOCK):
            values, _ = (torch.addmm(bias, block - bias_in, weights.T)).topk(k, dim=1, sorted=False)
            values.relu_()
        torch.cuda.synchronize()

    return forward


@main.command()
@click.option("--data", type=click.Path(exists=True, path_type=Path), default=SAMPLE_DATA, help="A store with `split`.")
@click.option("--m", default=1024, help="Atoms.")
@click.option("--k", default=20, help="Nonzero coefficients.")
@click.option("--batch-size", default=5120)
@click.option("--iterations", default=60)
def tf32(data: Path, m: int, k: int, batch_size: int, iterations: int) -> None:
    """What products in TF32 change: in the codes under one dictionary, and in a fit. Each runs in its own process."""
    begin()
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(("float32", "TF32")):
            arguments = map(str, ["codes", data, folder, name, m, k, batch_size, iterations])
            environment = os.environ | {"CUPY_TF32": str(number)}
            subprocess.run([sys.executable, __file__, *arguments], env=environment, check=True)
        exact, rounded = (np.load(Path(folder) / f"{name}.npz") for name in ("float32", "TF32"))
    others = (np.sort(exact["indices"], axis=1) != np.sort(rounded["indices"], axis=1)).any(axis=1)
    echo_head("held-out samples", "float32", "TF32")
    echo_row("variance explained under one dictionary", f"{exact['under_one']:.5f}", f"{rounded['under_one']:.5f}")
    echo_row("variance explained, each by its own fit", f"{exact['by_its_own']:.5f}", f"{rounded['by_its_own']:.5f}")
    echo_row("relative error, each by its own fit", f"{exact['error']:.5f}", f"{rounded['error']:.5f}")
    echo_row("share with another support under one dictionary", "", f"{others.mean():.5f}")


@main.command(hidden=True)
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("name")
@click.argument("m", type=int)
@click.argument("k", type=int)
@click.argument("batch_size", type=int)
@click.argument("iterations", type=int)
def codes(data: Path, folder: Path, name: str, m: int, k: int, batch_size: int, iterations: int) -> None:
    """What `tf32` compares, by the products that this process has; the first fit leaves the one dictionary."""
    Y = dbk.open_embeddings(data, device="cuda")
    train, held_out = (Y[(Y.split == split).values] for split in ("train", "validation"))
    model = dbk.DBKSVD(m, k, batch_size=batch_size, max_iter=iterations, center=True, random_state=0)
    model.fit(train, validation=held_out)
    if not (folder / "dictionary.zarr").exists():
        model.dictionary_.to_zarr(folder / "dictionary.zarr")
    dictionary = dbk.open_dictionary(folder / "dictionary.zarr")
    encoded = dictionary.encode(held_out).compute()
    rows = dbk.open_embeddings(data)[(Y.split == "validation").values].values.astype(np.float32)
    np.savez(
        folder / name,
        indices=encoded.indices,
        under_one=metrics.variance_explained(rows, dictionary.decode(encoded)),
        by_its_own=model.history_.validation_variance_explained.values[-1],
        error=model.history_.validation_relative_error.values[-1],
    )


if __name__ == "__main__":
    main()
