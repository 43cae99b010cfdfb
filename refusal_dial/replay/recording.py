"""What one forward pass leaves behind, so that an intervention need not compute it again.

For every block: the residual stream it read, the keyword arguments it was given (rotary tables,
position ids), its mask, and its keys and values at every position. For the sites a grid edits: the
rows it edits. And the logits at the last position. The pass is the bridge's own, so that what is
kept is bit for bit what `run_with_cache` shows on the same batch. Keys and values are those that
attention saw: no cache crops them to a sliding window.

This module knows how to run a model once and keep things. It does not know edits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from refusal_dial.replay.bare import UnfitError, unwrapped
from refusal_dial.replay.branches import Pair, causal_rows
from refusal_dial.tokens import Tokens
from refusal_dial.types import hook_name

Place = tuple[str, int]
"""A site and its layer."""


@dataclass
class Layer:
    """One block's memory of the forward pass."""

    residual: Float[Tensor, "batch kept d_model"]
    keywords: dict[str, Any]
    mask: Tensor | None
    kept: Pair  # keys and values


@dataclass
class Recording:
    """The trunk: one forward pass over `tokens`, of which residuals are kept from `first` on."""

    tokens: Tokens
    first: int
    layers: list[Layer] = field(default_factory=list)
    rows: dict[Place, tuple[Tensor, list[int]]] = field(default_factory=dict)
    last: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def length(self) -> int:
        return self.tokens.ids.shape[1]

    def residual(self, layer: int) -> Float[Tensor, "batch kept d_model"]:
        """The residual stream entering `layer` at the last positions, as many as were kept. What
        leaves the last layer is kept at the last position alone."""
        return self.last if layer == len(self.layers) else self.layers[layer].residual

    def start(
        self, layer: int, prompts: Int[Tensor, " some"], first: int
    ) -> Float[Tensor, "some pos d_model"]:
        """The residual stream entering `layer` at positions `first`.. of these prompts."""
        kept = self.residual(layer)
        return kept[prompts, max(0, first - (self.length - kept.shape[1])) :]

    def past(self, layer: int, prompts: Int[Tensor, " some"], first: int) -> Pair:
        """Keys and values before position `first`."""
        key, value = self.layers[layer].kept
        if len(prompts) < len(key):
            key, value = key[prompts], value[prompts]
        return key[:, :, :first], value[:, :, :first]

    def mask(self, layer: int, prompts: Int[Tensor, " some"], first: int) -> Tensor | None:
        """The mask's rows of queries `first`.. in this layer, over all positions."""
        device = self.tokens.ids.device
        return causal_rows(self.layers[layer].mask, prompts, first, self.length, device)

    def keywords(
        self, layer: int, prompts: Int[Tensor, " some"], start: int, stop: int, n: int = 1
    ) -> dict[str, Any]:
        """The block's keywords for `n` branches of these prompts over positions start..stop-1."""
        made: dict[int, Tensor] = {}

        def pick(value: Any) -> Any:
            if isinstance(value, tuple | list):
                return type(value)(pick(item) for item in value)
            if not isinstance(value, Tensor):
                return value
            if id(value) not in made:
                made[id(value)] = self._pick(value, prompts, slice(start, stop), n)
            return made[id(value)]

        return {name: pick(value) for name, value in self.layers[layer].keywords.items()}

    def _pick(self, value: Tensor, prompts: Tensor, positions: slice, n: int) -> Tensor:
        batch, length = self.tokens.ids.shape
        if value.ndim == 1 and len(value) == length:
            return value[positions].repeat(n)
        if value.ndim < 2 or value.shape[1] != length or len(value) not in (1, batch):
            raise UnfitError(f"its blocks take a tensor of shape {tuple(value.shape)}")
        value = (value if len(value) == 1 else value[prompts])[:, positions]
        return value.repeat(1, n, *[1] * (value.ndim - 2))


class Keeping(DynamicCache):  # type: ignore[misc]
    """A cache that keeps keys and values and gives attention back exactly what it got."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, Pair] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> Pair:
        self.kept[layer_idx] = (key_states.contiguous(), value_states.contiguous())
        return key_states, value_states


@torch.no_grad()
def record(
    model: TransformerBridge,
    tokens: Tokens,
    first: int = 0,
    wanted: Mapping[Place, list[int]] | None = None,
) -> Recording:
    """One forward pass over `tokens`, with all it leaves behind.

    Residuals are kept from position `first` on. `wanted` names the positions whose rows are kept at
    places inside blocks. Raises `UnfitError` where the model is not a stack of blocks that pass a
    residual stream on and keep keys and values of every position.
    """
    recording, cache = Recording(tokens, first), Keeping()
    hooks = [_keeper(recording, place, at) for place, at in (wanted or {}).items()]
    with _watched(model, recording), model.hooks(fwd_hooks=hooks):
        logits = model(
            tokens.ids, attention_mask=tokens.mask, logits_to_keep=1, past_key_values=cache
        )
    recording.logits = logits[:, -1]
    if len(recording.layers) != len(model.blocks):
        raise UnfitError("its forward pass does not run every block once")
    for index, layer in enumerate(recording.layers):
        key, _ = layer.kept = cache.kept.get(index, (logits, logits))
        if key.ndim != 4 or key.shape[2] != recording.length:
            raise UnfitError("its blocks do not keep the keys and values of every position")
    return recording


@contextmanager
def _watched(model: TransformerBridge, recording: Recording) -> Iterator[None]:
    """Keeps what every block is given, and what the last one gives."""

    def leave(_: nn.Module, __: Any, output: Any) -> None:
        recording.last = stream_of(output)[:, -1:].clone()

    handles = [model.blocks[-1].register_forward_hook(leave)]
    try:
        for index, block in enumerate(model.blocks):
            enter = _watcher(unwrapped(block), index, recording)
            handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watcher(block: nn.Module, index: int, recording: Recording) -> Callable[..., None]:
    signature = inspect.signature(block.forward)
    named = (n for n, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD)
    others = next(named, "")

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        words = signature.bind(*args, **kwargs).arguments
        words |= words.pop(others, {})
        hidden, mask = words.pop("hidden_states"), words.pop("attention_mask", None)
        _check(hidden, mask, recording)
        if index != len(recording.layers):
            raise UnfitError("its blocks do not run in order")
        kept = hidden[:, recording.first :]
        words = {k: v for k, v in words.items() if not isinstance(v, Keeping) and k != "use_cache"}
        layer = Layer(kept.clone() if recording.first else kept, words, mask, (kept, kept))
        recording.layers.append(layer)

    return enter


def _check(hidden: Tensor, mask: Any, recording: Recording) -> None:
    batch, length = recording.tokens.ids.shape
    if hidden.shape[:2] != (batch, length):
        raise UnfitError("its blocks do not read one residual stream")
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[1] != 1:
        raise UnfitError("its masks are not one matrix a prompt")
    if len(mask) not in (1, batch) or mask.shape[2:] != (length, length):
        raise UnfitError(f"its masks have the shape {tuple(mask.shape)}")


def _keeper(
    recording: Recording, place: Place, positions: list[int]
) -> tuple[str, Callable[..., None]]:
    def keep(activation: Tensor, hook: object) -> None:
        recording.rows[place] = (activation[:, positions].flatten(2), positions)

    return hook_name(*place), keep


def stream_of(output: Any) -> Tensor:
    """A block's residual stream, whether or not it comes in a tuple."""
    return output[0] if isinstance(output, tuple) else output
