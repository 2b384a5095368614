"""Texts one by one, from files, from data sets, or from whatever can be iterated over."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

Texts: TypeAlias = str | os.PathLike[str] | Iterable[Any]
"""Paths, a data set of `datasets`, or an iterable of str."""


def read_texts(texts: Texts, column: str = "text") -> Iterator[str]:
    """Documents, one by one, as they are needed.

    Parameters
    ----------
    texts : path, paths, datasets.Dataset, datasets.IterableDataset or iterable of str
        Paths are those of

        * text files (UTF-8), in which blank lines part the documents;
        * ``.jsonl`` files, with a document in each line;
        * folders that ``datasets`` has saved with ``save_to_disk``.

        Paths among the items of an iterable are such that are ``pathlib.Path``: a str is a text there.
    column : str, default "text"
        Where the text is in the rows of a data set or ``.jsonl`` file.

    Raises
    ------
    FileNotFoundError
        If there is nothing at a path.
    TypeError
        If ``texts`` is none of these, or a mapping, or a row has no text in its column.
    ValueError
        If there is no such column, a file is not UTF-8, or not JSON lines, or the first text is the path of a file.

    Examples
    --------
    >>> list(read_texts(["a text", "another one"]))
    ['a text', 'another one']
    """
    if isinstance(texts, str | os.PathLike):
        return _read_path(os.fspath(texts), column)
    if isinstance(texts, bytes) or not hasattr(texts, "__iter__"):
        raise TypeError(f"texts={texts!r} is a {type(texts).__name__}: pass a path, a data set or an iterable of str")
    # A column of a data set has no columns: it is iterated over.
    if type(texts).__module__.partition(".")[0] == "datasets" and hasattr(texts, "column_names"):
        return _read_dataset(texts, column)
    if isinstance(texts, Mapping):
        raise TypeError(f"texts is a {type(texts).__name__} with {', '.join(map(repr, texts))}: pass one of them")
    if isinstance(texts, Sequence):
        for text in texts:  # before the hours that those before it may take
            if isinstance(text, os.PathLike):
                _check_path(os.fspath(text))
    return _read_items(texts, column)


def describe_texts(texts: Texts) -> str:
    """Where texts are from, in a few words, for the attributes of what is made of them."""
    if isinstance(texts, str | os.PathLike):
        return os.fspath(texts)
    paths = [os.fspath(path) for path in texts if isinstance(path, os.PathLike)] if isinstance(texts, list) else []
    return ", ".join(paths) or type(texts).__name__


def _read_items(texts: Iterable[Any], column: str) -> Iterator[str]:
    for i, text in enumerate(texts):
        if isinstance(text, os.PathLike):
            yield from _read_path(os.fspath(text), column)
        elif i == 0 and isinstance(text, str) and len(text) < 256 and os.path.isfile(text):
            raise ValueError(f"text 0 is {text!r}, which is a file: pass pathlib.Path({text!r}) to read what is in it")
        else:
            yield text


def _check_path(path: str) -> None:
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no file {path!r}: to pass a text itself, pass a list of texts")


def _read_path(path: str, column: str) -> Iterator[str]:
    _check_path(path)
    if os.path.isdir(path):
        return _read_dataset(_load_dataset(path), column)
    return _read_json_lines(path, column) if path.endswith(".jsonl") else _read_text_file(path)


def _read_text_file(path: str) -> Iterator[str]:
    lines: list[str] = []
    for line in _lines(path):
        if line.strip():
            lines.append(line)
        elif lines:
            yield "".join(lines)
            lines = []
    if lines:
        yield "".join(lines)


def _read_json_lines(path: str, column: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} of {path} is not JSON: {error}") from error
        yield _text_of(row, column, f"line {number} of {path}")


def _lines(path: str) -> Iterator[str]:
    with open(path, encoding="utf-8-sig") as stream:
        try:
            yield from stream
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not a text in UTF-8: {error}") from error


def _load_dataset(path: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"{path} is a folder; to open what datasets has saved there: pip install datasets") from error
    try:
        return datasets.load_from_disk(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is not a folder that datasets has saved with save_to_disk") from error


def _read_dataset(dataset: Any, column: str) -> Iterator[str]:
    name = type(dataset).__name__
    if isinstance(dataset, dict):
        raise TypeError(f"texts is a {name} with {', '.join(map(repr, dataset))}: pass one of them")
    if dataset.column_names is not None:  # unknown for some that are streamed
        if column not in dataset.column_names:
            raise ValueError(
                f"the {name} has no column {column!r}: it has {', '.join(map(repr, dataset.column_names))}; name the "
                "one with the text by column=… (--column)"
            )
        dataset = dataset.select_columns(column)
    return (_text_of(row, column, f"row {i} of the {name}") for i, row in enumerate(dataset))


def _text_of(row: Any, column: str, where: str) -> str:
    if not isinstance(row, dict) or column not in row:
        found = ", ".join(map(repr, row)) if isinstance(row, dict) else f"a {type(row).__name__}"
        raise ValueError(f"{where} has no column {column!r}, but {found}: name the one with the text by column=…")
    if not isinstance(row[column], str):
        raise TypeError(f"{column!r} in {where} is a {type(row[column]).__name__}, not a text")
    return row[column]
