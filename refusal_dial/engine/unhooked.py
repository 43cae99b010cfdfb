"""The model's own blocks without hook points, and attention of many branches on one trunk.

Each prompt is a trunk, run once; a branch is what one intervention makes of its last positions.
`Unhooked` shares every parameter with the bridge and leaves it untouched.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers import PretrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from refusal_dial.common import hook_name

# --------------------------------------------------------------------------------------------------
# The model's own blocks without its hook points: what the replay engine runs.
#
# A bridge wraps a Hugging Face model by putting hook points around its modules. `Bare` is a second,
# shallow tree of the same modules with the hook points left out: it shares every parameter, leaves
# the bridge untouched, and is made anew for each grid, so it is never stale. Two things differ from
# the modules it copies. The attention of its blocks calls `attend` (Hugging Face's own attention
# interface), which hands query, key and value to whatever object stands in the place of the mask.
# And a `Tap` sits where TransformerLens has the hook point of a site.


INTERFACE = "refusal_dial"

HARMLESS = ("position_ids", "cache_position", "is_causal", "use_cache", "output_attentions")
"""Keywords an attention may be given that say nothing its mask does not."""

MANAGED = "its modules are managed by another library (offload or a device map)"


class UnfitError(Exception):
    """Why the engine cannot run a model or a hook and leaves it to the plain path."""


class Mask(Protocol):
    """What stands in the place of the attention mask while unhooked blocks run."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, softcap: float | None
    ) -> Tensor: ...


def attend(
    module: nn.Module,
    query: Float[Tensor, "batch head pos d_head"],
    key: Float[Tensor, "batch kv_head pos d_head"],
    value: Float[Tensor, "batch kv_head pos d_value"],
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,  # already in the mask
    **others: Any,
) -> tuple[Float[Tensor, "batch pos head d_value"], None]:
    """Hugging Face's attention interface: hands over to the mask object.

    Raises `UnfitError` for dropout, or for anything else an attention might be given that is not
    modelled here (attention sinks, position biases).
    """
    lines = [k for k, v in others.items() if v is not None and v is not False and k not in HARMLESS]
    if lines or dropout:
        raise UnfitError(f"its attention takes {', '.join(lines) or 'dropout'}")
    scale = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    return attention_mask.attend(query, key, value, scale, softcap), None


ALL_ATTENTION_FUNCTIONS.register(INTERFACE, attend)


@dataclass
class Tap:
    """The value at one site of one block: `see(value)` returns what takes its place."""

    see: Callable[[Tensor], Tensor] | None = None


class Unhooked:
    """Blocks, final norm and head of a bridge, sharing its weights, without its hook points."""

    def __init__(self, model: TransformerBridge, sites: Iterable[tuple[str, int]] = ()) -> None:
        """Raises `UnfitError` where the bridge is not a plain stack of wrapped blocks, or has no
        place for a tap at one of the `sites` (site, layer)."""
        if getattr(model, "compatibility_mode", False):
            raise UnfitError("its weights were processed (compatibility mode)")
        if not hasattr(model, "blocks") or not hasattr(model, "ln_final"):
            raise UnfitError("it has no stack of blocks with a final norm")
        self._twins: dict[int, nn.Module] = {}
        self._configs: dict[int, PretrainedConfig] = {}
        layers = [unwrapped(block) for block in model.blocks]
        self.blocks = [self._twin(layer, attending=True) for layer in layers]
        self.norm = self._twin(unwrapped(model.ln_final))
        self.taps = {(site, layer): self._tap(model, site, layer) for site, layer in sites}
        root = unwrapped(model.original_model)
        body = str(getattr(root, "base_model_prefix", ""))
        if body not in root._modules:
            raise UnfitError("its head cannot be separated from its body")
        self._head = _shallow(root)
        for name, part in root._modules.items():
            if part is not None:
                self._head._modules[name] = _Given() if name == body else self._twin(part)

    def logits(self, residual: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        """Final norm, unembedding and whatever the architecture does to its logits."""
        hidden = self.norm(residual[None])
        return self._head(inputs_embeds=hidden, use_cache=False, return_dict=True).logits[0]

    def narrow(self, tokens: Sequence[int]) -> bool:
        """From now on `logits` has the columns of these tokens alone. False, and nothing changes,
        where the unembedding is not one linear map."""
        linear = [name for name, part in self._head._modules.items() if type(part) is nn.Linear]
        if len(linear) != 1:
            return False
        part = _shallow(cast(nn.Module, self._head._modules[linear[0]]))
        for table in ("_parameters", "_buffers"):  # TransformerLens adds a bias as a buffer
            part.__dict__[table] = {
                name: None if weight is None else weight[list(tokens)]
                for name, weight in part.__dict__[table].items()
            }
        self._head._modules[linear[0]] = part
        return True

    def _twin(self, module: nn.Module, attending: bool = False) -> nn.Module:
        module = unwrapped(module)
        if id(module) in self._twins:
            return self._twins[id(module)]
        if "forward" in module.__dict__:
            raise UnfitError(MANAGED)
        twin = self._twins[id(module)] = _shallow(module)
        for name, child in module._modules.items():
            twin._modules[name] = None if child is None else self._twin(child, attending)
        if attending:
            for name, value in module.__dict__.items():
                if isinstance(value, PretrainedConfig):
                    twin.__dict__[name] = self._config(value)
        return twin

    def _config(self, config: PretrainedConfig) -> PretrainedConfig:
        if id(config) not in self._configs:
            mine = copy.copy(config)
            object.__setattr__(mine, "_attn_implementation_internal", INTERFACE)
            self._configs[id(config)] = mine
        return self._configs[id(config)]

    def _tap(self, model: TransformerBridge, site: str, layer: int) -> Tap:
        point = model.hook_dict.get(hook_name(site, layer))
        for part in model.blocks[layer].modules():
            if not isinstance(part, GeneralizedComponent) or part.original_component is None:
                continue
            twin = self._twins.get(id(unwrapped(part)))
            if twin is not None and point is part.hook_in:
                return _tapped(twin, before=True)
            if twin is not None and point is part.hook_out:
                return _tapped(twin, before=False)
        raise UnfitError(f"its {site} is not the input or output of one of its modules")


@dataclass
class _Output(BaseModelOutputWithPast):  # type: ignore[misc]
    """A body's output of which only the last hidden state is known."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Given(nn.Module):
    """Stands for the body of the model: its last hidden state is what it is given."""

    def forward(self, *_: Any, **given: Any) -> _Output:
        return _Output(last_hidden_state=given["inputs_embeds"])


def unwrapped(module: Any) -> nn.Module:
    """The Hugging Face module inside a bridge's component."""
    while isinstance(module, GeneralizedComponent):
        module = module.original_component
    if not isinstance(module, nn.Module):
        raise UnfitError("a part of it wraps no module")
    return module


def unhooked(model: TransformerBridge) -> nn.Module:
    """The Hugging Face model by itself: the bridge's weights, none of its hook points.

    Raises `UnfitError` where its modules are managed by another library.
    """
    made: dict[int, nn.Module] = {}

    def twin(module: nn.Module) -> nn.Module:
        module = unwrapped(module)
        if "forward" in module.__dict__:
            raise UnfitError(MANAGED)
        if id(module) not in made:
            copied = made[id(module)] = _shallow(module)
            for name, child in module._modules.items():
                copied._modules[name] = None if child is None else twin(child)
        return made[id(module)]

    return twin(model.original_model)


def _shallow(module: nn.Module) -> nn.Module:
    """The same parameters, buffers and settings (by reference), its own table of children."""
    twin: nn.Module = type(module).__new__(type(module))
    twin.__dict__.update(module.__dict__)
    twin.__dict__["_modules"] = dict(module._modules)
    return twin


def _tapped(twin: nn.Module, before: bool) -> Tap:
    tap, run = Tap(), twin.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if tap.see is None:
            return run(*args, **kwargs)
        if before:
            return run(tap.see(args[0]), *args[1:], **kwargs)
        out = run(*args, **kwargs)
        return tap.see(out) if isinstance(out, Tensor) else (tap.see(out[0]), *out[1:])

    twin.__dict__["forward"] = forward
    return tap


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory, on an accelerator or (in its own words) on the CPU."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(some in str(error) for some in words)
    )


# --------------------------------------------------------------------------------------------------
# Attention of many branches on one trunk: exact, without copies of the trunk's keys and values.
#
# Each prompt is a trunk, run once. A branch is what one intervention makes of the prompt's
# positions p..T-1. Its queries see the trunk's keys before p and the branch's own keys from p on.
# Over each of the two attention is worked out by itself, with the logarithm of its denominator:
#
#     out(K, V) = softmax(q·K * scaling + mask) V         total(K) = logsumexp(q·K * scaling + mask)
#
# and over both it is `(1 - s) out(trunk) + s out(own)`, s = sigmoid(total(own) - total(trunk)).
#
# Branches of the same prompt do not see each other. With p = T-1 a branch is one extra token that
# sees the trunk and itself. Each class here stands in the place of an attention mask (`Mask`).


Queries = Float[Tensor, "batch head pos d_head"]

Keys = Float[Tensor, "batch kv_head pos d_head"]

BranchValues = Float[Tensor, "batch kv_head pos d_value"]

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


def masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores under an additive or boolean (true = seen) mask."""
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


class KeysTakenError(Exception):
    """Ends a block once its keys and values are known: nothing after them is wanted."""

    def __init__(self, kept: KeyValue) -> None:
        self.kept = kept


class KeysOnly:
    """Attention that never happens: the block is run for its keys and values."""

    def attend(
        self, query: Queries, key: Keys, value: BranchValues, scaling: float, softcap: float | None
    ) -> Tensor:
        raise KeysTakenError((key, value))


@dataclass(frozen=True)
class Branches:
    """Attention of `n` branches a prompt, laid out one after another along the positions.

    `past` is the trunk's keys and values before the branches leave it. `before` holds keys and
    values of a branch's earlier positions where the block runs on its last position alone.
    """

    n: int
    past: KeyValue
    mask: Tensor | None  # "batch 1 query trunk+branch", additive or boolean
    before: KeyValue | None = None

    def attend(
        self, query: Queries, key: Keys, value: BranchValues, scaling: float, softcap: float | None
    ) -> Float[Tensor, "batch pos head d_value"]:
        batch, n, groups = len(query), self.n, query.shape[1] // key.shape[1]
        mask = None if self.mask is None else self.mask.expand(batch, n, -1, -1)
        # 1. every branch by itself: its own keys, those of its earlier positions before them
        k, v = (apart(x, n, groups) for x in (key, value))
        if self.before is not None:
            before = (apart(x, n, groups) for x in self.before)
            k, v = (torch.cat(pair, 2) for pair in zip(before, (k, v), strict=True))
        p = self.past[0].shape[2]
        seen = None if mask is None else mask[..., p:].flatten(0, 1)[:, None]
        own = attended(apart(query, n), k, v, seen, scaling, softcap)
        parts = (x.view(batch, n, *x.shape[1:]) for x in own)
        out, own_total = (x.transpose(1, 2).flatten(2, 3) for x in parts)
        # 2. all branches at once: the trunk's keys, which are there once a prompt
        if p:
            past_k, past_v = (x.repeat_interleave(groups, 1) for x in self.past)
            seen = None if mask is None else mask[..., :p].flatten(1, 2)[:, None]
            trunk, total = attended(query, past_k, past_v, seen, scaling, softcap)
            # 3. a softmax over both is their average by the share of each
            share = (own_total - total).sigmoid()[..., None]
            out = torch.lerp(trunk, out, share.to(out.dtype))
        return out.transpose(1, 2)


def apart(
    value: Float[Tensor, "batch head branch_pos width"], n: int, times: int = 1
) -> Float[Tensor, "batch_branch head_times pos width"]:
    """Each of the `n` branches as a batch row of its own, every head so many times."""
    batch, heads, tokens, width = value.shape
    rows = value.view(batch, heads, n, tokens // n, width).transpose(1, 2).flatten(0, 1)
    return rows if times == 1 else rows.repeat_interleave(times, 1)


def attended(
    query: Float[Tensor, "batch head pos d_head"],
    key: Float[Tensor, "batch head seen d_head"],
    value: Float[Tensor, "batch head seen d_value"],
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
) -> tuple[Float[Tensor, "batch head pos d_value"], Float[Tensor, "batch head pos"]]:
    """(attention, log of the softmax's denominator) over these keys, as many heads as queries.

    On a CPU by the kernel behind `scaled_dot_product_attention`, which keeps no matrix of scores;
    elsewhere, or under a soft cap, by two products.
    """
    if key.shape[2] == 1:  # the softmax of one number is 1
        scores = capped((query * key).sum(-1, keepdim=True) * scaling, softcap)
        return value.expand(*query.shape[:3], -1), masked(scores, mask)[..., 0].float()
    if query.is_cpu and softcap is None and query.shape[-1] == value.shape[-1]:
        if mask is not None and mask.dtype == torch.bool:
            hidden = torch.finfo(query.dtype).min
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, hidden)
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=mask, scale=scaling
        )
        return out, total
    scores = masked(capped(query @ key.mT * scaling, softcap), mask).float()
    total = scores.logsumexp(-1)
    return (scores - total[..., None]).exp().to(value.dtype) @ value, total
