"""Texts as windows of tokens that a language model can read, in batches of about equal lengths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dbksvd_dask.language.models import LanguageModel

MOST_CONTEXT = 512
"""Tokens of a window by default, where the model reads more."""

_TEXTS_AT_ONCE, _CHARACTERS_AT_ONCE = 64, 2**18
"""After either a tokenizer is given what there is: what it makes of texts takes a hundred times their room."""

_BATCHES_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Window:
    """A piece of a document, between the special tokens that the model is used to."""

    document: int
    """Which of the texts it is from."""
    context: int
    """Which of all windows it is."""
    input_ids: np.ndarray
    """(L,) ids, with special tokens."""
    is_text: np.ndarray
    """(L,) whether a token is one of the text: no special one, but the first where that is kept."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows for one forward pass, padded on the right to the longest of them."""

    input_ids: np.ndarray
    """(B, L) int64."""
    attention_mask: np.ndarray
    """(B, L) int64: 1 for tokens, 0 for padding."""
    is_text: np.ndarray
    """(B, L) bool: whether a token is one of the text, neither special nor padding."""
    document: np.ndarray
    """(B,) int64: which of the texts a window is from."""
    context: np.ndarray
    """(B,) int64: which of all windows it is, in the order of the texts."""


@dataclass(frozen=True)
class Cut:
    """How texts become windows of a model.

    Parameters
    ----------
    model : LanguageModel
    context_length : int
        Most tokens of a window, with special tokens.
    before, after : tuple of int
        Special tokens that the tokenizer puts around a text.
    special : set of int
        All special tokens, which are no text wherever they are.
    keep_bos : bool
        Whether ``before`` counts as text.
    """

    model: LanguageModel
    context_length: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    special: set[int]
    keep_bos: bool = False

    @property
    def n_tokens(self) -> int:
        """Most tokens of a window without special tokens."""
        return self.context_length - len(self.before) - len(self.after)

    @property
    def columns(self) -> slice:
        """Of a window as the model reads it: what is kept of it as context, so where positions are counted from."""
        begin = 0 if self.keep_bos else len(self.before)
        return slice(begin, len(self.before) + self.n_tokens)

    def windows(self, texts: Iterable[str], max_tokens: int | None = None) -> Iterator[Window]:
        """Windows of texts, one after the other.

        Parameters
        ----------
        texts : iterable of str
            One a document; longer ones than a window become several.
        max_tokens : int, optional
            End with so many tokens of text.

        Raises
        ------
        TypeError
            If a text is no str.
        ValueError
            If a text has half of a surrogate pair.
        """
        left = max_tokens
        context = 0
        for document, tokens in enumerate(self._tokens(texts)):
            for start in range(0, len(tokens), self.n_tokens):
                window = self._window(document, context, tokens[start : start + self.n_tokens])
                if left is not None:
                    kept = np.cumsum(window.is_text) <= left
                    window = replace(window, is_text=window.is_text & kept)
                    left -= int(window.is_text.sum())
                yield window
                context += 1
                if left == 0:
                    return

    def _window(self, document: int, context: int, tokens: list[int]) -> Window:
        input_ids = np.array([*self.before, *tokens, *self.after], np.int64)
        is_text = ~np.isin(input_ids, list(self.special))
        is_text[: len(self.before)] = self.keep_bos
        is_text[len(self.before) + len(tokens) :] = False
        return Window(document, context, input_ids, is_text)

    def _tokens(self, texts: Iterable[str]) -> Iterator[list[int]]:
        for some in _texts_at_once(texts):
            yield from self.model.tokenizer(
                some,
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,  # of texts that are longer than a window, which is no mistake here
            )["input_ids"]


def _texts_at_once(texts: Iterable[str]) -> Iterator[list[str]]:
    some: list[str] = []
    n_characters = 0
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {i} is {text!r}, a {type(text).__name__}: pass texts as str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text {i} is not Unicode that UTF-8 has ({error}): repair it or leave it out") from error
        some.append(text)
        n_characters += len(text)
        if len(some) == _TEXTS_AT_ONCE or n_characters >= _CHARACTERS_AT_ONCE:
            yield some
            some, n_characters = [], 0
    if some:
        yield some


def cut(model: LanguageModel, context_length: int | None = None, *, keep_bos: bool = False) -> Cut:
    """How texts become windows of a model.

    Parameters
    ----------
    model : LanguageModel
    context_length : int, optional
        Most tokens of a window, with the special tokens that the tokenizer puts around a text. By default what the
        model reads, but no more than `MOST_CONTEXT`.
    keep_bos : bool, default False
        Take the special token at the beginning (BOS, [CLS]) for text.

    Raises
    ------
    TypeError
        If ``context_length`` is no integer, or ``keep_bos`` no bool.
    ValueError
        If it is longer than the window of the model, or leaves no room for text; or if there is no BOS to keep.
    """
    if not isinstance(keep_bos, bool):
        raise TypeError(f"keep_bos={keep_bos!r} is neither True nor False")
    before, after = _special_around(model)
    if context_length is None:
        context_length = min(model.window, MOST_CONTEXT)
    if isinstance(context_length, bool) or not isinstance(context_length, int | np.integer):
        raise TypeError(f"context_length={context_length!r} is not an integer")
    if context_length > model.window:
        raise ValueError(
            f"context_length={context_length} exceeds the window of {model.name}, {model.window} tokens: longer "
            "documents are cut into several windows"
        )
    if context_length <= len(before) + len(after):
        raise ValueError(
            f"context_length={context_length} leaves no room for text: {len(before) + len(after)} special tokens are "
            "put around it"
        )
    if keep_bos and not before:
        raise ValueError(
            f"keep_bos=True, but the tokenizer of {model.name} puts no token before a text: leave it out, or configure "
            "the tokenizer to add one (add_bos_token=True, for most)"
        )
    # Those that have a role, like EOS, and those that are only marked so, like <|im_start|>.
    marked = {token_id for token_id, token in model.tokenizer.added_tokens_decoder.items() if token.special}
    return Cut(model, int(context_length), before, after, marked.union(model.tokenizer.all_special_ids), keep_bos)


def batches(windows: Iterable[Window], batch_size: int) -> Iterator[Batch]:
    """Windows by about equal lengths, so that little is padded, without more than a few batches of them in memory.

    Parameters
    ----------
    windows : iterable of Window
    batch_size : int
        Most windows of a batch.

    Examples
    --------
    >>> lengths = 3, 5, 3, 5
    >>> of = [Window(0, i, np.arange(n), np.ones(n, bool)) for i, n in enumerate(lengths)]
    >>> [batch.context.tolist() for batch in batches(of, 2)]
    [[1, 3], [0, 2]]
    """
    windows = iter(windows)
    while some := list(islice(windows, batch_size * _BATCHES_AT_ONCE)):
        some.sort(key=lambda window: len(window.input_ids), reverse=True)
        for start in range(0, len(some), batch_size):
            yield _padded(some[start : start + batch_size])


def _padded(windows: list[Window]) -> Batch:
    shape = len(windows), max(len(window.input_ids) for window in windows)
    # Which token is the padding does not matter, as no other looks at it; and not every tokenizer has one.
    input_ids, attention_mask, is_text = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
    for i, window in enumerate(windows):
        length = len(window.input_ids)
        input_ids[i, :length] = window.input_ids
        attention_mask[i, :length] = 1
        is_text[i, :length] = window.is_text
    document = np.array([window.document for window in windows])
    return Batch(input_ids, attention_mask, is_text, document, np.array([window.context for window in windows]))


def _special_around(model: LanguageModel) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer puts before and after a text, by comparing one with and without."""
    plain, whole = (model.tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    starts = [start for start in range(len(whole) - len(plain) + 1) if whole[start : start + len(plain)] == plain]
    if len(starts) != 1:
        raise ValueError(
            f"it cannot be told which special tokens the tokenizer of {model.name} puts around a text: of 'a' it makes "
            f"{plain}, and with special tokens {whole}"
        )
    return tuple(whole[: starts[0]]), tuple(whole[starts[0] + len(plain) :])
