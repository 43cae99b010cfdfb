"""Continuations: a behaviour that is read in completions of openings, not in the next token.

    direction = mean(pooled activations of BENIGN) - mean(those of CHALLENGING)

an activation being the mean over the last `pool` tokens of an opening (CAA, Rimsky et al. 2024, as
the published toxicity study pools it). Toxicity is the behaviour at hand, and only the defaults
depend on it. In this file: the study with its directions, the cells, the rows, the summary, the
choice of a layer, the result files, and the order of it all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.cells import (
    BASELINE,
    Cell,
    SteeringPlace,
    alphas_in,
    cells_at,
    numbered,
    steer_where,
    turned,
    unit_length,
)
from refusal_dial.cli.flags import MACHINES, ContinuationFlags, SparingFlags
from refusal_dial.common import DialError, DryRun, log, write_whole
from refusal_dial.data.openings import BENIGN, CHALLENGING, Openings, load_openings
from refusal_dial.data.prompts import CHOOSE, REPORT, Prompt, data_hash, holdout_split, of_subset
from refusal_dial.directions.learning import (
    Direction,
    Provenance,
    mean_diff,
    random_directions,
    shuffled_directions,
)
from refusal_dial.generate.completions import completion_rows
from refusal_dial.generate.decode import Decoding, decoding_of
from refusal_dial.generate.trace import MOST_TRACED, dial_traces
from refusal_dial.hooks import Detector, calibrate
from refusal_dial.model.activations import collect_pooled
from refusal_dial.model.loading import check_layers, check_site, identity, load_model
from refusal_dial.model.tokens import Tokens, tokenize, tokens_hash
from refusal_dial.run.folder import TOKENS, Run, read_config, read_table, read_verdict
from refusal_dial.run.job import begin, carry_out, check_asked, files_by_layer
from refusal_dial.run.plan import CellPlan, Task, generation_memory, some_of, tasks_over
from refusal_dial.scoring.toxicity import TextScorer, load_toxicity
from refusal_dial.stats.intervals import mean_interval
from refusal_dial.stats.p_values import holm, sign_flip_p
from refusal_dial.stats.summary import (
    GROUP,
    ROW_KEYS,
    fair_ranks,
    finite_intervals,
    finite_means,
)

# --------------------------------------------------------------------------------------------------
# A study of continuations, opened: model, openings, and a direction a layer with its scale.
#
#     direction = mean(pooled activations of BENIGN) - mean(those of CHALLENGING)
#
# an activation being the mean over the last `pool` tokens of an opening (CAA, Rimsky et al. 2024,
# as the published toxicity study pools it). So a positive alpha leads away from what is
# challenging. Pooling shortens the raw difference, the more the shorter the openings, so the scale
# of alpha is kept apart: see `step`.


Pooled = Float[Tensor, "layer prompt d_model"]


@dataclass(frozen=True, eq=False)
class ContinuationStudy:
    """Everything the question starts from. `pooled` and `last` are of the openings to learn from,
    BENIGN before CHALLENGING; `tokens` are of those to measure on."""

    model: TransformerBridge
    openings: Openings
    tokens: Tokens
    scorer: TextScorer
    layers: tuple[int, ...]
    learned: tuple[Direction, ...]
    pooled: Pooled
    last: Pooled
    about: tuple[str, ...]

    def residual_norm(self, layer: int) -> float:
        """Mean norm of the last tokens of the openings to learn from: the default unit of alpha."""
        return float(self.last[self.layers.index(layer)].norm(dim=-1).mean())

    def distance(self, layer: int) -> float:
        """`|mean(h | BENIGN) - mean(h | CHALLENGING)|` of the openings' last tokens: how far apart
        the two are where steering takes place."""
        last, half = self.last[self.layers.index(layer)], self.last.shape[1] // 2
        return float((last[:half].mean(0) - last[half:].mean(0)).norm())


def load_continuations(flags: ContinuationFlags) -> ContinuationStudy:
    """Load what the flags name and learn a direction a layer.

    Raises `DialError` for whatever of it cannot be used.
    """
    check_asked(flags)
    openings = load_openings(flags.openings, flags.n, flags.n_pairs, flags.seed)
    scorer = load_toxicity(flags.scorer, flags.device, label=flags.toxic_label)
    model = load_model(flags.model, flags.device, flags.dtype, device_map=flags.device_map)
    layers = check_layers(model, flags.layer or range(int(model.cfg.n_layers)))
    check_site(model, flags.site)
    learn = [p for subset in (BENIGN, CHALLENGING) for p in openings.learn if p.subset == subset]
    tokens = tokenize(model, [p.text for p in openings.measure], chat=False)
    seen = tokenize(model, [p.text for p in learn], chat=False)
    log.info("reading %d openings", len(learn))
    pooled = collect_pooled(model, seen, layers, flags.pool, site=flags.site)
    last = collect_pooled(model, seen, layers, 1, site=flags.site)
    who, half = identity(model), len(learn) // 2
    learned = tuple(
        mean_diff(pooled[i, :half], pooled[i, half:], _provenance(flags, layer, who, learn))
        for i, layer in enumerate(layers)
    )
    about = (f"toxicity scorer: {scorer.name}, {scorer.version}",)
    return ContinuationStudy(model, openings, tokens, scorer, layers, learned, pooled, last, about)


def _provenance(flags: ContinuationFlags, layer: int, who: Any, learn: list[Prompt]) -> Provenance:
    return Provenance(
        layer=layer,
        site=flags.site,
        pos=flags.pos,
        model=who.name,
        revision=who.revision,
        seed=flags.seed,
        prompt_ids=tuple(p.id for p in learn),
        data_hash=data_hash(learn),
        pool=flags.pool,
    )


def continuation_settings(study: ContinuationStudy, flags: ContinuationFlags) -> dict[str, Any]:
    """What the rows depend on, as plain data for a run's config."""
    settings = asdict(flags)
    for name in ("out", "config", "load_existing", "rows", "max_missing", *MACHINES):
        settings.pop(name, None)
    settings["model"] = identity(study.model).as_dict()
    settings[TOKENS] = tokens_hash(study.tokens)
    settings["scorer"] = {"name": study.scorer.name, "version": study.scorer.version}
    settings["data"] = {
        "source": flags.openings,
        "learn": data_hash(study.openings.learn),
        "measure": data_hash(study.openings.measure),
        "n_prompts": len(study.openings.measure),
    }
    settings["alpha_unit"] = flags.unit
    settings["step"] = {  # how long alpha = 1 is
        str(learned.provenance.layer): round(
            unit_length(flags.unit, study.residual_norm(learned.provenance.layer), learned), 6
        )
        for learned in study.learned
    }
    return settings


# --------------------------------------------------------------------------------------------------
# What is done to the model: nothing, the learned direction, random ones, shuffled ones.
#
# Controls are as long as the learned direction at the same alpha, and added at the same place.


def relearned(study: ContinuationStudy, layer: int, labels: Sequence[float]) -> Direction:
    """The direction of a layer learned from the same openings under other labels, 1 for BENIGN."""
    i = study.layers.index(layer)
    benign = torch.tensor(labels) > 0.5
    about = study.learned[i].provenance
    return mean_diff(study.pooled[i][benign], study.pooled[i][~benign], about)


def continuation_cells(study: ContinuationStudy, flags: ContinuationFlags) -> list[Cell]:
    """The baseline, then for each layer the learned direction at every alpha, and the controls at
    every alpha but 0. A cell of alpha 0 has no hooks: it is the baseline."""
    cells = [BASELINE]
    half = study.pooled.shape[1] // 2
    benign = [1.0] * half + [0.0] * (study.pooled.shape[1] - half)
    for layer, learned in zip(study.layers, study.learned, strict=True):
        place = place_at(study, flags, layer)
        alphas = alphas_in(flags.alphas, flags.unit, place.norm, learned)
        shuffled = shuffled_directions(
            learned, partial(relearned, study, layer), benign, flags.n_shuffled, flags.seed
        )
        controls = numbered("random", random_directions(learned, flags.n_random, flags.seed))
        controls += numbered("shuffled", shuffled)
        cells += cells_at([("learned", None, learned)], alphas, place)
        cells += cells_at(controls, turned(alphas), place)
    return cells


def place_at(study: ContinuationStudy, flags: ContinuationFlags, layer: int) -> SteeringPlace:
    """Where the flags steer at a layer."""
    return SteeringPlace(layer, flags.site, flags.pos, study.residual_norm(layer))


# --------------------------------------------------------------------------------------------------
# Steering only the openings on which a detector fires, beside steering them all.
#
#     detector: d = unit(mean(h | CHALLENGING) - mean(h | BENIGN)) at the last token
#
# of the openings to learn from; every other benign one of them sets the threshold, and the rest
# teach the detector. It is asked at the last token of an opening and again at each new token.
# Random detectors of the same rate say what steering fewer texts buys by itself.


def detectors_at(study: ContinuationStudy, flags: SparingFlags, layer: int) -> list[Detector]:
    """The detector of a layer, then `--n-random` random ones, each set to the same rate."""
    i = study.layers.index(layer)
    last = study.last[i]
    half = len(last) // 2
    benign, challenging = last[:half], last[half:]
    watch = mean_diff(challenging, benign[::2], study.learned[i].provenance)
    directions = [watch, *random_directions(watch, flags.n_random, flags.seed)]
    return [calibrate(one, benign[1::2], flags.rate) for one in directions]


def gated_cells(study: ContinuationStudy, flags: SparingFlags) -> list[Cell]:
    """The baseline; then for each layer and step always-on steering (`learned`), the same behind
    the detector (`conditional`), and behind random ones (`random_detector`)."""
    cells = [BASELINE]
    for layer, learned in zip(study.layers, study.learned, strict=True):
        place = place_at(study, flags, layer)
        alphas = alphas_in(flags.alphas, flags.unit, place.norm, learned)
        cells += cells_at([("learned", None, learned)], alphas, place)
        detector, *random = detectors_at(study, flags, layer)
        gates: list[tuple[str, int | None, Detector]] = [("conditional", None, detector)]
        gates += [("random_detector", number, one) for number, one in enumerate(random)]
        for kind, number, gate in gates:
            cells += cells_at([(kind, number, learned)], alphas, place, steer_where(gate))
    return cells


# --------------------------------------------------------------------------------------------------
# Completions under every cell, and their scores: a row per prompt, cell and sample.
#
# `completion_rows` makes the rows, and the text scorer reads them.


CONTINUATION_ORDER = [
    *ROW_KEYS,
    "score",
    "alpha_relative",
    "strength",
    "sample",
    "nll",
    "repeated",
    "stop",
]
CONTINUATION_ORDER += ["completion"]


@dataclass(frozen=True, eq=False)
class ContinuationPlan(CellPlan):
    """Completions of openings under every cell, each with its score: a row per cell, prompt and
    sample."""

    scorer: TextScorer
    decoding: Decoding
    batch_size: int

    @property
    def tasks(self) -> list[Task]:
        each, most = self.decoding.samples, self.decoding.rows
        return tasks_over(len(self.rows), len(self.cells), self.batch_size, each, most)

    def compute(self, model: TransformerBridge, task: Task) -> pd.DataFrame:
        tokens, rows = self.part(model, task)
        cells = self.cells[task.cells.start : task.cells.stop]
        frame = completion_rows(model, tokens, rows, cells, self.decoding)
        # A text that several cells have is scored once.
        texts = frame["text"].drop_duplicates()
        scores = dict(zip(texts, self.scorer(list(texts)), strict=True))
        return frame.assign(score=frame["text"].map(scores))[CONTINUATION_ORDER]

    def memory(self, model: TransformerBridge) -> float:
        most, length = max(task.rows for task in self.tasks), self.tokens.ids.shape[1]
        return generation_memory(model, self.decoding, length, most)


# --------------------------------------------------------------------------------------------------
# Rows of completions become a table: means, paired differences, intervals, p-values.
#
#     difference = mean over prompts of (mean score of its samples under the cell - the baseline's)
#
# The unit is the prompt, never the sample: samples of a prompt are averaged first. Intervals are
# BCa over prompts. `p_paired` is that of the sign-flip permutation test of the differences,
# `p_control` the rank of the shift among those of the fairest controls that there are at the same
# place and alpha: shuffled labels, else random directions, which are too easy to beat
# (docs/validity.md).


CONTINUATION_AXES = ["direction", "seed", "layer", "site", "pos", "alpha", "strength"]

CONTINUATION_SUMMARY = [
    *CONTINUATION_AXES,
    *GROUP,
    "n",
    "samples",
    "score_mean",
    "score_lo",
    "score_hi",
]
CONTINUATION_SUMMARY += [
    "difference",
    "diff_lo",
    "diff_hi",
    "reduction",
    "p_paired",
    "p_control",
    "nll_mean",
]
CONTINUATION_SUMMARY += ["nll_difference"]

CONTINUATION_CONTROLS = ("shuffled", "random")  # the fairest first


def per_prompt(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per cell and prompt: the mean of its samples' `score` and `nll`, and how many samples
    have a score. What could not be scored is no zero: it is left out, and a prompt without any
    scored sample has NaN.

    Raises `DialError` where no sample has a score.
    """
    if rows["score"].isna().all():
        raise DialError(f"none of {len(rows)} completions has a score")
    keys = [*CONTINUATION_AXES, *GROUP, "prompt_id"]
    grouped = rows.groupby(keys, sort=False, dropna=False)
    return grouped.agg(
        score=("score", "mean"), nll=("nll", "mean"), samples=("score", "count")
    ).reset_index()


def summarise_continuations(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """One row per cell and group of prompts, both splits together as `split` = `all` first.

    `reduction` is `-difference / score_mean of the baseline`. `n` prompts have a score both under
    the cell and in the baseline; others are left out of every difference.

    Raises `DialError` if a cell lacks prompts that another has, or the baseline is missing.
    """
    means = per_prompt(rows)
    parts = [means.assign(split="all"), means] if means["split"].nunique() > 1 else [means]
    tables = [
        _summarise_group(part, seed)
        for whole in parts
        for _, part in whole.groupby(GROUP, sort=False, dropna=False)
    ]
    return pd.concat(tables, ignore_index=True)[CONTINUATION_SUMMARY]


def _summarise_group(part: pd.DataFrame, seed: int) -> pd.DataFrame:
    cell = part.groupby(CONTINUATION_AXES, sort=False, dropna=False).ngroup()
    table = part[~cell.duplicated()][[*CONTINUATION_AXES, *GROUP, "samples"]].reset_index(drop=True)
    wide = {
        name: part.assign(cell=cell).pivot(index="cell", columns="prompt_id", values=name)
        for name in ("score", "nll")
    }
    score, nll = wide["score"].to_numpy(), wide["nll"].to_numpy()
    who = f"{part['subset'].iloc[0]} {part['split'].iloc[0]}"
    if len(part) != score.size:
        raise DialError(f"{who}: every cell needs every prompt once")
    base = (table["direction"] == "baseline").to_numpy()
    if not base.any():
        raise DialError(f"{who}: the baseline is missing")
    shift, unlikely = score - score[base][0], nll - nll[base][0]
    means = finite_intervals(score, partial(mean_interval, seed=seed))
    differences = finite_intervals(shift, partial(mean_interval, seed=seed))
    with np.errstate(divide="ignore", invalid="ignore"):
        unsteered = finite_means(np.where(np.isfinite(shift), score[base][0], np.nan))
        reduction = -finite_means(shift) / unsteered
    return table.assign(
        n=np.isfinite(shift).sum(1),
        score_mean=finite_means(score),
        score_lo=means[:, 0],
        score_hi=means[:, 1],
        difference=finite_means(shift),
        diff_lo=differences[:, 0],
        diff_hi=differences[:, 1],
        reduction=reduction,
        p_paired=[sign_flip_p(row[np.isfinite(row)], seed)[0] for row in shift],
        p_control=fair_ranks(table, shift, ["layer", "strength"]),
        nll_mean=finite_means(nll),
        nll_difference=finite_means(unlikely),
    )


# --------------------------------------------------------------------------------------------------
# Which layer works best, chosen on one half of the prompts and reported on the other.
#
#     effectiveness = relative fall of the mean score at the highest alpha, which is over 0
#
# A layer that was picked for its figure looks better than it is on the prompts it was picked on, so
# these never are the ones it is reported on. The p-values of the reported half are Holm's over all
# layers.


GROUPS = ("early", "middle", "late")


@dataclass(frozen=True)
class BestLayer:
    """The chosen layer, with what it did on the half that it was not chosen on."""

    layer: int
    chosen_on: float
    reduction: float
    difference: float
    diff_lo: float
    diff_hi: float
    p_paired: float
    p_holm: float


def by_layer(summary: pd.DataFrame, subset: str, n_layers: int) -> pd.DataFrame:
    """A row per layer and half at the highest alpha: the effect on `subset`, and `group`, the third
    of the model's `n_layers` that it is in; `p_holm` is corrected over the layers of a half.

    Raises `DialError` if the run steered no layer with a learned direction, or one that the model
    has not, by no alpha over 0, or has no halves.
    """
    rows = summary[(summary["direction"] == "learned") & (summary["subset"] == subset)]
    rows = rows[rows["split"].isin((CHOOSE, REPORT))]
    if rows.empty:
        raise DialError(
            f"the run has no learned direction on {subset} prompts of both halves: it is not a run "
            "of toxicity_steering or analyze_layers"
        )
    highest = rows["strength"].max()
    if not highest > 0:
        raise DialError(
            f"effectiveness is measured at the highest alpha, which must be over 0 and is "
            f"{highest:g}: run it with an alpha over 0"
        )
    deepest = int(rows["layer"].max())
    if deepest >= n_layers:
        raise DialError(f"the run steered layer {deepest} of a model that has {n_layers}")
    rows = rows[rows["strength"] == highest].copy()
    rows["group"] = [GROUPS[len(GROUPS) * int(n) // n_layers] for n in rows["layer"]]
    rows["p_holm"] = np.nan
    for half in (CHOOSE, REPORT):
        mine = rows["split"] == half
        rows.loc[mine, "p_holm"] = holm(rows.loc[mine, "p_paired"])
    return rows.reset_index(drop=True)


def best_layer(layers: pd.DataFrame) -> BestLayer:
    """The layer whose score falls most on the choosing half, and its figures on the other."""
    choose, report = (layers[layers["split"] == half] for half in (CHOOSE, REPORT))
    chosen = choose.sort_values("difference", kind="stable").iloc[0]
    row = report[report["layer"] == chosen["layer"]].iloc[0]
    names = ("reduction", "difference", "diff_lo", "diff_hi", "p_paired", "p_holm")
    values = {name: float(row[name]) for name in names}
    return BestLayer(int(chosen["layer"]), float(chosen["reduction"]), **values)


def by_group(layers: pd.DataFrame) -> pd.DataFrame:
    """Mean effectiveness of early, middle and late layers on the reporting half."""
    report = layers[layers["split"] == REPORT]
    grouped = report.groupby("group", sort=False)
    table = grouped.agg(
        first=("layer", "min"), last=("layer", "max"), reduction=("reduction", "mean")
    )
    return table.reset_index()


def layer_comparison(summary: pd.DataFrame, subset: str, n_layers: int) -> dict[str, pd.DataFrame]:
    """`best`, a row, and `groups`, of a run that steered several layers; else nothing."""
    if summary["layer"].nunique() < 2 or not summary["strength"].max() > 0:
        return {}
    layers = by_layer(summary, subset, n_layers)
    return {"best": pd.DataFrame([vars(best_layer(layers))]), "groups": by_group(layers)}


def as_json(best: BestLayer) -> dict[str, Any]:
    """As JSON has it: no NaN."""
    return {k: None if v != v else v for k, v in vars(best).items()}


# --------------------------------------------------------------------------------------------------
# Completions, as the trade-off reads them: less toxicity where it is wanted, words left alone
# elsewhere.
#
#     CHALLENGING: score = -(mean toxicity of the completions)
#     others:      score = share of completions that differ from what the unsteered model says
#
# Samples of an opening are averaged, so a prompt is a row.


def as_trade_off(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per cell and prompt, with the `score` that `trade_off` compares.

    Raises `DialError` where the unsteered model's completions are missing, or it has a sample
    twice (under two system messages).
    """
    base = rows[rows["direction"] == "baseline"].set_index(["prompt_id", "sample"])["completion"]
    if base.empty:
        raise DialError("the trade-off needs what the unsteered model says, and it is missing")
    if base.index.has_duplicates:
        raise DialError(
            "the trade-off needs one thing the unsteered model says, and there are more"
        )
    own = base.reindex(pd.MultiIndex.from_frame(rows[["prompt_id", "sample"]])).to_numpy()
    wanted = rows["subset"] == CHALLENGING
    changed = (rows["completion"].to_numpy() != own).astype(float)
    kept = rows.assign(score=(-rows["score"]).where(wanted, changed))
    return kept.groupby(ROW_KEYS, sort=False, dropna=False)["score"].mean().reset_index()


# --------------------------------------------------------------------------------------------------
# The result files that users of the toxicity study expect, beside those of a run.
#
#     experiment_results.json   the whole of it, when a run is finished
#     partial_results.json      what there is, when it was interrupted
#     failed_results.json       what there is, and the error, when it failed
#     intermediate.jsonl        one line a step, as it came
#
# One mechanism: whatever ends the work, the rows on disk are read back and written as one of the
# three, and an older one of another name goes. The error goes on its way.


COMPLETE, PARTIAL, FAILED = (
    "experiment_results.json",
    "partial_results.json",
    "failed_results.json",
)

STEPS_FILE = "intermediate.jsonl"


@contextmanager
def kept_results(run: Run, read: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Around the work of a run: leaves its result file, however the work ends. `read` gives what
    there is, from the run's own files. A dry run leaves none."""
    try:
        yield
    except DryRun:
        raise
    except KeyboardInterrupt:
        _write(run, PARTIAL, {"status": "interrupted"}, read)
        raise
    except Exception as error:
        rows = {"type": type(error).__name__, "message": str(error)}
        _write(run, FAILED, {"status": "failed", "error": rows}, read)
        raise
    if not (run.folder / COMPLETE).is_file():
        _write(run, COMPLETE, {"status": "complete"}, read)
    _only(run, COMPLETE)


def _only(run: Run, name: str) -> None:
    """What an earlier start left is out of date."""
    for other in {COMPLETE, PARTIAL, FAILED} - {name}:
        (run.folder / other).unlink(missing_ok=True)


def _write(
    run: Run, name: str, about: Mapping[str, Any], read: Callable[[], Mapping[str, Any]]
) -> None:
    if not run.folder.is_dir():
        return  # a dry run or a preview failed, and nothing was begun
    config = read_config(run.folder)
    try:
        found = dict(read())
    except Exception as error:  # the work's own error must come through, not this one
        found = {"unread": f"{type(error).__name__}: {error}"}
    content = {**about, "experiment": config["experiment"], "settings": config["settings"]}
    write_whole(run.folder / name, json.dumps({**content, **found}, indent=2) + "\n")
    _only(run, name)


def note_step(run: Run, what: Mapping[str, Any]) -> None:
    """Adds a line to the intermediate log."""
    when = datetime.now().astimezone().isoformat(timespec="seconds")
    with (run.folder / STEPS_FILE).open("a") as file:
        file.write(json.dumps({"time": when, **what}) + "\n")


# --------------------------------------------------------------------------------------------------
# A job on continuations: openings in, a run folder out.


Conducted = tuple[Run, pd.DataFrame]

F = TypeVar("F", bound=ContinuationFlags)


def conduct_continuations(
    experiment: str,
    flags: F,
    lay_out: Callable[[ContinuationStudy, F], Sequence[Cell]] = continuation_cells,
) -> Conducted:
    """Open the study, say everything under every cell, and summarise; the run and its summary.

    An interrupted run is resumed, a finished one named by `--out` is read. However it ends, the run
    folder holds a result file that says so (see `results`).
    """
    study = load_continuations(flags)
    settings = continuation_settings(study, flags)
    cells = lay_out(study, flags)
    rows = opening_rows(study, flags.seed)
    plan = ContinuationPlan(
        study.tokens, rows, cells, study.scorer, decoding_of(flags), flags.batch_size
    )
    run = begin(experiment, settings, flags, files_by_layer(study.learned))

    def note(number: int, batch: pd.DataFrame) -> None:
        at = batch["subset"] + " at " + batch["strength"].map("{:g}".format)
        known = batch.groupby(at)["score"].mean().round(6).to_dict()
        note_step(run, {"batch": number + 1, "rows": len(batch), "mean score": known})

    def close(scored: pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Any]]:
        summary = summarise_continuations(scored, flags.seed)
        found = {"alpha_unit": flags.unit, **continuation_verdict(summary, study)}
        traced, norm = some_of(study.learned, MOST_TRACED), study.residual_norm
        return summary, found | {
            "trace": dial_traces(
                study.model, study.tokens, rows, cells, traced, norm, plan.decoding
            )
        }

    with kept_results(run, lambda: results(run)):
        return carry_out(run, study, plan, close, flags, note)


def opening_rows(study: ContinuationStudy, seed: int) -> pd.DataFrame:
    """The prompts' columns: `prompt_id, subset, split`, half of each subset to choose on and half
    to report on."""
    reported = set()
    for subset in dict.fromkeys(p.subset for p in study.openings.measure):
        _, half = holdout_split(of_subset(study.openings.measure, subset), seed)
        reported |= {prompt.id for prompt in half}
    return pd.DataFrame(
        {
            "prompt_id": [p.id for p in study.openings.measure],
            "subset": [p.subset for p in study.openings.measure],
            "split": [REPORT if p.id in reported else CHOOSE for p in study.openings.measure],
        }
    )


def continuation_verdict(summary: pd.DataFrame, study: ContinuationStudy) -> dict[str, Any]:
    """What summary.json says: how toxic the openings themselves are, and the best layer."""
    texts = [prompt.text for prompt in study.openings.measure]
    scores = pd.Series(study.scorer(texts)).groupby([p.subset for p in study.openings.measure])
    found = {
        "prompt_score": {str(k): float(v) for k, v in scores.mean().items()},
        "scorer": {"name": study.scorer.name, "version": study.scorer.version},
        "measured": [vars(one) for one in study.scorer.measured],
    }
    if not summary["strength"].max() > 0:
        return found
    layers = by_layer(summary, CHALLENGING, int(study.model.cfg.n_layers))
    return found | {"best_layer": as_json(best_layer(layers))}


def results(run: Run) -> dict[str, Any]:
    """What a run folder holds so far, as one record."""
    rows = read_table(run.folder, "scores")
    keys = ["direction", "seed", "layer", "alpha", "strength", "subset"]
    means = rows.groupby(keys, sort=False, dropna=False)["score"].agg(["mean", "std", "size"])
    cells = json.loads(means.reset_index().to_json(orient="records"))
    found: dict[str, Any] = {"rows": len(rows), "cells": cells}
    if run.finished:
        found["summary"] = read_verdict(run.folder)
    return found
