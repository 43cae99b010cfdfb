"""A finished run of every kind that a script draws, made by formula and left by the run's API."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import frames
import pandas as pd
import report_case
import torch
from test_objectives import rows as over_two_dials
from test_patching_summary import rows as patched

from refusal_dial import directions
from refusal_dial.directions.learning import Direction, Provenance
from refusal_dial.report import replies as record
from refusal_dial.run.folder import append, finish, open_run
from refusal_dial.run.schema import (
    COMPLETION_ROWS,
    CONTINUATION_COLUMNS,
    FRONT,
    KIND_COLUMNS,
    KIND_ROWS,
    PAIRS,
    PATCH_ROWS,
    PATCHES,
    REPLY_COLUMNS,
    REPLY_ROWS,
    SCORES,
    SUMMARY,
)
from refusal_dial.stats.summary import summarise
from refusal_dial.studies.continuation import summarise_continuations
from refusal_dial.studies.kinds import summarise_kinds
from refusal_dial.studies.objectives import summarise_objectives
from refusal_dial.studies.patching_summary import summarise_patching
from refusal_dial.studies.replies import coherent_range, summarise_replies

Tables = tuple[pd.DataFrame, pd.DataFrame]
Named = tuple[str, ...]
NAME = ("model.name",)
SHOWN: dict[tuple[str, str], tuple[Named, Named, Named]] = {
    ("scores", "report"): (SCORES, SUMMARY, NAME),
    ("scores", "plot_holdout_random_controls"): ((), SUMMARY, NAME),
    ("scores", "plot_controls_pareto"): ((), SUMMARY, NAME),
    ("replies", "report"): (REPLY_ROWS, REPLY_COLUMNS, NAME),
    ("replies", "plot_xstest"): (REPLY_ROWS, (), (*NAME, "seed")),
    ("contrast", "plot_layer_strength"): ((), REPLY_COLUMNS, NAME),
    ("conditions", "plot_conditions"): ((), REPLY_COLUMNS, NAME),
    ("contrast", "experiment_log"): ((), record.LOG_COLUMNS, record.LOG_SETTINGS),
    ("conditions", "experiment_log"): ((), record.LOG_COLUMNS, record.LOG_SETTINGS),
    ("continuations", "report"): (COMPLETION_ROWS, CONTINUATION_COLUMNS, NAME),
    ("continuations", "plot_toxicity"): (
        COMPLETION_ROWS,
        CONTINUATION_COLUMNS,
        (*NAME, "model.n_layers"),
    ),
    ("spared", "plot_trade_off"): (COMPLETION_ROWS, (), NAME),
    ("conditional", "report"): (SCORES, SUMMARY, NAME),
    ("conditional", "plot_trade_off"): (SCORES, (), NAME),
    ("conditional", "plot_score_histograms"): (SCORES, (), NAME),
    ("patching", "report"): (PATCH_ROWS, PATCHES, PAIRS),
    ("patching", "plot_patching"): ((), PATCHES, PAIRS),
    ("front", "plot_front"): ((), FRONT, NAME),
    ("directions", "plot_directions"): ((), (), NAME),
    ("kinds", "report"): (KIND_ROWS, KIND_COLUMNS, NAME),
}
"""Which script shows which kind, and the columns of scores.csv and of summary.csv and the settings
that it is made of."""
HALVES = [(subset, half) for subset in ("HARMFUL", "EDGE") for half in ("choose", "report")]
OPENINGS = [(subset, half) for subset in ("CHALLENGING", "BENIGN") for half in ("choose", "report")]
SMALL: dict[str, Any] = {"alphas": (-1.0, 1.0), "n_random": 2, "n_prompts": 3}


def _swept(**wanted: Any) -> pd.DataFrame:
    return frames.scores(frames.dial, **SMALL | wanted)


def _gated(rows: pd.DataFrame) -> pd.DataFrame:
    """The same steering behind a detector, and behind random ones."""
    learned, random = (rows[rows["direction"] == name] for name in ("learned", "random"))
    own = [learned.assign(direction="conditional"), random.assign(direction="random_detector")]
    return pd.concat([rows, *own], ignore_index=True)


def _said(**wanted: Any) -> pd.DataFrame:
    rows = report_case.with_completions(_swept(**wanted))
    return (
        rows.assign(category="kind")
        .drop(columns=["alpha_relative"])
        .assign(alpha_relative=rows["alpha"] / 10)
    )


def _scores() -> Tables:
    rows = _swept()
    return rows, summarise(rows)


def _conditional() -> Tables:
    rows = _gated(_swept())
    return rows, summarise(rows)


def _replies() -> Tables:
    rows = _said()
    return rows, summarise_replies(rows)


def _contrast() -> Tables:
    rows = _said(layers=(12, 20), groups=HALVES, n_random=0)
    return rows, summarise_replies(rows)


def _conditions() -> Tables:
    rows = _said()
    instructed = rows[rows["direction"].isin(("baseline", "learned"))].assign(system="instructed")
    rows = pd.concat([rows, instructed], ignore_index=True)
    return rows, summarise_replies(rows)


def _continuations() -> Tables:
    rows = _said(layers=(3, 7), groups=OPENINGS).drop(columns=["label", "system", "phrase"])
    return rows, summarise_continuations(rows)


def _spared() -> Tables:
    rows = _gated(_said(groups=OPENINGS[1::2]).drop(columns=["label", "system", "phrase"]))
    return rows, summarise_continuations(rows)


def _patching() -> Tables:
    kinds = ("patch", "same_class", "random")
    cells = {(kind, layer, "attn_out", "denoise"): [0.1, 0.6] for kind in kinds for layer in (0, 1)}
    rows = patched(cells)  # type: ignore[arg-type]
    return rows, summarise_patching(rows)


def _front() -> Tables:
    cells = [over_two_dials("baseline", 0.0, 0.0, 0.8, 8, 4)]
    cells += [over_two_dials("learned", s, 0.0, 0.8 - s / 2, 8, 4 + int(s)) for s in (0.0, 1.0)]
    cells += [over_two_dials("random", 1.0, 0.0, 0.7, 8, 4, seed=0)]
    rows = pd.concat(cells, ignore_index=True)
    return rows, summarise_objectives(rows)


def _kinds() -> Tables:
    """Two categories and a control, each removed, and each added with the other removed."""
    names = ("HARMFUL:first", "EDGE:second", "HARMFUL", "random 0")
    about = [("baseline", "", 0.0), *(("baseline", name, 0.0) for name in names)]
    about += [(name, "", alpha) for name in names for alpha in (-1.0, 1.0)]
    about += [(name, other, 1.0) for name in names[:3] for other in names]
    rows = pd.DataFrame(
        {
            **dict(zip(("direction", "ablated", "strength"), cell, strict=True)),
            **{"prompt_id": f"{subset}{i}", "subset": subset, "split": "holdout"},
            "score": i / 4 + at + cell[2] * (cell[0][:3] != "ran") * (1 - (cell[1] == cell[0])),
        }
        for cell in about
        for at, subset in ((-3, "BENIGN"), (-1, "EDGE"), (2, "HARMFUL"))
        for i in range(6)
    )
    scored = {"HARMFUL:first": ["HARMFUL0", "HARMFUL1"], "EDGE:second": ["EDGE4", "EDGE5"]}
    measured = summarise_kinds(rows, scored, n_resamples=20)
    cosines = [
        {"kind": one, "other": other, "value": 0.9, "lo": 0.8, "hi": 1.0, "ceiling": 0.95, "n": 6}
        for one in names
        for other in names
    ]
    summary = pd.concat([pd.DataFrame(cosines).assign(measure="cosine"), measured])
    return rows, summary.reindex(columns=list(KIND_COLUMNS)).reset_index(drop=True)


MADE: dict[str, Callable[[], Tables]] = {
    "scores": _scores,
    "replies": _replies,
    "contrast": _contrast,
    "conditions": _conditions,
    "continuations": _continuations,
    "spared": _spared,
    "conditional": _conditional,
    "patching": _patching,
    "front": _front,
    "directions": _scores,
    "kinds": _kinds,
}


def leave(folder: Path, kind: str) -> Path:
    """A finished run of the kind, without the hashes that a run of today ends with."""
    rows, summary = MADE[kind]()
    settings: dict[str, Any] = {
        "model": {
            "name": "made/up",
            "revision": "r1",
            "n_layers": 24,
            "device": "cpu",
            "dtype": "float32",
        },
        "data": {"source": "nowhere.jsonl", "hash": "0" * 16, "n_prompts": 6},
        "threshold": 0.0,
        **{"site": "resid_pre", "pos": -1, "seed": 0, "layer": [20], "alphas": [-1.0, 1.0]},
    }
    if kind == "patching":
        settings |= {"gap": 1.0, "pairs": {"used": 2, "matched": 3, "excluded": 1}}
    if "strength" in rows:
        settings |= {"alpha_unit": "residual"}
    verdict: dict[str, Any] = {"threshold": 0.0}
    if "label" in rows:
        settings["judge"] = {"name": "made", "version": "1"}
        measured = {"on": "nothing", "n": 3, "two_way": 0.9, "three_way": 0.8}
        verdict["judge"] = {"judge": "made", "version": "1", "unscored": 0, "measured": [measured]}
        verdict["judge"]["disagrees_with_substring"] = 0.1
        verdict["coherence"] = coherent_range(summary)
        trace = {"panel": "EDGE e1, layer 20", "name": "unsteered", "prompt": 1}
        verdict["trace"] = [{**trace, "tokens": ["How", "I"], "values": [0.1, -0.2]}]
    run = open_run(f"made_{kind}", settings, str(folder))
    append(run, rows)
    finish(run, summary, verdict)
    if kind == "directions":
        for layer in (12, 20):
            directions.save(_direction(layer), folder / f"direction_layer{layer}.safetensors")
    verdict = json.loads((folder / "summary.json").read_text())
    del verdict["sha256"]
    (folder / "summary.json").write_text(json.dumps(verdict))
    return folder


def _direction(layer: int) -> Direction:
    unit = torch.nn.functional.normalize(torch.arange(1.0, 9.0).roll(layer), dim=0)
    about = Provenance(
        layer=layer,
        site="resid_pre",
        pos=-1,
        model="made/up",
        revision="r1",
        seed=0,
        prompt_ids=("a", "b"),
        data_hash="0" * 16,
    )
    return Direction(unit, 2.0, about)
