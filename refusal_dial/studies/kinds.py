"""Kinds of refusal: a direction for each, how alike they are, and what removing one leaves.

    cosine   of directions from halves that share no prompt, beside what halves of one kind reach
    scored   [s_A(B) - s_A(BENIGN)] / [s(B) - s(BENIGN)]: what is left of how much more the model
             refuses prompts of kind B than BENIGN ones, with A removed from every block
    steered  [s_A(B added) - s_A] / [s(B added) - s]: what is left of what adding B does to EDGE
    knob     mean of [EDGE score under B - EDGE score under all of HARMFUL], both at the alpha that
             moves HARMFUL's mean score as far

s is a mean refusal score, s_A the same with A removed. A kind is a category of HARMFUL prompts, or
of EDGE prompts that the model refuses; or, by the model's own greedy reply where a judge calls it a
refusal, those of HARMFUL and EDGE that are refused for one reason (`scoring.verdict.Reason`). Its
direction is their mean minus BENIGN's, read at the last token. Beside them stand all of HARMFUL,
harmfulness (the same, read at the last token of the prompt's own text: Zhao et al. 2025, arXiv
2507.11878), refusal of EDGE (top minus bottom third by score), and politeness (BENIGN with and
without a polite word). Deflection is the reason `elsewhere`, where a model has enough such replies.
Controls: permuted labels, as many HARMFUL and BENIGN prompts on either side (`permuted`), and
random directions. Directions are learned from half of the prompts, and all is measured on the other
half. Whether directions that differ trade refusal against over-refusal alike is the question of
arXiv 2602.02132.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.cells import BASELINE, Cell, Named, SteeringPlace, alphas_in, cells_at, labelled
from refusal_dial.cli.flags import (
    ALL_HARMFUL,
    HARMFULNESS,
    KIND_CONTROLS,
    KIND_MARK,
    POLITENESS,
    REFUSED_EDGE,
    WHERE_READ,
    KindFlags,
)
from refusal_dial.common import DialError, log
from refusal_dial.data.prompts import Prompt, extremes, of_subset, some_of_each
from refusal_dial.directions.learning import Direction, Provenance, mean_diff, random_directions
from refusal_dial.generate.decode import Decoding
from refusal_dial.generate.kept import unsteered_replies
from refusal_dial.hooks import ablate_everywhere
from refusal_dial.model.activations import collect_positions, nothing
from refusal_dial.run.folder import Run
from refusal_dial.run.job import begin, carry_out
from refusal_dial.run.plan import Budget, Parts, SweepPlan, grid_of, groups
from refusal_dial.run.schema import KIND_COLUMNS
from refusal_dial.scoring.judges import BUILTIN, judge_all
from refusal_dial.scoring.verdict import Reason, reason_of
from refusal_dial.stats.cosines import (
    Contrast,
    apart_p,
    first_halves,
    prompt_draws,
    share_of_draws,
    split_angles,
    split_cosines,
)
from refusal_dial.stats.intervals import LEVEL, Floats, expanded
from refusal_dial.stats.p_values import holm
from refusal_dial.studies.base import Study, measured_on, study_settings
from refusal_dial.studies.pairs import template_lengths

# --------------------------------------------------------------------------------------------------
# Which kinds there are.


POLITE = re.compile(r"\b(please|kindly|could you|would you|can you)\b", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class RefusalKind:
    """Two groups of prompts, read at `pos`. Prompts that are `refused` more than BENIGN ones can
    be scored with another kind removed."""

    name: str
    positive: tuple[Prompt, ...]
    negative: tuple[Prompt, ...]
    pos: int = -1
    refused: bool = False


def refusal_reasons(study: Study, flags: KindFlags) -> dict[str, Reason]:
    """By prompt id the reason that the model's own greedy reply gives, of the HARMFUL and EDGE
    prompts whose reply the builtin judge calls a refusal."""
    asked = [p for p in study.prompts if p.subset in ("HARMFUL", "EDGE")]
    tokens = study.tokens.chosen(study.rows(asked)).on(study.model)
    decoding = Decoding(max_new_tokens=flags.max_new_tokens)
    completions = unsteered_replies(study.model, tokens, decoding, flags.batch_size)
    replies = [one.text for one in completions]
    judged = judge_all(BUILTIN, replies, [prompt.text for prompt in asked])
    return {
        prompt.id: reason_of(reply)
        for prompt, reply, one in zip(asked, replies, judged, strict=True)
        if one.label in ("full_refusal", "partial_refusal")
    }


def kinds_of(
    study: Study, flags: KindFlags, reasons: Mapping[str, Reason] | None = None
) -> tuple[list[RefusalKind], dict[str, int]]:
    """(the kinds that have `flags.least` prompts, how many those have that are left out): the
    categories, or what is refused for the same of these `reasons`; all of HARMFUL, harmfulness,
    refusal of EDGE, politeness, and permuted labels last.

    Raises `DialError` for a model that is to think, whose prompts end anywhere, and where HARMFUL,
    EDGE or BENIGN are fewer."""
    if flags.thought:
        raise DialError(
            "harmfulness is read at the end of the prompt's own text, and thoughts differ in "
            "length: expected --thinking off"
        )
    harmful, edge, benign = (of_subset(study.prompts, s) for s in ("HARMFUL", "EDGE", "BENIGN"))
    score = dict(zip((p.id for p in study.prompts), study.scores.tolist(), strict=True))
    # 1. Reasons; or categories, of HARMFUL all prompts, of EDGE those that are refused.
    found: dict[str, list[Prompt]] = {}
    for prompt in (*harmful, *edge):
        if reasons is not None:
            if prompt.id in reasons:
                found.setdefault(f"reason{KIND_MARK}{reasons[prompt.id]}", []).append(prompt)
        elif prompt.category and (prompt.subset == "HARMFUL" or score[prompt.id] > study.threshold):
            found.setdefault(f"{prompt.subset}{KIND_MARK}{prompt.category}", []).append(prompt)
    kinds = [
        RefusalKind(name, tuple(some), tuple(benign), refused=True) for name, some in found.items()
    ]
    # 2. All of HARMFUL; the same before the template; EDGE by score; politeness.
    whole = RefusalKind(ALL_HARMFUL, tuple(harmful), tuple(benign), refused=True)
    closing = template_lengths(study.model, flags.system, not flags.plain)[1]
    kinds += [whole, replace(whole, name=HARMFULNESS, pos=-1 - closing, refused=False)]
    top, bottom = extremes([score[p.id] for p in edge], max(1, len(edge) // 3))
    most, least = (tuple(edge[i] for i in some) for some in (top, bottom))
    kinds.append(RefusalKind(REFUSED_EDGE, most, least, refused=True))
    polite = tuple(prompt for prompt in benign if POLITE.search(prompt.text))
    plain = tuple(prompt for prompt in benign if not POLITE.search(prompt.text))
    kinds.append(RefusalKind(POLITENESS, polite, plain))
    # 3. Those that have too few prompts are named; permuted labels come last.
    few = {k.name: n for k in kinds if (n := min(len(k.positive), len(k.negative))) < flags.least}
    if short := [name for name in (ALL_HARMFUL, REFUSED_EDGE) if name in few]:
        raise DialError(
            f"{short[0]}: {few[short[0]]} prompts of a kind, and --least is {flags.least}: give "
            "more prompts, or a lower --least"
        )
    if not closing:
        log.info("no template closes the prompt: harmfulness is read where HARMFUL is")
        few[HARMFULNESS] = 0
    rng = np.random.default_rng(flags.seed)
    for i in range(flags.n_random):
        one, other = [], []
        for group in (harmful, benign):
            permuted = [group[j] for j in rng.permutation(len(group))]
            one += permuted[: len(group) // 2]
            other += permuted[len(group) // 2 :]
        kinds.append(RefusalKind(f"{KIND_CONTROLS[0]} {i}", tuple(one), tuple(other)))
    return [kind for kind in kinds if kind.name not in few], few


# --------------------------------------------------------------------------------------------------
# Their directions, from half of the prompts.


@dataclass(frozen=True, eq=False)
class KindStudy:
    """A study, its kinds with a direction each, and the prompts that none was learned from."""

    study: Study
    kinds: tuple[RefusalKind, ...]
    too_few: Mapping[str, int]
    contrasts: tuple[Contrast, ...]
    directions: Mapping[str, Direction]  # those of random directions too
    norms: Mapping[int, float]  # the mean residual norm at every position that is read
    tested: tuple[Prompt, ...]

    @property
    def model(self) -> TransformerBridge:
        return self.study.model

    @property
    def about(self) -> tuple[str, ...]:
        few = ", ".join(f"{name} ({n})" for name, n in self.too_few.items())
        return (*self.study.about, f"kinds with too few prompts: {few or 'none'}")

    @property
    def scored(self) -> dict[str, tuple[str, ...]]:
        """The ids of the measured prompts of every kind that is refused."""
        held = {prompt.id for prompt in self.tested}
        return {
            kind.name: tuple(p.id for p in kind.positive if p.id in held)
            for kind in self.kinds
            if kind.refused
        }


def study_kinds(study: Study, flags: KindFlags) -> KindStudy:
    """Learn a direction of every kind from half of its prompts."""
    reasons = refusal_reasons(study, flags) if flags.by == "reason" else None
    kinds, few = kinds_of(study, flags, reasons)
    # 1. What is read at every position that a kind asks for.
    places = sorted({kind.pos for kind in kinds} - {-1})
    read: dict[int, Float[Tensor, "prompt d_model"]] = {-1: study.activations[0]}
    if places:
        others, _ = collect_positions(
            study.model,
            study.tokens,
            [flags.layer],
            places,
            batch_size=flags.batch_size,
            read=nothing,
        )
        read |= {pos: others[i, 0] for i, pos in enumerate(places)}
    contrasts = tuple(
        Contrast(
            read[kind.pos].double().numpy(),
            np.array(study.rows(kind.positive)),
            np.array(study.rows(kind.negative)),
        )
        for kind in kinds
    )
    # 2. Halves of every kind alike: one to learn from, the other to measure on.
    (half,) = first_halves(contrasts, 1, flags.seed)
    directions: dict[str, Direction] = {}
    for kind, one in zip(kinds, contrasts, strict=True):
        about = Provenance(flags.layer, "resid_pre", kind.pos, seed=flags.seed)
        here, learning = read[kind.pos], (rows[half[rows]] for rows in (one.positive, one.negative))
        positive, negative = (here[torch.from_numpy(rows)] for rows in learning)
        directions[kind.name] = mean_diff(positive, negative, about)
    drawn = random_directions(directions[ALL_HARMFUL], flags.n_random, flags.seed)
    directions |= {f"{KIND_CONTROLS[1]} {i}": one for i, one in enumerate(drawn)}
    held = [prompt for prompt, first in zip(study.prompts, half, strict=True) if not first]
    tested = tuple(some_of_each(held, flags.n, flags.seed))
    norms = {pos: float(here.norm(dim=-1).mean()) for pos, here in read.items()}
    return KindStudy(study, tuple(kinds), few, contrasts, directions, norms, tested)


# --------------------------------------------------------------------------------------------------
# Cells: each direction removed, each added at every alpha, and each added with another removed.


def kind_cells(opened: KindStudy, flags: KindFlags) -> tuple[list[Cell], list[Cell]]:
    """(on all prompts, on EDGE alone): the model as it is, every direction removed, and every one
    added at the last token, harmfulness where it was read too; then every kind added at the highest
    alpha with every direction removed."""
    n_layers = int(opened.model.cfg.n_layers)
    place = SteeringPlace(flags.layer, "resid_pre", -1, opened.norms[-1])
    named: list[Named] = [(name, None, one) for name, one in opened.directions.items()]
    removed = {name: ablate_everywhere(one, n_layers) for name, _, one in named}
    alone = [BASELINE]
    alone += [labelled(replace(BASELINE, hooks=hooks), ablated=a) for a, hooks in removed.items()]
    alphas = alphas_in(flags.alphas, "residual", place.norm, opened.directions[ALL_HARMFUL])
    alone += cells_at(named, alphas, place)
    if HARMFULNESS in opened.directions:
        one = opened.directions[HARMFULNESS]
        there = replace(place, pos=one.provenance.pos, norm=opened.norms[one.provenance.pos])
        steps = alphas_in(flags.alphas, "residual", there.norm, one)
        alone += cells_at([(WHERE_READ, None, one)], steps, there)
    real = [one for one in named if one[0] in {kind.name for kind in opened.kinds}]
    crossed = [
        labelled(replace(cell, hooks=[*cell.hooks, *hooks]), ablated=a)
        for a, hooks in removed.items()
        for cell in cells_at(real, alphas[-1:], place)
    ]
    return [labelled(cell, ablated=cell.labels.get("ablated", "")) for cell in alone], crossed


KIND_ORDER = ["direction", "ablated", "layer", "site", "pos", "alpha", "alpha_relative", "strength"]
KIND_ORDER += ["prompt_id", "subset", "split", "category", "score"]


def kind_plan(opened: KindStudy, flags: KindFlags) -> Parts:
    """Every cell on the prompts that nothing was learned from; those with two directions on EDGE
    prompts alone."""
    alone, crossed = kind_cells(opened, flags)
    budget = Budget(flags.batch_size, flags.engine, flags.memory_gb)
    some = some_of_each(of_subset(opened.tested, "EDGE"), flags.n_steered, flags.seed)
    parts = []
    for prompts, cells in ((opened.tested, alone), (some, crossed)):
        tokens, rows = measured_on(opened.study, prompts)
        rows = rows.assign(category=[prompt.category for prompt in prompts])
        parts.append(SweepPlan(tokens, rows, cells, opened.study.scorer, budget, KIND_ORDER))
    shown = ("direction", "ablated", "strength")
    labels = [{name: one.labels[name] for name in shown} for one in (*alone, *crossed)]
    return Parts(parts, grid_of(groups(parts[0].rows), labels))


# --------------------------------------------------------------------------------------------------
# What the activations say: cosines and angles. No prompt is held out here: halves share none.


def geometry(opened: KindStudy, flags: KindFlags) -> pd.DataFrame:
    """A line for every two kinds: `cosine` with its interval and ceiling, and the p (Holm) that two
    categories against the same BENIGN prompts are apart at all; and `angle 1`, `angle 2`, ...,
    whose ceiling is the mean of what halves of the two have with themselves. A kind and itself are
    two halves of it. Beside them stands the difference of as many rows of noise."""
    whole = next(i for i, kind in enumerate(opened.kinds) if kind.name == ALL_HARMFUL)
    read = opened.contrasts[whole]
    noise = np.random.default_rng(flags.seed).standard_normal(read.activations.shape)
    contrasts = [*opened.contrasts, replace(read, activations=noise)]
    names = [*(kind.name for kind in opened.kinds), KIND_CONTROLS[1]]
    sizes = [min(len(one.positive), len(one.negative)) for one in contrasts]
    cosines = split_cosines(contrasts, flags.n_splits, flags.n_resamples, flags.seed)
    angles = split_angles(contrasts, flags.k, flags.n_splits, flags.seed)
    found = []
    for i, j in np.ndindex(len(names), len(names)):
        about = {"kind": names[i], "other": names[j], "n": min(sizes[i], sizes[j])}
        ends = {name: getattr(cosines, name)[i, j] for name in ("value", "lo", "hi")}
        line = {"measure": "cosine", **about, **ends, "ceiling": cosines.ceiling[i, j]}
        found.append({**line, "p_value": _apart(opened, i, j, flags.seed)})
        for k, angle in enumerate(angles, 1):
            own = (angle[i, i] + angle[j, j]) / 2
            line = {"measure": f"angle {k}", **about, "value": angle[i, j], "ceiling": own}
            found.append(line)
    table = pd.DataFrame(found)
    once = (table["kind"] < table["other"]) & table["p_value"].notna()
    table["p_holm"] = np.nan
    table.loc[once, "p_holm"] = holm(table.loc[once, "p_value"].to_numpy())
    return table.drop(columns="p_value")


def _apart(opened: KindStudy, i: int, j: int, seed: int) -> float:
    """Of two categories, tested once; NaN for others."""
    names = [opened.kinds[k].name for k in (i, j) if k < len(opened.kinds)]
    if sum(KIND_MARK in name for name in names) < 2 or not names[0] < names[1]:
        return float("nan")
    one, other = (opened.contrasts[k] for k in (i, j))
    rows, others = (some.activations[some.positive] for some in (one, other))
    return apart_p(rows, others, seed=seed)


# --------------------------------------------------------------------------------------------------
# What the rows say: what is left with a direction removed, and what is paid at an equal gain.


TARGETS, LEAST_REACH = 9, 0.1
"""Shifts of HARMFUL at which EDGE is compared; and the least share of what all of HARMFUL does that
a direction has to do for a share or a comparison."""


@dataclass(frozen=True, eq=False)
class _Scores:
    """Scores by cell, `cell -> prompt id -> score`, and draws of every group of prompts."""

    table: pd.DataFrame  # a row a (direction, ablated, strength), a column a prompt
    ids: Mapping[str, Sequence[str]]  # of every group
    n_resamples: int
    seed: int

    def drawn(self, cell: tuple[str, str, float], group: str) -> Floats:
        """The mean score of the group under the cell, of every draw of its prompts."""
        values = self.table.reindex(index=[cell], columns=list(self.ids[group])).to_numpy()[0]
        keep = np.isfinite(values)
        return prompt_draws(int(keep.sum()), self.n_resamples, self.seed) @ values[keep]

    def n(self, *groups_: str) -> int:
        """How many prompts the smallest of these groups has."""
        return min(len(self.ids[group]) for group in groups_)


def summarise_kinds(
    rows: pd.DataFrame,
    scored: Mapping[str, Sequence[str]],
    n_resamples: int = 400,
    seed: int = 0,
) -> pd.DataFrame:
    """A line for each measure of `scored` (what removing `kind` leaves of refusing prompts of kind
    `other`), `steered` (of adding `other`), and `knob` (EDGE's score under `kind` minus that under
    all of HARMFUL at the same shift of HARMFUL's; `reach` is the share of its range that `kind`
    reaches), with the ends of its interval over prompts. `whole` is what there was before anything
    was removed, and for `knob` how far EDGE moves under all of HARMFUL, in log-odds.

    Of what adding a kind does, no share is taken where it does less than a tenth of what all of
    HARMFUL does. `scored` has the ids of every kind's prompts. Raises `DialError` where the
    unsteered model is missing."""
    keys = ["direction", "ablated", "strength"]
    rows = rows.assign(ablated=rows["ablated"].fillna(""))
    table = rows.pivot(index=keys, columns="prompt_id", values="score")
    if ("baseline", "", 0.0) not in table.index:
        raise DialError("the unsteered model is missing from this run")
    subset = rows.drop_duplicates("prompt_id").set_index("prompt_id")["subset"]
    crossed = rows[(rows["direction"] != "baseline") & (rows["ablated"] != "")]
    ids: dict[str, Sequence[str]] = {
        name: list(subset.index[subset == name]) for name in ("HARMFUL", "EDGE", "BENIGN")
    }
    ids["steered"] = list(dict.fromkeys(crossed["prompt_id"]))
    ids |= {f"of {name}": list(some) for name, some in scored.items()}
    found = _Scores(table, ids, n_resamples, seed)
    removed = [a for a in dict.fromkeys(rows["ablated"]) if a]
    lines = [_scored_line(found, a, b) for a in removed for b in scored]
    steered = list(dict.fromkeys(crossed["direction"]))
    top = float(rows["strength"].max())
    does = {b: _steered_line(found, "", b, top)["whole"] for b in steered}
    moved = [b for b in steered if does[b] >= LEAST_REACH * does[ALL_HARMFUL]]
    lines += [_steered_line(found, a, b, top) for a in removed for b in moved]
    added = rows[(rows["direction"] != "baseline") & (rows["ablated"] == "")]
    curves = {
        str(name): sorted({0.0, *part["strength"]}) for name, part in added.groupby("direction")
    }
    names = [name for name in dict.fromkeys(added["direction"]) if name != ALL_HARMFUL]
    lines += [_knob_line(found, name, curves[name], curves[ALL_HARMFUL]) for name in names]
    return pd.DataFrame(lines)


def _scored_line(found: _Scores, a: str, b: str) -> dict[str, Any]:
    def gap(ablated: str) -> Floats:
        cell = ("baseline", ablated, 0.0)
        return found.drawn(cell, f"of {b}") - found.drawn(cell, "BENIGN")

    n = found.n(f"of {b}", "BENIGN")
    return _left("scored", a, b, gap(a), gap(""), n) if n else _nothing("scored", a, b)


def _steered_line(found: _Scores, a: str, b: str, strength: float) -> dict[str, Any]:
    def shift(ablated: str) -> Floats:
        added, base = (b, ablated, strength), ("baseline", ablated, 0.0)
        return found.drawn(added, "steered") - found.drawn(base, "steered")

    return _left("steered", a, b, shift(a), shift(""), found.n("steered"))


def _left(measure: str, a: str, b: str, part: Floats, whole: Floats, n: int) -> dict[str, Any]:
    share, lo, hi = share_of_draws(part, whole, n)
    about = {"measure": measure, "kind": a, "other": b, "n": n}
    return {**about, "value": share, "lo": lo, "hi": hi, "whole": whole[0]}


def _nothing(measure: str, a: str, b: str) -> dict[str, Any]:
    return {"measure": measure, "kind": a, "other": b, "n": 0, "value": np.nan}


def _knob_line(
    found: _Scores, name: str, mine: Sequence[float], theirs: Sequence[float]
) -> dict[str, Any]:
    def curve(direction: str, strengths: Sequence[float], group: str) -> Floats:
        """The shift of the mean score, `draw strength`."""
        base = found.drawn(("baseline", "", 0.0), group)
        cells = [("baseline" if not s else direction, "", s) for s in strengths]
        return np.stack([found.drawn(cell, group) - base for cell in cells], 1)

    gained, paid = (curve(name, mine, group) for group in ("HARMFUL", "EDGE"))
    gained_0, paid_0 = (curve(ALL_HARMFUL, theirs, group) for group in ("HARMFUL", "EDGE"))
    lo, hi = (
        max(gained[0].min(), gained_0[0].min()),
        min(gained[0].max(), gained_0[0].max()),
    )
    reach = float((hi - lo) / np.ptp(gained_0[0])) if np.ptp(gained_0[0]) > 0 else 0.0
    n = found.n("HARMFUL", "EDGE")
    about = {"measure": "knob", "kind": name, "other": ALL_HARMFUL, "n": n, "reach": reach}
    about["whole"] = float(np.ptp(paid_0[0]))
    if reach < LEAST_REACH or n < 2:
        return {**about, "value": np.nan}
    at = np.linspace(lo, hi, TARGETS)
    differences = np.array(
        [
            (_at(at, x, y) - _at(at, x_0, y_0)).mean()
            for x, y, x_0, y_0 in zip(gained, paid, gained_0, paid_0, strict=True)
        ]
    )
    level = expanded(LEVEL, n)
    ends = np.quantile(differences[1:], [(1 - level) / 2, (1 + level) / 2])
    return {**about, "value": differences[0], "lo": ends[0], "hi": ends[1]}


def _at(at: Floats, x: Floats, y: Floats) -> Floats:
    """y where the curve has these x."""
    order = np.argsort(x, kind="stable")
    return np.interp(at, x[order], y[order])


# --------------------------------------------------------------------------------------------------
# The run.


def conduct_kinds(experiment: str, study: Study, flags: KindFlags) -> tuple[Run, pd.DataFrame]:
    """Learn every kind, remove and add each, and compare; the run and its summary."""
    opened = study_kinds(study, flags)
    counts = {kind.name: len(kind.positive) for kind in opened.kinds}
    few = {"too_few": dict(opened.too_few)}
    settings = study_settings(study, flags) | {"layer": [flags.layer], "kinds": counts, **few}
    run = begin(experiment, settings, flags)

    def close(rows: pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Any]]:
        measured = summarise_kinds(rows, opened.scored, flags.n_resamples, flags.seed)
        summary = pd.concat([geometry(opened, flags), measured], ignore_index=True)
        return summary[list(KIND_COLUMNS)], {"threshold": study.threshold, **few}

    return carry_out(run, opened, kind_plan(opened, flags), close, flags)
