"""The blocks of a language model: found by looking at which of its modules are given the hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Layers:
    """Where the hidden states of a model are."""

    n_layers: int
    """Number of blocks."""
    n_features: int
    """Width of the hidden states."""
    blocks: list[torch.nn.Module] | None
    """Modules whose inputs are the hidden states of layers 0 … n_layers − 1; None where there is no such list."""
    last_is_output: bool
    """Whether the model's output is the hidden states of the last layer."""


def find_layers(base: PreTrainedModel, options: Mapping[str, Any], name: str) -> Layers:
    """Find the blocks by a forward pass of two tokens: those that are given the hidden states, one by one."""
    import torch

    received: dict[int, list[torch.Tensor]] = {}
    lists = [module for module in base.modules() if isinstance(module, torch.nn.ModuleList) and len(module)]
    blocks = {id(block): block for blocks in lists for block in blocks}

    def receive(module: Any, args: tuple, kwargs: dict) -> None:
        _, tensor = first_tensor(args, kwargs)
        if tensor is not None:
            received.setdefault(id(module), []).append(tensor)  # kept, so that no memory is used for two of them

    hooks = [block.register_forward_pre_hook(receive, with_kwargs=True) for block in blocks.values()]
    tokens = torch.zeros((1, 2), dtype=torch.int64, device=base.device)
    try:
        with torch.inference_mode():
            output = base(
                input_ids=tokens, attention_mask=torch.ones_like(tokens), output_hidden_states=True, **options
            )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be harvested: a forward pass of two tokens failed ({error})") from error
    finally:
        for hook in hooks:
            hook.remove()
    states = getattr(output, "hidden_states", None)
    if not states:
        other = ": it is an encoder with a decoder; pass one of them" if "decoder_hidden_states" in output else ""
        raise ValueError(f"{name} gives no hidden states (output_hidden_states=True){other or ', so it has no layers'}")

    def is_given(block: torch.nn.Module, state: torch.Tensor) -> bool:
        given = received.get(id(block), [])
        return len(given) == 1 and given[0].shape == state.shape and given[0].data_ptr() == state.data_ptr()

    n_layers = len(states) - 1
    found = next(
        (list(blocks) for blocks in lists if len(blocks) == n_layers and all(map(is_given, blocks, states))), None
    )
    last_is_output = output[0].data_ptr() == states[-1].data_ptr()
    return Layers(n_layers, states[0].shape[-1], found, last_is_output)


def first_tensor(args: tuple, kwargs: Mapping[str, Any]) -> tuple[int | str, Any]:
    """The first argument of a block that is a tensor, which is the hidden states, and how it is passed."""
    import torch

    passed: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    return next(((key, value) for key, value in passed if isinstance(value, torch.Tensor)), ("", None))


class StoppedError(Exception):
    """Ends a forward pass that has come as far as it need, to the hidden states that it carries."""

    def __init__(self, hidden_states: torch.Tensor) -> None:
        super().__init__()
        self.hidden_states = hidden_states


@contextmanager
def stop_before(block: torch.nn.Module) -> Iterator[None]:
    """Let forward passes inside the ``with`` block raise `StoppedError` when they come to a block."""

    def stop(module: Any, args: tuple, kwargs: dict) -> None:
        raise StoppedError(first_tensor(args, kwargs)[1])

    hook = block.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
