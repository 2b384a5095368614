"""Embeddings in Arrow streams and files, and Feather: read where they lie, batch by batch where they are compressed."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import IO, Any

import numpy as np

from dbksvd_dask.embeddings.arrow_messages import Batch, read_messages
from dbksvd_dask.embeddings.stored import StoredEmbeddings, StoredTable, needed, read_elements
from dbksvd_dask.embeddings.tables import Column, OtherColumn, choose_column, columns_of, coordinate_name


@dataclass(frozen=True)
class _Rows:
    """What a record batch has of a column."""

    path: str
    first: int
    """Its first sample, counted from that of the first batch."""
    n_samples: int
    lengths: tuple[int, ...]
    """Elements of the array, and of those inside of it."""
    buffers: tuple[tuple[int, int], ...]
    codec: str | None


@dataclass(frozen=True)
class ArrowRows(StoredTable):
    """A column of record batches, in one file or several."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    column: Column
    sizes: tuple[int, ...]
    """Of its lists, outermost first."""
    batches: tuple[_Rows, ...]
    first_row: int = 0

    def paths(self) -> list[str]:
        """The files in which the batches are."""
        return list(dict.fromkeys(batch.path for batch in self.batches))

    def boundaries(self, rows: int) -> list[int]:
        """Every so many rows; where batches are compressed, between them, as each is decoded whole."""
        total = self.shape[0]
        if not any(batch.codec for batch in self.batches):
            return [*range(0, total, rows), total]
        cuts = [0]
        for batch in self.batches[1:]:
            if batch.first + batch.n_samples - cuts[-1] > rows and batch.first > cuts[-1]:
                cuts.append(batch.first)
        return [*cuts, total]

    def part(self, start: int, stop: int) -> ArrowRows:
        """The description of these rows alone, with the batches they are in."""
        begin = bisect_right(self.batches, start, key=lambda batch: batch.first) - 1
        end = bisect_right(self.batches, stop - 1, key=lambda batch: batch.first)
        batches = tuple(replace(batch, first=batch.first - start) for batch in self.batches[begin:end])
        shape = (stop - start, *self.shape[1:])
        return replace(self, shape=shape, batches=batches, first_row=self.first_row + start)

    def _read(self, start: int, stop: int) -> np.ndarray:
        block = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for batch in self.batches:
            first, last = max(start, batch.first), min(stop, batch.first + batch.n_samples)
            if first < last:
                with open(batch.path, "rb") as stream:
                    block[first - start : last - start] = self._read_batch(stream, batch, first, last)
        return block

    def _read_batch(self, stream: IO[bytes], batch: _Rows, first: int, last: int) -> np.ndarray:
        """The samples from ``first`` up to ``last``, which all are in this batch."""
        first, last = first - batch.first, last - batch.first
        outer = self.sizes[: len(self.sizes) - (self.ndim - 1)]  # the windows, if there are any
        start, stop = (first // outer[0], -(-last // outer[0])) if outer else (first, last)
        buffers = iter(zip(batch.buffers, _items(self.column), _needed(batch, self.column), strict=True))
        for depth, size in enumerate(self.sizes):
            next(buffers)  # which elements are null: none
            begin, end = start * size, stop * size
            if self.column.sizes[depth] is None:
                offsets = _elements(stream, batch, *next(buffers), start, stop + 1)
                self._check_lengths(offsets, size, batch, start, depth)
                begin, end = int(offsets[0]), int(offsets[-1])
            if depth < len(outer):
                begin, end = begin + first - start * size, begin + last - start * size
            start, stop = begin, end
        next(buffers)
        return _elements(stream, batch, *next(buffers), start, stop).reshape(last - first, *self.shape[1:])

    def _check_lengths(self, offsets: np.ndarray, size: int, batch: _Rows, start: int, depth: int) -> None:
        lengths = np.diff(offsets)
        if (lengths != size).any() or offsets[0] < 0:
            wrong = int(np.argmax(lengths != size))
            what = "window" if depth < len(self.sizes) - (self.ndim - 1) else "list"
            raise ValueError(
                f"{what} {start + wrong} of a batch of {os.path.basename(batch.path)} has {lengths[wrong]} elements, "
                f"the first has {size}"
            )


def arrow_embeddings(path: str, name: str | None) -> StoredEmbeddings:
    """Choose a column of an Arrow stream or file, and describe it."""
    return embeddings_of([path], name, path)


def embeddings_of(paths: list[str], name: str | None, where: str) -> StoredEmbeddings:
    """The same of several files that are one table."""
    pa = needed("pyarrow", "formats", where)
    tables: list[tuple[str, dict[str, Column | OtherColumn], list[Batch]]] = []
    for path in paths:
        message, batches = read_messages(path)
        try:
            columns = columns_of(_schema(pa, message, path), path)
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise ValueError(f"{path} is not a readable Arrow file: {error}") from error
        tables.append((path, columns, batches))
        if columns != tables[0][1]:
            here, there = _in_words(columns), _in_words(tables[0][1])
            raise ValueError(f"{path} has other columns than {tables[0][0]}: {here}, not {there}")
    columns = tables[0][1]
    chosen = choose_column(columns, name, where)
    where_named = f"{where} ({chosen.name!r})"
    rows = _rows(tables, chosen, len(chosen.sizes) - 1, where_named)
    if rows is None:
        raise ValueError(f"{where_named} is empty: it has no rows")
    window = rows.sizes[0] if len(rows.sizes) == 2 else None
    coords = {}
    for column in columns.values():
        if isinstance(column, Column) and column is not chosen and column.dtype.kind in "iu":
            try:
                found = _rows(tables, column, len(column.sizes), where)
            except ValueError:  # nulls, or lists of several lengths: it does not tell something of each sample
                continue
            called = coordinate_name(column.name, column.dtype, found and found.sizes, rows.sizes[:-1])
            if found is not None and called is not None:
                coords[called] = found
    return StoredEmbeddings(rows, chosen.name, window, coords)


def _schema(pa: Any, message: bytes | None, path: str) -> Any:
    if message is not None:
        return pa.ipc.read_schema(pa.py_buffer(message))
    with pa.OSFile(path) as stream, pa.ipc.open_file(stream) as file:
        return file.schema


def _in_words(columns: dict[str, Column | OtherColumn]) -> str:
    sizes = {name: column.sizes if isinstance(column, Column) else () for name, column in columns.items()}
    return ", ".join(f"{name!r} ({column.dtype} in lists of {sizes[name]})" for name, column in columns.items())


def _rows(
    tables: list[tuple[str, dict[str, Column | OtherColumn], list[Batch]]], column: Column, n_outer: int, where: str
) -> ArrowRows | None:
    """The rows of a column in all of the files; ``n_outer`` of its lists are windows of samples."""
    found: list[_Rows] = []
    sizes: tuple[int, ...] | None = None
    first = 0
    for path, columns, batches in tables:
        for batch in batches:
            if batch.n_rows == 0:
                continue
            rows = _rows_of(path, batch, columns, column, first)
            if sizes is None:
                sizes = _sizes(rows, column)
            if any(inside < n * size for (n, inside), size in zip(pairwise(rows.lengths), sizes, strict=True)):
                raise ValueError(
                    f"{path}: not all the lists of the column {column.name!r} are as long as the first, {sizes}: "
                    "embeddings are of one width"
                )
            n_samples = batch.n_rows * (sizes[0] if n_outer else 1)
            found.append(replace(rows, n_samples=n_samples))
            first += n_samples
    if sizes is None:
        return None
    return ArrowRows(where, (first, *sizes[n_outer:]), column.dtype, column, sizes, tuple(found))


def _rows_of(path: str, batch: Batch, columns: dict[str, Column | OtherColumn], column: Column, first: int) -> _Rows:
    node = buffer = view = 0
    for name, other in columns.items():
        if name == column.name:
            break
        if other.n_buffers is None:
            raise ValueError(
                f"{path}: the column {name!r}, of type {other.dtype}, lies before {column.name!r} and cannot be "
                "skipped: write the table anew without it, or with it behind"
            )
        node, buffer = node + other.n_nodes, buffer + other.n_buffers
        if isinstance(other, OtherColumn) and other.n_views:
            buffer += sum(batch.view_buffers[view : view + other.n_views])
            view += other.n_views
    nodes = batch.nodes[node : node + column.n_nodes]
    buffers = batch.buffers[buffer : buffer + column.n_buffers]
    if len(nodes) < column.n_nodes or len(buffers) < column.n_buffers or nodes[0][0] != batch.n_rows:
        raise ValueError(f"{path} is damaged: a batch does not have what its schema says of {column.name!r}")
    if any(n_null for _, n_null in nodes):
        raise ValueError(
            f"{path}: there are nulls in the column {column.name!r}, in a batch that begins at sample {first}: leave "
            "those rows out"
        )
    rows = _Rows(path, first, 0, tuple(length for length, _ in nodes), buffers, batch.codec)
    if batch.codec is None and rows.lengths[-1] * column.dtype.itemsize > buffers[-1][1]:
        raise ValueError(
            f"{path} is damaged: a buffer of {buffers[-1][1]} bytes is to hold {rows.lengths[-1]} elements"
        )
    return rows


def _sizes(rows: _Rows, column: Column) -> tuple[int, ...]:
    """Lengths of the first list, and the first one in it."""
    sizes: list[int] = []
    buffers = iter(zip(rows.buffers, _items(column), _needed(rows, column), strict=True))
    start = 0
    with open(rows.path, "rb") as stream:
        for size in column.sizes:
            next(buffers)
            if size is None:
                try:
                    begin, end = (int(offset) for offset in _elements(stream, rows, *next(buffers), start, start + 2))
                except (ValueError, OSError) as error:
                    raise ValueError(f"{rows.path} is damaged where its first list is: {error}") from error
                start, size = begin, end - begin
            else:
                start *= size
            if size < 0:
                raise ValueError(f"{rows.path} is damaged: its first list has {size} elements")
            sizes.append(size)
    return tuple(sizes)


def _items(column: Column) -> Iterable[np.dtype]:
    """What each of the buffers of a column consists of."""
    for size, wide in zip(column.sizes, column.wide, strict=True):
        yield np.dtype("u1")
        if size is None:
            yield np.dtype("<i8" if wide else "<i4")
    yield np.dtype("u1")
    yield column.dtype.newbyteorder("<")


def _needed(rows: _Rows, column: Column) -> Iterable[int]:
    """How many elements each of the buffers of a column has, where none is null."""
    for size, length in zip(column.sizes, rows.lengths, strict=False):
        yield 0
        if size is None:
            yield length + 1
    yield 0
    yield rows.lengths[-1]


def _elements(
    stream: IO[bytes], rows: _Rows, buffer: tuple[int, int], dtype: np.dtype, total: int, start: int, stop: int
) -> np.ndarray:
    """Elements of a buffer that has ``total`` of them."""
    offset, length = buffer
    name = os.path.basename(rows.path)
    if not 0 <= start <= stop <= total:
        raise ValueError(f"{name} is damaged: elements {start} to {stop} of {total}")
    if rows.codec is None or length == 0:
        if total * dtype.itemsize > length:
            raise ValueError(f"{name} is damaged: a buffer of {length} bytes is to hold {total} elements")
        return read_elements(stream, offset + start * dtype.itemsize, (stop - start,), dtype)
    compressed = read_elements(stream, offset, (length,), np.dtype("u1"))
    size = int(compressed[:8].view("<i8")[0])
    if size == -1:  # as it is, which was shorter
        plain: Any = compressed[8:]
    elif total * dtype.itemsize <= size <= 2 * total * dtype.itemsize + 64:
        plain = needed("pyarrow", "formats", rows.path).decompress(compressed[8:], size, codec=rows.codec)
    else:
        raise ValueError(f"{name} is damaged: a buffer of {size} bytes is to hold {total} elements")
    return np.frombuffer(plain, dtype, stop - start, start * dtype.itemsize)
