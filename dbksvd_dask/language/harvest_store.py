"""The zarr store of a harvest: written in random order from the files over which its rows are scattered."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from zarr.codecs import ZstdCodec

from dbksvd_dask.embeddings.checks import BFLOAT16
from dbksvd_dask.embeddings.chunking import CHUNK_BYTES
from dbksvd_dask.embeddings.shuffled import Scattered, permuted
from dbksvd_dask.language.forward_passes import CONTEXTS
from dbksvd_dask.language.unfinished import Unfinished
from dbksvd_dask.language.windows import Cut

MARK = "harvested_by"
"""Attribute of the store that says what has written it."""

_COORDINATES = {
    "document": "which of the texts the token is from",
    "context": "row of context_tokens the token is in",
    "position": "column of context_tokens the token is in",
    "token_id": "the token, a label of vocabulary",
}
_CONTEXTS_AT_ONCE = 2**12
_THREADS = 4


def is_harvest(path: Path) -> bool:
    """Whether `harvest` has written what is at a path."""
    try:
        return MARK in zarr.open_group(path, mode="r").attrs
    except Exception:  # whatever lies there is not ours
        return False


def write_harvest(
    rows: Scattered, cutting: Cut, unfinished: Unfinished, most_rows: int, attributes: Mapping[str, Any]
) -> None:
    """Write the store into the folder of the unfinished harvest, going on behind the files that are in it already.

    Parameters
    ----------
    rows : Scattered
        All rows of the harvest.
    cutting : Cut
        How its windows were made.
    unfinished : Unfinished
        Where its contexts and its progress are.
    most_rows : int
        Rows in memory at a time.
    attributes : mapping
        Of the store.
    """
    from tqdm.auto import tqdm

    progress, n_rows = unfinished.progress, sum(rows.sizes)
    path = unfinished.folder / "store"
    if progress.n_files == 0:
        _create(path, rows, cutting, unfinished, attributes)
    for draft in path.rglob("*.partial"):  # of the chunks that zarr wrote when it was killed
        draft.unlink()
    group = zarr.open_group(path, mode="r+")
    arrays = {name: group[name] for name in rows.dtype.names or ()}
    bar = tqdm(total=n_rows, initial=progress.n_rows, unit="token", unit_scale=True, desc="shuffle", disable=None)
    start, last = progress.n_rows, progress.n_files
    # Chunks of zeros, too: where one is missing, the store is damaged.
    with zarr.config.set({"array.write_empty_chunks": True}), bar, ThreadPoolExecutor(_THREADS) as threads:
        for file, some, order in permuted(rows, most_rows, first=progress.n_files):
            if file > last:
                _written(unfinished, rows, file)
                last = file
            cuts = _cuts(start, start + len(order), arrays["embeddings"].chunks[0])
            for done in threads.map(partial(_write, arrays, some, order, start), cuts):
                bar.update(done)
            start += len(order)
            del some, order  # before the next ones are read
    _written(unfinished, rows, len(rows.sizes))


def _written(unfinished: Unfinished, rows: Scattered, n_files: int) -> None:
    before = unfinished.progress.n_files
    unfinished.note(n_files=n_files)
    for file in range(before, n_files):
        rows.path(file).unlink(missing_ok=True)


def _cuts(start: int, stop: int, rows_per_chunk: int) -> list[tuple[int, int]]:
    """Where rows belong to one chunk, so that no two threads write to one."""
    inner = range(-(-(start + 1) // rows_per_chunk) * rows_per_chunk, stop, rows_per_chunk)
    return list(zip([start, *inner], [*inner, stop], strict=True))


def _write(
    arrays: Mapping[str, zarr.Array], rows: np.ndarray, order: np.ndarray, offset: int, cut: tuple[int, int]
) -> int:
    start, stop = cut
    chosen = order[start - offset : stop - offset]
    for name, array in arrays.items():
        values = rows[name][chosen]
        if values.dtype == np.uint16:
            values = values.view(BFLOAT16)
        array[start:stop] = values.astype(array.dtype)
    return stop - start


def _create(path: Path, rows: Scattered, cutting: Cut, unfinished: Unfinished, attributes: Mapping[str, Any]) -> None:
    """Create the store with all but its rows."""
    n_rows, n_contexts = sum(rows.sizes), unfinished.progress.n_contexts
    n_features = cutting.model.n_features
    columns = cutting.columns.stop - cutting.columns.start
    dtype = np.dtype("f4" if rows.dtype["embeddings"].base == np.uint16 else rows.dtype["embeddings"].base)
    rows_per_chunk = max(1, CHUNK_BYTES // (n_features * dtype.itemsize))
    rows_per_chunk = 1 << (rows_per_chunk.bit_length() - 1)  # a power of two: tasks of as many rows hold whole chunks
    position = np.int16 if columns <= np.iinfo(np.int16).max else np.int32

    def later(shape: tuple[int, ...], dtype: np.dtype | type, rows_per_chunk: int = rows_per_chunk) -> da.Array:
        return da.zeros(shape, dtype=dtype, chunks=(rows_per_chunk, *shape[1:]))

    vocabulary = _tokens_that_occur(unfinished.folder / CONTEXTS)
    texts = cutting.model.tokenizer.convert_ids_to_tokens(vocabulary.tolist())
    embeddings = later((n_rows, n_features), dtype)
    contexts = later((n_contexts, columns), np.int32, _CONTEXTS_AT_ONCE)
    tokens = np.array(texts, np.dtypes.StringDType())
    dataset = xr.Dataset(
        {
            "embeddings": (("sample", "feature"), embeddings, {"long_name": "hidden state of the token"}),
            "context_tokens": (
                ("context_window", "window_position"),
                contexts,
                {"long_name": "token ids of a window of text; −1 where it is shorter"},
            ),
            "vocabulary": (("token",), tokens, {"long_name": "the token as a string"}),
        },
        coords={
            name: ("sample", later((n_rows,), position if name == "position" else np.int32), {"long_name": text})
            for name, text in _COORDINATES.items()
        }
        | {"token": ("token", vocabulary, {"long_name": "token id"})},
        attrs=dict(attributes),
    )
    encoding: dict[str, dict] = {str(name): {"compressors": [ZstdCodec(checksum=True)]} for name in dataset.variables}
    encoding["embeddings"]["_FillValue"] = None  # they are finite: xarray need not look for missing ones
    with warnings.catch_warnings():
        # Not in the zarr 3 specification yet; but without it xarray warns at every opening.
        warnings.filterwarnings("ignore", "Consolidated metadata")
        dataset.to_zarr(path, mode="w", zarr_format=3, consolidated=True, compute=False, encoding=encoding)
    stored = zarr.open_group(path, mode="r+")["context_tokens"]
    for start in range(0, n_contexts, _CONTEXTS_AT_ONCE):
        some = _read_contexts(unfinished.folder / CONTEXTS, start * columns, _CONTEXTS_AT_ONCE * columns)
        stored[start : start + _CONTEXTS_AT_ONCE] = some.reshape(-1, columns)[: n_contexts - start]


def _tokens_that_occur(path: Path) -> np.ndarray:
    found = np.empty(0, np.int32)
    step = 2**22
    for start in range(0, os.path.getsize(path) // 4, step):
        found = np.union1d(found, _read_contexts(path, start, step))
    return found[found >= 0]


def _read_contexts(path: Path, start: int, count: int) -> np.ndarray:
    return np.fromfile(path, np.int32, count, offset=start * 4)
