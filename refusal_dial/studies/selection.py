"""Direction selection: one candidate a template position and layer, measured, one chosen by rule.

Three parts of the prompts play three parts: candidates are learned from the first, chosen on the
second, and the chosen one is reported on the third, which the choice never saw.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial import directions, stats
from refusal_dial.cli.flags import RULES, Limits, SelectionFlags
from refusal_dial.common import DialError, Hook, one_of, write_whole
from refusal_dial.data.prompts import Prompt, data_hash, holdout_split, of_subset
from refusal_dial.directions.files import read_tensor
from refusal_dial.directions.learning import Direction, Provenance, from_vector
from refusal_dial.engine.score import Scorer, score_grid
from refusal_dial.generate.thoughts import read_prompts
from refusal_dial.hooks import ablate_everywhere, steer
from refusal_dial.model.activations import collect_positions, nothing
from refusal_dial.model.loading import check_site
from refusal_dial.model.tokens import Tokens, last_logits
from refusal_dial.run.folder import Run, read_verdict
from refusal_dial.run.job import begin, carry_out, save_once
from refusal_dial.run.plan import Budget, Grid, Task, batches, grid_of, some_of
from refusal_dial.studies.base import Study, provenance_of, study_settings

# --------------------------------------------------------------------------------------------------
# Candidates: one direction for every template position and layer, from harmful and harmless.
#
# The template's tokens after the prompt are the same for every prompt, so that a difference there
# is something the model has made of the prompt. In the first layers it has made nothing of it yet:
# there the groups do not differ, and a candidate is no direction.


LEAST_DIFFERENCE = 1e-5
"""A difference smaller than this share of the activations' own norm is rounding, no direction."""

PROBES = ("Hello there", "7 plums?", "Write.")

Extract = Callable[[Tensor, Tensor, Provenance], Direction]


@dataclass(frozen=True)
class Split:
    """Prompts of one group: to learn from, to choose on, to report on."""

    train: tuple[Prompt, ...]
    val: tuple[Prompt, ...]
    test: tuple[Prompt, ...]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A direction, or None where the groups do not differ at its position and layer."""

    pos: int
    layer: int
    direction: Direction | None


def split(prompts: Sequence[Prompt], n_train: int, n_val: int, n_test: int, seed: int) -> Split:
    """A seeded split with every category's share in each part. Where the prompts are too few for
    all three, half are to learn from and a quarter each to choose and to report on.

    Raises `DialError` for fewer than eight prompts.
    """
    if len(prompts) < 8:
        raise DialError(f"{len(prompts)} prompts a group are too few to learn, choose and report")
    quarter = len(prompts) // 4
    n_val, n_test = (
        n if len(prompts) >= n_train + n_val + n_test else min(n, quarter) for n in (n_val, n_test)
    )
    rest, test = holdout_split(prompts, seed, n_test / len(prompts))
    rest, val = holdout_split(rest, seed, n_val / len(rest))
    if len(rest) > n_train:
        _, rest = holdout_split(rest, seed, n_train / len(rest))
    return Split(tuple(rest), tuple(val), tuple(test))


def template_positions(
    model: TransformerBridge, *, system: str | None = None, chat: bool = True, thought: int = 0
) -> tuple[int, ...]:
    """The positions of the tokens that the chat template puts after every prompt: -n, ..., -1; of a
    model that thinks, those from the end of its thoughts on.

    Plain text has none, and then it is the last position alone.
    """
    if not chat:
        return (-1,)
    rows = read_prompts(model, PROBES, system=system, thought=thought)
    n = 0
    while n + 1 < int(rows.mask.sum(1).min()) and len(set(rows.ids[:, -n - 1].tolist())) == 1:
        n += 1
    return tuple(range(-max(1, n), 0))


def extract(
    model: TransformerBridge,
    harmful: Tokens,
    harmless: Tokens,
    positions: Sequence[int],
    layers: Sequence[int],
    about: Provenance,
    method: str = "mean_diff",
    batch_size: int = 64,
) -> list[Candidate]:
    """A candidate for each position and layer, positions outermost, read at `about.site`."""
    function: Extract = {"mean_diff": directions.mean_diff, "probe": directions.probe}[method]
    positive, negative = (
        collect_positions(
            model,
            tokens,
            layers,
            positions,
            site=about.site,
            batch_size=batch_size,
            read=nothing,
        )[0]
        for tokens in (harmful, harmless)
    )
    found = []
    for i, pos in enumerate(positions):
        for j, layer in enumerate(layers):
            here = replace(about, pos=pos, layer=layer)
            one, other = positive[i, j], negative[i, j]
            gap = (one.mean(0) - other.mean(0)).norm()
            apart = bool(gap > LEAST_DIFFERENCE * torch.cat([one, other]).norm(dim=-1).mean())
            found.append(Candidate(pos, layer, function(one, other, here) if apart else None))
    return found


def raw_vectors(
    candidates: Sequence[Candidate], d_model: int
) -> Float[Tensor, "pos layer d_model"]:
    """`norm * unit` of every candidate, zero where there is none, in double precision."""
    n_pos = len({one.pos for one in candidates})
    rows = [
        torch.zeros(d_model, dtype=torch.float64)
        if one.direction is None
        else one.direction.unit.double() * one.direction.norm
        for one in candidates
    ]
    return torch.stack(rows).reshape(n_pos, -1, d_model)


# --------------------------------------------------------------------------------------------------
# Rules that choose one candidate direction from their measurements, and say why not the others.
#
# A frame of candidates has a row each: `pos`, `layer`, and three measurements on validation
# prompts.
#
#     ========= =============================== =======================================
#     column    refusal and effect              cosmic
#     ========= =============================== =======================================
#     bypass    mean score on HARMFUL, ablated  cos(HARMFUL ablated, harmless as it is)
#     induce    mean score on harmless, added   cos(harmless added, HARMFUL as it is)
#     kl        mean KL(base || ablated), nats, at the last position on harmless prompts
#     ========= =============================== =======================================
#
# The rules are arithmetic on such frames: they do not know where the numbers came from, and
# choosing by them is no evidence: the chosen candidate's own numbers are the best of many, so
# report it on prompts that no candidate was measured on.


MEASURES = ("bypass", "induce", "kl")

EVALUATION_NAMES = {
    "position": "pos",
    "layer": "layer",
    "refusal_score": "bypass",
    "steering_score": "induce",
    "kl_div_score": "kl",
}
"""What the refusal_direction project calls these columns."""

NO_DIFFERENCE = "the groups do not differ here"


def rank(rule: str, candidates: pd.DataFrame, n_layers: int, limits: Limits) -> pd.DataFrame:
    """The candidates with `value` (the larger, the better) and `dropped` (why; empty for the kept),
    the kept ones first, the chosen one on top.

    `refusal` (Arditi et al. 2024): value = -bypass. `cosmic` (Siu et al. 2025): bypass + induce;
    candidates at position -1 are dropped where they come later than the median, over the other
    positions, of the best layer by either measure. `effect`: how much ablation and addition move
    the score together, `(base_harmful - bypass) + (induce - base_harmless)`, for any scorer, the
    bases being constants that no choice depends on.

    Raises `DialError` for an unknown rule.
    """
    if rule not in RULES:
        raise one_of(rule, RULES, "rule")
    value = {
        "refusal": -candidates["bypass"],
        "cosmic": candidates["bypass"] + candidates["induce"],
        "effect": candidates["induce"] - candidates["bypass"],
    }[rule]
    late = _late(candidates) if rule == "cosmic" else pd.Series(False, index=candidates.index)
    own = candidates["dropped"] if "dropped" in candidates else pd.Series("", candidates.index)
    reasons = [
        why or _reason(cast(Mapping[str, Any], row), n_layers, limits, is_late)
        for why, is_late, row in zip(own, late, candidates.to_dict("records"), strict=True)
    ]
    ranked = candidates.assign(value=value, dropped=reasons)
    ranked["kept"] = ranked["dropped"] == ""
    ranked = ranked.sort_values(["kept", "value"], ascending=False, kind="stable")
    return ranked.drop(columns="kept").reset_index(drop=True)


def needed_layers(rule: str, n_layers: int, limits: Limits) -> range:
    """The layers to measure: those that the rule discards need not be, except by `cosmic`, which
    looks for peaks among all of them."""
    return range(n_layers if rule == "cosmic" else limits.last_layer(n_layers))


def chosen(ranked: pd.DataFrame) -> tuple[int, int]:
    """(pos, layer) of the chosen candidate.

    Raises `DialError` where every candidate was dropped, saying for what.
    """
    if ranked.empty or ranked["dropped"].iloc[0]:
        why = ", ".join(f"{n} {reason}" for reason, n in dropped(ranked).items())
        raise DialError(
            f"all {len(ranked)} candidates were dropped ({why or 'there were none'}): the model "
            "may not refuse by one direction, or the limits are too strict for it"
        )
    return int(ranked["pos"].iloc[0]), int(ranked["layer"].iloc[0])


def dropped(ranked: pd.DataFrame) -> dict[str, int]:
    """How many candidates were dropped for each kind of reason, without its numbers."""
    gone = ranked.loc[ranked["dropped"] != "", "dropped"]
    kinds = gone.astype(str).str.split(":").str[0]
    return {str(kind): int(n) for kind, n in kinds.value_counts().items()}


def _reason(row: Mapping[str, Any], n_layers: int, limits: Limits, late: bool) -> str:
    """Why a candidate is dropped: the first reason that holds."""
    last = limits.last_layer(n_layers)
    if int(row["layer"]) >= last:
        return f"layer from {last} on"
    missing = [name for name in MEASURES if math.isnan(row[name])]
    if missing:
        return f"NaN in {' and '.join(missing)}"
    if limits.kl is not None and row["kl"] > limits.kl:
        return f"KL over {limits.kl:g}: {row['kl']:.3g}"
    if limits.induce is not None and row["induce"] < limits.induce:
        return f"induces under {limits.induce:g}: {row['induce']:.3g}"
    return "at -1 and past where other positions peak" if late else ""


def _late(candidates: pd.DataFrame) -> pd.Series[bool]:
    """Candidates at position -1 from a layer past both median peaks of the other positions."""
    others = candidates[candidates["pos"] != -1]
    last = candidates["pos"] == -1
    for name in ("bypass", "induce"):
        best = others.dropna(subset=[name]).sort_values(name, ascending=False, kind="stable")
        peaks = best.groupby("pos").head(1)["layer"].astype(float)
        if peaks.empty:
            return pd.Series(False, index=candidates.index)
        last &= candidates["layer"] > np.quantile(peaks, 0.5, method="lower")
    return last


def read_evaluations(path: str | Path) -> pd.DataFrame:
    """Candidates from the refusal_direction project's direction_evaluations.json.

    Raises `DialError` for a file that is not there or holds something else.
    """
    if not Path(path).is_file():
        raise DialError(f"no evaluations {str(path)!r}: expected a direction_evaluations.json")
    try:
        rows = json.loads(Path(path).read_text())
        frame = pd.DataFrame(
            [{EVALUATION_NAMES[k]: row[k] for k in EVALUATION_NAMES} for row in rows]
        )
        return frame.astype({"pos": int, "layer": int, **dict.fromkeys(MEASURES, float)})
    except (ValueError, KeyError, TypeError) as error:
        raise DialError(
            f"{path} holds no evaluations: expected a list of position, layer, refusal_score, "
            f"steering_score and kl_div_score ({' '.join(str(error).split())})"
        ) from error


def evaluations_json(candidates: pd.DataFrame) -> str:
    """The same the other way: what `read_evaluations` reads, in that project's own order."""
    columns = candidates[list(EVALUATION_NAMES.values())].rename(
        columns={v: k for k, v in EVALUATION_NAMES.items()}
    )
    return json.dumps(columns.to_dict("records"), indent=4)


# --------------------------------------------------------------------------------------------------
# Candidates on disk as the refusal_direction project (Arditi et al. 2024) writes and reads them.
#
#     generate_directions/mean_diffs.pt                    pos layer d_model, float64
#     select_direction/direction_evaluations.json          every candidate's measurements
#     select_direction/direction_evaluations_filtered.json the kept ones, best first
#     direction.pt, direction_metadata.json                the chosen one, raw; its pos and layer
#
# Tensors are read with `weights_only`: nothing is unpickled but tensors. Candidates that were not
# measured, because the rule discards their layer, are NaN in direction_evaluations.json, where that
# project has numbers; its filter drops both.


MEAN_DIFFS = "generate_directions/mean_diffs.pt"

EVALUATIONS = "select_direction/direction_evaluations.json"

FILTERED = "select_direction/direction_evaluations_filtered.json"


def read_published(folder: str | Path) -> tuple[pd.DataFrame, Tensor | None]:
    """(measured candidates, their raw vectors `pos layer d_model` where they are there)."""
    folder = Path(folder)
    candidates = read_evaluations(folder / EVALUATIONS)
    if not (folder / MEAN_DIFFS).is_file():
        return candidates, None
    raw = read_tensor(folder / MEAN_DIFFS)
    if not isinstance(raw, Tensor) or raw.ndim != 3:
        raise DialError(f"{folder / MEAN_DIFFS} holds no tensor of pos, layer and d_model")
    return candidates, raw


def candidate(
    raw: Float[Tensor, "pos layer d_model"], pos: int, layer: int, model: str = ""
) -> Direction:
    """One candidate of `mean_diffs.pt` as a direction; its raw vector is `norm * unit`.

    Raises `DialError` for a position or layer that is not in it.
    """
    if not (-raw.shape[0] <= pos < 0 <= layer < raw.shape[1]):
        raise DialError(f"position {pos}, layer {layer} is not in candidates of {tuple(raw.shape)}")
    about = Provenance(layer, "resid_pre", pos, method="mean_diff", model=model)
    return from_vector(raw[pos, layer], about)


def write_layout(
    folder: str | Path,
    raw: Float[Tensor, "pos layer d_model"],
    ranked: pd.DataFrame,
    pos: int,
    layer: int,
) -> None:
    """Write the project's tree below `folder`, whatever stood there before."""
    folder = Path(folder)
    n_pos, n_layers = raw.shape[:2]
    grid = pd.MultiIndex.from_product([range(-n_pos, 0), range(n_layers)], names=["pos", "layer"])
    columns = ["pos", "layer", *MEASURES]
    everything = ranked[columns].set_index(["pos", "layer"]).reindex(grid).reset_index()
    kept = ranked.loc[ranked["dropped"] == "", columns]
    _save(raw, folder / MEAN_DIFFS)
    write_whole(folder / EVALUATIONS, evaluations_json(everything))
    write_whole(folder / FILTERED, evaluations_json(kept))
    _save(raw[pos, layer], folder / "direction.pt")
    about = json.dumps({"pos": pos, "layer": layer}, indent=4)
    write_whole(folder / "direction_metadata.json", about)


def _save(tensor: Tensor, path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(tensor.double().clone(), buffer)
    write_whole(path, buffer.getvalue())


# --------------------------------------------------------------------------------------------------
# What each candidate direction does to validation prompts: bypass, induce, kl.
#
#     bypass  HARMFUL prompts, the unit direction ablated at every layer (`hooks.ablate_everywhere`)
#     induce  harmless prompts, the raw direction added at its own layer and site, all positions
#     kl      sum_v p (log(p + 1e-6) - log(q + 1e-6)) at the last position of harmless prompts, p of
#             the model as it is, q of the ablated one
#
# For `cosmic` nothing is scored: bypass and induce are cosines between mean activations, the
# ablated (added-to) group's and the other group's as it is, at resid_post of the layers where the
# two groups are least alike. A candidate where the groups do not differ changes nothing, and costs
# nothing.


KL_EPSILON = 1e-6

LOW_SHARE = 0.1

HARMFUL_GROUP, HARMLESS_GROUP = "HARMFUL", "harmless"


@dataclass(frozen=True, eq=False)
class Prompts:
    """One group of prompts as the model reads them, and their ids."""

    tokens: Tokens
    ids: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class SelectionPlan:
    """What is measured on which prompts. `low` are the layers that `cosmic` reads, else empty."""

    candidates: tuple[Candidate, ...]
    harmful: Prompts
    harmless: Prompts
    scorer: Scorer
    budget: Budget
    site: str = "resid_pre"
    low: tuple[int, ...] = ()
    harmless_name: str = "BENIGN"

    @property
    def tasks(self) -> list[Task]:
        """Each measure at each position, `part` being its place in `measures`, on some prompts."""
        found = []
        for part, (measure, pos) in enumerate(self.measures):
            cells = range(1 if measure == "base" else len(self.at(pos)))
            if self.of_means(measure):  # over all prompts at once, and a row a candidate
                found.append(Task(len(cells), range(len(self.group(measure).ids)), cells, part))
                continue
            for prompts in batches(len(self.group(measure).ids), self.budget.batch_size):
                found.append(Task(len(cells) * len(prompts), prompts, cells, part))
        return found

    @property
    def measures(self) -> list[tuple[str, int]]:
        """(measure, position) in order; 'base' is the model as it is."""
        positions = list(dict.fromkeys(one.pos for one in self.candidates))
        return [("base", 0), *((measure, pos) for measure in MEASURES for pos in positions)]

    @property
    def grid(self) -> Grid:
        names = {"HARMFUL": len(self.harmful.ids), self.harmless_name: len(self.harmless.ids)}
        labels = [
            {"pos": one.pos, "layer": one.layer, "measured": ", ".join(MEASURES)}
            for one in self.candidates
        ]
        return grid_of(names, labels)

    def group(self, measure: str) -> Prompts:
        """The prompts that a measure is of."""
        return self.harmful if measure in ("bypass", "base") else self.harmless

    def at(self, pos: int) -> list[Candidate]:
        """The candidates of one position."""
        return [one for one in self.candidates if one.pos == pos]

    def of_means(self, measure: str) -> bool:
        """Whether a measure is a cosine of means over prompts, and no score of each."""
        return bool(self.low) and measure in ("bypass", "induce")

    def compute(self, model: TransformerBridge, task: Task) -> pd.DataFrame:
        """`measure, pos, layer, prompt_id, subset, score`: a row per candidate and prompt (per
        candidate where cosines of means are measured, `prompt_id` then being empty)."""
        measure, pos = self.measures[task.part]
        group, some = self.group(measure), self.at(pos)
        start, stop = task.prompts.start, task.prompts.stop
        tokens, ids = group.tokens.rows(start, stop).on(model), group.ids[start:stop]
        if measure == "base":
            scores = score_grid(model, tokens, [[]], self.scorer, engine=self.budget.engine)
        elif self.of_means(measure):
            scores, ids = _cosines(model, self, measure, some), ("",)
        else:
            scores = grid_scores(model, tokens, some, measure, self)
        subset = HARMFUL_GROUP if group is self.harmful else HARMLESS_GROUP
        return _rows(measure, some if measure != "base" else [], ids, subset, scores)

    def shrink(self, prompts: int, cells: int) -> SelectionPlan:
        """A share of the candidates on the first prompts of either group."""
        half = max(1, prompts // 2)
        harmful, harmless = (
            Prompts(group.tokens.rows(0, half), group.ids[:half])
            for group in (self.harmful, self.harmless)
        )
        some = some_of(self.candidates, cells)
        return replace(self, candidates=some, harmful=harmful, harmless=harmless)

    def memory(self, model: TransformerBridge) -> float:
        return self.budget.memory(model)


def grid_scores(
    model: TransformerBridge,
    tokens: Tokens,
    candidates: Sequence[Candidate],
    measure: str,
    plan: SelectionPlan,
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
        model,
        tokens,
        layers,
        (-1,),
        site="resid_post",
        batch_size=batch_size,
        hooks=hooks,
        read=nothing,
    )
    return seen[0].double().mean(1)


def _cosines(
    model: TransformerBridge, plan: SelectionPlan, measure: str, candidates: Sequence[Candidate]
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


# --------------------------------------------------------------------------------------------------
# A selection carried out into a run: learn candidates, measure them, choose, report on others.
#
# Three parts of the prompts play three parts: candidates are learned from the first, chosen on the
# second, and the chosen one is reported on the third, which the choice never saw.


@dataclass(frozen=True, eq=False)
class Selected:
    """The run, every candidate ranked, the chosen direction, and its report on test prompts."""

    run: Run
    ranked: pd.DataFrame
    direction: Direction
    report: Mapping[str, Any]


def conduct_selection(experiment: str, study: Study, flags: SelectionFlags) -> Selected:
    """Select a direction into a run folder, which then holds `direction.safetensors`.

    A finished run named by `--out` is read; candidates are extracted again, which is cheap.
    Raises `DialError` where every candidate was dropped, or the layout does not fit the positions.
    """
    check_site(study.model, flags.site)
    harmless = "BENIGN" if any(p.subset == "BENIGN" for p in study.prompts) else "EDGE"
    parts = [
        split(of_subset(study.prompts, name), flags.n_train, flags.n_val, flags.n_test, flags.seed)
        for name in ("HARMFUL", harmless)
    ]
    positions = flags.positions or template_positions(
        study.model, system=flags.system, chat=not flags.plain, thought=flags.thought
    )
    if flags.layout == "refusal_direction" and positions != tuple(range(-len(positions), 0)):
        raise DialError(f"--layout refusal_direction needs positions -n to -1, not {positions}")
    candidates = learn_candidates(study, flags, parts, positions)
    plan = _plan(study, flags, parts, candidates, harmless)
    settings = study_settings(study, flags) | {"positions": positions}
    settings["split"] = {
        f"{name} {part}": data_hash(getattr(one, part))
        for name, one in zip(("HARMFUL", harmless), parts, strict=True)
        for part in ("train", "val", "test")
    }
    run = begin(experiment, settings, flags)
    close = partial(_close, study, flags, parts, candidates, plan)
    run, ranked = carry_out(run, study, plan, close, flags)
    ranked["dropped"] = ranked["dropped"].fillna("")
    pos, layer = chosen(ranked)
    direction = _of(candidates, pos, layer)
    save_once(direction, run.folder / "direction.safetensors")
    if flags.layout == "refusal_direction":
        raw = raw_vectors(candidates, int(study.model.cfg.d_model))
        write_layout(run.folder, raw, ranked, pos, layer)
    return Selected(run, ranked, direction, read_report(run))


def read_report(run: Run) -> Mapping[str, Any]:
    """What summary.json says of the chosen direction."""
    return read_verdict(run.folder)


def learn_candidates(
    study: Study, flags: SelectionFlags, parts: list[Split], positions: tuple[int, ...]
) -> tuple[Candidate, ...]:
    """Candidates at every position and layer, from the training prompts."""
    train = [*parts[0].train, *parts[1].train]
    about = replace(provenance_of(study, train, flags), layer=0)
    harmful, harmless = (_prompts(study, one.train).tokens for one in parts)
    layers = range(int(study.model.cfg.n_layers))
    found = extract(
        study.model, harmful, harmless, positions, layers, about, flags.method, flags.batch_size
    )
    return tuple(found)


def _prompts(study: Study, some: tuple[Prompt, ...]) -> Prompts:
    rows = study.rows(some)
    return Prompts(study.tokens.chosen(rows), tuple(prompt.id for prompt in some))


def _plan(
    study: Study,
    flags: SelectionFlags,
    parts: list[Split],
    candidates: tuple[Candidate, ...],
    harmless_name: str,
) -> SelectionPlan:
    """What is measured: of the layers, those that the rule can choose from."""
    n_layers = int(study.model.cfg.n_layers)
    layers = needed_layers(flags.rule, n_layers, flags.limits)
    low: tuple[int, ...] = ()
    if flags.rule == "cosmic":
        harmful, harmless = (_prompts(study, one.train).tokens for one in parts)
        low = low_layers(study.model, harmful, harmless, flags.batch_size)
    return SelectionPlan(
        tuple(one for one in candidates if one.layer in layers),
        harmful=_prompts(study, parts[0].val),
        harmless=_prompts(study, parts[1].val),
        scorer=study.scorer,
        budget=Budget(flags.batch_size, flags.engine, flags.memory_gb),
        site=flags.site,
        low=low,
        harmless_name=harmless_name,
    )


def _of(candidates: tuple[Candidate, ...], pos: int, layer: int) -> Direction:
    found = next(one.direction for one in candidates if (one.pos, one.layer) == (pos, layer))
    if found is None:
        raise DialError(f"no direction at position {pos}, layer {layer}: {NO_DIFFERENCE}")
    return found


def _close(
    study: Study,
    flags: SelectionFlags,
    parts: list[Split],
    candidates: tuple[Candidate, ...],
    plan: SelectionPlan,
    rows: pd.DataFrame,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Every candidate ranked, and what the chosen one does to prompts that the choice never saw."""
    frame = measured(rows, candidates)
    ranked = rank(flags.rule, frame, int(study.model.cfg.n_layers), flags.limits)
    pos, layer = chosen(ranked)
    one = next(c for c in candidates if (c.pos, c.layer) == (pos, layer))
    report: dict[str, Any] = {
        "rule": flags.rule,
        "limits": {"layers": flags.limits.layers, "kl": flags.limits.kl},
        "chosen": {"pos": pos, "layer": layer, "norm": _of(candidates, pos, layer).norm},
        "tried": len(ranked),
        "kept": int((ranked["dropped"] == "").sum()),
        "dropped": dropped(ranked),
        "cosmic_layers": list(plan.low),
        "test": _on_test(study, plan, parts, one, flags.seed),
    }
    report["limits"]["induce"] = flags.limits.induce
    return ranked, report


def _on_test(
    study: Study, plan: SelectionPlan, parts: list[Split], one: Candidate, seed: int
) -> dict[str, Any]:
    """Base and changed means on test prompts, and the mean paired change with its interval."""
    groups = {"bypass": parts[0].test, "induce": parts[1].test, "kl": parts[1].test}
    found = {}
    for measure, prompts in groups.items():
        tokens = _prompts(study, prompts).tokens
        base = study.scores[study.rows(prompts)]
        base = np.zeros_like(base) if measure == "kl" else base
        changed = grid_scores(study.model, tokens, [one], measure, plan)[0].numpy()
        low, high = stats.mean_interval(changed - base, seed=seed)[0]
        found[measure] = {
            "n": len(prompts),
            "base": float(base.mean()),
            "changed": float(changed.mean()),
            "change": float((changed - base).mean()),
            "interval": [float(low), float(high)],
        }
    return found
