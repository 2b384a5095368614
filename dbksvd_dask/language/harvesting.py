"""``harvest``: the embeddings of the tokens of texts, from a layer of a language model, shuffled into a zarr store."""

from __future__ import annotations

import hashlib
import os
from importlib.metadata import version
from typing import TYPE_CHECKING, get_args

import xarray as xr

from dbksvd_dask.embeddings import open_embeddings
from dbksvd_dask.language.forward_passes import Dtype, scatter_embeddings
from dbksvd_dask.language.harvest_store import MARK, is_harvest, write_harvest
from dbksvd_dask.language.models import LanguageModel, open_model
from dbksvd_dask.language.numbers import whole_number
from dbksvd_dask.language.texts import Texts, describe_texts, read_texts
from dbksvd_dask.language.unfinished import Unfinished
from dbksvd_dask.language.windows import batches, cut
from dbksvd_dask.retry import DISK_FULL
from dbksvd_dask.whole import check_place

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def harvest(
    model: str | os.PathLike[str] | PreTrainedModel | LanguageModel,
    texts: Texts,
    *,
    layer: int,
    out: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase | None = None,
    column: str = "text",
    dtype: Dtype = "float16",
    context_length: int | None = None,
    batch_size: int = 32,
    shuffle_buffer: int = 2**17,
    keep_bos: bool = False,
    max_tokens: int | None = None,
    random_state: int = 0,
    device: str | None = None,
    overwrite: bool = False,
) -> xr.DataArray:
    """Harvest the embeddings of the tokens of texts from a layer of a language model into a zarr store.

    A sample is a token in its context: special tokens and padding are left out. The samples come in random order, all
    orders being equally likely, whatever their number. What is in memory is the model, the tokens of
    a document, a batch, and ``shuffle_buffer`` samples; meanwhile the samples lie in a hidden folder beside ``out``. A
    harvest that was killed goes on where it was when it is called again with the same arguments, and gives the same
    bits.

    Parameters
    ----------
    model : str, path, transformers.PreTrainedModel or LanguageModel
        A local folder, a name on the Hugging Face Hub, or the model itself; causal or like BERT.
    texts : path, datasets.Dataset, datasets.IterableDataset or iterable of str
        One document an item. A path is that of a text file (blank lines part the documents), of a ``.jsonl`` file or of
        a folder saved by ``datasets``; a list may hold several as ``pathlib.Path``.
    layer : int
        As transformers counts ``hidden_states``: 0 is what goes into the first block, i what the i-th block gives. The
        blocks after it are not computed. Negative: counted from the last.
    out : path
        Folder of the store.
    tokenizer : str, path or tokenizer, optional
        By default the one that lies with the model.
    column : str, default "text"
        Of a data set or ``.jsonl`` file.
    dtype : {"float16", "bfloat16", "float32"}, default "float16"
        How the embeddings are rounded. Zarr has no bfloat16: they are stored as float32, and take, compressed, hardly
        more room than two bytes each.
    context_length : int, optional
        Tokens of a window, with the special tokens that the tokenizer puts around it; longer documents are cut into
        several. By default what the model reads, but no more than 512.
    batch_size : int, default 32
        Windows of a forward pass.
    shuffle_buffer : int, default 131,072
        Most samples in memory.
    keep_bos : bool, default False
        Keep the special token at the beginning of each window as a sample. Its norm is often a hundred times that of
        the others.
    max_tokens : int, optional
        End with so many samples.
    random_state : int, default 0
        Seed of the order.
    device : str, optional
        By default that of a model which is passed, or else the first GPU, or the CPU where there is none.
    overwrite : bool, default False
        Replace the store of another harvest, and begin anew where one with other parameters was not finished.

    Returns
    -------
    (n, d) xarray.DataArray
        The store as `open_embeddings` opens it: with ``document`` (which of the texts), ``context`` (row of the store's
        ``context_tokens``), ``position`` (column of it) and ``token_id`` (label of the store's ``vocabulary``).

    Raises
    ------
    ImportError
        If torch or transformers is not installed.
    FileExistsError
        If there is something at ``out`` that may not be replaced.
    FileNotFoundError
        If there is no such model, or no such text file.
    OSError
        If there is no room on the disk: call again when there is.
    TypeError
        If an argument, or a text, is of a wrong type.
    ValueError
        If the model has no such layer or no hidden states, or reads fewer tokens than ``context_length``; if the texts
        have no such column, or no tokens; if an embedding is not finite, or too large for ``dtype``; or if an
        unfinished harvest at ``out`` is of other texts or parameters.

    Examples
    --------
    >>> import dbksvd_dask as dbk
    >>> Y = dbk.harvest("gpt2", ["A text.", "Another."], layer=6, out="gpt2.zarr")  # doctest: +SKIP
    """
    batch_size, shuffle_buffer = whole_number("batch_size", batch_size), whole_number("shuffle_buffer", shuffle_buffer)
    max_tokens = None if max_tokens is None else whole_number("max_tokens", max_tokens)
    random_state = whole_number("random_state", random_state, least=0)
    if dtype not in get_args(Dtype):
        raise ValueError(f"dtype={dtype!r} is not one of {', '.join(map(repr, get_args(Dtype)))}")
    target = check_place(out, "a harvest", is_harvest, overwrite=overwrite)
    documents = read_texts(texts, column)
    opened = open_model(model, tokenizer, device=device)
    layer = opened.check_layer(layer)
    cutting = cut(opened, context_length, keep_bos=keep_bos)

    parameters = {
        "model": opened.name,
        "weights": _fingerprint(opened),
        "layer": layer,
        "dtype": dtype,
        "context_length": cutting.context_length,
        "batch_size": batch_size,
        "shuffle_buffer": shuffle_buffer,
        "keep_bos": keep_bos,
        "max_tokens": max_tokens,
        "random_state": random_state,
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with Unfinished(target, parameters, anew=overwrite) as unfinished:
            check_place(out, "a harvest", is_harvest, overwrite=overwrite)  # another may have ended since
            windows = cutting.windows(documents, max_tokens)
            rows = scatter_embeddings(cutting, batches(windows, batch_size), layer, dtype, unfinished, max_tokens)
            attributes = {
                "title": f"Hidden states of {opened.name}, layer {layer}",
                "source": describe_texts(texts),
                "model": f"{opened.name}, hidden_states[{layer}]",
                MARK: f"dbksvd_dask {version('dbksvd-dask')}",
            } | {name: value for name, value in parameters.items() if name not in ("model", "weights")}
            write_harvest(rows, cutting, unfinished, shuffle_buffer, attributes)
            unfinished.publish()
    except OSError as error:
        if error.errno in DISK_FULL:
            raise OSError(
                error.errno,
                f"{target} cannot be written ({error.strerror}): make room there and call again with the same "
                "arguments, to go on where it was",
            ) from error
        raise
    return open_embeddings(target)


def _fingerprint(model: LanguageModel) -> str:
    """Of the weights: enough of them to tell another model of the same shape."""
    import torch

    digest = hashlib.sha256()
    for name, weights in model.model.named_parameters():
        some = weights.detach().reshape(-1)[:16].to("cpu", torch.float32).numpy()
        digest.update(f"{name} {tuple(weights.shape)} {weights.dtype}".encode() + some.tobytes())
    return digest.hexdigest()
