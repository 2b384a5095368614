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


def read_messages(path: str) -> tuple[bytes, list[Batch]]:
    """The schema of an Arrow stream or file, as a message of its own, and its record batches.

    Raises
    ------
    ValueError
        If it is neither, or cut off.
    """
    size = os.path.getsize(path)
    batches: list[Batch] = []
    schema = None
    with open(path, "rb") as stream:
        start = _start(stream, path, size)
        n_rows = 0
        try:
            for kind, message, body in _messages(stream, start, size):
                if kind == _SCHEMA:
                    if _number(message, _table(message, struct.unpack_from("<I", message)[0], 2), 0, "<h"):
                        raise ValueError(
                            f"{path} is of the other byte order, big-endian: write it anew on this machine"
                        )
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
    if schema is None:
        raise ValueError(f"{path} is not a readable Arrow file: it has no schema")
    return schema, batches


def _start(stream: IO[bytes], path: str, size: int) -> int:
    """Where the first message is; raises ValueError where there is none."""
    begin = stream.read(8)
    if begin[:4] == _FEATHER_1:
        raise ValueError(f"{path} is of version 1 of Feather: write it anew, with pyarrow.feather.write_feather")
    if begin[:6] == _MAGIC:
        stream.seek(max(0, size - len(_MAGIC)))
        if size < 2 * len(_MAGIC) or stream.read() != _MAGIC:
            raise ValueError(f"{path} is cut off: its end mark is missing; was it still being written or copied?")
        return 8
    if begin[:4] != _CONTINUATION:
        what = "it is empty" if not begin else f"it begins with {begin[:6]!r}"
        raise ValueError(
            f"{path} is not a readable Arrow stream or file: {what}; was it still being written or copied?"
        )
    return 0


def _messages(stream: IO[bytes], at: int, size: int) -> Iterator[tuple[int, bytes, range]]:
    """Of each message up to the end mark: its kind, its metadata, and the bytes of the file that are its body."""
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
        root = struct.unpack_from("<I", message)[0]
        body_length = _number(message, root, 3, "<q")
        if body_length < 0 or body + body_length > size:
            raise EOFError(f"{size} bytes are there of at least {body + body_length}")
        yield _number(message, root, 1, "<B"), message, range(body, body + body_length)
        at = body + body_length


def _record_batch(message: bytes, body: range) -> Batch:
    header = _table(message, struct.unpack_from("<I", message)[0], 2)
    compression = _table(message, header, 3)
    codec = _CODECS[_number(message, compression, 0, "<b")] if compression else None
    buffers = tuple((body.start + offset, length) for offset, length in _vector(message, header, 2))
    if any(length < 0 or not body.start <= offset <= body.stop - length for offset, length in buffers):
        raise IndexError("a buffer lies outside of its message")
    return Batch(_number(message, header, 0, "<q"), tuple(_vector(message, header, 1)), buffers, codec)


# FlatBuffers: a table begins with the distance to its field list, whose entries say where each field is, or 0.


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


def _vector(message: bytes, table: int, index: int) -> list[tuple[int, int]]:
    """The pairs of long integers that a field refers to."""
    place = _table(message, table, index)
    if not place:
        return []
    count = struct.unpack_from("<I", message, place)[0]
    if place + 4 + 16 * count > len(message):
        raise IndexError("a list lies outside of its message")
    return [struct.unpack_from("<qq", message, place + 4 + 16 * i) for i in range(count)]
