"""Forward passes over batches of windows, and what they give, scattered over files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING, Literal

import numpy as np

from dbksvd_dask.embeddings.shuffled import Scattered
from dbksvd_dask.language.models import LanguageModel
from dbksvd_dask.language.unfinished import Unfinished
from dbksvd_dask.language.windows import Batch, Cut

if TYPE_CHECKING:
    import torch

Dtype = Literal["float16", "bfloat16", "float32"]

CONTEXTS = "contexts.tokens"
"""File of the tokens of all windows: int32, a row of equal length for each, filled up with −1."""

CHECKPOINT_SECONDS = 5.0
"""At least so long between two notes of how far a harvest has come."""


def scatter_embeddings(
    cutting: Cut,
    batches: Iterable[Batch],
    layer: int,
    dtype: Dtype,
    unfinished: Unfinished,
    max_tokens: int | None,
) -> Scattered:
    """Run the model over batches, and scatter the embeddings of the tokens of text over files of the folder.

    Batches that a killed harvest has done already are only compared with those. While the model computes a batch,
    another thread writes what the one before gave.

    Raises
    ------
    ValueError
        If an embedding is not finite or too large for ``dtype``, if there is no token of text, or if the texts are not
        those of the unfinished harvest.
    """
    import torch
    from tqdm.auto import tqdm

    model, done = cutting.model, unfinished.progress
    row = row_dtype(dtype, model.n_features)
    rows = Scattered(unfinished.folder / "rows", row, unfinished.parameters["random_state"], done.sizes)
    to_do = _not_done(batches, unfinished)
    if done.complete:
        next(to_do, None)
        return rows
    bar = tqdm(total=max_tokens, initial=sum(done.sizes), unit="token", unit_scale=True, desc="harvest", disable=None)
    with rows, _Writer(cutting, layer, dtype, rows, unfinished) as writer, ThreadPoolExecutor(1) as thread, bar:
        pending: Future[None] = thread.submit(lambda: None)
        for number, batch, digest in to_do:
            input_ids, attention_mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
            hidden_states = model.hidden_states(input_ids, attention_mask, layer)
            pending.result()
            pending = thread.submit(writer.write, number, batch, hidden_states, digest)
            del hidden_states
            bar.update(int(batch.is_text.sum()))
        pending.result()
        writer.finish()
    return rows


def _not_done(batches: Iterable[Batch], unfinished: Unfinished) -> Iterator[tuple[int, Batch, str]]:
    """Batches behind those that a killed harvest has done, with their numbers and a digest of all up to each."""
    done, digest, number = unfinished.progress, hashlib.sha256(), -1
    n_done, complete, digest_done = done.n_batches, done.complete, done.digest  # it goes on meanwhile
    for number, batch in enumerate(batches):
        for array in (batch.input_ids, batch.attention_mask, batch.document):
            digest.update(f"{array.shape}".encode() + array.tobytes())
        if number + 1 == n_done and digest.hexdigest() != digest_done:
            raise unfinished.other_texts()
        if number >= n_done:
            if complete:
                raise unfinished.other_texts()
            yield number, batch, digest.hexdigest()
    if number + 1 < n_done:
        raise unfinished.other_texts()


def row_dtype(dtype: Dtype, n_features: int) -> np.dtype:
    """An embedding and its coordinates; bfloat16 as the two bytes that it is."""
    stored = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4"}[dtype]
    coordinates = [(name, "<i4") for name in ("document", "context", "position", "token_id")]
    return np.dtype([("embeddings", stored, (n_features,)), *coordinates])


class _Writer:
    """Puts on the disk what forward passes give."""

    def __init__(self, cutting: Cut, layer: int, dtype: Dtype, rows: Scattered, unfinished: Unfinished) -> None:
        self._cutting = cutting
        self._layer = layer
        self._dtype = dtype
        self._rows = rows
        self._unfinished = unfinished
        done = unfinished.progress
        self._n_batches, self._digest, self._n_contexts = done.n_batches, done.digest, done.n_contexts
        self._noted = monotonic()

    def __enter__(self) -> _Writer:
        columns, path = self._cutting.columns, self._unfinished.folder / CONTEXTS
        n_bytes = self._n_contexts * (columns.stop - columns.start) * 4
        self._contexts = os.open(path, os.O_RDWR | os.O_CREAT)
        if os.fstat(self._contexts).st_size < n_bytes:
            os.close(self._contexts)
            raise ValueError(f"{path} is cut off: delete {self._unfinished.folder} to begin anew")
        os.ftruncate(self._contexts, n_bytes)  # what was not noted may be of other texts
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._contexts)

    def write(self, number: int, batch: Batch, hidden_states: torch.Tensor, digest: str) -> None:
        """Scatter the embeddings of a batch, keep its windows, and now and then note how far it is."""
        window, column = np.nonzero(batch.is_text)
        rows = np.empty(len(window), self._rows.dtype)
        rows["embeddings"] = self._rounded(hidden_states, batch)
        rows["document"] = batch.document[window]
        rows["context"] = batch.context[window]
        rows["position"] = column - self._cutting.columns.start
        rows["token_id"] = batch.input_ids[window, column]
        self._rows.add(rows, number)
        self._write_contexts(batch)
        self._n_batches, self._digest = number + 1, digest
        if monotonic() - self._noted >= CHECKPOINT_SECONDS:
            self._note()

    def finish(self) -> None:
        """Note that these were all batches; raises ValueError if there was nothing in them."""
        if not any(self._rows.sizes):
            what = "there is no text, or none has a token" if self._n_batches == 0 else "all tokens are special ones"
            self._unfinished.discard()
            raise ValueError(f"there is nothing to harvest in texts: {what}")
        self._note(complete=True)

    def _note(self, complete: bool = False) -> None:
        """Let a harvest that is killed from now on go on behind these batches."""
        self._rows.flush()
        self._unfinished.note(
            n_batches=self._n_batches,
            digest=self._digest,
            n_contexts=self._n_contexts,
            sizes=list(self._rows.sizes),
            complete=complete,
        )
        self._noted = monotonic()

    def _rounded(self, hidden_states: torch.Tensor, batch: Batch) -> np.ndarray:
        import torch

        exact = hidden_states[torch.from_numpy(batch.is_text).to(hidden_states.device)]
        rounded = exact.to(getattr(torch, self._dtype))
        if not torch.isfinite(rounded).all():
            self._unfinished.discard()
            raise _not_finite(self._cutting.model, self._layer, exact, rounded, batch)
        if self._dtype == "bfloat16":
            return rounded.view(torch.int16).cpu().numpy().view(np.uint16)
        return rounded.cpu().numpy()

    def _write_contexts(self, batch: Batch) -> None:
        columns = self._cutting.columns
        for tokens, mask, context in zip(batch.input_ids, batch.attention_mask, batch.context.tolist(), strict=True):
            row = np.full(columns.stop - columns.start, -1, np.int32)
            there = tokens[columns.start : int(mask.sum()) - len(self._cutting.after)]
            row[: len(there)] = there
            _write_at(self._contexts, row.tobytes(), context * row.nbytes)
        self._n_contexts = max(self._n_contexts, int(batch.context.max()) + 1)


def _write_at(file: int, content: bytes, offset: int) -> None:
    while content:  # less may be written at the end of a disk; the next attempt then raises
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


def _not_finite(
    model: LanguageModel, layer: int, exact: torch.Tensor, rounded: torch.Tensor, batch: Batch
) -> ValueError:
    import torch

    row = int((~torch.isfinite(rounded)).any(dim=1).nonzero()[0])
    window, column = (int(index[row]) for index in np.nonzero(batch.is_text))
    where = f"hidden_states[{layer}] of {model.name} at token {column} of a window of document {batch.document[window]}"
    if torch.isfinite(exact).all():
        dtype = str(rounded.dtype).removeprefix("torch.")
        return ValueError(
            f"{where} has a value of {float(exact[row].abs().max()):.3g}, too large for {dtype}: "
            'pass dtype="bfloat16" or dtype="float32"'
        )
    dtype = str(exact.dtype).removeprefix("torch.")
    if dtype == "float16":
        advice = "load it in bfloat16 or float32 (dtype=… of from_pretrained)"
    else:
        advice = "its weights may be damaged, or not made for this dtype: try float32"
    return ValueError(f"{where} is not finite (NaN or infinite); the model computes in {dtype}: {advice}")
