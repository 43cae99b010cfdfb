"""Capability under steering: what the dial costs where nobody asked anything harmful.

    task      share of items whose right choice is the likeliest, by log-probability of its text
    loss      mean over a plain text's tokens of -log p(token | text before), nats
    kl        mean over a harmless reply's tokens of KL(p_unsteered || p_steered), nats, along the
              unsteered reply
    score     mean refusal score of prompts: what the dial does
    refused   share of prompts whose refusal score is over the threshold

Every measure of every cell stands beside its paired difference from the unsteered model, with a
bootstrap interval over items, texts or prompts. Questions and texts are read as plain text, without
a chat template, as lm-eval reads them; with `--pos -1` the direction is added to the last token of
a question and to every one after it (to every token of a text). Prompts that the direction was
learned from are not used. Random directions as long say what any push costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.cells import Cell
from refusal_dial.cli.flags import CapabilityFlags
from refusal_dial.common import DialError
from refusal_dial.data.openings import load_openings
from refusal_dial.data.prompts import Prompt, data_hash, of_subset, some_of_each
from refusal_dial.data.tasks import TaskItem, load_task
from refusal_dial.directions.learning import Direction
from refusal_dial.generate.decode import Decoding
from refusal_dial.generate.likelihood import reply_logp
from refusal_dial.model.tokens import Tokens, padded, text_ids, tokens_hash
from refusal_dial.run.folder import TOKENS, Run
from refusal_dial.run.job import begin, carry_out, files_by_layer
from refusal_dial.run.plan import (
    Budget,
    DriftPlan,
    Grid,
    Parts,
    Plan,
    SweepPlan,
    Task,
    cell_rows,
    generation_memory,
    grid_of,
    groups,
    some_of,
    tasks_over,
)
from refusal_dial.stats.intervals import mean_interval, rate_interval
from refusal_dial.stats.summary import finite_intervals, finite_means, widened
from refusal_dial.studies.base import Study, load_study, measured_on, study_settings
from refusal_dial.studies.steering import (
    SCORE_ORDER,
    cells_beside_random,
    layers_to_use,
    used_directions,
)

CAPABILITY_ORDER = [*SCORE_ORDER, "strength", "measure"]

CAPABILITY_AXES = ["direction", "seed", "layer", "site", "pos", "alpha", "alpha_relative"]
CAPABILITY_AXES += ["strength"]

REFUSED, SCORE, LOSS, KL = "refused", "score", "loss", "kl"

OWN_MEASURES = {REFUSED, SCORE, LOSS, KL}

LONGEST_TEXT_TOKENS = 64
"""Of a plain text so many tokens are read."""


@dataclass(frozen=True, eq=False)
class Questions:
    """Rows of plain text with what may follow them: `replies[i]` are the choices of item i, and
    `answers[i]` the number of the right one (none for a text, whose one reply is its rest)."""

    rows: pd.DataFrame
    tokens: Tokens
    replies: tuple[tuple[tuple[int, ...], ...], ...]
    answers: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the measure."""
        return str(self.rows["measure"].iloc[0])

    @property
    def chance(self) -> float:
        """The share that guessing gets right."""
        return float(np.mean([1 / len(mine) for mine in self.replies]))

    def head(self, n: int) -> Questions:
        """The first n of them."""
        return Questions(
            self.rows.head(n), self.tokens.rows(0, n), self.replies[:n], self.answers[:n]
        )


@dataclass(frozen=True, eq=False)
class CapabilityStudy:
    """A study, the directions that are tried, the prompts that they were not learned from, and what
    the model is to be able to do."""

    study: Study
    learned: tuple[Direction, ...]
    prompts: tuple[Prompt, ...]
    replied: tuple[Prompt, ...]
    questions: tuple[Questions, ...]

    @property
    def model(self) -> TransformerBridge:
        return self.study.model

    @property
    def about(self) -> tuple[str, ...]:
        return self.study.about


def load_capability(flags: CapabilityFlags) -> CapabilityStudy:
    """Load what the flags name, in the order in which mistakes are cheapest to find. Raises
    `DialError` for whatever of it cannot be used."""
    # 1. Files: the direction, the tasks, the texts.
    layers = layers_to_use(flags.direction, flags.layer, flags.site)
    tasks = [load_task(source, flags.n_items, flags.seed) for source in flags.tasks]
    names = [name for name, _ in tasks]
    if len(set(names)) < len(names) or OWN_MEASURES & set(names):
        raise DialError(
            f"tasks need different names, none of {', '.join(sorted(OWN_MEASURES))}; not "
            f"{', '.join(names)}"
        )
    texts = load_openings(flags.texts, flags.n_texts, 0, flags.seed).measure
    # 2. The model, and a direction for each layer.
    study = load_study(flags, layers, flags.site, flags.pos)
    used, train = used_directions(study, flags, flags.direction, flags.any_model)
    # 3. Prompts that it was not learned from.
    seen = {prompt.id for prompt in train}
    left = [prompt for prompt in study.prompts if prompt.id not in seen]
    prompts = some_of_each(left, flags.n, flags.seed)
    replied = some_of_each(of_subset(left, "BENIGN") or left, flags.n_replies, flags.seed)
    questions = [task_questions(study.model, name, items) for name, items in tasks]
    questions.append(text_questions(study.model, texts))
    return CapabilityStudy(study, tuple(used), tuple(prompts), tuple(replied), tuple(questions))


def task_questions(model: TransformerBridge, name: str, items: Sequence[TaskItem]) -> Questions:
    """A task's items as tokens: of a question and a choice read together, what stands after the
    question's own tokens is the choice's. Raises `DialError` where nothing does, or it is longer
    than the context."""
    rows, replies = [], []
    for item in items:
        asked = text_ids(model.tokenizer, item.question, add_special_tokens=True)
        mine = []
        for choice in item.choices:
            whole = f"{item.question} {choice}"
            ids = text_ids(model.tokenizer, whole, add_special_tokens=True)[len(asked) :]
            if not ids or len(asked) + len(ids) > int(model.cfg.n_ctx):
                raise DialError(
                    f"{item.id}: {choice!r} has {len(ids)} tokens after a question of {len(asked)} "
                    f"and the model reads at most {int(model.cfg.n_ctx)}"
                )
            mine.append(tuple(ids))
        rows.append(asked)
        replies.append(tuple(mine))
    return Questions(
        _about([item.id for item in items], "TASK", name),
        padded(model, rows),
        tuple(replies),
        tuple(item.answer for item in items),
    )


def text_questions(model: TransformerBridge, texts: Sequence[Prompt]) -> Questions:
    """Plain texts as their first token, and the rest as the one reply to it."""
    ids = [
        text_ids(model.tokenizer, text.text, add_special_tokens=True)[:LONGEST_TEXT_TOKENS]
        for text in texts
    ]
    kept = [(text, row) for text, row in zip(texts, ids, strict=True) if len(row) > 1]
    if not kept:
        raise DialError("none of the plain texts has two tokens: give others with --texts")
    return Questions(
        _about([text.id for text, _ in kept], "TEXT", LOSS),
        padded(model, [row[:1] for _, row in kept]),
        tuple((tuple(row[1:]),) for _, row in kept),
        (),
    )


def _about(ids: Sequence[str], subset: str, measure: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"prompt_id": list(ids), "subset": subset, "split": "holdout", "measure": measure}
    )


# --------------------------------------------------------------------------------------------------
# What is measured under each cell.


@dataclass(frozen=True, eq=False)
class QuestionPlan:
    """Items or texts under every cell: whether the right choice is the likeliest (1 or 0), or the
    loss of a text. A row per cell and item, by items in batches, then cell."""

    questions: Questions
    cells: Sequence[Cell]
    budget: Budget

    @property
    def tasks(self) -> list[Task]:
        return tasks_over(len(self.questions.rows), len(self.cells), self.budget.batch_size)

    @property
    def grid(self) -> Grid:
        return grid_of(groups(self.questions.rows), [cell.labels for cell in self.cells])

    def compute(self, model: TransformerBridge, task: Task) -> pd.DataFrame:
        start, stop = task.prompts.start, task.prompts.stop
        replies = self.questions.replies[start:stop]
        tokens = self.questions.tokens.rows(start, stop).on(model)
        logp = reply_logp(model, tokens, [cell.hooks for cell in self.cells], replies)
        # The likeliest choice, or nats a token; NaN where a logit was no number.
        values, first = [], 0
        for i, mine in enumerate(replies):
            some = logp[:, first : first + len(mine)]
            first += len(mine)
            if self.questions.answers:
                right = (some.argmax(1) == self.questions.answers[start + i]).double()
                broken = ~some.isfinite().all(1)
                values.append(right.masked_fill(broken, torch.nan))
            else:
                values.append(-some[:, 0] / len(mine[0]))
        found = torch.stack(values, 1).double().cpu().numpy()
        rows = self.questions.rows.iloc[start:stop]
        return cell_rows(self.cells, rows, found, CAPABILITY_ORDER)

    def shrink(self, prompts: int, cells: int) -> QuestionPlan:
        return replace(
            self, questions=self.questions.head(prompts), cells=some_of(self.cells, cells)
        )

    def memory(self, model: TransformerBridge) -> float:
        longest = max(len(ids) for mine in self.questions.replies for ids in mine)
        decoding = Decoding(max_new_tokens=longest, rows=512)
        return generation_memory(model, decoding, self.questions.tokens.ids.shape[1], 512)


def capability_plan(opened: CapabilityStudy, flags: CapabilityFlags, cells: list[Cell]) -> Parts:
    """What is measured, in order: refusal, each task, the texts, the drift of replies."""
    budget = Budget(flags.batch_size, flags.engine, flags.memory_gb)
    small = replace(budget, batch_size=min(16, flags.batch_size))
    tokens, rows = measured_on(opened.study, opened.prompts)
    rows = rows.assign(measure=SCORE)
    sweep = SweepPlan(tokens, rows, cells, opened.study.scorer, budget, CAPABILITY_ORDER)
    parts: list[Plan] = [sweep]
    parts += [QuestionPlan(some, cells, small) for some in opened.questions]
    tokens, rows = measured_on(opened.study, opened.replied)
    decoding, rows = Decoding(flags.max_new_tokens), rows.assign(measure=KL)
    parts.append(DriftPlan(tokens, rows, cells, decoding, small, CAPABILITY_ORDER))
    prompts = {SCORE: len(opened.prompts), KL: len(opened.replied)}
    prompts |= {q.name: len(q.rows) for q in opened.questions}
    return Parts(parts, grid_of(prompts, [cell.labels for cell in cells]))


# --------------------------------------------------------------------------------------------------
# The summary: a row a cell and measure, beside its paired difference from the unsteered model.


def summarise_capability(rows: pd.DataFrame, threshold: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """A row per cell and measure (score and refusal per subset): `n`, `value` with `lo` and `hi`,
    and `difference` from the unsteered model with `diff_lo`, `diff_hi`, in order of appearance.

    Shares have Wilson's intervals, other means and all differences a paired bootstrap; where no
    item of a share changed, as far to each side as Wilson's interval leaves open for so few.
    Raises `DialError` where a cell lacks items that another has, or the baseline is missing.
    """
    tables = []
    for (name, subset), part in rows.groupby(["measure", "subset"], sort=False):
        if name == SCORE:
            hit = (part["score"] > threshold).astype(float).mask(part["score"].isna())
            tables.append(_measure(part.assign(score=hit), REFUSED, str(subset), seed))
        tables.append(_measure(part, str(name), str(subset), seed))
    return pd.concat(tables, ignore_index=True)


def _measure(part: pd.DataFrame, name: str, subset: str, seed: int) -> pd.DataFrame:
    share = name not in (SCORE, LOSS, KL)
    cell = part.groupby(CAPABILITY_AXES, sort=False, dropna=False).ngroup()
    first = ~cell.duplicated()
    table = part[first][CAPABILITY_AXES].reset_index(drop=True)
    wide = part.assign(cell=cell).pivot(index="cell", columns="prompt_id", values="score")
    if len(part) != wide.size:
        raise DialError(f"{name}: every cell needs every item once")
    base = np.flatnonzero(table["direction"] == "baseline")
    if len(base) != 1:
        raise DialError(f"{name}: the unsteered model is missing: what is a difference from?")
    value = wide.to_numpy(dtype=float)
    shift = value - value[base[0]]
    interval = rate_interval if share else partial(mean_interval, seed=seed)
    bounds = finite_intervals(value, interval)
    moved = finite_intervals(shift, partial(mean_interval, seed=seed))
    if share:
        moved = widened(moved, shift)
    return table.assign(
        measure=name,
        prompts=subset,
        n=value.shape[1],
        value=finite_means(value),
        lo=bounds[:, 0],
        hi=bounds[:, 1],
        difference=finite_means(shift),
        diff_lo=moved[:, 0],
        diff_hi=moved[:, 1],
    )


def conduct_capability(
    experiment: str, opened: CapabilityStudy, flags: CapabilityFlags
) -> tuple[Run, pd.DataFrame]:
    """Measure into a run folder, which then holds the directions; the run and its summary."""
    settings = study_settings(opened.study, flags)
    every = [q.tokens for q in opened.questions]
    settings[TOKENS] = tokens_hash(opened.study.tokens, *every)
    settings["measured"] = {
        "prompts": data_hash(opened.prompts),
        "replied": data_hash(opened.replied),
        **{q.name: _hash(opened.model, q) for q in opened.questions},
    }
    run = begin(experiment, settings, flags, files_by_layer(opened.learned))

    def close(rows: pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Any]]:
        summary = summarise_capability(rows, opened.study.threshold, flags.seed)
        chance = {q.name: q.chance for q in opened.questions if q.answers}
        known = {"threshold": opened.study.threshold, "alpha_unit": flags.unit, "chance": chance}
        return summary, known

    cells = cells_beside_random(opened.study, flags, opened.learned)
    return carry_out(run, opened, capability_plan(opened, flags, cells), close, flags)


def _hash(model: TransformerBridge, questions: Questions) -> str:
    """Of every question with its choices."""
    rows = [
        [*ids[mask.bool()].tolist(), -1, *reply, -1]
        for ids, mask, mine in zip(
            questions.tokens.ids, questions.tokens.mask, questions.replies, strict=True
        )
        for reply in mine
    ]
    return tokens_hash(padded(model, rows))
