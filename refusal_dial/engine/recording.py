"""What one forward pass leaves behind, and how much memory may be used for it.

For every block: the residual stream it read, its keyword arguments, its mask, its keys and values.
For the sites a grid edits: the rows it edits. And the logits at the last position. The pass is the
bridge's own, so what is kept is bit for bit what `run_with_cache` shows on the same batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from refusal_dial.common import DialError, free_memory, hook_name
from refusal_dial.model.tokens import Tokens
from refusal_dial.model.unhooked import UnfitError, Unhooked, unwrapped

# --------------------------------------------------------------------------------------------------
# How much memory a grid may use, and how much its parts need.
#
# The estimates are rough and on the generous side; where they fail, the engine halves its batch.


GIGABYTE = 2**30

UNTOLD = 4 * GIGABYTE
"""The budget where the machine does not say what is free, and the most taken unasked on a CPU."""

CACHED = 96 * 2**20
"""On a CPU a stream's activations in one block stay within this many bytes: more is no faster."""

LOGIT_ROWS = 128
"""So many rows of logits at once are worth reading the unembedding for."""

START = {"cpu": 4e7, "cuda": 4e10, "mps": 4e9}
"""Floating-point operations a device would do in the time that starting one block takes."""


def budget(device: torch.device, memory_gb: float | None) -> int:
    """Bytes a grid may use besides the model: what is asked for, or half of what is free.

    Raises `DialError` for a budget that is not a positive number.
    """
    if memory_gb is not None:
        if not memory_gb > 0:
            raise DialError(f"memory must be a positive number of gigabytes, not {memory_gb}")
        return max(1, int(memory_gb * GIGABYTE))
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return min(UNTOLD, free_memory() // 2) if device.type == "cpu" else UNTOLD


@dataclass(frozen=True)
class Sizes:
    """What a model's parts take, in bytes and operations."""

    item: int
    n_layers: int
    widths: int  # numbers that one token makes in one block
    d_model: int
    d_kept: int  # numbers that one token leaves in one layer's keys and values
    n_heads: int
    d_vocab: int
    flops: float  # of one token in one block
    device: torch.device

    @classmethod
    def of(cls, model: TransformerBridge) -> Sizes:
        cfg, some = model.cfg, next(model.original_model.parameters())
        weights = [p.shape for p in model.blocks[0].parameters() if p.ndim == 2]
        heads = int(cfg.n_heads)
        kv = int(getattr(cfg, "n_key_value_heads", None) or heads)
        return cls(
            item=some.element_size(),
            n_layers=len(model.blocks),
            widths=sum(max(shape) for shape in weights) + 6 * int(cfg.d_model),
            d_model=int(cfg.d_model),
            d_kept=2 * kv * int(cfg.d_head),
            n_heads=heads,
            d_vocab=int(cfg.d_vocab),
            flops=2.0 * sum(shape.numel() for shape in weights),
            device=some.device,
        )

    def trunk(self, length: int, kept: int) -> int:
        """Bytes that recording one prompt leaves behind, with `kept` positions of residuals."""
        each = length * self.d_kept + kept * self.d_model
        return self.item * (self.n_layers * each + length * self.widths)

    def token(self, length: int) -> int:
        """Bytes that one token of a stream takes in a block, its attention included."""
        return 2 * self.item * self.widths + 12 * self.n_heads * length

    def row(self) -> int:
        """Bytes of one row of logits on their way to a score in float64."""
        return self.d_vocab * (self.item + 24)

    def plain(self, length: int) -> int:
        """Bytes that one prompt takes in a plain forward pass."""
        return length * self.token(length) + self.row()

    def tokens(self, room: int, length: int) -> int:
        """The most tokens a stream should hold."""
        if self.device.type == "cpu":
            room = min(room, max(CACHED, 1024 * self.token(length)))
        return max(1, room // self.token(length))

    def rows(self, room: int) -> int:
        """The most rows of logits to make at once."""
        if self.device.type == "cpu":
            room = min(room, max(CACHED, LOGIT_ROWS * self.row()))
        return max(1, room // self.row())

    def spare(self) -> float:
        """Tokens that cost as much as starting a block."""
        return START.get(self.device.type, START["cpu"]) / max(1.0, self.flops)


# --------------------------------------------------------------------------------------------------
# What one forward pass leaves behind, so that an intervention need not compute it again.
#
# For every block: the residual stream it read, the keyword arguments it was given (rotary tables,
# position ids), its mask, and its keys and values at every position. For the sites a grid edits:
# the rows it edits. And the logits at the last position. The pass is the bridge's own, so that what
# is kept is bit for bit what `run_with_cache` shows on the same batch. Keys and values are those
# that attention saw: no cache crops them to a sliding window.


SitePlace = tuple[str, int]
"""A site and its layer."""

KeyValue = tuple[Tensor, Tensor]


def causal_rows(
    mask: Tensor | None, prompts: Tensor, first: int, length: int, device: torch.device
) -> Tensor | None:
    """The mask's rows for queries `first`..`length`-1 of these prompts; None where all is seen."""
    if mask is None:
        if first == length - 1:
            return None
        seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        return seen[None, None, first:]
    return mask[:, :, first:] if mask.shape[0] == 1 else mask[prompts, :, first:]


@dataclass
class Layer:
    """One block's memory of the forward pass."""

    residual: Float[Tensor, "batch kept d_model"]
    keywords: dict[str, Any]
    mask: Tensor | None
    kept: KeyValue  # keys and values


@dataclass
class Recording:
    """The trunk: one forward pass over `tokens`, of which residuals are kept from `first` on."""

    tokens: Tokens
    first: int
    layers: list[Layer] = field(default_factory=list)
    rows: dict[SitePlace, tuple[Tensor, list[int]]] = field(default_factory=dict)
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

    def past(self, layer: int, prompts: Int[Tensor, " some"], first: int) -> KeyValue:
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
        self.kept: dict[int, KeyValue] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> KeyValue:
        self.kept[layer_idx] = (key_states.contiguous(), value_states.contiguous())
        return key_states, value_states


@torch.no_grad()
def record_run(
    model: TransformerBridge,
    tokens: Tokens,
    first: int = 0,
    wanted: Mapping[SitePlace, list[int]] | None = None,
    alone: Unhooked | None = None,
) -> Recording:
    """One forward pass over `tokens`, with all it leaves behind.

    Residuals are kept from position `first` on. `wanted` names the positions whose rows are kept at
    places inside blocks. With `alone`, which has taps there, it makes the pass and not the bridge:
    by SDPA, equal within rounding. Raises `UnfitError` where the model is not a stack of blocks
    that pass a residual stream on and keep keys and values of every position.
    """
    recording, cache = Recording(tokens, first), Keeping()
    keep = {place: partial(_keep, recording, place, at) for place, at in (wanted or {}).items()}
    if alone is not None:
        with _watched(alone.blocks, recording), alone.seeing(keep):
            recording.logits = alone.last_logits(tokens, cache)
    else:
        hooks = [(hook_name(*place), see) for place, see in keep.items()]
        with _watched(list(model.blocks), recording), model.hooks(fwd_hooks=hooks):
            logits = model(
                tokens.ids, attention_mask=tokens.mask, logits_to_keep=1, past_key_values=cache
            )
        recording.logits = logits[:, -1]
    if len(recording.layers) != len(model.blocks):
        raise UnfitError("its forward pass does not run every block once")
    for index, layer in enumerate(recording.layers):
        nothing = recording.logits
        key, _ = layer.kept = cache.kept.get(index, (nothing, nothing))
        if key.ndim != 4 or key.shape[2] != recording.length:
            raise UnfitError("its blocks do not keep the keys and values of every position")
    return recording


@contextmanager
def _watched(blocks: Sequence[nn.Module], recording: Recording) -> Iterator[None]:
    """Keeps what every block is given, and what the last one gives."""

    def leave(_: nn.Module, __: Any, output: Any) -> None:
        recording.last = stream_of(output)[:, -1:].clone()

    handles = [blocks[-1].register_forward_hook(leave)]
    try:
        for index, block in enumerate(blocks):
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


def _keep(
    recording: Recording,
    place: SitePlace,
    positions: list[int],
    activation: Tensor,
    hook: object = None,
) -> Tensor:
    recording.rows[place] = (activation[:, positions].flatten(2), positions)
    return activation


def stream_of(output: Any) -> Tensor:
    """A block's residual stream, whether or not it comes in a tuple."""
    return output[0] if isinstance(output, tuple) else output
