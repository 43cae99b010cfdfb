"""When does more than one dimension pay? Subspaces of refusal, learned and ablated everywhere.

    ablation   mean over HARMFUL of -log(1 - P), every block's reads and writes without r
    addition   mean over BENIGN of -log P, r added at its layer, as long as the mean difference
    retain     mean over BENIGN of KL(p || p without r)
    loss       ablation + 0.2 addition + retain

P is the scorer's odds of a refusal at the last prompt token, `P = 1 / (1 + exp(-score))`: where the
published losses (Wollschlaeger et al. 2025, arXiv 2502.17420) take the cross-entropy of whole
target replies, these take that of refusing at all. Four ways to more dimensions:

    iterated     the mean difference, ablated; the mean difference of what is left; and so on
    span         axes whose ablation together has the least ablation and retain loss
    cone         axes of which every non-negative mixture has the least loss (sampled)
    independent  a cone whose axes do not see each other's ablation (representational independence)

Equal damage: a subspace is compared with the best one direction, pushed beyond 0 as far as its KL
on BENIGN stays within the subspace's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.cells import Cell
from refusal_dial.cli.flags import SubspaceFlags
from refusal_dial.common import DialError, Hook, hook_name, progress
from refusal_dial.data.prompts import Prompt, holdout_split, of_subset, some_of_each
from refusal_dial.directions.learning import Provenance, mean_diff
from refusal_dial.engine.score import Scorer, score_grid
from refusal_dial.hooks import ablate_everywhere, clamp, steer
from refusal_dial.model.activations import collect_positions, nothing
from refusal_dial.model.tokens import Tokens, last_logits
from refusal_dial.run.folder import Run
from refusal_dial.run.job import begin, carry_out
from refusal_dial.run.plan import Budget, CellPlan, Grid, Task, batches, cell_rows, grid_of, groups
from refusal_dial.stats.intervals import Floats, mean_interval, rate_interval
from refusal_dial.studies.base import Study, measured_on, study_settings
from refusal_dial.studies.selection import kl_from

# --------------------------------------------------------------------------------------------------
# The published losses of a direction, and of what several span, at the last prompt token.


Axes = Float[Tensor, "_k d_model"]
"""Orthonormal rows."""

ABLATION, ADDITION, RETAIN, INDEPENDENCE = 1.0, 0.2, 1.0, 1.0
"""What each loss counts; the first three as published."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a subspace is learned from: prompts to refuse and not to, `length` of an addition at
    `layer`, and how a refusal is scored."""

    model: TransformerBridge
    harmful: Tokens
    harmless: Tokens
    scorer: Scorer
    layer: int
    length: float
    rows: int = 8  # prompts of each kind a step
    base: Float[Tensor, "prompt d_vocab"] | None = None  # last logits of `harmless`, once read

    @property
    def n_layers(self) -> int:
        return int(self.model.cfg.n_layers)

    def read(self, batch_size: int) -> Lesson:
        """The same with the harmless prompts' logits, which no step changes."""
        some = [
            self.harmless.rows(r.start, r.stop) for r in batches(len(self.harmless), batch_size)
        ]
        logits = [last_logits(self.model, tokens.on(self.model)).detach() for tokens in some]
        return replace(self, base=torch.cat(logits))

    def batch(self, generator: torch.Generator) -> Lesson:
        """The same on a few prompts of each kind, drawn."""
        one, other = (
            torch.randperm(len(tokens), generator=generator)[: self.rows].tolist()
            for tokens in (self.harmful, self.harmless)
        )
        return replace(
            self,
            harmful=self.harmful.chosen(one).on(self.model),
            harmless=self.harmless.chosen(other).on(self.model),
            base=None if self.base is None else self.base[other],
        )


def removing(directions: Axes, n_layers: int) -> list[Hook]:
    """Every axis of what the rows span out of everything that a block reads or writes."""
    return [hook for axis in directions for hook in ablate_everywhere(axis, n_layers)]


def _logits(model: TransformerBridge, tokens: Tokens, hooks: Sequence[Hook]) -> Tensor:
    """Last logits, with their graph."""
    with model.hooks(fwd_hooks=list(hooks)):
        found = model(tokens.ids, attention_mask=tokens.mask, logits_to_keep=1, use_cache=False)
    return found[:, -1]


def removal_loss(lesson: Lesson, directions: Axes) -> Float[Tensor, ""]:
    """The ablation and retain losses with all of these axes removed at once."""
    hooks = removing(directions, lesson.n_layers)
    refused = softplus(lesson.scorer(_logits(lesson.model, lesson.harmful, hooks))).mean()
    base = lesson.base
    if base is None:
        base = last_logits(lesson.model, lesson.harmless).detach()
    moved = kl_from(_logits(lesson.model, lesson.harmless, hooks), base).mean()
    return ABLATION * refused + RETAIN * moved


def addition_loss(lesson: Lesson, unit: Float[Tensor, " d_model"]) -> Float[Tensor, ""]:
    """`mean -log P` over harmless prompts with the unit direction added at all positions."""
    hooks = [steer(unit, lesson.length, layer=lesson.layer)]
    return softplus(-lesson.scorer(_logits(lesson.model, lesson.harmless, hooks))).mean()


def dependence(lesson: Lesson, directions: Axes) -> Float[Tensor, ""]:
    """The mean of `reading_moved` over the harmful prompts: a loss."""
    return reading_moved(lesson.model, lesson.harmful, directions).mean()


def reading_moved(
    model: TransformerBridge, tokens: Tokens, directions: Axes
) -> Float[Tensor, " batch"]:
    """How far the ablation of one axis moves what is read along another, prompt by prompt: over
    pairs (r, v) and layers, `mean |cos(h, v) - cos(h without r, v)|`, at the last token. 0 where
    the axes are representationally independent (Wollschlaeger et al. 2025), and of one axis."""
    plain = _read(model, tokens, ())
    total, pairs = plain.new_zeros(len(tokens)), len(directions) * (len(directions) - 1)
    for i, r in enumerate(directions if pairs else ()):
        without = _read(model, tokens, ablate_everywhere(r, int(model.cfg.n_layers)))
        for j, v in enumerate(directions):
            if i != j:
                total = total + (_cosines(plain, v) - _cosines(without, v)).abs().mean(0)
    return total / max(1, pairs)


def _read(
    model: TransformerBridge, tokens: Tokens, hooks: Sequence[Hook]
) -> Float[Tensor, "layer batch d_model"]:
    """The residual stream after every block, last token, under hooks."""
    seen: list[Tensor] = []

    def keep(activation: Tensor, hook: Any) -> None:
        seen.append(activation[:, -1])

    names = [hook_name("resid_post", n) for n in range(int(model.cfg.n_layers))]
    _logits(model, tokens, [*hooks, *((name, keep) for name in names)])
    return torch.stack(seen)


def _cosines(read: Tensor, unit: Tensor) -> Tensor:
    return torch.cosine_similarity(read, unit.to(read), dim=-1)


# --------------------------------------------------------------------------------------------------
# Four ways to axes.


def orthonormal(rows: Float[Tensor, "k d_model"]) -> Axes:
    """Gram-Schmidt, row by row: the first keeps its way. Differentiable, unlike `axes`, and blind
    to no sign."""
    found: list[Tensor] = []
    for row in rows:
        for one in found:
            row = row - (row @ one) * one
        found.append(row / row.norm())
    return torch.stack(found)


def descend(
    lesson: Lesson,
    start: Float[Tensor, "k d_model"],
    loss: Callable[[Lesson, Axes, torch.Generator], Tensor],
    steps: int,
    rate: float = 0.01,
    seed: int = 0,
) -> Axes:
    """Adam's steps on the rows, orthonormal at each, on a few prompts drawn anew for each."""
    generator = torch.Generator().manual_seed(seed)
    raw = orthonormal(start.float()).clone().requires_grad_(True)
    optimiser = torch.optim.Adam([raw], lr=rate)
    with torch.enable_grad():
        for _ in progress(range(steps), "learning axes"):
            value = loss(lesson.batch(generator), orthonormal(raw), generator)
            (raw.grad,) = torch.autograd.grad(value, [raw])
            if not bool(torch.isfinite(raw.grad).all()):
                raise DialError("a loss of the axes is not finite: try --dtype float32")
            optimiser.step()
    return orthonormal(raw.detach())


def span_loss(lesson: Lesson, directions: Axes, _: torch.Generator) -> Tensor:
    """Ablation and retain with all axes removed at once; the first is added."""
    return removal_loss(lesson, directions) + ADDITION * addition_loss(lesson, directions[0])


def cone_loss(lesson: Lesson, directions: Axes, generator: torch.Generator) -> Tensor:
    """All three losses, the mean over every axis and one non-negative mixture of them, drawn."""
    drawn = torch.randn(len(directions), generator=generator).abs()
    mixture = (drawn / drawn.norm()).to(directions) @ directions
    some = [*directions, mixture] if len(directions) > 1 else [directions[0]]
    each = [removal_loss(lesson, one[None]) + ADDITION * addition_loss(lesson, one) for one in some]
    return torch.stack(each).mean()


def independent_loss(lesson: Lesson, directions: Axes, generator: torch.Generator) -> Tensor:
    """The cone's, and what one axis's ablation moves of another."""
    found = cone_loss(lesson, directions, generator)
    return found + INDEPENDENCE * dependence(lesson, directions)


ALIKE = ("cone", "independent")
"""Of one axis these are the same: there is no other to move."""

LOSSES: Mapping[str, Callable[[Lesson, Axes, torch.Generator], Tensor]] = {
    "span": span_loss,
    "cone": cone_loss,
    "independent": independent_loss,
}


def iterated_removal(lesson: Lesson, k: int, batch_size: int = 64) -> Axes:
    """The mean difference of HARMFUL and harmless at the layer; then that of the model without it;
    and so on: k orthonormal axes. Raises `DialError` where nothing is left to differ."""
    found: list[Tensor] = []
    for _ in range(k):
        hooks = removing(torch.stack(found), lesson.n_layers) if found else []
        one, other = (
            collect_positions(
                lesson.model,
                some,
                [lesson.layer],
                (-1,),
                batch_size=batch_size,
                hooks=hooks,
                read=nothing,
            )[0][0, 0]
            for some in (lesson.harmful, lesson.harmless)
        )
        unit = mean_diff(one, other, Provenance(lesson.layer, "resid_pre", -1)).unit
        found = list(orthonormal(torch.stack([*found, unit])))
    return torch.stack(found)


# --------------------------------------------------------------------------------------------------
# Cells: every way at every k, one direction pushed beyond 0, and random axes as many.


@dataclass(frozen=True, eq=False)
class RemovalCell(Cell):
    """What is removed: the way it was found, of how many dimensions, and how far one direction is
    pushed beyond 0 (in mean residual norms); `axes` where there are several."""

    axes: Axes | None = None


def _cell(
    layer: int,
    direction: str,
    seed: int | None,
    k: int,
    push: float,
    hooks: Sequence[Hook],
    axes: Axes | None = None,
) -> RemovalCell:
    labels = {"direction": direction, "seed": seed, "k": k, "push": push, "layer": layer}
    return RemovalCell(labels, tuple(hooks), axes if k > 1 else None)


@dataclass(frozen=True, eq=False)
class SubspaceStudy:
    """A study, what was learned from its first prompts, and the others, which are measured."""

    study: Study
    train: tuple[Prompt, ...]
    tested: tuple[Prompt, ...]
    found: Mapping[str, Sequence[Axes]]  # by way, for k = 1, 2, ...

    @property
    def model(self) -> TransformerBridge:
        return self.study.model

    @property
    def about(self) -> tuple[str, ...]:
        return self.study.about


def study_subspaces(study: Study, flags: SubspaceFlags) -> SubspaceStudy:
    """Learn axes in every way on half of HARMFUL and of BENIGN."""
    # 1. Halves: one to learn from, one to measure on, and all of EDGE.
    train, test = [], []
    for subset in ("HARMFUL", "BENIGN"):
        one, other = holdout_split(of_subset(study.prompts, subset), flags.seed)
        train += some_of_each(one, flags.n_train, flags.seed)
        test += some_of_each(other, flags.n, flags.seed)
    edge = [prompt for prompt in study.prompts if prompt.subset == "EDGE"]
    test += some_of_each(edge, flags.n, flags.seed)
    # 2. The mean differences, and from them the gradients' ways.
    harmful, harmless = (
        study.tokens.chosen(study.rows(of_subset(train, subset))).on(study.model)
        for subset in ("HARMFUL", "BENIGN")
    )
    lesson = Lesson(study.model, harmful, harmless, study.scorer, flags.layer, 1.0, flags.rows)
    start = iterated_removal(lesson, flags.k, flags.batch_size)
    rows = study.activations[0][study.rows(of_subset(train, "HARMFUL"))].mean(0)
    rows = rows - study.activations[0][study.rows(of_subset(train, "BENIGN"))].mean(0)
    lesson = replace(lesson, length=float(rows.norm())).read(flags.batch_size)
    found: dict[str, list[Axes]] = {"iterated": [start[:n] for n in range(1, flags.k + 1)]}
    for way in flags.ways:
        loss = LOSSES[way]
        taught = [
            descend(lesson, start[:n], loss, flags.steps, flags.rate, flags.seed)
            for n in range(1, flags.k + 1)
            if n > 1 or way not in ALIKE or "cone" not in found
        ]
        found[way] = taught if len(taught) == flags.k else [found["cone"][0], *taught]
    return SubspaceStudy(study, tuple(train), tuple(test), found)


def subspace_cells(opened: SubspaceStudy, flags: SubspaceFlags) -> list[RemovalCell]:
    """The model as it is; every way at every k; of k = 1 every push; and random axes at every k."""
    n_layers, norm = int(opened.model.cfg.n_layers), opened.study.residual_norm(flags.layer)
    cell = partial(_cell, flags.layer)
    cells = [cell("baseline", None, 0, 0.0, ())]
    for way, each in opened.found.items():
        cells += [
            cell(way, None, k, 0.0, removing(one, n_layers), one) for k, one in enumerate(each, 1)
        ]
        for push in flags.pushes:
            layers = range(flags.layer, n_layers)
            beyond = [clamp(each[0][0], -push * norm, layer=layer) for layer in layers]
            cells.append(cell(way, None, 1, push, removing(each[0], n_layers) + beyond))
    generator = torch.Generator().manual_seed(flags.seed)
    width = int(opened.model.cfg.d_model)
    for seed in range(flags.n_random):
        drawn = orthonormal(torch.randn(flags.k, width, generator=generator))
        for k in range(1, flags.k + 1):
            some = drawn[:k]
            cells.append(cell("random", seed, k, 0.0, removing(some, n_layers), some))
    return cells


# --------------------------------------------------------------------------------------------------
# Rows: the score of every prompt under every cell; of BENIGN ones the KL at the last token, and of
# HARMFUL ones how far the removal of one of several axes moves what is read along another.


SUBSPACE_ORDER = ["direction", "seed", "k", "push", "layer", "prompt_id", "subset", "split"]
SUBSPACE_ORDER += ["score", "measure"]


@dataclass(frozen=True, eq=False)
class SubspacePlan(CellPlan):
    """What is measured of prompts under cells, a task some prompts under all of them."""

    cells: Sequence[RemovalCell]
    scorer: Scorer
    budget: Budget

    @property
    def tasks(self) -> list[Task]:
        n, several = len(self.cells), len(self._several)
        found = []
        for some in batches(len(self.rows), self.budget.batch_size):
            subset = self.rows["subset"].iloc[some.start : some.stop]
            benign, harmful = (int((subset == name).sum()) for name in ("BENIGN", "HARMFUL"))
            found.append(Task(n * (len(some) + benign) + several * harmful, some, range(n)))
        return found

    @property
    def _several(self) -> list[RemovalCell]:
        """The cells of more than one axis."""
        return [cell for cell in self.cells if cell.axes is not None]

    @property
    def grid(self) -> Grid:
        shown = ("direction", "k", "push")
        labels = [{name: one.labels[name] for name in shown} for one in self.cells]
        return grid_of(groups(self.rows), labels)

    def compute(self, model: TransformerBridge, task: Task) -> pd.DataFrame:
        tokens, rows = self.part(model, task)
        frames = [self._measured(model, tokens, rows, "score", self.scorer)]
        benign, harmful = (
            [i for i, subset in enumerate(rows["subset"]) if subset == name]
            for name in ("BENIGN", "HARMFUL")
        )
        if benign:
            some = tokens.chosen(benign)
            moved = partial(kl_from, base=last_logits(model, some))
            frames.append(self._measured(model, some, rows.iloc[benign], "kl", moved))
        if harmful and self._several:
            some = tokens.chosen(harmful)
            with torch.no_grad():
                values = [
                    reading_moved(model, some, cell.axes.to(some.ids.device)).double().cpu()
                    for cell in self._several
                    if cell.axes is not None
                ]
            about = rows.iloc[harmful].assign(measure="dependence")
            found = torch.stack(values).numpy()
            frames.append(cell_rows(self._several, about, found, SUBSPACE_ORDER))
        return pd.concat(frames, ignore_index=True)

    def _measured(
        self,
        model: TransformerBridge,
        tokens: Tokens,
        rows: pd.DataFrame,
        measure: str,
        scorer: Scorer,
    ) -> pd.DataFrame:
        grid, how = [one.hooks for one in self.cells], self.budget
        scores = score_grid(model, tokens, grid, scorer, engine=how.engine, memory_gb=how.memory_gb)
        return cell_rows(self.cells, rows.assign(measure=measure), scores.numpy(), SUBSPACE_ORDER)

    def memory(self, model: TransformerBridge) -> float:
        return self.budget.memory(model)


# --------------------------------------------------------------------------------------------------
# When k > 1 pays: HARMFUL's score beside one direction's that is pushed to the same damage.
#
#     gain = mean over HARMFUL of (score of one direction - score of the subspace)
#
# The one direction is the best of all ways and pushes that do no more damage. A way's curve begins
# at the model as it is; where it crosses that damage between two points, its scores there are
# interpolated, prompt by prompt.


REMOVED = ["direction", "seed", "k", "push"]


def summarise_subspaces(rows: pd.DataFrame, threshold: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """A row per cell and subset: `score_mean`, `refusal_rate`, each with its interval; `kl` on
    BENIGN; and of HARMFUL at k over 1 `gain` over one direction at equal damage, with its ends
    `gain_lo` and `gain_hi`, and which way `beside` was the best; and `dependence` (0 where the axes
    are independent, see `reading_moved`) with its ends.
    """
    damage = (
        rows[rows["measure"] == "kl"].groupby(REMOVED, sort=False, dropna=False)["score"].mean()
    )
    found = []
    scored = rows[rows["measure"] == "score"]
    for subset, part in scored.groupby("subset", sort=False):
        number = part.groupby(REMOVED, sort=False, dropna=False).ngroup()
        part = part.assign(cell=number)
        table = part[~part["cell"].duplicated()][REMOVED].reset_index(drop=True)
        values = part.pivot(index="cell", columns="prompt_id", values="score").to_numpy()
        values = values[:, np.isfinite(values).all(0)]
        table = table.assign(subset=str(subset), n=values.shape[1], score_mean=values.mean(1))
        table["score_lo"], table["score_hi"] = mean_interval(values, seed=seed).T
        hits = (values > threshold).astype(float)
        table["refusal_rate"] = hits.mean(1)
        table["rate_lo"], table["rate_hi"] = rate_interval(hits).T
        table["kl"] = damage.to_numpy().clip(min=0)  # its small constant may leave -1e-6
        if subset == "HARMFUL":
            table = _with_dependence(_with_gain(table, values, seed), rows, seed)
        found.append(table)
    return pd.concat(found, ignore_index=True)


def _with_gain(table: pd.DataFrame, values: Floats, seed: int) -> pd.DataFrame:
    """The columns of the gain, of cells of k over 1."""
    gains, beside = np.full(values.shape, np.nan), [""] * len(table)
    single = table[(table["k"] == 1) & (table["direction"] != "random")]
    base = table[table["direction"] == "baseline"]
    curves = {
        str(way): pd.concat([base, part.sort_values("push")])
        for way, part in single.groupby("direction")
    }
    for i, (k, kl) in enumerate(zip(table["k"], table["kl"], strict=True)):
        at = [(way, one) for way, curve in curves.items() for one in _within(curve, values, kl)]
        if k > 1 and at:
            beside[i], best = min(at, key=lambda found: float(found[1].mean()))
            gains[i] = best - values[i]
    ends = mean_interval(gains, seed=seed)
    gain = {"gain": gains.mean(1), "gain_lo": ends[:, 0], "gain_hi": ends[:, 1]}
    return table.assign(**gain, beside=beside)


def _with_dependence(table: pd.DataFrame, rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The mean over prompts, with its interval, of every cell that it was measured of."""
    part = rows[rows["measure"] == "dependence"]
    number = part.groupby(REMOVED, sort=False, dropna=False).ngroup()
    part = part.assign(cell=number)
    about = part[~part["cell"].duplicated()][REMOVED].reset_index(drop=True)
    values = part.pivot(index="cell", columns="prompt_id", values="score").to_numpy()
    ends = mean_interval(values, seed=seed) if len(about) else np.empty((0, 2))
    mean = {"dependence": values.mean(1) if len(about) else np.empty(0)}
    found = about.assign(**mean, dependence_lo=ends[:, 0], dependence_hi=ends[:, 1])
    return table.merge(found, on=REMOVED, how="left")


def _within(curve: pd.DataFrame, values: Floats, kl: float) -> list[Floats]:
    """Every prompt's score where the curve does no more damage than this: at its pushes, and where
    it crosses it between two."""
    at, damage = list(curve.index), list(curve["kl"])
    found = [values[i] for i, one in zip(at, damage, strict=True) if one <= kl]
    for n in range(len(at) - 1):
        one, other = damage[n], damage[n + 1]
        if min(one, other) < kl < max(one, other):
            share = (kl - one) / (other - one)
            found.append((1 - share) * values[at[n]] + share * values[at[n + 1]])
    return found


# --------------------------------------------------------------------------------------------------
# The run.


def subspace_plan(opened: SubspaceStudy, flags: SubspaceFlags) -> SubspacePlan:
    """Every cell on the prompts that nothing was learned from."""
    tokens, rows = measured_on(opened.study, opened.tested)
    budget = Budget(flags.batch_size, flags.engine, flags.memory_gb)
    return SubspacePlan(tokens, rows, subspace_cells(opened, flags), opened.study.scorer, budget)


def conduct_subspaces(
    experiment: str, study: Study, flags: SubspaceFlags
) -> tuple[Run, pd.DataFrame]:
    """Learn the axes, remove them, and measure; the run and its summary."""
    opened = study_subspaces(study, flags)
    settings = study_settings(study, flags) | {"layer": [flags.layer]}
    run = begin(experiment, settings, flags)

    def close(table: pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Any]]:
        summary = summarise_subspaces(table, study.threshold, flags.seed)
        return summary, {"threshold": study.threshold}

    return carry_out(run, opened, subspace_plan(opened, flags), close, flags)
