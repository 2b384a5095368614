"""How well a language model goes on with the reconstruction of a layer: loss recovered and KL divergence."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from dbksvd_dask.language.models import LanguageModel
from dbksvd_dask.language.numbers import whole_number
from dbksvd_dask.language.predictions import Losses, log_probabilities, open_causal
from dbksvd_dask.language.reconstructions import Reconstruction, reconstructions_by
from dbksvd_dask.language.texts import Texts, describe_texts, read_texts
from dbksvd_dask.language.windows import Batch, Window, batches, cut

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BYTES_OF_RECONSTRUCTIONS = 256 * 2**20


def evaluate_splicing(
    model: str | os.PathLike[str] | PreTrainedModel | LanguageModel,
    texts: Texts,
    dictionaries: Any,
    *,
    layer: int,
    n_nonzero_coefs: int | Sequence[int] | None = None,
    encoder: Literal["mp", "omp"] | None = None,
    tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase | None = None,
    column: str = "text",
    context_length: int | None = None,
    batch_size: int = 8,
    max_tokens: int | None = None,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Put reconstructions in the place of a layer's hidden states, and see what the model still predicts.

    A reconstruction that keeps what the model uses leaves its cross-entropy as it was. As in the literature on sparse
    autoencoders, the scale is set by ablation: *loss recovered* is ``(L₀ − L) / (L₀ − L*)``, where L is the loss with
    the reconstruction, L* that of the model as it is, and L₀ that with zeros in the place of the hidden states; 1 is
    as good as the hidden states themselves, 0 as bad as nothing. With the mean of the hidden states rather than zeros
    the scale is stricter.

    Special tokens (BOS, which has massive activations in many models, EOS, …) keep their hidden states, and so does
    padding. What is predicted at such a token, or is one, is not counted.

    Parameters
    ----------
    model : str, path, transformers.PreTrainedModel or LanguageModel
        A causal model: folder, name on the Hugging Face Hub, or the model itself.
    texts : path, paths, datasets.Dataset, datasets.IterableDataset or iterable of str
        What is predicted; better not what the dictionaries were learned from. As for `harvest`.
    dictionaries : Dictionary, autoencoder, function, or mapping of str to these
        What reconstructs: by its pursuit; by ``decode(encode(Y))`` of a torch module, such as an ``SAE`` of SAELens; or
        by any function of an (n, d) NumPy array to another. A mapping gives them names.
    layer : int
        Of ``hidden_states`` as transformers counts them: 0 is what goes into the first block, i what the i-th gives.
        The layer that the dictionaries were learned from.
    n_nonzero_coefs : int or sequence of int, optional
        k, one or several, for the dictionaries; by default each one's own. Others have their own sparsity.
    encoder : "mp" or "omp", optional
        Pursuit of the dictionaries; by default each one's own.
    tokenizer : str, path or transformers tokenizer, optional
        By default the model's.
    column : str, default "text"
        Where the text is in the rows of a data set.
    context_length : int, optional
        Most tokens of a window, with special tokens, as for `harvest`. Texts are cut into such windows.
    batch_size : int, default 8
        Windows of a forward pass.
    max_tokens : int, optional
        End with so many tokens of text.
    device : str, optional
        Where the model computes, as for `harvest`.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    xarray.Dataset
        Over "reconstruction", with coordinates `dictionary` (the name) and `n_nonzero_coefs` (0 where it does not
        apply):

        * `loss`: cross-entropy of the next token, in nats, with the reconstruction;
        * `loss_recovered`, relative to zeros, and `loss_recovered_mean`, relative to the mean;
        * `kl`: ``KL(p ‖ q)`` of the next-token distributions, p of the model as it is and q with the reconstruction;
        * `l0`, `alive_atoms` (atoms that any token uses) and `n_atoms`; NaN where there are no codes;
        * `variance_explained`, pooled over features, and `relative_error`, of the hidden states.

        And without a dimension: `loss_clean`, `loss_zero`, `loss_mean`, `kl_zero`, `kl_mean`. The attributes have the
        numbers of tokens that were replaced and of predictions that were counted.

    Raises
    ------
    ImportError
        If torch or transformers is not installed.
    FileNotFoundError
        If there is no such model or text.
    TypeError
        If something is of the wrong kind.
    ValueError
        If the model is not causal or has no such layer, there is no text to predict, a dictionary or what a function
        gives is of another width or not finite, or k is out of range.

    References
    ----------
    * Bricken et al., Towards Monosemanticity, 2023: loss recovered, by zero ablation.
    * Gao et al., Scaling and evaluating sparse autoencoders, arXiv 2406.04093, section 4.1: downstream loss and KL.
    * Karvonen et al., SAEBench, arXiv 2503.09532, core metrics.
    """
    opened = open_causal(model, tokenizer, device)
    layer = opened.check_layer(layer)
    reconstructions = reconstructions_by(dictionaries, opened.n_features, n_nonzero_coefs, encoder)
    cutting = cut(opened, context_length)
    max_tokens = None if max_tokens is None else whole_number("max_tokens", max_tokens)
    windows = list(cutting.windows(read_texts(texts, column), max_tokens))
    _check_windows(windows, opened)
    size = whole_number("batch_size", batch_size)
    mean, n_tokens = _mean_hidden_state(opened, windows, layer, size)
    ablations = {"zero": np.zeros_like(mean), "mean": mean}
    clean = Losses()
    ablated = {name: Losses() for name in ablations}
    spliced = [Losses() for _ in reconstructions]
    rows_at_once = _BYTES_OF_RECONSTRUCTIONS // (4 * opened.n_features * len(reconstructions))
    with _bar(n_tokens, progress) as bar:
        for group in _groups(batches(windows, size), rows_at_once):
            rows = [_rows(opened, batch, layer) for batch in group]
            reconstructed = [one(np.concatenate(rows)) for one in reconstructions]
            start = 0
            for batch in group:
                stop = start + int(np.count_nonzero(batch.is_text))
                log_p = clean.add(log_probabilities(opened, batch), batch)
                for name, row in ablations.items():
                    ablated[name].add(log_probabilities(opened, batch, layer, row), batch, log_p)
                for sums, found in zip(spliced, reconstructed, strict=True):
                    sums.add(log_probabilities(opened, batch, layer, found[start:stop]), batch, log_p)
                bar.update(stop - start)
                start = stop
    attributes = {
        "model": opened.name,
        "layer": layer,
        "texts": describe_texts(texts),
        "context_length": cutting.context_length,
        "n_tokens": n_tokens,
        "n_predictions": clean.count,
    }
    return _dataset(reconstructions, spliced, clean, ablated).assign_attrs(attributes)


def _check_windows(windows: Sequence[Window], model: LanguageModel) -> None:
    if not any((window.is_text[1:] & window.is_text[:-1]).any() for window in windows):
        raise ValueError(
            f"there is nothing to predict: after the tokenizer of {model.name} no text has two tokens one after the "
            "other that are not special"
        )


def _rows(model: LanguageModel, batch: Batch, layer: int) -> np.ndarray:
    """Hidden states of the tokens of text in a batch, (n, d), in float32 or float64."""
    import torch

    states = model.hidden_states(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask), layer)
    rows = states.cpu()[torch.from_numpy(batch.is_text)]
    return (rows if rows.dtype == torch.float64 else rows.float()).numpy()


def _mean_hidden_state(
    model: LanguageModel, windows: Sequence[Window], layer: int, batch_size: int
) -> tuple[np.ndarray, int]:
    """Mean over all tokens of text, (d,) float64, and their number."""
    total, count = np.zeros(model.n_features), 0
    for batch in batches(windows, batch_size):
        rows = _rows(model, batch, layer)
        total += rows.sum(axis=0, dtype=np.float64)
        count += len(rows)
    return total / count, count


def _groups(found: Iterable[Batch], n_rows: int) -> Iterator[list[Batch]]:
    """Batches that are reconstructed together: at least one, and else at most so many tokens of text."""
    group: list[Batch] = []
    left = n_rows
    for batch in found:
        n_text = int(np.count_nonzero(batch.is_text))
        if group and n_text > left:
            yield group
            group, left = [], n_rows
        group.append(batch)
        left -= n_text
    if group:
        yield group


def _dataset(
    reconstructions: Sequence[Reconstruction], spliced: Sequence[Losses], clean: Losses, ablated: Mapping[str, Losses]
) -> xr.Dataset:
    loss = np.array([sums.mean_loss for sums in spliced])
    errors = [one.errors for one in reconstructions if one.errors is not None]
    scale = {name: sums.mean_loss - clean.mean_loss for name, sums in ablated.items()}
    columns: dict[str, Any] = {
        "loss": loss,
        "loss_recovered": (ablated["zero"].mean_loss - loss) / scale["zero"],
        "loss_recovered_mean": (ablated["mean"].mean_loss - loss) / scale["mean"],
        "kl": [sums.mean_kl for sums in spliced],
        "l0": [one.l0 for one in reconstructions],
        "alive_atoms": [one.alive_atoms for one in reconstructions],
        "n_atoms": [one.n_atoms for one in reconstructions],
        "variance_explained": [sums.variance_explained for sums in errors],
        "relative_error": [sums.relative_error for sums in errors],
    }
    scalars = {"loss_clean": clean.mean_loss}
    scalars |= {f"loss_{name}": sums.mean_loss for name, sums in ablated.items()}
    scalars |= {f"kl_{name}": sums.mean_kl for name, sums in ablated.items()}
    dataset = xr.Dataset({name: ("reconstruction", np.asarray(values, float)) for name, values in columns.items()})
    return dataset.assign(scalars).assign_coords(
        dictionary=("reconstruction", np.array([one.name for one in reconstructions], object)),
        n_nonzero_coefs=("reconstruction", [one.k for one in reconstructions]),
    )


def _bar(n_tokens: int, progress: bool) -> Any:
    from tqdm.auto import tqdm  # warns in a notebook without ipywidgets, whoever imports it

    return tqdm(total=n_tokens, desc="splicing", unit="token", disable=not progress)
