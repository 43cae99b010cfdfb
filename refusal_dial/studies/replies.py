"""Replies: completions of a chat model under the dial, judged.

In this file: the prompts under each system message with the judge, contrast vectors, the cells, the
rows (completion, label, logit score), the summary, and the two comparisons: conditions (prompting
against steering) and layers.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.cells import Cell, labelled
from refusal_dial.cli.flags import ContrastFlags, HoldoutFlags, ReplyFlags
from refusal_dial.common import DialError, without_nan
from refusal_dial.data.contrast import ContrastPair, from_matched, load_contrast
from refusal_dial.data.prompts import (
    CHOOSE,
    REPORT,
    Prompt,
    data_hash,
    holdout_split,
    of_subset,
    some_of_each,
)
from refusal_dial.directions.learning import Direction, Provenance, caa
from refusal_dial.engine.score import Scorer, score_grid
from refusal_dial.generate.completions import completion_rows, completion_text
from refusal_dial.generate.decode import Decoding, decoding_of
from refusal_dial.generate.likelihood import LOOPS, coherence
from refusal_dial.generate.thoughts import LOST, THOUGHT_ENDS, read_prompts
from refusal_dial.generate.trace import MOST_TRACED, dial_traces
from refusal_dial.model.activations import collect, nothing
from refusal_dial.model.loading import identity
from refusal_dial.model.tokens import (
    ThinkBlock,
    Tokens,
    think_block,
    tokenize,
    tokens_hash,
    with_replies,
)
from refusal_dial.run.folder import TOKENS, Run
from refusal_dial.run.job import begin, carry_out, files_by_layer
from refusal_dial.run.plan import (
    Budget,
    Grid,
    Task,
    generation_memory,
    grid_of,
    groups,
    some_of,
    tasks_over,
)
from refusal_dial.run.schema import THOUGHT_COLUMNS
from refusal_dial.scoring.harm import HarmJudge, load_harm_judge
from refusal_dial.scoring.judge_model import load_judge
from refusal_dial.scoring.judges import (
    UNSCORED,
    Judge,
    Judgement,
    judge_all,
    judge_report,
    substring,
)
from refusal_dial.stats.intervals import mean_interval, rate_interval
from refusal_dial.stats.p_values import contrast_weights, holm, sign_flip_p, slope_test
from refusal_dial.stats.summary import (
    GROUP,
    ROW_KEYS,
    check_dropped_share,
    fair_ranks,
    finite_intervals,
    finite_means,
    widened,
)
from refusal_dial.studies.base import Study, prompt_tokens, study_settings
from refusal_dial.studies.steering import (
    cells_beside_random,
    slope_gradients,
    slope_tests,
)

# --------------------------------------------------------------------------------------------------
# Contrast pairs as tokens.


def contrast_tokens(
    model: TransformerBridge,
    pairs: Sequence[ContrastPair],
    *,
    system: str | None = None,
    chat: bool = True,
    thought: int = 0,
) -> tuple[Tokens, Tokens]:
    """(positive, negative): every request in the chat template, after its thought where the model
    thinks, followed by its reply if any."""
    first, second = (
        with_replies(
            model,
            read_prompts(
                model, [one for one, _ in side], system=system, chat=chat, thought=thought
            ),
            [reply for _, reply in side],
        )
        for side in ([pair.positive for pair in pairs], [pair.negative for pair in pairs])
    )
    return first, second


# --------------------------------------------------------------------------------------------------
# A conversation, opened: a study, the prompts that are replied to, and the judge.
#
# The same prompts may stand under several system messages; each has a name, and "" is the study's
# own. Loads the judge.


SYSTEM_NAME = "instructed"
"""The name in the rows of the system message that is compared with."""


@dataclass(frozen=True, eq=False)
class Conversation:
    """Prompts to reply to, as tokens under each system message, and who judges the replies.

    A model that thinks is to think after `tokens`; `read` are the prompts up to the answer, where
    the score is read (the same where it does not think)."""

    study: Study
    prompts: tuple[Prompt, ...]
    tokens: Mapping[str, Tokens]
    read: Mapping[str, Tokens]
    judge: Judge
    block: ThinkBlock | None
    harm: HarmJudge | None

    @property
    def model(self) -> TransformerBridge:
        return self.study.model

    @property
    def about(self) -> tuple[str, ...]:
        harm = self.harm and f"harm judge: {self.harm.name}, version {self.harm.version}"
        judge = f"judge: {self.judge.name}, version {self.judge.version}"
        return (*self.study.about, judge, *([harm] if harm else []))

    def rows(self, split: Mapping[str, str] | None = None) -> pd.DataFrame:
        """The prompts' columns: `prompt_id, subset, split, category`. `split` says by id which part
        a prompt is in; one that it does not name is `holdout`."""
        part = split or {}
        return pd.DataFrame(
            {
                "prompt_id": [p.id for p in self.prompts],
                "subset": [p.subset for p in self.prompts],
                "split": [part.get(p.id, "holdout") for p in self.prompts],
                "category": [p.category for p in self.prompts],
            }
        )


def load_conversation(
    study: Study, flags: ReplyFlags, prompts: Sequence[Prompt], instruction: str | None = None
) -> Conversation:
    """`prompts` of the study, under its own system message and, named `SYSTEM_NAME`, `instruction`.

    Raises `DialError` for a judge that cannot be used, or a chat template that takes no system
    message.
    """
    judge, harm = (
        load_judge(flags.judge, flags.device),
        load_harm_judge(flags.harm_judge, flags.device),
    )
    texts, chat, model = [prompt.text for prompt in prompts], not flags.plain, study.model
    systems = {"": flags.system} | ({} if instruction is None else {SYSTEM_NAME: instruction})
    tokens = {
        name: tokenize(model, texts, system=system, chat=chat, thinking=flags.thought > 0)
        for name, system in systems.items()
    }
    read = {
        name: prompt_tokens(model, texts, flags, system) if flags.thought else tokens[name]
        for name, system in systems.items()
    }
    block = think_block(model.tokenizer, flags.thought > 0) if chat else None
    return Conversation(study, tuple(prompts), tokens, read, judge, block, harm)


def conversation_settings(talk: Conversation, flags: ReplyFlags) -> dict[str, Any]:
    """What the rows depend on, as plain data for a run's config."""
    settings = study_settings(talk.study, flags)
    settings.pop("rows")
    more = talk.read.values() if flags.thought else ()
    settings[TOKENS] = tokens_hash(talk.study.tokens, *talk.tokens.values(), *more)
    settings["judge"] = {"name": talk.judge.name, "version": talk.judge.version}
    settings.pop("harm_judge")
    if talk.harm is not None:
        settings["harm_judge"] = {"name": talk.harm.name, "version": talk.harm.version}
    settings["replied_to"] = data_hash(talk.prompts)
    return settings


# --------------------------------------------------------------------------------------------------
# Contrast vectors for a study: which pairs, which vectors, and which prompts are left to measure.
#
# What a vector was learned from is never measured on.


def contrast_pairs(study: Study, flags: ContrastFlags) -> tuple[list[ContrastPair], list[Prompt]]:
    """(at most `n_pairs` pairs to learn from, prompts left to measure on).

    `embedded` pairs are matched prompts of the study. No prompt that stands in a pair is measured.
    """
    embedded = flags.pairs == "embedded"
    found = from_matched(study.prompts) if embedded else load_contrast(flags.pairs)
    order = np.random.default_rng(flags.seed).permutation(len(found))
    pairs = [found[i] for i in sorted(order[: flags.n_pairs])]
    asked = {request for pair in pairs for request, _ in (pair.positive, pair.negative)}
    return pairs, [prompt for prompt in study.prompts if prompt.text not in asked]


Sides = tuple[Float[Tensor, "layer pair d_model"], Float[Tensor, "layer pair d_model"]]
"""Activations of the positive and of the negative side of every pair, at the last token."""


def contrast_activations(
    study: Study, flags: ContrastFlags, pairs: Sequence[ContrastPair]
) -> Sides:
    """Both sides of every pair at the study's layers."""
    first, second = (
        collect(
            study.model,
            tokens,
            study.layers,
            site=flags.site,
            batch_size=flags.batch_size,
            read=nothing,
        )[0]
        for tokens in contrast_tokens(
            study.model,
            pairs,
            system=flags.system,
            chat=not flags.plain,
            thought=flags.thought,
        )
    )
    return first, second


def contrast_vectors(
    study: Study, flags: ContrastFlags, pairs: Sequence[ContrastPair], sides: Sides
) -> list[Direction]:
    """For each layer, the mean difference over pairs at the last token."""
    who = identity(study.model)
    text = json.dumps([asdict(pair) for pair in pairs], sort_keys=True)
    return [
        caa(
            sides[0][i],
            sides[1][i],
            Provenance(
                layer=layer,
                site=flags.site,
                pos=flags.pos,
                model=who.name,
                revision=who.revision,
                seed=flags.seed,
                data_hash=hashlib.sha256(text.encode()).hexdigest()[:16],
            ),
        )
        for i, layer in enumerate(study.layers)
    ]


def contrast_slopes(
    study: Study,
    flags: ContrastFlags,
    sides: Sides,
    vectors: Sequence[Direction],
    held_out: Sequence[Prompt],
) -> pd.DataFrame:
    """The primary test of `stats.p_values` for contrast vectors: a row per layer. The score is
    that of the next token, on prompts that no pair has; the labels positive and negative are
    permuted within each pair."""
    # 1. The gradient at every place, and the activations of both sides.
    gradient = slope_gradients(study, vectors, held_out)
    rows, n = torch.cat(sides, 1).double().cpu(), sides[0].shape[1]
    # 2. The labels: 1/n for the positive, -1/n for the negative side.
    projections = [
        (rows[i] @ gradient[flags.site, layer][0]).numpy() for i, layer in enumerate(study.layers)
    ]
    grams = (rows @ rows.transpose(1, 2)).numpy()
    weights = contrast_weights(2 * n, range(n), range(n, 2 * n))
    table = slope_test(
        np.stack(projections), grams, weights, seed=flags.seed, groups=[*range(n), *range(n)]
    )
    table.insert(0, "layer", list(study.layers))
    return table.assign(on="prompts that no pair has (next-token score)")


def halves(prompts: Sequence[Prompt], n: int, seed: int) -> tuple[list[Prompt], dict[str, str]]:
    """(at most n prompts of each subset, the half that each is in, by id).

    Raises `DialError` where a half would be without HARMFUL prompts, or without others.
    """
    chosen = some_of_each(prompts, n, seed)
    report = set()
    for subset in dict.fromkeys(prompt.subset for prompt in chosen):
        report |= {p.id for p in holdout_split(of_subset(chosen, subset), seed)[1]}
    half = {p.id: REPORT if p.id in report else CHOOSE for p in chosen}
    for name in (CHOOSE, REPORT):
        harmful = Counter(p.subset == HARMFUL for p in chosen if half[p.id] == name)
        if not (harmful[True] and harmful[False]):
            raise DialError(
                f"of {len(prompts)} prompts that no pair has, the half to {name} on has "
                f"{harmful[True]} HARMFUL and {harmful[False]} others, and both are needed: give "
                "fewer --n-pairs or more --prompts"
            )
    return chosen, half


# --------------------------------------------------------------------------------------------------
# What is done to the model while it replies: nothing, a direction at each strength, controls; each
# of it with and without a system message where there is one.


def reply_cells(study: Study, flags: ReplyFlags, learned: Sequence[Direction]) -> list[Cell]:
    """`cells_beside_random`, all without a system message of their own."""
    return [under(cell, "") for cell in cells_beside_random(study, flags, learned)]


def under(cell: Cell, system: str) -> Cell:
    """The same cell under a system message, by the name that it has in the rows."""
    return labelled(cell, system=system)


def with_and_without(cells: Sequence[Cell], system: str) -> list[Cell]:
    """All cells as they are; then the unsteered model and the learned direction under `system`."""
    both = [cell for cell in cells if cell.labels["direction"] in ("baseline", "learned")]
    return [*cells, *(under(cell, system) for cell in both)]


# --------------------------------------------------------------------------------------------------
# Replies under every cell, judged: a row per cell, prompt and sample.
#
# Two readings stand side by side: `score`, the refusal score of the logits at the last prompt token
# (what the model is about to answer), and `label`, what the judge makes of the completion.


REPLY_ORDER = [
    *ROW_KEYS,
    "score",
    "alpha_relative",
    "strength",
    "system",
    "category",
    "sample",
    "label",
    "phrase",
]
REPLY_ORDER += ["nll", "repeated", "stop", "completion", *THOUGHT_COLUMNS, "harm"]


@dataclass(frozen=True, eq=False)
class ReplyPlan:
    """Replies to prompts under every cell, judged and scored: a row per cell, prompt and sample,
    by system message, then cell, prompt and sample.

    `tokens` are the prompts under each system message, which a cell's label `system` names; `read`
    the same up to the answer, after the unsteered model's thought; `rows` the prompts' columns.
    """

    tokens: Mapping[str, Tokens]
    read: Mapping[str, Tokens]
    prompts: Sequence[Prompt]
    judge: Judge
    scorer: Scorer
    rows: pd.DataFrame
    cells: Sequence[Cell]
    decoding: Decoding
    budget: Budget
    block: ThinkBlock | None = None
    harm: HarmJudge | None = None

    @property
    def tasks(self) -> list[Task]:
        each, most = self.decoding.samples, self.decoding.rows
        return tasks_over(len(self.rows), len(self.cells), self.budget.batch_size, each, most)

    @property
    def grid(self) -> Grid:
        return grid_of(groups(self.rows), [cell.labels for cell in self.cells])

    def compute(self, model: TransformerBridge, task: Task) -> pd.DataFrame:
        """Raises `DialError` for a cell under a system message that is not there."""
        unknown = {str(cell.labels["system"]) for cell in self.cells} - set(self.tokens)
        if unknown:
            raise DialError(f"no system message is called {sorted(unknown)[0]!r} here")
        start, stop = task.prompts.start, task.prompts.stop
        rows, frames = self.rows.iloc[start:stop], []
        asked = self.cells[task.cells.start : task.cells.stop]
        for system, tokens in self.tokens.items():
            cells = [cell for cell in asked if cell.labels["system"] == system]
            if not cells:
                continue
            # 1. A completion for every cell, prompt and sample.
            here = tokens.rows(start, stop).on(model)
            frame = completion_rows(model, here, rows, cells, self.decoding, self.block)
            # 2. Beside it the score of the logits at the last token before the answer.
            scores = score_grid(
                model,
                self.read[system].rows(start, stop).on(model),
                [cell.hooks for cell in cells],
                self.scorer,
                engine=self.budget.engine,
                memory_gb=self.budget.memory_gb,
            )
            frame["score"] = scores.flatten().repeat_interleave(self.decoding.samples).numpy()
            frames.append(frame)
        # 3. The judge reads them.
        requests = {prompt.id: prompt.text for prompt in self.prompts[start:stop]}
        replies = _judged(self.judge, requests, pd.concat(frames, ignore_index=True))
        return replies.assign(harm=_harm(self.harm, requests, replies))[REPLY_ORDER]

    def shrink(self, prompts: int, cells: int) -> ReplyPlan:
        return replace(
            self,
            tokens={name: some.rows(0, prompts) for name, some in self.tokens.items()},
            read={name: some.rows(0, prompts) for name, some in self.read.items()},
            rows=self.rows.head(prompts),
            cells=some_of(self.cells, cells),
        )

    def memory(self, model: TransformerBridge) -> float:
        most = max(task.rows for task in self.tasks)
        length = max(tokens.ids.shape[1] for tokens in self.read.values())
        generation = generation_memory(model, self.decoding, length, most)
        return max(self.budget.memory(model), generation)


def _judged(judge: Judge, asked: Mapping[str, str], rows: pd.DataFrame) -> pd.DataFrame:
    """With `label` and `phrase`; equal replies to a prompt are judged once. Where a thought got
    stuck and no reply came there is nothing to judge, and the label is `unclear`."""
    silent = rows["thought_end"].isin(LOST) & (rows["text"] == "")
    every = list(zip(rows["prompt_id"], rows["text"], strict=True))
    pairs = list(dict.fromkeys(one for one, none in zip(every, silent, strict=True) if not none))
    found = judge_all(judge, [text for _, text in pairs], [asked[who] for who, _ in pairs])
    labels = {pair: one.label for pair, one in zip(pairs, found, strict=True)}
    return rows.assign(
        label=[
            "unclear" if none else labels[pair] for pair, none in zip(every, silent, strict=True)
        ],
        phrase=[int(substring(text)) for text in rows["text"]],
    )


def _harm_report(judge: HarmJudge | None, replies: pd.DataFrame) -> dict[str, Any] | None:
    """Who judged harm, and how many replies it left unscored."""
    if judge is None:
        return None
    lost = int(replies["harm"].isna().sum())
    return {"judge": judge.name, "version": judge.version, "unscored": lost, "of": len(replies)}


def _harm(judge: HarmJudge | None, asked: Mapping[str, str], rows: pd.DataFrame) -> list[float]:
    """The harm of every reply, NaN without a judge or where it is unscored; equal replies to a
    prompt are judged once. What was never said does no harm."""
    if judge is None:
        return [float("nan")] * len(rows)
    every = list(zip(rows["prompt_id"], rows["text"], strict=True))
    pairs = [pair for pair in dict.fromkeys(every) if pair[1].strip()]
    found = judge.decide([text for _, text in pairs], [asked[who] for who, _ in pairs])
    harm = dict(zip(pairs, found, strict=True))
    return [harm.get(pair, 0.0) for pair in every]


# --------------------------------------------------------------------------------------------------
# Rows of judged replies become a table: rates by judge and by logit, coherence, differences.
#
#     difference = mean over prompts of (refused under the cell - refused by the unsteered model)
#
# The unit is the prompt: samples of a prompt are averaged first, and a reply that the judge left
# unscored enters no rate. Refused is what the judge calls a full or a partial refusal. `p_paired`
# is that of the sign-flip permutation test, `p_holm` the same after Holm's correction over all
# cells of a group but controls, `p_control` the rank of the shift among those of the random
# directions at the same place and strength.


REPLY_AXES = ["direction", "seed", "layer", "site", "pos", "alpha", "alpha_relative", "strength"]
REPLY_AXES += ["system"]

REFUSED_LABELS = ("partial_refusal", "full_refusal")

MEANS = (
    *("score", "by_logit", "refused", "coherence", "unclear", "degenerate", "phrase", "unlike"),
    *("thought_lost", "harm"),
)

Matrix = NDArray[np.float64]


def with_readings(rows: pd.DataFrame, threshold: float = 0.0) -> pd.DataFrame:
    """The rows with what each reply comes to, as numbers: `refused` (NaN where unscored),
    `unclear`, `by_logit` (score over `threshold`), `degenerate` (empty, a loop, or never ended),
    `unlike` (the judge disagrees with the phrase list), `coherence` and `thought_lost` (a thought
    that went in a loop or never closed).

    Coherence is `quality.coherence`; n0 is the mean cost of the unsteered model's own replies under
    the same system message. Raises `DialError` where the unsteered model is missing.
    """
    scored = (rows["label"] != UNSCORED).to_numpy()
    refused = rows["label"].isin(REFUSED_LABELS).to_numpy(dtype=float)
    own = rows[rows["direction"] == "baseline"].groupby("system")["nll"].mean()
    parts = np.full(len(rows), np.nan)
    for system in rows["system"].unique():
        if system not in own.index:
            raise DialError("the unsteered model's own replies are missing: what is coherent?")
        here = (rows["system"] == system).to_numpy()
        some = rows[here]
        parts[here] = coherence(some["repeated"], some["nll"], float(own[system]))
    harm = rows["harm"] if "harm" in rows else pd.Series(np.nan, rows.index)
    thoughts = rows["thought_end"] if "thought_end" in rows else pd.Series("none", rows.index)
    bad = (rows["stop"] != "end") | (rows["completion"] == '""') | (rows["repeated"] > LOOPS)
    return rows.assign(
        by_logit=(rows["score"] > threshold).astype(float).mask(rows["score"].isna()),
        refused=np.where(scored, refused, np.nan),
        unclear=np.where(scored, rows["label"] == "unclear", np.nan),
        degenerate=bad.astype(float),
        unlike=np.where(scored, refused != rows["phrase"], np.nan),
        coherence=parts,
        thought_lost=thoughts.isin(LOST).astype(float),
        harm=harm.astype(float),
        unscored=(~scored).astype(int),
    )


def summarise_replies(
    rows: pd.DataFrame, threshold: float = 0.0, seed: int = 0, by: Sequence[str] = GROUP
) -> pd.DataFrame:
    """One row per cell and group of prompts (`by`), in order of first appearance.

    Raises `DialError` if a cell lacks prompts that another has, or the baseline is missing, or
    there are no replies.
    """
    if rows.empty:
        raise DialError("there are no replies to summarise: none is to a prompt that is held out")
    kept = with_readings(rows, threshold)
    tables = [
        _group(part, list(by), seed) for _, part in kept.groupby(list(by), sort=False, dropna=False)
    ]
    return pd.concat(tables, ignore_index=True)


def _group(part: pd.DataFrame, by: list[str], seed: int) -> pd.DataFrame:
    cell = part.groupby(REPLY_AXES, sort=False, dropna=False).ngroup()
    part = part.assign(cell=cell)
    first = ~cell.duplicated()
    table = part[first][[*REPLY_AXES, *by]].reset_index(drop=True)
    means = part.groupby(["cell", "prompt_id"], sort=False)[list(MEANS)].mean().unstack()
    value: dict[str, Matrix] = {name: means[name].to_numpy() for name in MEANS}
    who = " ".join(str(part[name].iloc[0]) for name in by)
    if len(part) % value["score"].size:
        raise DialError(f"{who}: every cell needs every prompt once")
    base = (table["direction"] == "baseline") & (table["system"] == "")
    if not base.any():
        raise DialError(f"{who}: the baseline is missing")
    origin = int(np.flatnonzero(base)[0])
    shift = value["refused"] - value["refused"][origin]
    lost = value["coherence"] - value["coherence"][origin]
    per_prompt = len(part) // value["score"].size
    columns: dict[str, Any] = {"n": value["score"].shape[1], "samples": per_prompt}
    columns |= _mean(value["score"], "score_mean", "score", seed)
    columns |= _mean(value["by_logit"], "logit_rate", "logit", seed, rate=True)
    columns |= _mean(value["refused"], "refusal_rate", "rate", seed, rate=True)
    columns |= _mean(shift, "difference", "diff", seed)
    bounds = np.stack([columns["diff_lo"], columns["diff_hi"]], axis=1)
    columns["diff_lo"], columns["diff_hi"] = widened(bounds, shift).T
    columns["p_paired"] = [sign_flip_p(row[np.isfinite(row)], seed)[0] for row in shift]
    columns |= _mean(value["coherence"], "coherence", "coherence", seed)
    columns |= _mean(lost, "coherence_difference", "coherence_diff", seed)
    for name in ("unclear", "degenerate", "phrase", "unlike"):
        columns[name] = finite_means(value[name])
    columns["unscored"] = part.groupby("cell")["unscored"].sum().to_numpy()
    table = table.assign(**columns)
    known = table["direction"] == "learned"
    known |= (table["system"] != "") & (table["direction"] == "baseline")
    table["p_holm"] = np.nan
    table.loc[known, "p_holm"] = holm(table.loc[known, "p_paired"])
    return table.assign(
        p_control=fair_ranks(table, shift, ["layer", "site", "pos", "strength", "system"]),
        thought_lost=finite_means(value["thought_lost"]),
        **_mean(value["harm"], "harm", "harm", seed),
    )


def _mean(
    matrix: Matrix, name: str, stem: str, seed: int, rate: bool = False
) -> dict[str, NDArray[np.float64]]:
    """The mean of each row with its interval over prompts, those without a value left out."""
    interval = rate_interval if rate else partial(mean_interval, seed=seed)
    bounds = finite_intervals(matrix, interval)
    return {name: finite_means(matrix), f"{stem}_lo": bounds[:, 0], f"{stem}_hi": bounds[:, 1]}


def coherent_range(summary: pd.DataFrame, tolerance: float = 0.1) -> list[dict[str, Any]]:
    """For each layer and way, how far the dial turns before completions fall apart.

    `holds_to` is the largest |strength| up to which the mean coherence over all groups stays within
    `tolerance` of the unsteered model's, `breaks_at` the next, with its coherence (None where the
    dial ends before it).
    """
    found = []
    learned = summary[(summary["direction"] == "learned") & (summary["system"] == "")]
    for _, part in learned.groupby("layer", sort=False):
        lost = _pooled(part, "coherence_difference")
        mean = _pooled(part, "coherence")
        for sign in (-1, 1):
            steps = sorted((s for s in lost.index if s * sign > 0), key=abs)
            broken = next((s for s in steps if lost[s] < -tolerance), None)
            kept = steps if broken is None else steps[: steps.index(broken)]
            found.append(
                {
                    "layer": int(part["layer"].iloc[0]),
                    "toward": "less" if sign < 0 else "more",
                    "holds_to": float(kept[-1]) if kept else 0.0,
                    "breaks_at": None if broken is None else float(broken),
                    "coherence_there": None if broken is None else float(mean[broken]),
                    "tolerance": tolerance,
                }
            )
    return [one for one in found if one["holds_to"] or one["breaks_at"] is not None]


def _pooled(part: pd.DataFrame, name: str) -> pd.Series[float]:
    """By strength, the mean over groups weighted by their prompts."""
    weighted = (part[name] * part["n"]).groupby(part["strength"]).sum()
    return weighted / part.groupby("strength")["n"].sum()


# --------------------------------------------------------------------------------------------------
# The comparison of conditions: the model as it is, under a system message, steered, or both.
#
# A condition is a cell with a name a person would give it. Every figure stands beside its paired
# difference from the model as it is, and what the differences do not show is put in words.


NOT_SIGNIFICANT_FROM = 0.05


def with_condition(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows of all cells but controls, with `condition`: `base`, `system message`,
    `steering 0.4`, `both 0.4`; where several layers were steered their number is in the name."""
    rows = summary[summary["direction"].isin(("baseline", "learned"))]
    rows = rows[(rows["direction"] == "baseline") | (rows["strength"] != 0)].copy()
    several = rows["layer"].nunique() > 1
    names = []
    for _, row in rows.iterrows():
        known = row["system"] != ""
        if row["direction"] == "baseline":
            names.append("system message" if known else "base")
        else:
            where = f", layer {row['layer']}" if several else ""
            names.append(f"{'both' if known else 'steering'} {row['strength']:g}{where}")
    rows["condition"] = names
    return rows.reset_index(drop=True)


def not_significant(rows: pd.DataFrame) -> list[str]:
    """A sentence for every group of prompts: which conditions changed refusal by no more than
    chance may, after Holm's correction, with the interval of what these prompts leave open."""
    replies = []
    for subset, part in rows[rows["condition"] != "base"].groupby("subset", sort=False):
        weak = part[~(part["p_holm"] < NOT_SIGNIFICANT_FROM)]
        lines = [
            f"{row['condition']} {row['difference']:+.2f} [{row['diff_lo']:+.2f}, "
            f"{row['diff_hi']:+.2f}] p = {row['p_holm']:.3f}"
            for _, row in weak.iterrows()
        ]
        if lines:
            n = part["n"].iloc[0]
            replies.append(f"not significant, {subset} (n={n}, Holm's p): {'; '.join(lines)}")
    return replies


def control_range(summary: pd.DataFrame) -> pd.DataFrame:
    """By strength and subset, the range of the random directions' differences from base."""
    rows = summary[summary["direction"] == "random"]
    grouped = rows.groupby(["strength", "subset"], sort=False)["difference"]
    return grouped.agg(lo="min", hi="max", n="size").reset_index()


# --------------------------------------------------------------------------------------------------
# Layer by strength: where a contrast vector turns refusal, chosen on one half and reported on the
# other.
#
#     improvement = change of HARMFUL refusal - change of false positives
#
# against the model as it is, on the half of the prompts that is called `choose`; the figures that
# are reported are those of the half called `report`. A layer whose refusal falls as strength grows
# has its polarity inverted.


HARMFUL = "HARMFUL"


@dataclass(frozen=True)
class BestCell:
    """The chosen cell; its improvement where it was chosen, and where it was not."""

    layer: int
    strength: float
    chosen_on: float
    reported: float


def layer_table(summary: pd.DataFrame, split: str) -> pd.DataFrame:
    """A row per layer and strength: `harmful` and `false_positives` (refusal rates), `gain` and
    `cost` (their changes against the unsteered model), `improvement` and `coherence`.

    False positives are refusals of all other subsets, weighted by their prompts. Raises `DialError`
    without HARMFUL prompts or without others.
    """
    rows = summary[(summary["split"] == split) & (summary["direction"] == "learned")]
    keys = ["layer", "strength"]
    harmful = rows[rows["subset"] == HARMFUL].set_index(keys)
    others = rows[rows["subset"] != HARMFUL]
    if harmful.empty or others.empty:
        raise DialError(f"the table needs HARMFUL and other prompts in the half {split!r}")
    weighted = others.assign(
        **{name: others[name] * others["n"] for name in ("refusal_rate", "difference")}
    )
    sums = weighted.groupby(keys)[["refusal_rate", "difference", "n"]].sum()
    lost = rows.assign(c=rows["coherence"] * rows["n"]).groupby(keys)[["c", "n"]].sum()
    found = pd.DataFrame(
        {
            "harmful": harmful["refusal_rate"],
            "harmful_lo": harmful["rate_lo"],
            "harmful_hi": harmful["rate_hi"],
            "gain": harmful["difference"],
            "p_holm": harmful["p_holm"],
            "false_positives": sums["refusal_rate"] / sums["n"],
            "cost": sums["difference"] / sums["n"],
            "coherence": lost["c"] / lost["n"],
        }
    )
    return found.assign(improvement=found["gain"] - found["cost"]).reset_index()


def best_cell(summary: pd.DataFrame) -> BestCell:
    """The layer and strength of the largest improvement on the choosing half (the last, where
    several are as good), with its improvement on the reporting half. Raises `DialError` where the
    halves have different cells, or nothing was steered."""
    choose, report = layer_table(summary, CHOOSE), layer_table(summary, REPORT)
    turned = choose[choose["strength"] != 0].sort_values("improvement", kind="stable")
    both = turned.merge(report, on=["layer", "strength"], suffixes=("", "_reported"))
    if both.empty or len(both) < len(turned):
        raise DialError("a layer is chosen among cells that both halves have, off strength 0")
    row = both.iloc[-1]
    other = float(row["improvement_reported"])
    return BestCell(int(row["layer"]), float(row["strength"]), float(row["improvement"]), other)


def inverted_layers(summary: pd.DataFrame) -> list[int]:
    """Layers at which HARMFUL refusal is lower, by an interval that leaves out 0, at some positive
    strength than in the unsteered model, and higher at none: the vector points the wrong way."""
    rows = summary[(summary["direction"] == "learned") & (summary["subset"] == HARMFUL)]
    rows = rows[rows["strength"] > 0]
    wrong = []
    for layer, part in rows.groupby("layer", sort=False):
        if (part["diff_hi"] < 0).any() and not (part["diff_lo"] > 0).any():
            wrong.append(int(str(layer)))
    return wrong


# --------------------------------------------------------------------------------------------------
# A job on replies: a conversation in, a run folder out.


UNJUDGED = "no label from the judge"


def conduct_replies(
    experiment: str,
    talk: Conversation,
    flags: ReplyFlags,
    cells: Sequence[Cell],
    learned: Sequence[Direction],
    rows: pd.DataFrame,
    test: Callable[[], pd.DataFrame] = pd.DataFrame,
) -> tuple[Run, pd.DataFrame]:
    """Reply to every prompt under every cell, judged, into a run folder; the run and its summary.
    `rows` are the prompts' columns; `test`, run at the end, is the primary test of the slope of the
    next token's score. Judged replies have no slope: theirs is a paired permutation over prompts.

    An interrupted run is resumed after its last whole batch, a finished one named by `--out` read.
    summary.json says who judged, how good that judge is where known, how many replies it left
    unscored, how often it disagrees with the phrase list, where coherence ends, and what the
    direction reads at every token of a few replies.

    Raises `DialError` where the judge leaves more than the share `max_missing` unscored.
    """
    plan = ReplyPlan(
        tokens=talk.tokens,
        read=talk.read,
        prompts=talk.prompts,
        judge=talk.judge,
        scorer=talk.study.scorer,
        rows=rows,
        cells=cells,
        decoding=replace(decoding_of(flags), max_thought_tokens=flags.thought),
        budget=Budget(flags.batch_size, flags.engine, flags.memory_gb),
        block=talk.block,
        harm=talk.harm,
    )
    run = begin(experiment, conversation_settings(talk, flags), flags, files_by_layer(learned))

    def close(replies: pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Any]]:
        summary = summarise_replies(replies, talk.study.threshold, flags.seed)
        texts = [completion_text(one) for one in replies["completion"]]
        found = judge_report(talk.judge, texts, [Judgement(label) for label in replies["label"]])
        return summary, {
            "threshold": talk.study.threshold,
            "alpha_unit": flags.unit,
            "judge": found,
            "coherence": coherent_range(summary),
            "harm": _harm_report(talk.harm, replies),
            "thoughts": {end: int((replies["thought_end"] == end).sum()) for end in THOUGHT_ENDS},
            "slope": without_nan(test().to_dict("records")),
            "trace": dial_traces(
                talk.model,
                talk.tokens[""],
                rows,
                [cell for cell in cells if cell.labels["system"] == ""],
                some_of(learned, MOST_TRACED),
                talk.study.residual_norm,
                plan.decoding,
            ),
        }

    n_rows = sum(task.rows for task in plan.tasks)
    unscored = Counter[str]()

    def note(number: int, batch: pd.DataFrame) -> None:
        unscored[UNJUDGED] += int((batch["label"] == UNSCORED).sum())
        check_dropped_share(+unscored, n_rows, flags.max_missing)

    return carry_out(run, talk, plan, close, flags, note)


def conduct_holdout_replies(
    experiment: str,
    study: Study,
    flags: HoldoutFlags,
    cells: Sequence[Cell],
    learned: Sequence[Direction],
    train: Sequence[Prompt],
) -> tuple[Run, pd.DataFrame]:
    """`conduct_replies` with the cells of a steering study, on at most `--n` held-out prompts of
    each subset. The slope is that of the next token's score on all held-out EDGE prompts."""
    seen = {prompt.id for prompt in train}
    held_out = [prompt for prompt in study.prompts if prompt.id not in seen]
    talk = load_conversation(study, flags, some_of_each(held_out, flags.n, flags.seed))
    asked = [under(cell, "") for cell in cells]
    edge = [prompt for prompt in held_out if prompt.subset == "EDGE"]
    slopes = partial(slope_tests, study, flags, learned, edge)
    return conduct_replies(experiment, talk, flags, asked, learned, talk.rows(), slopes)
