"""Is a completion still language? Its likelihood under the unsteered model, and its repetition.

    coherence = (1 - r) exp(-max(0, n - n0))

r is the share of the completion's trigrams of tokens that occurred in it before; n the mean
negative log-likelihood a token (nats), the end token counted, that the unsteered model gives it; n0
what it gives its own completions. 1 for the model's own, near 0 for loops and shuffled words. It is
a measure of fluency: it does not know whether a completion is true or helpful.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import DialError, Hook, Pos
from refusal_dial.engine.changes import KNOWN, restrict
from refusal_dial.generate.decode import end_tokens, follow
from refusal_dial.hooks import Edit
from refusal_dial.model.tokens import Tokens, log_total

# --------------------------------------------------------------------------------------------------
# Is what the model says still language? Repetition, and the price of a reply.
#
#     coherence = (1 - r) exp(-max(0, n - n0))
#
# r is the share of the reply's trigrams of tokens that occurred in it before; n the mean negative
# log-likelihood a token (nats), the end token counted, that the unsteered model gives the reply; n0
# what it gives its own replies. 1 for the model's own, near 0 for loops, shuffled words and, since
# a reply that stops in the middle is an unlikely place to stop, for text that is cut. An empty
# reply has coherence 0.
#
# This is a measure of fluency as the unsteered model sees it. Arithmetic only: n comes from
# `likelihood`.


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


def coherence(repeats: ArrayLike, cost: ArrayLike, own_cost: float) -> NDArray[np.float64]:
    """`(1 - r) exp(-max(0, n - n0))` in [0, 1]; r is `repeats`, n `cost`, n0 `own_cost`.

    A cost of NaN is that of an empty reply, and its coherence 0. Raises `DialError` for an
    `own_cost` that is not a finite number.
    """
    if not np.isfinite(own_cost):
        raise DialError(f"own_cost must be a finite number of nats, not {own_cost}")
    n = np.nan_to_num(np.asarray(cost, dtype=float), nan=np.inf)
    return (1 - np.asarray(repeats, dtype=float)) * np.exp(-np.maximum(n - own_cost, 0))


# --------------------------------------------------------------------------------------------------
# How likely a reply is under the unsteered model, and how far steering moves its next tokens.
#
# Both are means a token, in nats, over replies that are given.


LOGITS = 5e7
"""Logits held at once, at most: what bounds a batch where the vocabulary is large."""


@torch.no_grad()
def nll(
    model: TransformerBridge,
    tokens: Tokens,
    completions: Sequence[Sequence[int]],
    stops: Sequence[str],
) -> Float64[Tensor, " batch"]:
    """`-mean_k log p(token_k | prompt, tokens before)` in nats under the unsteered model.

    Of a reply that ended, its end counts as a token: the summed probability of every end token; so
    it does where text was cut, `stops` being "end" for both. NaN for a reply of no tokens at all
    that did not end either.
    """
    out = torch.full((len(completions),), float("nan"), dtype=torch.float64)
    ends = end_tokens(model)
    ended = torch.tensor([stop == "end" and bool(ends) for stop in stops], dtype=torch.bool)
    order = sorted(range(len(completions)), key=lambda i: len(completions[i]))
    while order:
        longest = len(completions[order[-1]])
        size = max(1, int(LOGITS // ((longest + 1) * int(model.cfg.d_vocab))))
        part, order = order[-size:], order[:-size]
        device = tokens.ids.device
        length = torch.tensor([len(completions[i]) for i in part])
        new = torch.tensor(
            [[*completions[i], *[0] * (longest - len(completions[i]))] for i in part]
        )
        new = new.to(device).long().reshape(len(part), longest)
        real = (torch.arange(longest) < length[:, None]).long()
        ids = torch.cat([tokens.ids[part], new], 1)
        mask = torch.cat([tokens.mask[part], real.to(device)], 1)
        logits = model(ids, attention_mask=mask, logits_to_keep=longest + 1, use_cache=False)
        logits, every = logits[:, -longest - 1 :], torch.arange(len(part), device=device)
        normaliser = log_total(logits)
        each = logits[:, :longest].gather(-1, new[..., None])[..., 0].double()
        each = (each - normaliser[:, :longest]).cpu()
        total, count = -(each * real).sum(1), length.clone()
        if ends:
            at = every, length.to(device)
            last = (logits[at][:, ends].double().logsumexp(-1) - normaliser[at]).cpu()
            total, count = total - last * ended[part], count + ended[part]
        out[part] = total / count
    return out


@torch.no_grad()
def kl_per_token(
    model: TransformerBridge,
    tokens: Tokens,
    grid: Sequence[Sequence[Hook]],
    completions: Sequence[Sequence[int]],
) -> Float64[Tensor, "cell batch"]:
    """`mean_k KL(p_unsteered || p_hooks)` in nats over every token of the replies `completions`,
    the end included, each after the same words, under every cell's hooks. 0 for hooks that do
    nothing.

    A whole reply is read in one pass wherever a hook says the same there as token by token.
    """
    longest = max(map(len, completions), default=0)
    cells = [_at_once(cell, longest) for cell in grid]
    length = torch.tensor([len(row) for row in completions])
    total = torch.zeros(len(grid), len(completions), dtype=torch.float64)
    size = max(1, int(LOGITS // ((longest + 1) * int(model.cfg.d_vocab))))
    for start in range(0, len(completions), size):
        some = torch.arange(start, min(start + size, len(completions)))
        rows, replies = tokens.rows(start, start + size), completions[start : start + size]
        plain = _read(model, rows, [], replies, longest)
        for i, cell in enumerate(cells):
            if cell is not None:
                here = [(name, restrict(edit, some)) for name, edit in cell]
                steered = _read(model, rows, here, replies, longest)
                total[i, some] = _kl(plain, steered, length[some])
    for i, cell in enumerate(cells):
        if cell is None:
            pairs = zip(
                follow(model, tokens, [], completions),
                follow(model, tokens, grid[i], completions),
                strict=True,
            )
            for step, (one, other) in enumerate(pairs):
                total[i] += _kl(one[:, None].cpu(), other[:, None].cpu(), length - step)
    return total / (length + 1)


def _at_once(cell: Sequence[Hook], longest: int) -> list[tuple[str, Edit]] | None:
    """The hooks as they act on a prompt with `longest` more tokens after it, of which `pos` counts
    those of the prompt; None for hooks that only a step at a time can tell."""
    found = []
    for name, edit in cell:
        if not isinstance(edit, Edit) or not isinstance(edit.operation, KNOWN):
            return None
        if edit.pos == "last_prompt":
            pos: Pos = -1 - longest
        elif edit.pos == "prompt" and isinstance(edit.pos, str):
            pos = slice(None, -longest or None)
        elif edit.pos == "all" and isinstance(edit.pos, str):
            pos = edit.pos
        elif isinstance(edit.pos, int):
            pos = slice(-1 - longest, None) if edit.pos == -1 else edit.pos - longest
        else:
            return None
        found.append((name, replace(edit, pos=pos)))
    return found


def _read(
    model: TransformerBridge,
    tokens: Tokens,
    hooks: Sequence[Hook],
    completions: Sequence[Sequence[int]],
    longest: int,
) -> Float[Tensor, "batch step d_vocab"]:
    """Logits before each token of the replies and after the last."""
    device = tokens.ids.device
    length = torch.tensor([len(row) for row in completions])
    new = torch.tensor(
        [[*row, *[0] * (longest - len(row))] for row in completions], dtype=torch.long
    )
    new = new.reshape(len(completions), longest).to(device)
    real = (torch.arange(longest) < length[:, None]).to(tokens.mask)
    ids, mask = torch.cat([tokens.ids, new], 1), torch.cat([tokens.mask, real], 1)
    with model.hooks(fwd_hooks=list(hooks)) if hooks else nullcontext():
        logits = model(ids, attention_mask=mask, logits_to_keep=longest + 1, use_cache=False)
    return logits[:, -longest - 1 :].cpu()


def _kl(
    plain: Float[Tensor, "batch step d_vocab"],
    steered: Float[Tensor, "batch step d_vocab"],
    length: Int[Tensor, " batch"],
) -> Float64[Tensor, " batch"]:
    """The sum over steps 0 to `length` of each row."""
    p, q = (x.double().log_softmax(-1) for x in (plain, steered))
    each = (p.exp() * (p - q)).sum(-1)
    held = torch.arange(each.shape[1]) <= length[:, None]  # no step of a row that is over
    return torch.where(held, each, torch.zeros_like(each)).sum(1)
