"""The metadata of a zarr store, looked at before zarr acts on them: what could run code, or reach outside, is refused.

A zarr store names the codecs by which its chunks are decoded, and one of those that numcodecs has is ``pickle``, which
runs whatever a chunk tells it to. So only codecs that are known to do nothing but compress, filter and check numbers
and text may be named.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

METADATA = frozenset({"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"})
"""Names of the objects of a store, in any folder of it, that are not chunks."""

_NUMCODECS = frozenset(
    [
        *(
            "adler32",
            "astype",
            "bitround",
            "blosc",
            "bz2",
            "crc32",
            "crc32c",
            "delta",
            "fixedscaleoffset",
            "fletcher32",
        ),
        *(
            "gzip",
            "jenkins_lookup3",
            "lz4",
            "lzma",
            "packbits",
            "pcodec",
            "quantize",
            "shuffle",
            "zfpy",
            "zlib",
            "zstd",
        ),
    ]
)
_TEXT_CODECS = frozenset(["vlen-utf8", "vlen-bytes"])
_CODECS = frozenset(
    [
        *("bytes", "endian", "sharding_indexed", "transpose"),
        *_TEXT_CODECS,
        *_NUMCODECS,
        *(f"numcodecs.{name}" for name in _NUMCODECS),
    ]
)
_DTYPES_3 = re.compile(
    r"bool|u?int(8|16|32|64)|b?float(16|32|64)|complex(64|128)|r\d+|raw_bytes|string|bytes|variable_length_(utf8|bytes)|"
    r"fixed_length_utf32|null_terminated_bytes|numpy\.(datetime|timedelta)64"
)
_SIMPLE_KINDS = "biufcmMSUV"
_DTYPE_SETTINGS = ("dtype", "astype", "encode_dtype", "decode_dtype")


class RefusedStoreError(ValueError):
    """A store that could run code when it is read, or that reaches outside of itself."""


def check_key(key: str, place: str) -> None:
    """Refuse what is not below the root of the store."""
    if key.startswith("/") or {"..", "."}.intersection(key.split("/")):
        raise RefusedStoreError(f"{place} has an array called {key!r}, which is not inside of it: it is not opened")


def check_metadata(key: str, content: bytes, place: str) -> set[str]:
    """Refuse metadata that name a codec or data type which is not known to be harmless.

    Returns the arrays whose chunks begin with the header of Blosc, which tells how long they must be: numcodecs does
    not compare, and reads on in memory after the end of a chunk that was cut off.

    Parameters
    ----------
    key : str
        Where in the store they are.
    content : bytes
        JSON; what is no JSON, or no metadata, zarr refuses itself.
    place : str
        Path or URL of the store, for the error.

    Examples
    --------
    >>> check_metadata("rows/.zarray", b'{"dtype": "<f4", "filters": [{"id": "pickle"}]}', "rows.zarr")
    Traceback (most recent call last):
    ...
    dbksvd_dask.embeddings.untrusted.RefusedStoreError: rows.zarr: the array 'rows' uses the codec 'pickle', ...
    """
    try:
        document = json.loads(content)
    except ValueError:
        return set()
    blosc = set()
    for name, array in _described(key, document):
        check_key(name, place)
        problem = _dtype_problem(array) or _codec_problem(array)
        if problem is not None:
            raise RefusedStoreError(
                f"{place}: the array {name!r} {problem}, which is not among those that are known to run no code when "
                "data are read: if you trust the store, open it yourself and write the array anew, without that"
            )
        stages = [*(array.get("filters") or ()), *(array.get("codecs") or ()), array.get("compressor")]
        last = next((stage for stage in reversed(stages) if stage), None)
        if isinstance(last, Mapping) and str(last.get("id", last.get("name"))).removeprefix("numcodecs.") == "blosc":
            blosc.add(name)
    return blosc


def _described(key: str, document: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and metadata of each array or group that a document describes, itself and consolidated in it.

    Which of them zarr takes for arrays, and of which of its formats, does not matter: all are looked at for everything.
    """
    folder, _, file = key.rpartition("/")
    if file == ".zattrs" or not isinstance(document, Mapping):
        return
    yield folder, document
    together = document if file == ".zmetadata" else document.get("consolidated_metadata")
    members = together.get("metadata") if isinstance(together, Mapping) else None
    for member, metadata in members.items() if isinstance(members, Mapping) else ():
        path = f"{folder}/{member}" if folder else member
        yield from _described(path if file == ".zmetadata" else f"{path}/{file}", metadata)


def _dtype_problem(array: Mapping[str, Any]) -> str | None:
    if "dtype" in array:
        ids = {codec.get("id") for codec in array.get("filters") or () if isinstance(codec, Mapping)}
        if not _is_simple(array["dtype"]) and not (array["dtype"] == "|O" and _TEXT_CODECS & ids):
            return f"has the dtype {array['dtype']!r}"
    if "data_type" in array:
        dtype = array["data_type"]
        name = dtype.get("name") if isinstance(dtype, Mapping) else dtype
        if not isinstance(name, str) or not _DTYPES_3.fullmatch(name):
            return f"has the dtype {name!r}"
    return None


def _codec_problem(array: Mapping[str, Any]) -> str | None:
    for codec in _codecs(array):
        settings = codec if isinstance(codec, Mapping) else {"name": codec}
        name = settings.get("id", settings.get("name"))
        if name not in _CODECS or {"id", "name"} <= settings.keys():
            return f"uses the codec {name!r}"
        settings = settings if "id" in settings else settings.get("configuration") or {}
        for setting in _DTYPE_SETTINGS:
            if setting in settings and not _is_simple(settings[setting]):
                return f"uses the codec {name!r} with the dtype {settings[setting]!r}"
    return None


def _codecs(settings: Mapping[str, Any]) -> Iterator[Any]:
    """The codecs of an array, and those inside its shards."""
    if settings.get("compressor"):
        yield settings["compressor"]
    for kind in ("filters", "codecs", "index_codecs"):
        for codec in settings.get(kind) or ():
            yield codec
            if isinstance(codec, Mapping) and isinstance(codec.get("configuration"), Mapping):
                yield from _codecs(codec["configuration"])


def _is_simple(dtype: Any) -> bool:
    """Whether it is the dtype of plain numbers, times or text of fixed length."""
    try:
        found = np.dtype(dtype) if isinstance(dtype, str) else None
    except TypeError:
        return False
    return found is not None and found.kind in _SIMPLE_KINDS and found.fields is None and not found.hasobject
