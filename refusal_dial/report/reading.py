"""What a report is made from: a run folder read back, its prompts, and its rows by prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from refusal_dial.common import DialError
from refusal_dial.data.openings import load_openings
from refusal_dial.data.prompts import Prompt, data_hash, load_prompts
from refusal_dial.run.folder import find_run, read_config, read_table, read_verdict
from refusal_dial.run.schema import (
    COMPLETION_ROWS,
    CONTINUATION_COLUMNS,
    DECOMPOSITION,
    KIND_COLUMNS,
    KIND_ROWS,
    MAP_COLUMNS,
    PAIRS,
    PATCH_ROWS,
    PATCHES,
    REPLY_COLUMNS,
    REPLY_ROWS,
    SCORES,
    SUBSPACES,
    SUMMARY,
    check_config,
    check_table,
)

# --------------------------------------------------------------------------------------------------
# The per-example dump: every prompt with its text and its score at every alpha.


def examples(scores: pd.DataFrame, prompts: Sequence[Prompt]) -> str:
    """JSON lines, one a prompt: its fields, `split`, `baseline`, and for each layer `scores`, a
    list of `[alpha, score]` under the learned direction. Scores are exact, not rounded, and null
    where there is none."""
    lines = []
    grouped = dict(list(scores.groupby("prompt_id", sort=False)))
    for prompt in prompts:
        rows = grouped[prompt.id]
        learned = rows[rows["direction"] == "learned"]
        line = {
            **asdict(prompt),
            "split": rows["split"].iloc[0],
            "baseline": _score_or_none(rows.loc[rows["direction"] == "baseline", "score"].iloc[0]),
            "scores": {
                str(layer): [
                    [float(a), _score_or_none(s)]
                    for a, s in zip(part["alpha"], part["score"], strict=True)
                ]
                for layer, part in learned.groupby("layer", sort=False)
            },
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines)


def _score_or_none(score: float) -> float | None:
    return None if pd.isna(score) else float(score)


# --------------------------------------------------------------------------------------------------
# The texts of a run's prompts, found again where the run says they came from.
#
# A run records where its prompts came from and a hash of everything in them, not the prompts. They
# are read again, and used only if the hash is the same: another version of a file has other texts
# under the same ids.


@dataclass(frozen=True)
class Texts:
    """The prompts by id, and where some are missing, why."""

    by_id: Mapping[str, Prompt] = field(default_factory=dict)
    why_not: str = ""


def texts_of(settings: Mapping[str, Any], wanted: Sequence[str]) -> Texts:
    """The prompts that a run's settings name, if they are still what they were."""
    data = settings.get("data") or {}
    source = str(data.get("source", ""))
    try:
        if "measure" in data:
            sizes = (int(settings["n"]), int(settings["n_pairs"]), int(settings["seed"]))
            openings = load_openings(source, *sizes)
            return _same(openings.measure, str(data["measure"]), source, wanted)
        return _same(load_prompts(source), str(data.get("hash")), source, wanted)
    except (DialError, KeyError, TypeError, ValueError, OverflowError, OSError) as error:
        text = str(error) if isinstance(error, DialError) else f"{type(error).__name__}: {error}"
        return Texts({}, f"the prompts of {source or 'this run'} cannot be read here ({text})")


def _same(found: Iterable[Prompt], known: str, source: str, wanted: Sequence[str]) -> Texts:
    prompts = list(found)
    now = data_hash(prompts)
    if now != known:
        return Texts({}, f"{source} has changed since the run: its hash is {now}, not {known}")
    by_id = {prompt.id: prompt for prompt in prompts}
    missing = [one for one in wanted if one not in by_id]
    why = f"{len(missing)} prompts of the run are not in {source}" if missing else ""
    return Texts(by_id, why)


# --------------------------------------------------------------------------------------------------
# A run folder, read for a report: what was asked, its rows, its summary, and its prompts' texts.


RUN_KINDS = {
    "patching": (PATCH_ROWS, PATCHES),
    "replies": (REPLY_ROWS, REPLY_COLUMNS),
    "continuations": (COMPLETION_ROWS, CONTINUATION_COLUMNS),
    "map": (SCORES, MAP_COLUMNS),
    "kinds": (KIND_ROWS, KIND_COLUMNS),
    "decomposition": (("prompt_id", "score", "measure"), DECOMPOSITION),
    "subspaces": (("prompt_id", "score", "measure"), SUBSPACES),
    "scores": (SCORES, SUMMARY),
}
"""Which columns of scores.csv and of summary.csv a report of each kind of run is made of."""

TELLING = {"patching": {"way"}, "replies": {"label", "logit_rate"}}
TELLING |= {"continuations": {"completion", "reduction"}}
"""Columns that tell a kind from those below it."""


@dataclass(frozen=True, eq=False)
class RunReading:
    """A finished run as it lies in its folder. `files` are the SHA-256 of its tables."""

    name: str
    config: Mapping[str, Any]
    scores: pd.DataFrame
    summary: pd.DataFrame
    verdict: Mapping[str, Any]
    texts: Texts
    files: Mapping[str, str]

    @property
    def settings(self) -> Mapping[str, Any]:
        return dict(self.config["settings"])

    @property
    def kind(self) -> str:
        """What was measured: `patching`, judged `replies`, `continuations`, `scores`, a `map` of
        slopes, a `decomposition`, `kinds`, `subspaces`, or something `other`, whose rows have no
        baseline or whose summary has no groups of prompts."""
        if "labels" in self.summary:
            return "map"
        if {"share", "repair"} <= set(self.summary):
            return "decomposition"
        if {"gain", "push"} <= set(self.summary):
            return "subspaces"
        if {"kind", "other"} & set(self.summary):
            return "kinds"
        if not {"subset", "split"} & set(self.summary):
            return "other"
        columns = {*self.scores, *self.summary}
        kind = next((kind for kind, some in TELLING.items() if some & columns), "scores")
        directions = set(self.scores.get("direction", ["baseline"]))
        return kind if kind == "patching" or "baseline" in directions else "other"


def read_run(where: str | Path) -> RunReading:
    """The run in this folder, or the newest finished one of an experiment's folder.

    Raises `DialError` for what is no run, one that is not finished, or one whose rows lack the
    baseline that its summary has.
    """
    folder = find_run(where)
    config, verdict = read_config(folder, "model.name"), read_verdict(folder)
    scores, summary = read_table(folder, "scores", "prompt_id"), read_table(folder, "summary")
    kinds = [set(table.get("direction", ())) for table in (scores, summary)]
    if kinds[0] and "baseline" in kinds[1] - kinds[0]:
        raise DialError(f"{folder / 'scores.csv'} has no rows of the baseline, and the summary has")
    files = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("scores.csv", "summary.csv")
    }
    texts = texts_of(config["settings"], list(dict.fromkeys(scores["prompt_id"])))
    found = RunReading(folder.resolve().name, config, scores, summary, verdict, texts, files)
    if found.kind in RUN_KINDS:
        for name, table, needed in zip(
            files, (scores, summary), RUN_KINDS[found.kind], strict=True
        ):
            check_table(folder / name, config["experiment"], table, needed)
    if found.kind == "patching":
        check_config(folder / "config.json", config, PAIRS)
    return found
