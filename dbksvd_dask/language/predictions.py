"""What a causal model predicts, with its hidden states or with others in their place, and losses of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dbksvd_dask.language.models import LanguageModel, open_model
from dbksvd_dask.language.windows import Batch

if TYPE_CHECKING:
    import torch


_PREDICTIONS = 256
"""Whose divergences are computed at a time."""


def open_causal(model: Any, tokenizer: Any, device: Any) -> LanguageModel:
    """Open a model, and see that it predicts the next token from those before it only.

    Raises
    ------
    ValueError
        If it predicts no tokens, looks at later ones, or predicts NaN.
    """
    import torch

    opened = open_model(model, tokenizer, causal=True, device=device)
    tokens = torch.tensor([[0, 1, 2], [0, 1, 3]], device=opened.device)
    with torch.inference_mode():
        output = opened.model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    logits = getattr(output, "logits", None)
    if logits is None or logits.shape[:2] != tokens.shape:
        raise ValueError(f"{type(opened.model).__name__} does not predict tokens: pass a model of AutoModelForCausalLM")
    if logits.isnan().any():
        raise ValueError(f"{opened.name} predicts NaN, computing in {logits.dtype}: its weights may be damaged")
    if not torch.allclose(*logits[:, :2].float(), rtol=1e-2, atol=1e-3):
        raise ValueError(f"{opened.name} is not a causal model: what it predicts for a token depends on those after it")
    return opened


def log_probabilities(
    model: LanguageModel, batch: Batch, layer: int = 0, rows: np.ndarray | None = None
) -> torch.Tensor:
    """Log-probabilities of the next token where predictions count, (p, V), with rows in the place of the text's."""
    import torch

    is_text = torch.from_numpy(batch.is_text).to(model.device)
    inputs = {
        "input_ids": torch.from_numpy(batch.input_ids).to(model.device),
        "attention_mask": torch.from_numpy(batch.attention_mask).to(model.device),
    }

    def splice(hidden_states: torch.Tensor) -> torch.Tensor:
        reconstructed = torch.as_tensor(rows, dtype=hidden_states.dtype, device=hidden_states.device)
        if not torch.isfinite(reconstructed).all():
            raise ValueError(
                f"a reconstruction is too large for {reconstructed.dtype}, in which {model.name} computes: load the "
                "model in bfloat16 or float32 (dtype=… of from_pretrained)"
            )
        replaced = hidden_states.clone()
        replaced[is_text] = reconstructed
        return replaced

    with torch.inference_mode():
        if rows is None:
            logits = model.model(**inputs).logits
        else:
            with model.replaced(layer, splice):
                logits = model.model(**inputs).logits
        counted = logits[:, :-1][is_text[:, :-1] & is_text[:, 1:]]
        del logits  # each of these has a value for every token and every word of the vocabulary
        return torch.log_softmax(counted.to(torch.promote_types(counted.dtype, torch.float32)), dim=-1)


@dataclass
class Losses:
    """Losses and divergences, added up over the predictions that count."""

    loss: float = 0.0
    kl: float = 0.0
    count: int = 0

    def add(self, log_q: torch.Tensor, batch: Batch, log_p: torch.Tensor | None = None) -> torch.Tensor:
        """Add the predictions of a batch; ``log_p`` are those of the model as it is."""
        import torch

        counted = batch.is_text[:, :-1] & batch.is_text[:, 1:]
        targets = torch.from_numpy(batch.input_ids[:, 1:][counted]).to(log_q.device)
        self.loss -= float(log_q.gather(1, targets[:, None]).double().sum())
        if log_p is not None:
            for some_p, some_q in zip(log_p.split(_PREDICTIONS), log_q.split(_PREDICTIONS), strict=True):
                self.kl += float((some_p.exp() * (some_p - some_q)).sum(dim=1).double().sum())
        self.count += len(targets)
        return log_q

    @property
    def mean_loss(self) -> float:
        """Cross-entropy of a prediction."""
        return self.loss / self.count

    @property
    def mean_kl(self) -> float:
        """Divergence of a prediction."""
        return self.kl / self.count
