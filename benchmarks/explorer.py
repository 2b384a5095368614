"""How long the atom explorer takes: to make its index, and to answer a click, as JSON.

    python benchmarks/explorer.py
    python benchmarks/explorer.py --d 2304 --n 10000000

The codes are random: usage falls like a power of the atom's rank, as it does in dictionaries of language models. They
are written to a real store, in shuffled order and with the coordinates of tokens in contexts.
"""

import json
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from tempfile import TemporaryDirectory
from time import perf_counter

import click
import dask
import dask.array as da
import numpy as np
import xarray as xr

from dbksvd_dask import Dictionary, SparseCodes, open_codes

CONTEXT_LENGTH, N_TOKENS, ROWS_PER_CHUNK = 126, 30_000, 16_384


def random_block(shape: tuple[int, int], m: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and values of some samples."""
    rng = np.random.default_rng(seed)
    weights = (np.arange(m) + 20.0) ** -0.8
    indices = np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(shape)).astype(np.int32)
    indices = np.sort(indices, axis=1)
    indices[:, 1:][indices[:, 1:] == indices[:, :-1]] = -1  # drawn twice: an empty slot, which come last
    indices = np.take_along_axis(indices, np.argsort(indices < 0, axis=1, kind="stable"), axis=1)
    values = rng.laplace(size=shape).astype(np.float32)
    return indices, np.where(indices < 0, np.float32(0), values)


def random_codes(n: int, m: int, k: int) -> SparseCodes:
    """Codes that are made chunk by chunk as they are written."""
    sizes = [min(ROWS_PER_CHUNK, n - start) for start in range(0, n, ROWS_PER_CHUNK)]
    blocks = [dask.delayed(random_block, nout=2)((size, k), m, seed) for seed, size in enumerate(sizes)]
    indices, values = (
        da.concatenate([da.from_delayed(b[i], (s, k), dtype) for b, s in zip(blocks, sizes, strict=True)])
        for i, dtype in enumerate((np.int32, np.float32))
    )
    rng = np.random.default_rng(0)
    place = rng.permutation(n)
    coords = {
        "context": (place // CONTEXT_LENGTH).astype(np.int32),
        "position": (place % CONTEXT_LENGTH).astype(np.int16),
        "document": (place // 5000).astype(np.int32),
        "token_id": rng.zipf(1.3, n).clip(max=N_TOKENS - 1).astype(np.int32),
    }
    return SparseCodes(indices, values, m, {name: xr.DataArray(c, dims="sample") for name, c in coords.items()})


def text(n: int) -> xr.Dataset:
    """Contexts of random tokens, with their vocabulary."""
    shape = (-(-n // CONTEXT_LENGTH), CONTEXT_LENGTH)
    tokens = np.random.default_rng(1).zipf(1.3, shape).clip(max=N_TOKENS - 1).astype(np.int32)
    return xr.Dataset(
        {
            "context_tokens": (("context_window", "window_position"), tokens),
            "vocabulary": ("token", np.array([f"token{i}" for i in range(N_TOKENS)], dtype=np.dtypes.StringDType())),
        }
    )


def most_memory() -> float:
    """MiB that this process has had at most."""
    return getrusage(RUSAGE_SELF).ru_maxrss / 2**10


@click.command()
@click.option("--n", default=1_000_000, help="Samples.")
@click.option("--m", default=16_384, help="Atoms.")
@click.option("--d", default=384, help="Features.")
@click.option("--k", default=20, help="Nonzero coefficients.")
@click.option("--clicks", default=200, help="Atoms that are chosen.")
@click.option("--workers", default=2, help="Threads.")
@click.option("--folder", help="Keep the codes here, to use them again.")
def main(n: int, m: int, d: int, k: int, clicks: int, workers: int, folder: str | None) -> None:
    """Explore random codes."""
    rng = np.random.default_rng(2)
    atoms = rng.standard_normal((m, d), dtype=np.float32)
    D = Dictionary(atoms / np.linalg.norm(atoms, axis=1, keepdims=True), k)
    with TemporaryDirectory() as temporary, dask.config.set(num_workers=workers):
        path = Path(folder or temporary) / f"codes-{n}-{m}-{k}.zarr"
        tokens = Path(folder or temporary) / f"tokens-{n}.zarr"
        if not path.exists():
            random_codes(n, m, k).to_zarr(path)
            text(n).to_zarr(tokens, consolidated=False)
        before = most_memory()
        seconds = []
        for _ in range(2):
            begin = perf_counter()
            explorer = D.explore(open_codes(path), tokens)
            seconds.append(perf_counter() - begin)
        index = path.with_name(path.name.removesuffix(".zarr") + ".atoms.zarr")
        size = sum(file.stat().st_size for file in index.rglob("*") if file.is_file())
        answers = []
        for atom in [0, *rng.choice(m, clicks - 1)]:
            begin = perf_counter()
            explorer.select(int(atom))
            answers.append(perf_counter() - begin)
        begin = perf_counter()
        explorer.search("token17")
        search = perf_counter() - begin
        figures = {
            **{"n": n, "m": m, "d": d, "k": k},
            "index_seconds": round(seconds[0], 2),
            "opening_seconds": round(seconds[1], 2),
            "index_MiB": round(size / 2**20, 1),
            "first_click_seconds": round(answers[0], 3),
            "click_seconds_median": round(float(np.median(answers)), 4),
            "click_seconds_worst": round(max(answers), 4),
            "first_search_seconds": round(search, 3),
            "MiB_before": round(before),
            "MiB_at_most": round(most_memory()),
        }
        click.echo(json.dumps(figures))


if __name__ == "__main__":
    main()
