"""Is what the model says still language? Repetition, likelihood, and distance from the unsteered
model.

    coherence = (1 - r) exp(-max(0, n - n0))

r is the share of the reply's trigrams of tokens that occurred in it before; n the mean negative
log-likelihood a token (nats), the end token counted, that the unsteered model gives the reply; n0
what it gives its own replies. 1 for the model's own, near 0 for loops, shuffled words and, since a
reply that stops in the middle is an unlikely place to stop, for text that is cut. An empty reply
has coherence 0.

This is a measure of fluency as the unsteered model sees it. It does not know whether a reply is
true, helpful, or an answer to the question.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.generate import follow
from refusal_dial.sampling import end_tokens
from refusal_dial.tokens import Tokens
from refusal_dial.types import DialError, Hook

NGRAM = 3
LOOPS = 0.5


def repeated(ids: Sequence[int], n: int = NGRAM) -> float:
    """The share of a reply's n-grams that stood in it before: 0 for none, near 1 for a loop.

    0 where the reply is shorter than n.
    """
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def degenerate(ids: Sequence[int], stop: str) -> str:
    """Why a reply is no reply: "empty", "loop" (over half of its trigrams are repeats), "endless"
    (it never ended), or "" where it is one."""
    if not ids:
        return "empty"
    if repeated(ids) > LOOPS:
        return "loop"
    return "endless" if stop == "length" else ""


def nll(
    model: TransformerBridge,
    tokens: Tokens,
    said: Sequence[Sequence[int]],
    stops: Sequence[str],
) -> Float64[Tensor, " batch"]:
    """`-mean_k log p(token_k | prompt, tokens before)` in nats under the unsteered model.

    Of a reply that ended, its end counts as a token: the summed probability of every end token; so
    it does where text was cut, `stops` being "end" for both. NaN for a reply of no tokens at all
    that did not end either.
    """
    ends = end_tokens(model)
    total = torch.zeros(len(tokens), dtype=torch.float64)
    for step, logits in enumerate(follow(model, tokens, [], said)):
        logp = logits.double().log_softmax(-1).cpu()
        for i, (row, stop) in enumerate(zip(said, stops, strict=True)):
            if step < len(row):
                total[i] -= logp[i, row[step]]
            elif step == len(row) and stop == "end" and ends:
                total[i] -= logp[i, ends].logsumexp(-1)
    count = [len(row) + (stop == "end") for row, stop in zip(said, stops, strict=True)]
    return total / torch.tensor(count, dtype=torch.float64)


def kl_per_token(
    model: TransformerBridge,
    tokens: Tokens,
    hooks: Sequence[Hook],
    said: Sequence[Sequence[int]],
) -> Float64[Tensor, " batch"]:
    """`mean_k KL(p_unsteered || p_hooks)` in nats over every token of the replies `said`, the end
    included, each after the same words. 0 for hooks that do nothing."""
    total = torch.zeros(len(tokens), dtype=torch.float64)
    length = torch.tensor([len(row) for row in said])
    pairs = zip(follow(model, tokens, [], said), follow(model, tokens, hooks, said), strict=True)
    for step, (plain, steered) in enumerate(pairs):
        p, q = (x.double().log_softmax(-1).cpu() for x in (plain, steered))
        kl = (p.exp() * (p - q)).sum(-1)
        total += torch.where(step <= length, kl, torch.zeros_like(kl))
    return total / (length + 1)


def coherence(
    said: Sequence[Sequence[int]], cost: Float64[Tensor, " batch"], own_cost: float
) -> Float64[Tensor, " batch"]:
    """`(1 - r) exp(-max(0, n - n0))` in [0, 1]; r from `said`, n is `cost`, n0 `own_cost`.

    Raises `DialError` for an `own_cost` that is not a finite number.
    """
    if not torch.isfinite(torch.tensor(own_cost)):
        raise DialError(f"own_cost must be a finite number of nats, not {own_cost}")
    fresh = torch.tensor([1 - repeated(row) if row else 0.0 for row in said], dtype=torch.float64)
    return fresh * torch.exp(-(cost.nan_to_num(float("inf")) - own_cost).clamp(min=0))
