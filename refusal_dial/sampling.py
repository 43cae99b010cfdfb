"""Which token comes next: greedy, or drawn from the nucleus with a number that is the row's own.

The numbers belong to the prompt, the sample and the step, so that neither the batch nor the hooks
play a part in them. Knows logits and tokens. It does not run a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.tokens import Tokens
from refusal_dial.types import DialError


@dataclass(frozen=True)
class Decoding:
    """How to choose tokens. Temperature 0 is greedy: the most likely token, and one sample."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    seed: int = 0
    rows: int = 256  # of a batch, at most

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("samples", 1), ("rows", 1)):
            if getattr(self, name) < least:
                raise DialError(f"{name} must be {least} or more, not {getattr(self, name)}")
        if not 0 <= self.temperature < float("inf"):
            raise DialError(f"temperature must be 0 (greedy) or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise DialError(f"top_p must be over 0 and at most 1, not {self.top_p}")
        if self.temperature == 0 and self.samples > 1:
            raise DialError("greedy decoding has one sample: give a temperature for several")


GREEDY = Decoding()


@runtime_checkable
class DecodingFlags(Protocol):
    """What the flags of a script that makes a model speak have in common."""

    @property
    def max_new_tokens(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def samples(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def rows(self) -> int: ...


def decoding_of(flags: DecodingFlags) -> Decoding:
    """How the flags want tokens chosen."""
    return Decoding(
        max_new_tokens=flags.max_new_tokens,
        temperature=flags.temperature,
        top_p=flags.top_p,
        samples=flags.samples,
        seed=flags.seed,
        rows=flags.rows,
    )


def end_tokens(model: TransformerBridge) -> list[int]:
    """Every end token of the model's generation config, the tokenizer's where it names none."""
    config = getattr(model.original_model, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    if ends is None:
        ends = model.tokenizer.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def choose(
    logits: Float[Tensor, "row d_vocab"],
    decoding: Decoding,
    u: Float64[Tensor, " row"] | None,
) -> Int[Tensor, " row"]:
    """The next token of every row: the first of the likeliest whose summed probability exceeds
    u times that of the nucleus, the smallest set of likeliest tokens that holds `top_p`."""
    if u is None:
        return logits.argmax(-1)
    p, order = (
        (logits.double() / decoding.temperature).softmax(-1).sort(descending=True, stable=True)
    )
    total = p.cumsum(-1)
    size = (total < decoding.top_p).sum(-1, keepdim=True).clamp(max=p.shape[-1] - 1)
    aim = u.to(total.device)[:, None] * total.gather(1, size)
    return order.gather(1, (total <= aim).sum(-1, keepdim=True).clamp(max=p.shape[-1] - 1))[:, 0]


def draws(
    tokens: Tokens, decoding: Decoding, keys: Sequence[str] | None
) -> Float64[Tensor, "prompt sample step"] | None:
    """A number in [0, 1) for every prompt, sample and step; None for greedy decoding."""
    if decoding.temperature == 0:
        return None
    if keys is None:
        keys = [
            str(row[mask.bool()].tolist())
            for row, mask in zip(tokens.ids, tokens.mask, strict=True)
        ]
    found = []
    for key in keys:
        for sample in range(decoding.samples):
            word = hashlib.sha256(f"{decoding.seed} {sample} {key}".encode()).digest()[:8]
            generator = torch.Generator().manual_seed(int.from_bytes(word) % 2**63)
            found.append(
                torch.rand(decoding.max_new_tokens, generator=generator, dtype=torch.float64)
            )
    return torch.stack(found).reshape(len(keys), decoding.samples, -1)
