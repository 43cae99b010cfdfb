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
from refusal_dial.run_schema import SCORES, SUMMARY, check_columns


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
        if not {"subset", "split", "direction", "n", "score_mean"} <= set(self.summary):
            return "other"
        if "way" in self.scores:
            return "patching"
        if "direction" not in self.scores or "baseline" not in set(self.scores["direction"]):
            return "other"
        if "label" in self.scores:
            return "replies"
        return "continuations" if "completion" in self.scores else "scores"


def read_run(where: str | Path) -> Reading:
    """The run in this folder, or the newest finished one of an experiment's folder.

    Raises `DialError` for what is no run, or one that is not finished.
    """
    folder = find_run(where)
    config, verdict = read_config(folder, "model"), read_verdict(folder)
    scores, summary = read_table(folder, "scores", "prompt_id"), read_table(folder, "summary")
    files = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("scores.csv", "summary.csv")
    }
    texts = texts_of(config["settings"], list(dict.fromkeys(scores["prompt_id"])))
    found = Reading(folder.resolve().name, config, scores, summary, verdict, texts, files)
    if found.kind == "scores":
        check_columns(folder / "scores.csv", config["experiment"], scores, SCORES)
        check_columns(folder / "summary.csv", config["experiment"], summary, SUMMARY)
    return found
