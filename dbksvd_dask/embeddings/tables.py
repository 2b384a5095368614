"""Columns of Arrow and Parquet tables: which holds the embeddings, and which tell of each sample."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dbksvd_dask.embeddings.checks import choose_array
from dbksvd_dask.embeddings.stored import needed

_TOKENS = ("token_ids", "tokens", "input_ids")
"""Names by which others store the tokens of each window: SAELens, SAEBench, transformers."""


@dataclass(frozen=True)
class Column:
    """A column of numbers, or of lists of them, in lists or not."""

    name: str
    sizes: tuple[int | None, ...]
    """Of the lists, outermost first, where their type says it."""
    wide: tuple[bool, ...]
    """Which of the lists are large ones, with offsets of eight bytes."""
    dtype: np.dtype
    n_nodes: int
    """Arrays it consists of: a message describes those of all columns in a row."""
    n_buffers: int


@dataclass(frozen=True)
class OtherColumn:
    """A column of anything else: its type, and what there is of it in a message, if that is known."""

    dtype: str
    n_nodes: int
    n_buffers: int | None
    n_views: int
    """Arrays of views, of whose buffers each message says how many more there are."""


def columns_of(schema: Any, path: str) -> dict[str, Column | OtherColumn]:
    """The columns of an Arrow schema by name, in order; raises ValueError where two have the same name."""
    pa = needed("pyarrow", "formats", path)
    columns = {field.name: _column(pa, field) for field in schema}
    if len(columns) < len(schema):
        raise ValueError(f"{path} has several columns of the same name: {', '.join(schema.names)}")
    return columns


def choose_column(columns: dict[str, Column | OtherColumn], name: str | None, path: str) -> Column:
    """Choose the column that holds the embeddings, or windows of them; raises ValueError where it holds neither."""
    arrays: dict[Hashable, tuple[int, object]] = {}
    for key, column in columns.items():
        arrays[key] = (len(column.sizes) + 1 if isinstance(column, Column) else 1, column.dtype)
    key = str(choose_array(arrays, name, path, windows=True))
    chosen = columns[key]
    if not isinstance(chosen, Column) or not 1 <= len(chosen.sizes) <= 2:
        raise ValueError(
            f"{path} ({key!r}) is a column of {chosen.dtype}, not of lists of one length: embeddings have one list of "
            "all their features a sample, or lists of such lists, a window"
        )
    return chosen


def coordinate_name(name: str, dtype: object, shape: object, samples: tuple[int, ...]) -> str | None:
    """What a coordinate is called that a file has beside the embeddings; None where it is none.

    Parameters
    ----------
    name : str
        In the file.
    dtype : dtype
        Integers are coordinates.
    shape, samples : tuple of int
        Of it, and of the samples: they have to be the same.

    Examples
    --------
    >>> coordinate_name("tokens", np.dtype("int64"), (10, 128), (10, 128))
    'token_id'
    >>> coordinate_name("tokens", np.dtype("int64"), (10, 64), (10, 128)) is None
    True
    """
    if not isinstance(dtype, np.dtype) or dtype.kind not in "iu" or shape != samples:
        return None
    if name in ("sample", "feature"):  # would be an index, which is loaded whole
        return None
    return "token_id" if name in _TOKENS else name


def _column(pa: Any, field: Any) -> Column | OtherColumn:
    kind, sizes, wide = _storage(field.type), [], []
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        sizes.append(kind.list_size if pa.types.is_fixed_size_list(kind) else None)
        wide.append(pa.types.is_large_list(kind))
        kind = _storage(kind.value_type)
    n_nodes, n_buffers, n_views = _layout(pa, field.type)
    if n_buffers is None or not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return OtherColumn(str(field.type), n_nodes, n_buffers, n_views)
    return Column(field.name, tuple(sizes), tuple(wide), np.dtype(kind.to_pandas_dtype()), n_nodes, n_buffers)


def _layout(pa: Any, kind: Any) -> tuple[int, int | None, int]:
    """How many arrays, buffers and arrays of views a message has of a column of this type."""
    kind, types = _storage(kind), pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind):
        own = 2
    elif types.is_fixed_size_list(kind) or types.is_struct(kind):
        own = 1
    elif types.is_string(kind) or types.is_binary(kind) or types.is_large_string(kind) or types.is_large_binary(kind):
        return 1, 3, 0
    elif types.is_dictionary(kind):  # of it, the indices
        return 1, 2, 0
    elif types.is_string_view(kind) or types.is_binary_view(kind):
        return 1, 2, 1
    elif types.is_null(kind):
        return 1, 0, 0
    elif types.is_fixed_size_binary(kind) or types.is_decimal(kind) or types.is_primitive(kind):
        return 1, 2, 0
    else:
        return 1, None, 0
    fields = [kind.field(i) for i in range(kind.num_fields)]
    inside = [_layout(pa, field.type) for field in fields]
    n_buffers = None if any(n is None for _, n, _ in inside) else own + sum(n or 0 for _, n, _ in inside)
    return 1 + sum(n for n, _, _ in inside), n_buffers, sum(n for _, _, n in inside)


def _storage(kind: Any) -> Any:
    """The type in which one is stored that another package, as datasets, has defined."""
    return getattr(kind, "storage_type", kind)
