"""What is measured: scores of test prompts under the direction and its controls, and replies.

    score  the scorer's, at the last prompt token
    kl     mean over a reply's tokens of KL(p_unsteered || p_steered), along the unsteered reply
    cost   -mean log p a token, under the unsteered model, of what is said under the cell

`score` is measured on EDGE for every direction and on HARMFUL and BENIGN for the given one; `kl`
and `cost` on BENIGN, for the given one and a few random ones. A row per measure, cell and prompt;
alphas are of both signs. This module computes rows in batches and judges none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.directions import Direction
from refusal_dial.engine import Scorer
from refusal_dial.forecast import Grid, grid_of
from refusal_dial.generate import generate
from refusal_dial.hooks import steer
from refusal_dial.likelihood import kl_per_token, nll
from refusal_dial.prompts import Prompt, some_of_each
from refusal_dial.sampling import Decoding
from refusal_dial.sweep import Budget, Cell, batch_sizes, spread, sweep_batches
from refusal_dial.tokens import Tokens
from refusal_dial.verify.flags import VerifyFlags
from refusal_dial.verify.opened import Opened

ORDER = ["direction", "seed", "layer", "site", "pos", "alpha", "prompt_id", "subset", "split"]
ORDER += ["score", "measure"]
N_BESIDE = 2  # random directions whose damage stands beside the given one's


@dataclass(frozen=True, eq=False)
class Part:
    """One measure of some prompts under some cells."""

    measure: str
    tokens: Tokens
    rows: pd.DataFrame
    cells: tuple[Cell, ...]
    budget: Budget
    decoding: Decoding | None = None

    def divided(self, share: float, of: float) -> Part:
        """The first prompts, that share of them, under that share of the cells."""
        n, k = ceil(share * len(self.rows)), ceil(of * len(self.cells))
        cells = tuple(self.cells[i] for i in spread(len(self.cells), k))
        return replace(self, tokens=self.tokens.rows(0, n), rows=self.rows.head(n), cells=cells)

    @property
    def sizes(self) -> list[int]:
        """Rows of every batch, in order."""
        if self.decoding is None:
            return batch_sizes(len(self.rows), len(self.cells), self.budget)
        size = self.budget.batch_size
        some = [min(size, len(self.rows) - i) for i in range(0, len(self.rows), size)]
        return [2 * n * len(self.cells) for n in some]


@dataclass(frozen=True, eq=False)
class Plan:
    """Every part in order, and who scores."""

    parts: tuple[Part, ...]
    scorer: Scorer

    @property
    def sizes(self) -> list[int]:
        """Rows of every batch, in order."""
        return [size for part in self.parts for size in part.sizes]

    @property
    def grid(self) -> Grid:
        """All prompts of all parts, under the cells of the part that has most."""
        prompts = {
            f"{one.rows['subset'].iloc[0]} {one.measure}": len(one.rows) for one in self.parts
        }
        most = max((one.cells for one in self.parts), key=len)
        return grid_of(prompts, [cell.labels for cell in most])

    def divided(self, prompts: int, cells: int) -> Plan:
        """Of every part the same share of its prompts and of its cells."""
        grid = self.grid
        share, of = prompts / sum(grid.prompts.values()), cells / grid.cells
        return replace(self, parts=tuple(one.divided(share, of) for one in self.parts))


def plan_of(opened: Opened, flags: VerifyFlags) -> Plan:
    """What is measured, in order: EDGE, the other subsets, replies."""
    given = [("learned", None, opened.given)]
    beside: list[tuple[str, int | None, Direction]] = [
        (one.kind, one.number, one.direction) for one in opened.controls
    ]
    length: list[tuple[str, int | None, Direction]] = [("length", None, opened.length)]
    budget = Budget(flags.batch_size, flags.engine, flags.memory_gb)
    few = [one for one in beside if one[0] == "random"][:N_BESIDE]
    edge = cells_of(opened, [*given, *length, *beside]) + _left(opened)
    parts = [_part(opened, "EDGE", edge, budget)]
    parts += [
        _part(opened, name, cells_of(opened, given), budget) for name in ("HARMFUL", "BENIGN")
    ]
    spoken = some_of_each(opened.tested("BENIGN"), flags.n_replies, flags.seed)
    decoding = Decoding(max_new_tokens=flags.max_new_tokens)
    small = Budget(min(16, flags.batch_size), flags.engine, flags.memory_gb)
    cells = cells_of(opened, [*given, *few])
    parts.append(_part(opened, "BENIGN", cells, small, spoken, decoding))
    return Plan(tuple(parts), opened.study.scorer)


def _part(
    opened: Opened,
    subset: str,
    cells: Sequence[Cell],
    budget: Budget,
    prompts: Sequence[Prompt] | None = None,
    decoding: Decoding | None = None,
) -> Part:
    prompts = opened.tested(subset) if prompts is None else prompts
    rows = pd.DataFrame(
        {
            "prompt_id": [prompt.id for prompt in prompts],
            "subset": subset,
            "split": "seen" if opened.exploratory else "holdout",
        }
    )
    tokens = opened.study.tokens.chosen(opened.study.rows(prompts))
    measure = "score" if decoding is None else "reply"
    return Part(measure, tokens, rows, tuple(cells), budget, decoding)


def cells_of(opened: Opened, named: Sequence[tuple[str, int | None, Direction]]) -> list[Cell]:
    """The unsteered model, then each direction at alpha and at -alpha."""
    cells = [_cell(opened, "baseline", None, 0.0, None)]
    for name, seed, one in named:
        for sign in (1.0, -1.0):
            cells.append(_cell(opened, name, seed, sign * opened.alpha, one))
    return cells


def _left(opened: Opened) -> list[Cell]:
    """The given direction without its component along prompt length, no longer than that leaves
    it."""
    left, size = opened.left, opened.left_size
    return [_cell(opened, "left", None, sign * opened.alpha, left, size) for sign in (1.0, -1.0)]


def _cell(
    opened: Opened,
    name: str,
    seed: int | None,
    alpha: float,
    one: Direction | None,
    size: float = 1.0,
) -> Cell:
    at = opened.given.provenance
    labels: dict[str, Any] = {"direction": name, "seed": seed, "layer": at.layer, "site": at.site}
    labels |= {"pos": at.pos, "alpha": alpha}
    if one is None:
        return Cell(labels)
    hook = steer(one, alpha * size, layer=at.layer, pos=at.pos, site=at.site)
    return Cell(labels, [hook])


def measure_batches(model: TransformerBridge, *, skip: int, plan: Plan) -> Iterator[pd.DataFrame]:
    """A frame a batch; the first `skip` are left out: they were computed before."""
    for part in plan.parts:
        n = len(part.sizes)
        if skip < n:
            if part.decoding is None:
                batches = _scores(model, part, plan.scorer, skip)
            else:
                batches = _replies(model, part, part.decoding, skip)
            for batch in batches:
                yield batch[ORDER]
        skip = max(0, skip - n)


def _scores(
    model: TransformerBridge, part: Part, scorer: Scorer, skip: int
) -> Iterator[pd.DataFrame]:
    sweep = sweep_batches(model, part.tokens, part.rows, part.cells, scorer, part.budget, skip)
    return (batch.assign(measure="score") for batch in sweep)


def _replies(
    model: TransformerBridge, part: Part, decoding: Decoding, skip: int
) -> Iterator[pd.DataFrame]:
    size, tokens = part.budget.batch_size, part.tokens.on(model)
    for start in range(skip * size, len(part.rows), size):
        some, rows = tokens.rows(start, start + size), part.rows.iloc[start : start + size]
        grid, keys = [cell.hooks for cell in part.cells], list(rows["prompt_id"])
        told = generate(model, some, grid, decoding, keys=keys)
        own = [one.ids for one in told if one.cell == 0]
        far = kl_per_token(model, some, grid, own)
        frames = []
        for i, cell in enumerate(part.cells):
            mine = [one for one in told if one.cell == i]
            cost = nll(model, some, [one.ids for one in mine], [one.stop for one in mine])
            for measure, values in (("kl", far[i]), ("cost", cost)):
                frame = rows.reset_index(drop=True).assign(**cell.labels)
                frame["seed"] = pd.Series([cell.labels["seed"]] * len(rows), dtype="Int64")
                frames.append(frame.assign(score=values.cpu().numpy(), measure=measure))
        yield pd.concat(frames, ignore_index=True)
