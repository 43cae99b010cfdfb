"""The model's own modules without hook points: what is fast where nobody looks inside.

`Unhooked` shares every parameter with the bridge and leaves it untouched. Its blocks can be run one
by one, with attention of the caller's own, or all together, with Hugging Face's SDPA attention in
place of the eager attention that hook points need.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers import DynamicCache, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from refusal_dial.common import hook_name
from refusal_dial.model.loading import mixture_layers
from refusal_dial.model.tokens import Tokens

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

TOLERANCES = {torch.float32: 3e-4, torch.float64: 1e-6}
"""The largest difference from the bridge, as a share of the largest."""

HALF_TOLERANCE = 0.05
"""The same in half precision."""

HALF = (torch.bfloat16, torch.float16)

ROUNDED = "rounding chooses its experts in half precision (--dtype float32 can be replayed)"

MANAGED = "its modules are managed by another library (offload or a device map)"


def has_hooks(model: TransformerBridge) -> bool:
    """Whether forward hooks are attached: then it is another model than its weights are."""
    return any(isinstance(part, HookPoint) and part.fwd_hooks for part in model.modules())


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
    key: Float[Tensor, "batch kv_head seen d_head"],
    value: Float[Tensor, "batch kv_head seen d_value"],
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,  # already in the mask
    **others: Any,
) -> tuple[Float[Tensor, "batch pos head d_value"], None]:
    """Hugging Face's attention interface: hands over to the mask object; SDPA where the mask is a
    plain one, in a pass through the whole model.

    Raises `UnfitError` for dropout, or for anything else an attention might be given that is not
    modelled here (attention sinks, position biases; in SDPA a soft cap).
    """
    lines = [k for k, v in others.items() if v is not None and v is not False and k not in HARMLESS]
    if lines or dropout:
        raise UnfitError(f"its attention takes {', '.join(lines) or 'dropout'}")
    scale = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None and not isinstance(attention_mask, Tensor):
        return attention_mask.attend(query, key, value, scale, softcap), None
    if softcap is not None:
        raise UnfitError("its attention has a soft cap")
    out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scale)
    return out, None


ALL_ATTENTION_FUNCTIONS.register(INTERFACE, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(INTERFACE, sdpa_mask)


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
        half = next(model.original_model.parameters()).dtype in HALF
        if half and mixture_layers(model):
            raise UnfitError(ROUNDED)
        self._twins: dict[int, nn.Module] = {}
        self._configs: dict[int, PretrainedConfig] = {}
        root = unwrapped(model.original_model)
        whole = self._twin(root, attending=True)
        self.blocks = [self._twin(unwrapped(block), attending=True) for block in model.blocks]
        self.norm = self._twin(unwrapped(model.ln_final))
        self.taps = {(site, layer): self._tap(model, site, layer) for site, layer in sites}
        body = str(getattr(root, "base_model_prefix", ""))
        if body not in root._modules:
            raise UnfitError("its head cannot be separated from its body")
        self._body = cast(nn.Module, whole._modules[body])
        self._head = _shallow(root)
        for name, part in root._modules.items():
            if part is not None:
                self._head._modules[name] = _Given() if name == body else self._twin(part)
        self._read = self._head  # of `logits` alone, which may be narrowed

    @property
    def fast(self) -> bool:
        """Whether `last_logits` is several times as fast as the bridge: it is in half precision,
        and SDPA knows no soft cap."""
        config = next((c for c in self._configs.values()), None)
        half = next(self._body.parameters()).dtype in HALF
        return half and getattr(config, "attn_logit_softcapping", None) is None

    def logits(self, residual: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        """Final norm, unembedding and whatever the architecture does to its logits."""
        return _unembedded(self._read, self.norm(residual[None])[0])

    def last_logits(
        self, tokens: Tokens, cache: DynamicCache | None = None
    ) -> Float[Tensor, "batch d_vocab"]:
        """`tokens.last_logits` of the same model, by SDPA attention."""
        return self.logits_at(tokens.ids, tokens.mask, cache)

    def logits_at(
        self,
        ids: Int[Tensor, "row new"],
        mask: Int[Tensor, "row pos"],
        cache: DynamicCache | None = None,
        at: Bool[Tensor, "row new"] | None = None,
    ) -> Float[Tensor, "read d_vocab"]:
        """Logits by SDPA attention after the new tokens that `at` names, row by row, or after the
        last one of each row. No other is unembedded. `mask` is that of what the cache holds and of
        the new tokens after it."""
        hidden = self._body(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :],
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return _unembedded(self._head, hidden[:, -1] if at is None else hidden[at])

    @contextmanager
    def seeing(
        self, sights: Mapping[tuple[str, int], Callable[[Tensor], Tensor]]
    ) -> Iterator[None]:
        """Within it each of these sites shows its value, and takes what comes back."""
        try:
            for place, see in sights.items():
                self.taps[place].see = see
            yield
        finally:
            for place in sights:
                self.taps[place].see = None

    def narrow(self, tokens: Sequence[int]) -> bool:
        """From now on `logits`, and no other, has the columns of these tokens alone. False, and
        nothing changes, where the unembedding is not one linear map."""
        linear = [name for name, part in self._head._modules.items() if type(part) is nn.Linear]
        if len(linear) != 1:
            return False
        part = _shallow(cast(nn.Module, self._head._modules[linear[0]]))
        for table in ("_parameters", "_buffers"):  # TransformerLens adds a bias as a buffer
            part.__dict__[table] = {
                name: None if weight is None else weight[list(tokens)]
                for name, weight in part.__dict__[table].items()
            }
        self._read = _shallow(self._head)
        self._read._modules[linear[0]] = part
        return True

    def _twin(self, module: nn.Module, attending: bool = False) -> nn.Module:
        module = unwrapped(module)
        if id(module) in self._twins:
            return self._twins[id(module)]
        if "forward" in module.__dict__:
            raise UnfitError(MANAGED)
        twin = self._twins[id(module)] = _shallow(module)
        bias = twin._buffers.get("bias") if type(twin) is nn.Linear else None
        if bias is not None and not bool(bias.any()):  # TransformerLens's zeros: torch would copy
            twin.__dict__["_buffers"] = {}  # the weights of the unembedding for them
            twin.__dict__["_parameters"] = {**twin._parameters, "bias": None}
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


def _unembedded(
    head: nn.Module, hidden: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row d_vocab"]:
    return head(inputs_embeds=hidden[None], use_cache=False, return_dict=True).logits[0]


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
