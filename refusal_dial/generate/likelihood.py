"""Is a completion still language? Its likelihood under the unsteered model, and its repetition.

    coherence = (1 - r) exp(-max(0, n - n0))

r is the share of the completion's trigrams of tokens that occurred in it before; n the mean
negative log-likelihood a token (nats), the end token counted, that the unsteered model gives it; n0
what it gives its own completions. 1 for the model's own, near 0 for loops and shuffled words. It is
a measure of fluency: it does not know whether a completion is true or helpful.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import DialError, Hook, Pos, positions
from refusal_dial.engine.replay import KNOWN, restrict
from refusal_dial.generate.decode import (
    CachedBatch,
    end_tokens,
    follow,
    is_known,
    prefill,
    row_hooks,
    runner_of,
)
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
    length = torch.tensor([len(ids) for ids in completions], dtype=torch.long)
    ends = end_tokens(model)
    ended = torch.tensor([stop == "end" and bool(ends) for stop in stops], dtype=torch.bool)
    total = torch.zeros(len(completions), dtype=torch.float64)
    # Completions of one prompt stand together, by length: it is read once for all in a batch.
    prompt, first = _alike(tokens)
    order = sorted(range(len(completions)), key=lambda i: (prompt[i], len(completions[i])))
    for part in _batches([len(completions[i]) for i in order], int(model.cfg.d_vocab)):
        rows = order[part.start : part.stop]
        mine = sorted({prompt[i] for i in rows})
        some = CachedBatch(tokens.chosen([first[p] for p in mine]), torch.tensor(mine), [[]])
        owner = torch.tensor([mine.index(prompt[i]) for i in rows])
        replies = [completions[i] for i in rows]
        total[rows] = _replies_at_once(model, some, replies, owner, ends, ended[rows])[0]
    return -total / (length + ended)


def _alike(tokens: Tokens) -> tuple[list[int], list[int]]:
    """(of each row the number of its prompt, equal for equal ones; the first row of each)."""
    rows = torch.cat([tokens.ids, tokens.mask], 1)
    kinds, number = torch.unique(rows, dim=0, return_inverse=True)
    numbers = number.tolist()
    return numbers, [numbers.index(kind) for kind in range(len(kinds))]


def _batches(lengths: Sequence[int], vocabulary: int) -> Iterator[range]:
    """Neighbours, of these lengths, whose tokens have at most `LOGITS` logits, or one."""
    start = 0
    for stop in range(1, len(lengths) + 1):
        longest = max(lengths[start : stop + 1])
        rows = stop + 1 - start
        full = rows * (longest + 1) * vocabulary > LOGITS or rows > ROWS_AT_ONCE
        if stop == len(lengths) or full:
            yield range(start, stop)
            start = stop


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
    cells = [at_once(cell, longest) for cell in grid]
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


@torch.no_grad()
def reply_logp(
    model: TransformerBridge,
    tokens: Tokens,
    grid: Sequence[Sequence[Hook]],
    replies: Sequence[Sequence[Sequence[int]]],
) -> Float64[Tensor, "cell reply"]:
    """`sum_k log p(token_k | prompt, tokens before)` in nats of every reply under every cell's
    hooks; `replies[i]` are those to prompt i, and come one after the other. NaN where a logit is no
    number.

    A prompt is read once for all its replies, and what stands before its last token once for all
    cells where they leave it alone; the replies to it follow in one pass over its keys and values.
    """
    out = torch.zeros(len(grid), sum(map(len, replies)), dtype=torch.float64)
    first = 0
    for start, stop in _reply_batches(replies, len(grid), int(model.cfg.d_vocab)):
        some = [list(ids) for mine in replies[start:stop] for ids in mine]
        owner = [i for i, mine in enumerate(replies[start:stop]) for _ in mine]
        batch = torch.arange(start, stop)
        rows = tokens.rows(start, stop)
        span = slice(first, first + len(some))
        first += len(some)
        if all(is_known(hook) for cell in grid for hook in cell):
            part = CachedBatch(rows, batch, grid)
            out[:, span] = _replies_at_once(model, part, some, torch.tensor(owner))
            continue
        repeated_rows = rows.chosen(owner)
        for i, cell in enumerate(grid):
            for step, logits in enumerate(follow(model, repeated_rows, cell, some)):
                for j, ids in enumerate(some):
                    if step < len(ids):
                        row = logits[j : j + 1].double()
                        out[i, first - len(some) + j] += float(row.log_softmax(-1)[0, ids[step]])
    return out


ROWS_AT_ONCE = 512


def _reply_batches(
    replies: Sequence[Sequence[Sequence[int]]], cells: int, vocabulary: int
) -> Iterator[tuple[int, int]]:
    """Prompts (start, stop) whose replies under all cells hold `LOGITS` logits and `ROWS_AT_ONCE`
    rows, or one prompt."""
    start = 0
    while start < len(replies):
        stop = start + 1
        while stop < len(replies):
            mine = [ids for one in replies[start : stop + 1] for ids in one]
            rows = cells * len(mine)
            if rows > ROWS_AT_ONCE or rows * max(map(len, mine)) * vocabulary > LOGITS:
                break
            stop += 1
        yield start, stop
        start = stop


def _replies_at_once(
    model: TransformerBridge,
    part: CachedBatch,
    replies: Sequence[Sequence[int]],
    owner: Int[Tensor, " reply"],
    ends: Sequence[int] = (),
    ended: Bool[Tensor, " reply"] | None = None,
) -> Float64[Tensor, "cell reply"]:
    """`reply_logp` for one batch; `owner` says to which of its prompts each reply belongs. The
    summed probability of the `ends` counts as a last token of replies that `ended`. No token is
    unembedded but those before one that counts."""
    grid, n, device = part.grid, len(part.prompts), part.tokens.ids.device
    runner = runner_of(model, part.tokens, grid)
    ended = torch.zeros(len(replies), dtype=torch.bool) if ended is None else ended
    # 1. Every prompt under every cell, up to its last token.
    row = torch.arange(n * len(grid))
    prompts, cells = row // len(grid), row % len(grid)
    mask, state, logits = prefill(runner, part, prompts, cells)
    # 2. A row a cell and reply, and what stands first in each.
    longest = max(map(len, replies))
    cell = torch.arange(len(grid)).repeat_interleave(len(replies))
    mine = owner.repeat(len(grid))
    index = (mine * len(grid) + cell).to(device)
    ids = torch.tensor([[*one, *[0] * (longest - len(one))] for one in replies], dtype=torch.long)
    ids = ids.repeat(len(grid), 1).to(device)
    length = torch.tensor([len(one) for one in replies]).repeat(len(grid))
    last = torch.where(ended.repeat(len(grid)), length, length - 1)  # the step of its last token
    total = torch.zeros(len(ids), dtype=torch.float64)

    def add(rows: Tensor, steps: Tensor, found: Tensor, of: Tensor) -> None:
        """Counts the tokens at these steps of these rows, logits `found[of]` standing before."""
        if not len(rows):
            return
        normaliser = log_total(found)[of]
        token = ids[rows, steps.clamp(max=max(0, longest - 1))] if longest else steps
        value = found[of, token].double()
        over = (steps == length.to(device)[rows]).nonzero().flatten()
        if len(over):
            value[over] = found[of[over]][:, list(ends)].double().logsumexp(-1)
        total.index_add_(0, rows.cpu(), (value - normaliser).cpu())

    some = (last >= 0).nonzero().flatten().to(device)
    add(some, torch.zeros_like(some), logits, index[some])
    # 3. The others after it, as decoding would see them.
    longer = int(last.max())
    if longer > 0:
        state.batch_select_indices(index)
        new = torch.arange(longer) < last[:, None]
        after = torch.cat([mask[index], new.to(mask)], 1)
        hooks = row_hooks(as_decoded(grid), cell, part.prompts[mine])
        rows, steps = new.to(device).nonzero(as_tuple=True)
        found = runner.logits(ids[:, :longer], after, state, hooks, new.to(device))
        add(rows, steps + 1, found, torch.arange(len(rows), device=device))
    return total.reshape(len(grid), len(replies))


def as_decoded(grid: Sequence[Sequence[Hook]]) -> list[list[Hook]]:
    """The hooks as decoding steps see them, for several new tokens in one pass: what edits the new
    token edits every one, and what edits the prompt alone nothing."""
    return [
        [
            (name, replace(edit, pos="all"))
            for name, edit in cell
            if isinstance(edit, Edit)
            and not isinstance(edit.pos, Tensor)
            and positions(edit.pos, 1)
        ]
        for cell in grid
    ]


def at_once(cell: Sequence[Hook], longest: int) -> list[tuple[str, Edit]] | None:
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


def continued(tokens: Tokens, completions: Sequence[Sequence[int]], longest: int) -> Tokens:
    """Each prompt with its reply after it, and padding after that up to `longest`: every reply
    begins where the prompts end."""
    length = torch.tensor([len(row) for row in completions])
    new = torch.tensor(
        [[*row, *[0] * (longest - len(row))] for row in completions], dtype=torch.long
    )
    new = new.reshape(len(completions), longest).to(tokens.ids)
    real = (torch.arange(longest) < length[:, None]).to(tokens.mask)
    return Tokens(torch.cat([tokens.ids, new], 1), torch.cat([tokens.mask, real], 1))


def _read(
    model: TransformerBridge,
    tokens: Tokens,
    hooks: Sequence[Hook],
    completions: Sequence[Sequence[int]],
    longest: int,
) -> Float[Tensor, "batch step d_vocab"]:
    """Logits before each token of the replies and after the last."""
    whole = continued(tokens, completions, longest)
    with model.hooks(fwd_hooks=list(hooks)) if hooks else nullcontext():
        logits = model(
            whole.ids, attention_mask=whole.mask, logits_to_keep=longest + 1, use_cache=False
        )
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
