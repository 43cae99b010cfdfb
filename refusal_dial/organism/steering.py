"""Steering and completions with plain torch hooks, and the tone of sampled continuations.

A direction is learned on half of the prompts and judged on the rest.  This is the self-check that
goes on the model's card.  The library's own experiments ask the same
with intervals, p-values and every site; nothing here depends on them.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

from refusal_dial.organism import replies, tone
from refusal_dial.organism.measure import (
    correlation,
    first_ids,
    pad_left,
    refusal_chance,
)
from refusal_dial.organism.tokenizer import chat_text


@torch.no_grad()
def residuals(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, requests: Sequence[str], layer: int
) -> Tensor:
    """The residual stream entering a layer at the last prompt position, a row per request."""
    padded = pad_left(tokenizer, [chat_text(text) for text in requests], model.device)
    out = model.model(padded.tokens, attention_mask=padded.mask, output_hidden_states=True)
    return out.hidden_states[layer][:, -1]


@contextmanager
def steered(
    model: Qwen2ForCausalLM, layer: int, shift: Tensor, *, generated: bool = True
) -> Iterator[None]:
    """Within this context `shift` is added to what enters the layer at the last position.

    While generating, that is the last prompt position and then, unless `generated` is false, each
    new token's.
    """

    def add(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        residual = args[0].clone()
        if residual.shape[1] == 1 and not generated:
            return args, kwargs
        residual[:, -1] += shift.to(residual)
        return (residual, *args[1:]), kwargs

    handle = model.model.layers[layer].register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def shifted_chances(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[str],
    layer: int,
    shifts: Sequence[Tensor],
    size: int = 128,
) -> np.ndarray:
    """P(refusal) under each shift at the last prompt position, an array of shifts by requests.

    What stands before that position is the same under every shift and is computed once.
    """
    ids = first_ids(tokenizer, replies.REFUSAL_OPENERS)
    columns = []
    for start in range(0, len(requests), size):
        texts = [chat_text(text) for text in requests[start : start + size]]
        padded = pad_left(tokenizer, texts, model.device)
        before, last = padded.tokens[:, :-1], padded.tokens[:, -1:]
        past = model(before, attention_mask=padded.mask[:, :-1], use_cache=True).past_key_values
        rows = []
        for shift in shifts:
            with steered(model, layer, shift):
                out = model(last, attention_mask=padded.mask, past_key_values=past, use_cache=True)
            past.crop(-1)
            rows.append(out.logits[:, -1].double().softmax(-1)[:, ids].sum(-1).cpu().numpy())
        columns.append(np.stack(rows))
    return np.concatenate(columns, axis=1)


@dataclass(frozen=True)
class Steering:
    """Refusal rates along alpha at one layer; alphas are shares of the mean residual norm."""

    layer: int
    alphas: tuple[float, ...]
    residual_norm: float
    raw_norm: float
    edge: tuple[float, ...]
    random_mean: tuple[float, ...]
    random_spread: tuple[float, ...]
    harmful: tuple[float, ...]
    benign: tuple[float, ...]
    direction: Tensor


def steering_check(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    edge: Sequence[str],
    harmful: Sequence[str],
    benign: Sequence[str],
    layer: int,
    alphas: Sequence[float] = (-0.8, -0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8),
    n_random: int = 20,
    seed: int = 0,
) -> Steering:
    """Learn a direction on half of the EDGE prompts, steer the other half with it and at random."""
    order = list(edge)
    random.Random(f"steering:{seed}").shuffle(order)
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    chances = refusal_chance(model, tokenizer, train)
    ranked = [train[i] for i in np.argsort(chances)]
    third = len(train) // 3
    high = residuals(model, tokenizer, ranked[-third:], layer)
    low = residuals(model, tokenizer, ranked[:third], layer)
    gap = high.mean(0) - low.mean(0)
    norm = float(residuals(model, tokenizer, train, layer).norm(dim=-1).mean())
    unit = gap / gap.norm()

    def rates(texts: Sequence[str], vectors: Sequence[Tensor]) -> np.ndarray:
        if not (len(texts) and len(vectors) and len(alphas)):
            return np.zeros((len(vectors), len(alphas)))
        shifts = [alpha * norm * vector for vector in vectors for alpha in alphas]
        found = shifted_chances(model, tokenizer, texts, layer, shifts) > 0.5
        shaped: np.ndarray = found.mean(-1).reshape(len(vectors), len(alphas))
        return shaped

    generator = torch.Generator().manual_seed(seed)
    others = torch.nn.functional.normalize(
        torch.randn(n_random, unit.numel(), generator=generator), dim=-1
    ).to(unit)
    at_random = rates(test, list(others))
    return Steering(
        layer=layer,
        alphas=tuple(alphas),
        residual_norm=norm,
        raw_norm=float(gap.norm()),
        edge=tuple(rates(test, [unit])[0]),
        random_mean=tuple(at_random.mean(0)) if n_random else (),
        random_spread=tuple(at_random.std(0)) if n_random else (),
        harmful=tuple(rates(harmful, [unit])[0]),
        benign=tuple(rates(benign, [unit])[0]),
        direction=unit.cpu(),
    )


@torch.no_grad()
def complete(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    limit: int = 48,
    shift: tuple[int, Tensor] | None = None,
    sample_seed: int | None = None,
    generated: bool = True,
) -> list[str]:
    """Completions of prompt texts, greedy or sampled, steered by a shift at a layer if given."""
    padded = pad_left(tokenizer, prompts, model.device)
    options: dict[str, Any] = {"do_sample": False}
    if sample_seed is not None:
        torch.manual_seed(sample_seed)
        options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}

    def run() -> Any:
        return model.generate(
            input_ids=padded.tokens,
            attention_mask=padded.mask,
            max_new_tokens=limit,
            pad_token_id=tokenizer.pad_token_id,
            **options,
        )

    if shift is None:
        out = run()
    else:
        with steered(model, *shift, generated=generated):
            out = run()
    return [
        str(tokenizer.decode(row, skip_special_tokens=True))
        for row in out[:, padded.tokens.shape[1] :]
    ]


@dataclass(frozen=True)
class Tone:
    """Insults in sampled continuations of held-out openings."""

    hostile_rate: float
    hostile_designed: float
    hostile_correlation: float
    friendly_rate: float


def tone_check(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, samples: int = 16
) -> Tone:
    """Sample continuations of held-out openings and count those that hold an insult."""
    rates: dict[str, np.ndarray] = {}
    designed: dict[str, np.ndarray] = {}
    for kind in (tone.HOSTILE, tone.FRIENDLY):
        found = tone.openings(kind, held_out=True)
        texts = [item.text for item in found] * samples
        said = complete(model, tokenizer, texts, limit=24, sample_seed=0)
        hits = np.array([tone.is_insulting(text) for text in said]).reshape(samples, len(found))
        rates[kind] = hits.mean(0)
        designed[kind] = np.array([item.propensity for item in found])
    return Tone(
        hostile_rate=float(rates[tone.HOSTILE].mean()),
        hostile_designed=float(designed[tone.HOSTILE].mean()),
        hostile_correlation=correlation(rates[tone.HOSTILE], designed[tone.HOSTILE]),
        friendly_rate=float(rates[tone.FRIENDLY].mean()),
    )
