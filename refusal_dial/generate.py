"""Generation under hooks: what a model says, for every cell of a grid, in one batch.

Rows of a batch are cells times prompts times samples. Where no hook touches the prompt before its
last token, the prompt is read once for all cells. Decoding is cached, and a row that has ended
leaves the batch. Hooks see the prompt first and then one new token a call (`types.positions` says
what each `pos` means there).

A sampled token depends on the logits of its own row and on a random number that belongs to the
prompt, the sample and the step: neither the batch nor the cell plays a part. So completions are
paired over cells, and a cell that does nothing says what the unsteered model says.

This module does not know what the words mean, and does not write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.cached import Batch, forward, prefill, runner_of
from refusal_dial.fits import check_grid
from refusal_dial.row_hooks import is_known, row_hooks
from refusal_dial.sampling import GREEDY, Decoding, choose, draws, end_tokens
from refusal_dial.tokens import Tokens
from refusal_dial.types import DialError, Hook


@dataclass(frozen=True)
class Completion:
    """What one cell's model said to one prompt. `stop` is "end" (an end token), "length", or "nan"
    where the logits were not numbers: then the completion is what came before."""

    cell: int
    prompt: int
    sample: int
    text: str
    ids: tuple[int, ...]
    stop: str


def generate(
    model: TransformerBridge,
    tokens: Tokens,
    grid: Sequence[Sequence[Hook]],
    decoding: Decoding = GREEDY,
    *,
    keys: Sequence[str] | None = None,
) -> list[Completion]:
    """Completions of every prompt under every cell's hooks: by cell, then prompt, then sample.

    `keys` name the prompts for their random numbers (their ids, say); the default is their tokens.

    Raises `DialError` for a grid that does not fit the model or the prompts (`fits.check_grid`), or
    a prompt that leaves no room for a new token in the model's context.
    """
    check_grid(model, tokens, grid)
    room = int(model.cfg.n_ctx) - tokens.ids.shape[1]
    if room < 1:
        raise DialError(
            f"a prompt of {tokens.ids.shape[1]} tokens leaves no room in a context of "
            f"{int(model.cfg.n_ctx)}: shorten it"
        )
    numbers = draws(tokens, decoding, keys)
    found = [
        c
        for part in _parts(tokens, grid, decoding)
        for c in _generate(model, part, decoding, numbers)
    ]
    return sorted(found, key=lambda one: (one.cell, one.prompt, one.sample))


def _parts(tokens: Tokens, grid: Sequence[Sequence[Hook]], decoding: Decoding) -> Iterator[Batch]:
    """Batches of at most `decoding.rows` rows; hooks that are not edits see all prompts at once."""
    n = len(tokens)
    whole = not all(is_known(hook) for cell in grid for hook in cell)
    size = n if whole else max(1, min(n, decoding.rows // decoding.samples))
    cells = max(1, decoding.rows // (size * decoding.samples))
    for start in range(0, n, size):
        some = torch.arange(start, min(start + size, n))
        for first in range(0, len(grid), cells):
            mine = grid[first : first + cells]
            yield Batch(tokens.rows(start, start + size), some, mine, first)


@torch.no_grad()
def _generate(
    model: TransformerBridge,
    part: Batch,
    decoding: Decoding,
    numbers: Float64[Tensor, "prompt sample step"] | None,
) -> Iterator[Completion]:
    """Decode one batch. Rows leave as they end, unless a hook is not an edit."""
    samples, device, grid = decoding.samples, part.tokens.ids.device, part.grid
    row = torch.arange(len(part.prompts) * len(grid) * samples)
    prompts, cells, sample = (
        row // (len(grid) * samples),
        row // samples % len(grid),
        row % samples,
    )
    fixed = not all(is_known(hook) for cell in grid for hook in cell)
    ends = torch.tensor(end_tokens(model), device=device)
    runner = runner_of(model, grid)
    mask, state, logits = prefill(model, runner, part, prompts, cells)
    alive, said, stops = row, [list[int]() for _ in row], dict[int, str]()
    hooks = row_hooks(grid, cells, part.prompts[prompts])
    for step in range(decoding.max_new_tokens):
        u = None if numbers is None else numbers[part.prompts[prompts[alive]], sample[alive], step]
        broken = ~torch.isfinite(logits).all(-1)
        token = choose(torch.where(broken[:, None], 0.0, logits), decoding, u)
        ended = torch.isin(token, ends) | broken
        for r, t, bad, end in zip(
            *(x.tolist() for x in (alive, token, broken, ended)), strict=True
        ):
            if r in stops:
                continue
            if end:
                stops[r] = "nan" if bad else "end"
            else:
                said[r].append(t)
        if len(stops) == len(row) or step + 1 == decoding.max_new_tokens:
            break
        if not fixed and bool(ended.any()):
            keep = (~ended).nonzero().flatten()
            alive, token, mask = alive[keep.cpu()], token[keep], mask[keep]
            state.batch_select_indices(keep)
            hooks = row_hooks(grid, cells[alive], part.prompts[prompts[alive]])
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        with model.hooks(fwd_hooks=hooks) if hooks else nullcontext():
            logits = forward(runner, token[:, None], mask, state)
    for r in row.tolist():
        text = str(model.tokenizer.decode(said[r], skip_special_tokens=True))
        yield Completion(
            part.first + int(cells[r]),
            int(part.prompts[prompts[r]]),
            int(sample[r]),
            text,
            tuple(said[r]),
            stops.get(r, "length"),
        )


@torch.no_grad()
def follow(
    model: TransformerBridge, tokens: Tokens, hooks: Sequence[Hook], said: Sequence[Sequence[int]]
) -> Iterator[Float[Tensor, "batch d_vocab"]]:
    """Logits before each token of replies that are given: step k is what the model under `hooks`
    would say after the prompt and the first k tokens of `said`, one step more than the longest.

    Decoding is cached, so every `pos` means what it means in `generate`. Rows that are over go on
    with their last token, and mean nothing. Raises `DialError` as `generate` does for hooks.
    """
    check_grid(model, tokens, [hooks])
    batch = torch.arange(len(tokens))
    part = Batch(tokens, batch, [list(hooks)])
    runner = runner_of(model, part.grid)
    mask, state, logits = prefill(model, runner, part, batch, torch.zeros_like(batch))
    yield logits
    mine = row_hooks(part.grid, torch.zeros_like(batch), batch)
    for step in range(max(map(len, said), default=0)):
        token = torch.tensor([row[min(step, len(row) - 1)] if row else 0 for row in said])
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        with model.hooks(fwd_hooks=mine) if mine else nullcontext():
            logits = forward(runner, token.to(mask.device)[:, None], mask, state)
        yield logits


@torch.no_grad()
def stream(
    model: TransformerBridge, tokens: Tokens, hooks: Sequence[Hook], max_new_tokens: int
) -> Iterator[int]:
    """The greedy reply to one prompt, token by token as it comes: the ids that `generate` has.

    Raises `DialError` for several prompts: they would not end together.
    """
    if len(tokens) != 1:
        raise DialError(f"expected one prompt, not {len(tokens)}")
    check_grid(model, tokens, [hooks])
    row, ends = torch.zeros(1, dtype=torch.long), end_tokens(model)
    part = Batch(tokens, row, [list(hooks)])
    runner = runner_of(model, part.grid)
    mask, state, logits = prefill(model, runner, part, row, row)
    mine = row_hooks(part.grid, row, row)
    for step in range(max_new_tokens):
        token = logits.argmax(-1)
        if int(token) in ends or not bool(torch.isfinite(logits).all()):
            return
        yield int(token)
        if step + 1 < max_new_tokens:
            mask = torch.cat([mask, mask.new_ones(1, 1)], 1)
            with model.hooks(fwd_hooks=mine) if mine else nullcontext():
                logits = forward(runner, token[:, None], mask, state)
