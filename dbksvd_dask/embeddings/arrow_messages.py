"""The messages of Arrow streams and files: where in the file each buffer of a column lies.

pyarrow reads whole record batches, which may be larger than memory, or else maps the file, which ends the process when
the file is cut off meanwhile. The messages say where everything is, so that a task can read its rows alone.

References
----------
Apache Arrow, *Columnar format*, "Serialization and interprocess communication"; FlatBuffers, *Internals*.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

_CONTINUATION = b"\xff\xff\xff\xff"
_MAGIC, _FEATHER_1 = b"ARROW1", b"FEA1"
_SCHEMA, _RECORD_BATCH = 1, 3
_CODECS = ("lz4", "zstd")
_SMALLEST_FILE = 8 + 4 + len(_MAGIC)
"""What there is in any: the mark and what fills it up, the length of the footer, the mark."""


@dataclass(frozen=True)
class Batch:
    """A record batch: what its message says of it."""

    n_rows: int
    nodes: tuple[tuple[int, int], ...]
    """Of each array and each array inside of it: number of elements, and how many are null."""
    buffers: tuple[tuple[int, int], ...]
    """Of each buffer: where in the file it begins, and how many bytes it has."""
    codec: str | None
    """What buffers are compressed with."""
    view_buffers: tuple[int, ...]
    """How many buffers each array of views has beside the usual ones."""


def read_messages(path: str) -> tuple[bytes | None, list[Batch]]:
    """The schema of an Arrow stream as a message of its own, which a file has none of, and the record batches.

    Raises
    ------
    ValueError
        If it is neither, or cut off.
    """
    size = os.path.getsize(path)
    batches: list[Batch] = []
    schema = None
    with open(path, "rb") as stream:
        is_file = _is_file(stream, path, size)
        n_rows = 0
        try:
            for kind, message, body in _blocks(stream, path, size) if is_file else _messages(stream, size):
                if kind == _SCHEMA:
                    _check_byte_order(message, _table(message, _root(message), 2), path)
                    schema = struct.pack("<4si", _CONTINUATION, len(message)) + message
                elif kind == _RECORD_BATCH:
                    batches.append(_record_batch(message, body))
                    n_rows += batches[-1].n_rows
        except EOFError as error:
            raise ValueError(
                f"{path} is cut off after {n_rows} rows: {error}; was it still being written or copied?"
            ) from error
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is damaged after {n_rows} rows: {error}") from error
    if schema is None and not is_file:
        raise ValueError(f"{path} is not a readable Arrow file: it has no schema")
    return schema, batches


def _is_file(stream: IO[bytes], path: str, size: int) -> bool:
    """Whether it is a file, with a footer, rather than a stream; raises ValueError where it is neither."""
    begin = stream.read(8)
    if begin[:4] == _FEATHER_1:
        raise ValueError(f"{path} is of version 1 of Feather: write it anew, with pyarrow.feather.write_feather")
    if begin[:6] == _MAGIC:
        stream.seek(max(0, size - len(_MAGIC)))
        if size < _SMALLEST_FILE or stream.read() != _MAGIC:
            raise ValueError(f"{path} is cut off: its end mark is missing; was it still being written or copied?")
        return True
    if begin[:4] != _CONTINUATION:
        what = "it is empty" if not begin else f"it begins with {begin[:6]!r}"
        raise ValueError(
            f"{path} is not a readable Arrow stream or file: {what}; was it still being written or copied?"
        )
    return False


def _blocks(stream: IO[bytes], path: str, size: int) -> Iterator[tuple[int, bytes, range]]:
    """Of each record batch that the footer of a file lists: as `_messages`, which may not be found one by one."""
    end = size - len(_MAGIC) - 4
    stream.seek(end)
    length = struct.unpack("<i", stream.read(4))[0]
    if not 0 < length <= end:
        raise IndexError(f"it has a footer of {length} bytes")
    stream.seek(end - length)
    footer = stream.read(length)
    _check_byte_order(footer, _table(footer, _root(footer), 1), path)
    for at, n_metadata, n_body in _vector(footer, _root(footer), 3, "<qi4xq"):
        body = at + n_metadata
        if at < 0 or n_metadata < 8 or n_body < 0:
            raise IndexError("a batch lies outside of it")
        if body + n_body > size:
            raise EOFError(f"{size} bytes are there of at least {body + n_body}")
        stream.seek(at)
        message = stream.read(n_metadata)
        message = message[8 if message.startswith(_CONTINUATION) else 4 :]
        yield _number(message, _root(message), 1, "<B"), message, range(body, body + n_body)


def _messages(stream: IO[bytes], size: int) -> Iterator[tuple[int, bytes, range]]:
    """Of each message up to the end mark: its kind, its metadata, and the bytes of the file that are its body."""
    at = 0
    while True:
        stream.seek(at)
        begin = stream.read(8)
        if len(begin) < 8:
            raise EOFError("its end mark is missing")
        continuation, length = struct.unpack("<4si", begin)
        if continuation != _CONTINUATION or length < 0:
            raise IndexError(f"at byte {at} there is no message")
        if length == 0:
            return
        body = at + 8 + length
        if body > size:
            raise EOFError(f"{size} bytes are there of at least {body}")
        message = stream.read(length)
        body_length = _number(message, _root(message), 3, "<q")
        if body_length < 0 or body + body_length > size:
            raise EOFError(f"{size} bytes are there of at least {body + body_length}")
        yield _number(message, _root(message), 1, "<B"), message, range(body, body + body_length)
        at = body + body_length


def _record_batch(message: bytes, body: range) -> Batch:
    header = _table(message, _root(message), 2)
    compression = _table(message, header, 3)
    codec = _CODECS[_number(message, compression, 0, "<b")] if compression else None
    buffers = tuple((body.start + offset, length) for offset, length in _vector(message, header, 2, "<qq"))
    if any(length < 0 or not body.start <= offset <= body.stop - length for offset, length in buffers):
        raise IndexError("a buffer lies outside of its message")
    nodes = tuple((length, n_null) for length, n_null in _vector(message, header, 1, "<qq"))
    view_buffers = tuple(count for (count,) in _vector(message, header, 4, "<q"))
    return Batch(_number(message, header, 0, "<q"), nodes, buffers, codec, view_buffers)


def _check_byte_order(message: bytes, schema: int, path: str) -> None:
    if _number(message, schema, 0, "<h"):
        raise ValueError(f"{path} is of the other byte order, big-endian: write it anew on this machine")


# FlatBuffers: a table begins with the distance to its field list, whose entries say where each field is, or 0.


def _root(message: bytes) -> int:
    return struct.unpack_from("<I", message)[0]


def _field(message: bytes, table: int, index: int) -> int | None:
    fields = table - struct.unpack_from("<i", message, table)[0]
    entry = 4 + 2 * index
    if fields < 0 or entry >= struct.unpack_from("<H", message, fields)[0]:
        return None
    offset = struct.unpack_from("<H", message, fields + entry)[0]
    return table + offset if offset else None


def _number(message: bytes, table: int, index: int, form: str) -> int:
    place = _field(message, table, index)
    return 0 if place is None else struct.unpack_from(form, message, place)[0]


def _table(message: bytes, table: int, index: int) -> int:
    """Where the table is that a field refers to; 0 where there is none."""
    place = _field(message, table, index)
    return 0 if place is None else place + struct.unpack_from("<I", message, place)[0]


def _vector(message: bytes, table: int, index: int, form: str) -> list[tuple[int, ...]]:
    """The structs of a list that a field refers to."""
    place, size = _table(message, table, index), struct.calcsize(form)
    if not place:
        return []
    count = struct.unpack_from("<I", message, place)[0]
    if place + 4 + size * count > len(message):
        raise IndexError("a list lies outside of its message")
    return [struct.unpack_from(form, message, place + 4 + size * i) for i in range(count)]
