"""Which token each sample is, and the tokens around it, as far as the embeddings or the codes tell."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
import zarr

from dbksvd_dask.codes import SparseCodes
from dbksvd_dask.embeddings import open_embeddings
from dbksvd_dask.embeddings.dataset_folders import is_dataset
from dbksvd_dask.embeddings.groups import open_group, open_node, refuse_other_store
from dbksvd_dask.embeddings.opening import Source

TELLING = "context", "position", "token_id", "token"
"""Coordinates of samples that tell their tokens."""


class Window(NamedTuple):
    """A token with those around it."""

    tokens: list[str]
    """As the vocabulary has them: parts of words with the marks of their tokenizer."""
    at: int
    """Index of the token among them."""
    offsets: list[int]
    """How many positions after the token each of them is."""


@dataclass(frozen=True, eq=False)
class Contexts:
    """What there is to look tokens up in; samples are looked up by their coordinates.

    Parameters
    ----------
    tokens : (contexts, positions) xarray.DataArray, optional
        Ids of tokens, or their text; negative ids and empty texts are padding. Read as needed.
    vocabulary : mapping, optional
        Text of each id.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> tokens = xr.DataArray(np.array([[7, 8, 9]]), dims=("window", "place"))
    >>> contexts = Contexts(tokens, {7: "clear", 8: "water", 9: "##fall"})
    >>> contexts.windows({"context": np.array([0]), "position": np.array([2])}, reach=1)
    [Window(tokens=['water', '##fall'], at=1, offsets=[-1, 0])]
    """

    tokens: xr.DataArray | None = None
    vocabulary: Mapping[int, str] = field(default_factory=dict)

    def windows(self, coords: Mapping[str, np.ndarray], reach: int) -> list[Window]:
        """Up to `reach` tokens before and after each of some samples.

        Parameters
        ----------
        coords : mapping of (examples,) arrays
            Their coordinates. With `context` and `position`, and where tokens of contexts are known, these are the row
            and column; else the token alone is found by `token_id` in the vocabulary, or is `token` itself.
        reach : int

        Returns
        -------
        list of Window
            Empty where nothing tells the tokens.
        """
        if self.tokens is not None and {"context", "position"} <= coords.keys():
            contexts, row = np.unique(coords["context"], return_inverse=True)
            rows = self.tokens.isel({self.tokens.dims[0]: contexts}).compute(scheduler="sync").values
            return [
                self._window(tokens, int(at), reach) for tokens, at in zip(rows[row], coords["position"], strict=True)
            ]
        ids, texts = self.token_ids(coords)
        if ids is None:
            return []
        return [Window([texts.get(token, f"[{token}]")], 0, [0]) for token in ids.tolist()]

    def _window(self, tokens: np.ndarray, at: int, reach: int) -> Window:
        begin = max(at - reach, 0)
        near = tokens[begin : at + reach + 1]
        offsets = np.arange(begin - at, begin - at + len(near))
        there = (near >= 0 if near.dtype.kind in "iu" else near != "") | (offsets == 0)
        texts = [self._text(token) for token in near[there].tolist()]
        offsets = offsets[there].tolist()
        return Window(texts, offsets.index(0), offsets)

    def _text(self, token: int | str) -> str:
        return token if isinstance(token, str) else self.vocabulary.get(token, f"[{token}]")

    def token_ids(self, coords: Mapping[str, np.ndarray]) -> tuple[np.ndarray | None, Mapping[int, str]]:
        """An id of the token of each of some samples, in their shape, and the text of the ids; None if nothing tells.

        Parameters
        ----------
        coords : mapping of arrays
            Their coordinates, as for `windows`, all of one shape.
        """
        if "token_id" in coords and self.vocabulary:
            return coords["token_id"], self.vocabulary
        texts = coords.get("token")
        if texts is None and self.tokens is not None and {"context", "position"} <= coords.keys():
            contexts, row = np.unique(coords["context"], return_inverse=True)
            rows = self.tokens.isel({self.tokens.dims[0]: contexts}).compute(scheduler="sync").values
            texts = rows[row.reshape(coords["context"].shape), coords["position"]]
            if texts.dtype.kind in "iu":
                return texts, self.vocabulary
        if texts is None:
            return None, {}
        known, ids = np.unique(texts.astype(np.dtypes.StringDType()), return_inverse=True)
        return ids.reshape(texts.shape), dict(enumerate(known.tolist()))

    def check(self, coords: Mapping[str, np.ndarray]) -> None:
        """Raise unless these coordinates are places in the contexts.

        Raises
        ------
        ValueError
            If a context or a position is none.
        """
        if self.tokens is None or not {"context", "position"} <= coords.keys():
            return
        for name, size in zip(("context", "position"), self.tokens.shape, strict=True):
            place = coords[name]
            if place.dtype.kind not in "iu" or place.min(initial=0) < 0 or place.max(initial=0) >= size:
                raise ValueError(
                    f"the codes have a {name} from {place.min(initial=0)} to {place.max(initial=0)}, but "
                    f"context_tokens has shape {self.tokens.shape}: are these the embeddings that the codes are of?"
                )


def open_contexts(embeddings: Source | None) -> Contexts:
    """What embeddings tell of their tokens.

    Parameters
    ----------
    embeddings : path, xarray.Dataset, array or None
        A zarr store or Dataset with `context_tokens`, over two dimensions, and `vocabulary`, over one that is labelled
        by the ids, tells the tokens of whole contexts. A DataArray that `open_embeddings` has opened from a store, and
        any selection of it, stands for that store.

    Raises
    ------
    FileNotFoundError
        If there is nothing at the path.
    ValueError
        If `context_tokens` or `vocabulary` have other dimensions.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> store = xr.Dataset({"vocabulary": ("token", ["a", "b"])}, coords={"token": [17, 19]})
    >>> open_contexts(store).windows({"token_id": np.array([19])}, reach=5)
    [Window(tokens=['b'], at=0, offsets=[0])]
    """
    dataset = _dataset_of(embeddings)
    tokens, vocabulary = dataset.get("context_tokens"), dataset.get("vocabulary")
    for array, n_dims in ((tokens, 2), (vocabulary, 1)):
        if array is not None and array.ndim != n_dims:
            raise ValueError(f"{array.name} has shape {array.shape}: it must have {n_dims} dimensions")
    texts = {}
    if vocabulary is not None:
        ids = vocabulary[vocabulary.dims[0]].values  # 0, 1, … where it is not labelled
        texts = dict(zip(ids.tolist(), vocabulary.values.tolist(), strict=True))
    return Contexts(tokens, texts)


def _dataset_of(embeddings: Source | None) -> xr.Dataset:
    """The Dataset in which the tokens of embeddings may be, lazily."""
    if embeddings is None or isinstance(embeddings, xr.Dataset):
        return xr.Dataset() if embeddings is None else embeddings
    source = embeddings.encoding.get("source") if isinstance(embeddings, xr.DataArray) else embeddings
    if not isinstance(source, str | os.PathLike) or not os.path.isdir(source) or is_dataset(os.fspath(source)):
        open_embeddings(embeddings)  # raises what is wrong with them
        return xr.Dataset()
    path = os.fspath(source)
    node = open_node(path)
    if isinstance(node, zarr.Array):
        return xr.Dataset()
    refuse_other_store(node.attrs, path)
    return open_group(node, path)


def bare(token: str) -> str:
    """A token without the marks that tokenizers set at the beginning or the continuation of words.

    Examples
    --------
    >>> [bare(token) for token in ("##fall", "Ġwater", "▁water", "water", "##")]
    ['fall', 'water', 'water', 'water', '##']
    """
    return token.removeprefix("##").lstrip("Ġ▁").strip() or token


def in_words(sample: int, coords: Mapping[str, Any]) -> str:
    """Where a sample is from: its coordinates, and its number or what it is called instead.

    Examples
    --------
    >>> in_words(812, {"document": 3})
    'document 3, sample 812'
    """
    texts = {name: f"{value:g}" if isinstance(value, np.floating) else str(value) for name, value in coords.items()}
    sample_text = texts.pop("sample", str(sample))
    return ", ".join([*(f"{name} {shorten(text, 60)}" for name, text in texts.items()), f"sample {sample_text}"])


def with_coordinates(codes: SparseCodes, embeddings: Source | None) -> SparseCodes:
    """The codes, with the coordinates of the embeddings if their own do not tell the tokens.

    Raises
    ------
    ValueError
        If the embeddings are of another number of samples.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> codes = SparseCodes(np.array([[0]]), np.array([[1.0]]), n_atoms=1)
    >>> Y = xr.DataArray(np.ones((1, 2)), dims=("sample", "feature"), coords={"token": ("sample", ["water"])})
    >>> with_coordinates(codes, Y).coords["token"].item()
    'water'
    """
    if embeddings is None or any(name in codes.coords for name in TELLING):
        return codes
    Y = open_embeddings(embeddings)
    coords = {str(name): coord for name, coord in Y.coords.items() if coord.dims == ("sample",)}
    if len(Y) != codes.shape[0]:
        raise ValueError(
            f"the codes are of {codes.shape[0]} samples and have no coordinates to look them up by, but the embeddings "
            f"are {len(Y)} samples: pass those that were encoded"
        )
    if not any(name in coords for name in TELLING):
        return codes
    return replace(codes, coords=coords | dict(codes.coords))
