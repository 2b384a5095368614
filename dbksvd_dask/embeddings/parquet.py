"""Embeddings in Parquet files: lists of one length, read page by page."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dbksvd_dask.embeddings.stored import MOST_CHUNKS_WHOLE, StoredEmbeddings, StoredTable, needed
from dbksvd_dask.embeddings.tables import Column, choose_column, columns_of, coordinate_name
from dbksvd_dask.warning import warn_caller

_BATCH_BYTES = 2**20


@dataclass(frozen=True)
class _Group:
    """A row group."""

    index: int
    first: int
    """Its first sample, counted from that of the first group."""
    n_samples: int


@dataclass(frozen=True)
class ParquetRows(StoredTable):
    """A column of row groups."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    name: str
    sizes: tuple[int, ...]
    """Of its lists, outermost first."""
    groups: tuple[_Group, ...]
    first_row: int = 0

    def boundaries(self, rows: int) -> list[int]:
        """Between row groups, as they are decoded from their beginning, or inside those that are too large for that."""
        cuts, most = [0], MOST_CHUNKS_WHOLE * rows
        for group in self.groups:
            stop = group.first + group.n_samples
            if stop - cuts[-1] > rows and group.first > cuts[-1]:
                cuts.append(group.first)
            if group.n_samples > most:
                cuts += range(group.first + most, stop, most)
        largest = max(group.n_samples for group in self.groups)
        if largest > most:
            warn_caller(
                f"{self.path} has row groups of up to {largest} rows, of which a part is only read with all before it, "
                f"again for each {most}: write it with smaller ones, e.g. row_group_size={rows} in pyarrow"
            )
        return [*cuts, self.shape[0]]

    def part(self, start: int, stop: int) -> ParquetRows:
        """The description of these rows alone, with the row groups they are in."""
        begin = bisect_right(self.groups, start, key=lambda group: group.first) - 1
        end = bisect_right(self.groups, stop - 1, key=lambda group: group.first)
        groups = tuple(replace(group, first=group.first - start) for group in self.groups[begin:end])
        shape = (stop - start, *self.shape[1:])
        return replace(self, shape=shape, groups=groups, first_row=self.first_row + start)

    def _read(self, start: int, stop: int) -> np.ndarray:
        block = np.empty((stop - start, *self.shape[1:]), self.dtype)
        with _open(self.path) as file:
            for group in self.groups:
                end = min(stop, group.first + group.n_samples)
                if max(start, group.first) < end:
                    self._read_group(file, group, block, start, end)
        return block

    def _read_group(self, file: Any, group: _Group, block: np.ndarray, start: int, stop: int) -> None:
        """Put the samples of a row group that are in ``block``, up to ``stop``, there."""
        at = group.first
        for batch in _batches(file, group.index, self.name, self.sizes, self.dtype):
            samples = self._samples(batch)
            first, last = max(start, at), min(stop, at + len(samples))
            if first < last:
                block[first - start : last - start] = samples[first - at : last - at]
            at += len(samples)
            if at >= stop:
                return
        raise EOFError(f"row group {group.index} has no more than {at - group.first} rows")

    def _samples(self, lists: Any) -> np.ndarray:
        """The elements of lists, which all must be of the same lengths."""
        lists = getattr(lists, "storage", lists)
        for size in self.sizes:
            lengths = lists.value_lengths().to_numpy(zero_copy_only=False) if len(lists) else np.empty(0)
            if lists.null_count or (lengths != size).any():
                wrong = lengths[lengths != size]
                found = "null" if lists.null_count else f"of {wrong[0]:g} elements"
                raise ValueError(f"a list of the column {self.name!r} is {found}, where the first has {size}")
            lists = lists.flatten()
            lists = getattr(lists, "storage", lists)
        if lists.null_count:
            raise ValueError(f"there are nulls in the column {self.name!r}")
        return lists.to_numpy(zero_copy_only=False).reshape(-1, *self.shape[1:])


def parquet_embeddings(path: str, name: str | None) -> StoredEmbeddings:
    """Choose a column of a Parquet file, and describe it."""
    pa = needed("pyarrow", "formats", path)
    try:
        with _open(path) as file:
            columns = columns_of(file.schema_arrow, path)
            counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            chosen = choose_column(columns, name, path)
            if not any(counts):
                raise ValueError(f"{path} ({chosen.name!r}) is empty: it has no rows")
            sizes = _sizes(file, chosen, counts)
            if all(sizes) and not _are_whole(file, chosen, sizes):
                raise ValueError(
                    f"{path}: in the column {chosen.name!r} there are nulls, or lists that are not as long as the "
                    f"first, {sizes}: embeddings are of one width"
                )
            coords = {}
            for column in columns.values():
                if isinstance(column, Column) and column is not chosen:
                    found = _sizes(file, column, counts)
                    called = coordinate_name(column.name, column.dtype, found, sizes[:-1])
                    if called is not None and _are_whole(file, column, found):
                        coords[called] = _rows(path, column, found, len(found), counts)
    except (pa.ArrowException, OSError, UnicodeError, IndexError, KeyError, StopIteration) as error:
        raise ValueError(
            f"{path} is not a readable Parquet file: {error}; was it still being written or copied?"
        ) from error
    window = sizes[0] if len(sizes) == 2 else None
    return StoredEmbeddings(_rows(path, chosen, sizes, len(sizes) - 1, counts), chosen.name, window, coords)


def _open(path: str) -> Any:
    """Open without mapping it, and without reading whole row groups ahead."""
    parquet = needed("pyarrow.parquet", "formats", path)
    return parquet.ParquetFile(path, memory_map=False, pre_buffer=False, buffer_size=_BATCH_BYTES)


def _batches(file: Any, group: int, name: str, sizes: tuple[int, ...], dtype: np.dtype) -> Iterator[Any]:
    rows = max(1, _BATCH_BYTES // max(1, dtype.itemsize * math.prod(sizes)))
    for batch in file.iter_batches(rows, row_groups=[group], columns=[name], use_threads=False):
        yield batch.column(name)


def _rows(path: str, column: Column, sizes: tuple[int, ...], n_outer: int, counts: list[int]) -> ParquetRows:
    """Describe a column; ``n_outer`` of its lists are windows of samples."""
    groups, first = [], 0
    for index, count in enumerate(counts):
        n_samples = count * (sizes[0] if n_outer else 1)
        if n_samples:
            groups.append(_Group(index, first, n_samples))
        first += n_samples
    return ParquetRows(path, (first, *sizes[n_outer:]), column.dtype, column.name, sizes, tuple(groups))


def _sizes(file: Any, column: Column, counts: list[int]) -> tuple[int, ...]:
    """Lengths of the first list, and the first one in it."""
    if None not in column.sizes:
        return tuple(size for size in column.sizes if size is not None)
    group = next(i for i, count in enumerate(counts) if count)
    lists = next(file.iter_batches(1, row_groups=[group], columns=[column.name], use_threads=False)).column(column.name)
    sizes = []
    for _ in column.sizes:
        lists = getattr(lists, "storage", lists)
        sizes.append(lists.value_lengths()[0].as_py() or 0 if len(lists) else 0)
        lists = lists.flatten()
    return tuple(sizes)


def _are_whole(file: Any, column: Column, sizes: tuple[int, ...]) -> bool:
    """Whether the numbers of elements, and of nulls among them, are those of lists of these lengths, where known."""
    paths = [file.schema.column(i).path for i in range(len(file.schema))]
    leaves = [i for i, path in enumerate(paths) if path == column.name or path.startswith(f"{column.name}.")]
    for group in (file.metadata.row_group(i) for i in range(file.num_row_groups)):
        described = group.column(leaves[0])
        known = described.statistics is not None and described.statistics.has_null_count
        if described.num_values != group.num_rows * math.prod(sizes) or (known and described.statistics.null_count):
            return len(leaves) > 1  # of which column it is said is then not clear
    return True
