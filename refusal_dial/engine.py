"""Score many interventions on the same prompts: the one door through which every sweep goes.

    score[c, b] = scorer(logits of prompt b at its last token under the hooks of cell c)

A grid is a list of cells and a cell is a list of hooks; the empty list is the unsteered model.
Cells are replayed on a recording wherever that is exact, and run as plain forward passes where it
cannot be: for a user's own function, or a model that the replay does not fit (a trial finds out).
This module decides how a grid is computed. It does not know what a cell means.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.fits import check_grid
from refusal_dial.hooks import Edit
from refusal_dial.replay.bare import is_out_of_memory
from refusal_dial.replay.bulk import KNOWN, restrict
from refusal_dial.replay.grid import Replay
from refusal_dial.replay.memory import Sizes, budget
from refusal_dial.replay.trial import misfit, say_once
from refusal_dial.tokens import Tokens, last_logits
from refusal_dial.types import Hook, hook_name, one_of

log = logging.getLogger("refusal_dial")

Scorer = Callable[[Tensor], Tensor]
"""Logits `batch d_vocab` at the last prompt token to one number a row, in float64. It is always
given the whole batch, in order."""

ENGINES = ("auto", "plain")


def score_grid(
    model: TransformerBridge,
    tokens: Tokens,
    grid: Sequence[Sequence[Hook]],
    scorer: Scorer,
    *,
    engine: str = "auto",
    memory_gb: float | None = None,
) -> Float64[Tensor, "cell batch"]:
    """`score[c, b] = scorer(logits of prompt b at its last token under the hooks of cell c)`.

    `engine="plain"` runs one forward pass a cell. `"auto"` replays what each cell can change on a
    recording of the unsteered model, and says in the log what it leaves to the plain path. Within
    an engine a cell that changes nothing has the score of the unsteered cell, bit for bit.
    `memory_gb` bounds what either uses besides the model; the default is half of what is free.

    Raises `DialError` for an unknown engine, or a grid that does not fit the model or the prompts
    (`fits.check_grid`).
    """
    if engine not in ENGINES:
        raise one_of(engine, ENGINES, "engine")
    check_grid(model, tokens, grid)
    room = budget(tokens.ids.device, memory_gb)
    scores = torch.zeros(len(grid), len(tokens), dtype=torch.float64)
    replayed = _replayable(model, tokens, grid) if engine == "auto" else {}
    if replayed:
        numbers, cells = list(replayed), list(replayed.values())
        for place, score in Replay(model, tokens, cells, room).scores(scorer):
            scores[numbers[place]] = score
    rows = max(1, room // Sizes.of(model).plain(tokens.ids.shape[1]))
    for c in sorted(set(range(len(grid))) - set(replayed)):
        scores[c] = scorer(_plain(model, tokens, grid[c], rows)).cpu()
    return scores


def _replayable(
    model: TransformerBridge, tokens: Tokens, grid: Sequence[Sequence[Hook]]
) -> dict[int, list[Edit]]:
    """The cells that replay can serve, as data. The log says why others cannot be."""
    cells = {}
    for c, cell in enumerate(grid):
        edits = _read(model, cell)
        if edits is not None:
            cells[c] = edits
    sites = sorted({edit.site for edits in cells.values() for edit in edits})
    why = misfit(model, tokens, sites) if cells else ""
    if why:
        say_once(model, f"plain forward passes for {type(model.original_model).__name__}: {why}")
        return {}
    return cells


def _read(model: TransformerBridge, cell: Sequence[Hook]) -> list[Edit] | None:
    """The cell's hooks as data, None where one of them can only be called."""
    edits = []
    for name, function in cell:
        if not isinstance(function, Edit) or name != hook_name(function.site, function.layer):
            say_once(model, f"plain forward passes for cells with a hook of one's own at {name}")
            return None
        if not isinstance(function.operation, KNOWN):
            kind = type(function.operation).__name__
            say_once(model, f"plain forward passes for cells with the operation {kind}")
            return None
        edits.append(function)
    return edits


def _plain(
    model: TransformerBridge, tokens: Tokens, cell: Sequence[Hook], rows: int
) -> Float[Tensor, "batch d_vocab"]:
    """Last logits by plain forward passes over at most `rows` prompts, halved on running out of
    memory. A hook that is not an edit may depend on the whole batch, so that is never divided."""
    batch = len(tokens)
    whole = any(not isinstance(f, Edit) or not isinstance(f.operation, KNOWN) for _, f in cell)
    rows = batch if whole else min(rows, batch)
    parts: list[Tensor] = []
    start = 0
    while start < batch:
        if rows == batch:
            mine, some = list(cell), tokens
        else:
            index = torch.arange(start, min(start + rows, batch))
            mine = [(name, restrict(edit, index)) for name, edit in cell]  # type: ignore[arg-type]
            some = Tokens(tokens.ids[start : start + rows], tokens.mask[start : start + rows])
        try:
            parts.append(last_logits(model, some, mine))
        except RuntimeError as error:
            if not is_out_of_memory(error) or whole or rows == 1:
                raise
            rows = rows // 2
            continue
        start += rows
    return torch.cat(parts)
