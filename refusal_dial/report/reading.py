"""A run folder, read for a report: what was asked, its rows, its summary, and its prompts' texts.

Knows the files of a run. It computes nothing, and shows nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from refusal_dial.report.prompt_texts import Texts, texts_of
from refusal_dial.run import find_run, read_config, read_table, read_verdict
from refusal_dial.run_columns import (
    PATCH_ROWS,
    PATCHES,
    REPLIES,
    REPLY_ROWS,
    SAID,
    SAID_ROWS,
    SCORES,
    SUMMARY,
)
from refusal_dial.run_schema import PAIRS, check_config, check_table
from refusal_dial.types import DialError

KINDS = {
    "patching": (PATCH_ROWS, PATCHES),
    "replies": (REPLY_ROWS, REPLIES),
    "continuations": (SAID_ROWS, SAID),
    "scores": (SCORES, SUMMARY),
}
"""Which columns of scores.csv and of summary.csv a report of each kind of run is made of."""
TELLING = {"patching": {"way"}, "replies": {"label", "logit_rate"}}
TELLING |= {"continuations": {"completion", "reduction"}}
"""Columns that tell a kind from those below it."""


@dataclass(frozen=True, eq=False)
class Reading:
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
        """What was measured: `patching`, judged `replies`, `continuations`, `scores`, or something
        `other`, whose rows have no baseline or whose summary has no groups of prompts."""
        if not {"subset", "split"} & set(self.summary):
            return "other"
        columns = {*self.scores, *self.summary}
        kind = next((kind for kind, some in TELLING.items() if some & columns), "scores")
        directions = set(self.scores.get("direction", ["baseline"]))
        return kind if kind == "patching" or "baseline" in directions else "other"


def read_run(where: str | Path) -> Reading:
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
    found = Reading(folder.resolve().name, config, scores, summary, verdict, texts, files)
    if found.kind in KINDS:
        for name, table, needed in zip(files, (scores, summary), KINDS[found.kind], strict=True):
            check_table(folder / name, config["experiment"], table, needed)
    if found.kind == "patching":
        check_config(folder / "config.json", config, PAIRS)
    return found
