"""Finished runs made by formula, for the report: texts that try to be markup, and the
completions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from refusal_dial.data.prompts import data_hash, load_prompts
from refusal_dial.run.folder import append, finish, open_run
from refusal_dial.stats.summary import summarise
from refusal_dial.studies.replies import summarise_replies

HOSTILE = [
    "<script>window.hit = 1</script>",
    "</script><script>window.hit = 2</script>",
    '<img src="x" onerror="window.hit = 3">',
    "<!-- <script> \u2028 & 'quotes' \"double\"",
]
BROKEN = '</div></li></ol><b>not bold <iframe src="http://127.0.0.1:9/"> alpha '


def prompts_file(folder: Path, n: int = 4) -> Path:
    """EDGE and HARMFUL prompts with the ids of `frames.scores`, the first of them hostile."""
    rows = [
        {
            "id": f"{subset}-holdout-{i}",
            "text": HOSTILE[i] if subset == "EDGE" and i < len(HOSTILE) else f"{subset} number {i}",
            "subset": subset,
            "category": f"kind {i % 2}",
        }
        for subset in ("EDGE", "HARMFUL")
        for i in range(n)
    ]
    path = folder / "prompts.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def leave_run(
    folder: Path, scores: pd.DataFrame, source: Path, model: str = "made/up", **settings: Any
) -> Path:
    """A finished run of these rows, as `job.conduct` leaves one."""
    summary = summarise(scores)
    return _leave(folder, scores, summary, source, model, settings)


def leave_with_completions(folder: Path, scores: pd.DataFrame, source: Path) -> Path:
    """A finished run of these rows in which the model spoke, and a judge read what it wrote."""
    rows = with_completions(scores)
    return _leave(folder, rows, summarise_replies(rows), source, "made/up", {"layer": [20]})


def _leave(
    folder: Path,
    rows: pd.DataFrame,
    summary: pd.DataFrame,
    source: Path,
    model: str,
    settings: dict[str, Any],
) -> Path:
    prompts = load_prompts(str(source))
    data = {"source": str(source), "hash": data_hash(prompts), "n_prompts": len(prompts)}
    known = {"model": {"name": model, "revision": "r1"}, "data": data, "threshold": 0.0}
    known |= {"site": "resid_pre", "pos": -1, "seed": 0, **settings}
    run = open_run("steering_holdout_control", known, str(folder))
    append(run, rows)
    finish(run, summary, {"threshold": 0.0})
    return folder


def with_completions(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows with completions: two samples each, the second of them broken markup."""
    parts = [
        scores.assign(sample=sample, completion=[json.dumps(text(row)) for row in rows(scores)])
        for sample, text in enumerate((completion_of, broken))
    ]
    both = pd.concat(parts, ignore_index=True)
    refused = both["score"] > 0
    label = refused.map({True: "full_refusal", False: "full_compliance"})
    about = {"strength": both["alpha"], "system": "", "category": "", "phrase": 0}
    return both.assign(label=label, nll=0.5, repeated=0.0, stop="end", **about)


def rows(scores: pd.DataFrame) -> list[Any]:
    return list(scores.itertuples(index=False))


def completion_of(row: Any) -> str:
    return f"{'No' if row.score > 0 else 'Sure'}, {row.prompt_id} at {row.alpha:g}"


def broken(row: Any) -> str:
    return f"{BROKEN}{row.alpha:g}"
