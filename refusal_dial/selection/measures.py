"""What each candidate direction does to validation prompts: bypass, induce, kl.

    bypass  HARMFUL prompts, the unit direction ablated at every layer (`hooks.ablate_everywhere`)
    induce  harmless prompts, the raw direction added at its own layer and site, all positions
    kl      sum_v p (log(p + 1e-6) - log(q + 1e-6)) at the last position of harmless prompts, p of
            the model as it is, q of the ablated one

For `cosmic` nothing is scored: bypass and induce are cosines between mean activations, the ablated
(added-to) group's and the other group's as it is, at resid_post of the layers where the two groups
are least alike. A candidate where the groups do not differ changes nothing, and costs nothing.
This module computes rows in batches. It does not choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.activations import collect_positions
from refusal_dial.engine import Scorer, score_grid
from refusal_dial.hooks import ablate_everywhere, steer
from refusal_dial.selection.candidates import Candidate
from refusal_dial.selection.rules import MEASURES, NO_DIFFERENCE
from refusal_dial.sweep import Budget, spread
from refusal_dial.tokens import Tokens, last_logits
from refusal_dial.types import Hook

KL_EPSILON = 1e-6
LOW_SHARE = 0.1
HARMFUL, HARMLESS = "HARMFUL", "harmless"


@dataclass(frozen=True, eq=False)
class Prompts:
    """One group of prompts as the model reads them, and their ids."""

    tokens: Tokens
    ids: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """What is measured on which prompts. `low` are the layers that `cosmic` reads, else empty."""

    candidates: tuple[Candidate, ...]
    harmful: Prompts
    harmless: Prompts
    scorer: Scorer
    budget: Budget
    site: str = "resid_pre"
    low: tuple[int, ...] = ()

    def divided(self, prompts: int, cells: int) -> Plan:
        """A share of the candidates on the first prompts of either group."""
        some = tuple(self.candidates[i] for i in spread(len(self.candidates), cells))
        half = max(1, prompts // 2)
        harmful, harmless = (
            Prompts(group.tokens.rows(0, half), group.ids[:half])
            for group in (self.harmful, self.harmless)
        )
        return replace(self, candidates=some, harmful=harmful, harmless=harmless)

    def tasks(self) -> list[tuple[str, int, int]]:
        """(measure, position, first prompt) of every batch; 'base' is the model as it is."""
        positions = list(dict.fromkeys(one.pos for one in self.candidates))
        found = []
        for measure in ("base", *MEASURES):
            whole = bool(self.low) and measure in ("bypass", "induce")
            for pos in positions if measure != "base" else [0]:
                starts = range(0, len(self.group(measure).ids), self.budget.batch_size)
                found += [(measure, pos, start) for start in ([0] if whole else starts)]
        return found

    def group(self, measure: str) -> Prompts:
        return self.harmful if measure in ("bypass", "base") else self.harmless

    def at(self, pos: int) -> list[Candidate]:
        return [one for one in self.candidates if one.pos == pos]

    def sizes(self) -> list[int]:
        """Rows of every batch, in order."""
        return [
            (1 if measure == "base" else len(self.at(pos))) * self._rows(measure, start)
            for measure, pos, start in self.tasks()
        ]

    def _rows(self, measure: str, start: int) -> int:
        if self.low and measure in ("bypass", "induce"):
            return 1
        return len(self.group(measure).ids[start : start + self.budget.batch_size])


def measure_batches(model: TransformerBridge, *, skip: int, plan: Plan) -> Iterator[pd.DataFrame]:
    """A frame a batch: `measure, pos, layer, prompt_id, subset, score`, a row per candidate and
    prompt (per candidate where cosines of means are measured, `prompt_id` then being empty)."""
    for measure, pos, start in plan.tasks()[skip:]:
        group = plan.group(measure)
        stop = start + plan.budget.batch_size
        tokens, ids = group.tokens.on(model).rows(start, stop), group.ids[start:stop]
        some = plan.at(pos)
        if measure == "base":
            scores = score_grid(model, tokens, [[]], plan.scorer, engine=plan.budget.engine)
        elif plan.low and measure != "kl":
            scores, ids = _cosines(model, plan, measure, some), ("",)
        else:
            scores = grid_scores(model, tokens, some, measure, plan)
        subset = HARMFUL if group is plan.harmful else HARMLESS
        yield _rows(measure, some if measure != "base" else [], ids, subset, scores)


def grid_scores(
    model: TransformerBridge,
    tokens: Tokens,
    candidates: Sequence[Candidate],
    measure: str,
    plan: Plan,
) -> Float64[Tensor, "candidate prompt"]:
    """One measure of these candidates on these prompts."""
    hooks = adding if measure == "induce" else ablating
    grid = [hooks(one, int(model.cfg.n_layers), plan.site) for one in candidates]
    scorer: Scorer = plan.scorer
    if measure == "kl":
        scorer = partial(kl_from, base=last_logits(model, tokens))
    budget = plan.budget
    return score_grid(model, tokens, grid, scorer, engine=budget.engine, memory_gb=budget.memory_gb)


def ablating(one: Candidate, n_layers: int, site: str) -> list[Hook]:
    """Its unit direction out of everything; no hooks where there is no direction."""
    return [] if one.direction is None else ablate_everywhere(one.direction, n_layers)


def adding(one: Candidate, n_layers: int, site: str) -> list[Hook]:
    """Its raw vector once, at its own layer and site, at all positions."""
    if one.direction is None:
        return []
    return [steer(one.direction, one.direction.norm, layer=one.layer, site=site)]


def kl_from(
    logits: Float[Tensor, "batch d_vocab"], base: Float[Tensor, "batch d_vocab"]
) -> Float64[Tensor, " batch"]:
    """`sum_v p (log(p + 1e-6) - log(q + 1e-6))` in nats, p of `base`, q of `logits`, in float64:
    the published definition, its small constant included."""
    p, q = base.double().softmax(-1), logits.double().softmax(-1)
    return (p * (torch.log(p + KL_EPSILON) - torch.log(q + KL_EPSILON))).sum(-1)


def low_layers(
    model: TransformerBridge, harmful: Tokens, harmless: Tokens, batch_size: int
) -> tuple[int, ...]:
    """The tenth of the layers, at least one, whose mean resid_post at the last position is least
    alike, by cosine, between the two groups."""
    layers = range(int(model.cfg.n_layers))
    one, other = (
        _mean_last(model, tokens, layers, (), batch_size) for tokens in (harmful, harmless)
    )
    cosine = torch.cosine_similarity(one, other, dim=-1)
    n = max(1, int(LOW_SHARE * len(layers)))
    return tuple(sorted(int(i) for i in cosine.argsort()[:n]))


def _mean_last(
    model: TransformerBridge,
    tokens: Tokens,
    layers: Sequence[int],
    hooks: Sequence[Hook],
    batch_size: int,
) -> Float64[Tensor, "layer d_model"]:
    seen, _ = collect_positions(
        model, tokens, layers, (-1,), site="resid_post", batch_size=batch_size, hooks=hooks
    )
    return seen[0].double().mean(1)


def _cosines(
    model: TransformerBridge, plan: Plan, measure: str, candidates: Sequence[Candidate]
) -> Float64[Tensor, "candidate 1"]:
    """cos(mean of the group under each candidate's hooks, mean of the other group as it is), both
    over prompts and over the layers `plan.low`."""
    read = partial(_mean_last, model, layers=plan.low, batch_size=plan.budget.batch_size)
    changed, other = plan.harmful, plan.harmless
    hooks: Callable[[Candidate, int, str], list[Hook]] = ablating
    if measure == "induce":
        changed, other, hooks = other, changed, adding
    target = read(tokens=other.tokens.on(model), hooks=()).mean(0)
    tokens, n_layers = changed.tokens.on(model), int(model.cfg.n_layers)
    found = [read(tokens=tokens, hooks=hooks(c, n_layers, plan.site)).mean(0) for c in candidates]
    return torch.cosine_similarity(torch.stack(found), target[None], dim=-1)[:, None]


def _rows(
    measure: str,
    candidates: Sequence[Candidate],
    ids: Sequence[str],
    subset: str,
    scores: Float64[Tensor, "candidate prompt"],
) -> pd.DataFrame:
    places: list[tuple[int | None, int | None]] = [(c.pos, c.layer) for c in candidates]
    places, n = places or [(None, None)], len(ids)
    return pd.DataFrame(
        {
            "measure": measure,
            "pos": pd.Series([pos for pos, _ in places for _ in range(n)], dtype="Int64"),
            "layer": pd.Series([layer for _, layer in places for _ in range(n)], dtype="Int64"),
            "prompt_id": list(ids) * len(places),
            "subset": subset,
            "score": scores.numpy().reshape(-1),
        }
    )


def measured(rows: pd.DataFrame, candidates: Sequence[Candidate]) -> pd.DataFrame:
    """A row per candidate: `pos, layer, bypass, induce, kl`, each a mean over prompts, and why one
    was dropped before any rule (`dropped`). NaN for what was not measured or had a NaN in it."""
    means = rows[rows["measure"] != "base"].groupby(["measure", "pos", "layer"])["score"]
    table = means.agg(lambda s: s.mean(skipna=False)).unstack("measure").to_dict("index")
    found = []
    for one in candidates:
        row = table.get((one.pos, one.layer), {})
        values = {name: float(row.get(name, np.nan)) for name in MEASURES}
        reason = NO_DIFFERENCE if one.direction is None else ""
        found.append({"pos": one.pos, "layer": one.layer, **values, "dropped": reason})
    return pd.DataFrame(found)
