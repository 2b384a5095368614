"""A language model of transformers, and its hidden states: taken from a layer, or replaced there."""

from __future__ import annotations

import inspect
import operator
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dbksvd_dask.language.blocks import StoppedError, find_layers, first_tensor, stop_before

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def open_model(
    model: str | os.PathLike[str] | PreTrainedModel | LanguageModel,
    tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase | None = None,
    *,
    causal: bool = False,
    device: str | torch.device | None = None,
) -> LanguageModel:
    """Open a language model and find its layers.

    Parameters
    ----------
    model : str, path, transformers.PreTrainedModel or LanguageModel
        A local folder, a name on the Hugging Face Hub, or the model itself, which is put into evaluation mode. One that
        is open already is returned.
    tokenizer : str, path or transformers tokenizer, optional
        By default the one that lies with the model.
    causal : bool, default False
        Open it with the head that predicts the next token (``AutoModelForCausalLM``), rather than without a head.
    device : str, optional
        By default that of a model which is passed, and else the first GPU, or the CPU where there is none. On a GPU the
        weights keep the dtype they are stored in, on the CPU they become float32.

    Returns
    -------
    LanguageModel

    Raises
    ------
    ImportError
        If torch or transformers is not installed.
    FileNotFoundError
        If there is no such folder, nor such a model on the Hub that can be reached from here.
    TypeError
        If ``model`` or ``tokenizer`` is something else.
    ValueError
        If a folder holds no model, if the model does not read tokens or gives no hidden states, if it cannot be moved
        to ``device``, or if a passed model needs a ``tokenizer``.
    """
    if isinstance(model, LanguageModel):
        if tokenizer is not None or device is not None:
            raise TypeError(f"{model.name} is open already, with its tokenizer and on its device: pass neither")
        return model
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ImportError(
            f'language models need torch and transformers: pip install "dbksvd-dask[harvest]" ({error})'
        ) from error
    if isinstance(model, str | os.PathLike):
        loader = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float32 if str(device) == "cpu" else "auto"
        name = os.fspath(model)
        model = _moved(_load(loader, "model", name, dtype=dtype), device)
    elif isinstance(model, transformers.PreTrainedModel):
        name = model.name_or_path
        model = model if device is None else _moved(model, device)
    else:
        raise TypeError(
            f"model={model!r} is a {type(model).__name__}: pass the path or name of a transformers model, or the model"
        )
    return LanguageModel(model, _open_tokenizer(tokenizer, name, type(model).__name__))


def _moved(model: PreTrainedModel, device: str | torch.device) -> PreTrainedModel:
    try:
        return model.to(device)
    except (AssertionError, RuntimeError) as error:  # torch raises the first where it was built without CUDA
        raise ValueError(f"the model cannot be moved to device={str(device)!r}: {error}") from error


def _open_tokenizer(tokenizer: Any, name: str, kind: str) -> PreTrainedTokenizerBase:
    import transformers

    if tokenizer is None and not name:
        raise ValueError(f"this {kind} was not loaded from anywhere: pass its tokenizer, too")
    if tokenizer is None or isinstance(tokenizer, str | os.PathLike):
        tokenizer = _load(transformers.AutoTokenizer, "tokenizer", os.fspath(tokenizer or name))
    elif not isinstance(tokenizer, transformers.PreTrainedTokenizerBase):
        raise TypeError(f"tokenizer={tokenizer!r} is a {type(tokenizer).__name__}, not a transformers tokenizer")
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes one up where there is none
        raise ValueError(f"there is no tokenizer with {name or kind}, or it has no vocabulary: pass tokenizer=…")
    return tokenizer


def _load(loader: Any, what: str, name: str, **options: Any) -> Any:
    try:
        return loader.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        if os.path.isdir(name):
            raise ValueError(
                f"there is no {what} in the folder {name} that {loader.__name__} opens: {error}"
            ) from error
        raise FileNotFoundError(
            f"there is no {what} {name!r}, neither a folder nor on the Hugging Face Hub as far as it is reached from "
            f"here: {error}"
        ) from error


class LanguageModel:
    """A model with its tokenizer, whose hidden states are at hand by layer.

    Layers are counted as transformers counts ``hidden_states``: 0 is what goes into the first block, i what the i-th
    block gives, and ``n_layers`` what the last one gives, after the final norm where the model has one.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        With or without a head. It is put into evaluation mode.
    tokenizer : transformers tokenizer

    Attributes
    ----------
    name : str
        Where the model was loaded from, or else the name of its class.
    n_layers : int
        Number of blocks.
    n_features : int
        Width of the hidden states.
    window : int
        Most tokens of a forward pass, with special tokens; what neither model nor tokenizer limits is 2^20.

    Raises
    ------
    ValueError
        If the model does not read tokens, or gives no hidden states.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = model.name_or_path or type(model).__name__
        if model.main_input_name != "input_ids":
            raise ValueError(f"{self.name} is not a language model: it reads {model.main_input_name!r}, not tokens")
        self._base = model.base_model  # without the head, which the hidden states do not need
        self._options = {"use_cache": False} if "use_cache" in inspect.signature(self._base.forward).parameters else {}
        self._layers = find_layers(self._base, self._options, self.name)
        self.n_layers = self._layers.n_layers
        self.n_features = self._layers.n_features
        self.window = _window(model, tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    def check_layer(self, layer: int) -> int:
        """Return ``layer`` counted from the front; raises TypeError or ValueError if the model has no such layer."""
        if isinstance(layer, bool) or not hasattr(layer, "__index__"):
            raise TypeError(f"layer={layer!r} is not an integer: pass 0 … {self.n_layers}")
        if not -self.n_layers - 1 <= layer <= self.n_layers:
            raise ValueError(
                f"layer={layer} is not in {self.name}, which has {self.n_layers} blocks: pass 0 (what goes into the "
                f"first) … {self.n_layers} (what the last gives), or −1 … {-self.n_layers - 1} counted from the last"
            )
        return operator.index(layer) % (self.n_layers + 1)

    def hidden_states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, layer: int) -> torch.Tensor:
        """Hidden states of a layer; the blocks after it, and the head, are not computed.

        Parameters
        ----------
        input_ids : (B, L) torch.Tensor of int64
            Padded on the right, whatever the tokenizer does.
        attention_mask : (B, L) torch.Tensor
            1 for tokens, 0 for padding.
        layer : int
            0 … ``n_layers``, or negative, counted from the last.

        Returns
        -------
        (B, L, d) torch.Tensor
            On the device of the model, in its dtype.

        Raises
        ------
        TypeError, ValueError
            If the model has no such layer.
        """
        import torch

        layer = self.check_layer(layer)
        inputs = {"input_ids": input_ids.to(self.device), "attention_mask": attention_mask.to(self.device)}
        inputs |= self._options
        with torch.inference_mode():
            if layer == self.n_layers and self._layers.last_is_output:
                return self._base(**inputs)[0]
            if self._layers.blocks is None or layer == self.n_layers:
                return self._base(**inputs, output_hidden_states=True).hidden_states[layer]
            with stop_before(self._layers.blocks[layer]):
                try:
                    self._base(**inputs)
                except StoppedError as stopped:
                    return stopped.hidden_states
        raise RuntimeError(f"{self.name} did not come to block {layer}")

    @contextmanager
    def replaced(self, layer: int, function: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
        """Replace the hidden states of a layer in all forward passes inside the ``with`` block.

        Parameters
        ----------
        layer : int
            0 … ``n_layers``, or negative, counted from the last.
        function : callable
            Of hidden states ``(B, L, d)`` to such as the model shall go on with.

        Raises
        ------
        TypeError, ValueError
            If the model has no such layer, or its blocks cannot be told apart (ALBERT has one block for all layers).
        """
        layer = self.check_layer(layer)

        def replace_input(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            key, hidden_states = first_tensor(args, kwargs)
            if isinstance(key, int):
                return (*args[:key], function(hidden_states), *args[key + 1 :]), kwargs
            return args, {**kwargs, key: function(hidden_states)}

        def replace_output(module: Any, args: tuple, output: Any) -> Any:
            if isinstance(output, tuple):
                return (function(output[0]), *output[1:])
            output[next(iter(output))] = function(output[0])
            return output

        if layer < self.n_layers and self._layers.blocks is not None:
            hook = self._layers.blocks[layer].register_forward_pre_hook(replace_input, with_kwargs=True)
        elif layer == self.n_layers and self._layers.last_is_output:
            hook = self._base.register_forward_hook(replace_output)
        else:
            raise ValueError(
                f"layer={layer} of {self.name} cannot be replaced: no list of blocks in it is given one layer's "
                "hidden states after the other"
            )
        try:
            yield
        finally:
            hook.remove()


_UNLIMITED = 2**20


def _window(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Most tokens that both the positions of the model and the tokenizer allow."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _UNLIMITED
    for module in model.base_model.modules():
        # RoBERTa counts positions from behind that of the padding.
        if getattr(module, "num_embeddings", None) == positions and getattr(module, "padding_idx", None) is not None:
            positions -= module.padding_idx + 1
            break
    return int(min(positions, tokenizer.model_max_length, _UNLIMITED))
