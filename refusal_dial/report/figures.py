"""The figures that a run has: those of its experiment, drawn from its own tables.

Knows which figure belongs to which kind of run. It draws none itself, and writes no files.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go

from refusal_dial.continuation import plots as said
from refusal_dial.patching.plots import heatmaps, patching_title
from refusal_dial.plots import alpha_curves, pareto, score_histograms, set_off
from refusal_dial.replies import plots as replies
from refusal_dial.report.reading import Reading
from refusal_dial.theme import SCORE, title_of, unit_label
from refusal_dial.trade_off import trade_off
from refusal_dial.trade_off_plot import trade_off_curves
from refusal_dial.types import DialError

Draw = Callable[[], go.Figure]


def figures_of(reading: Reading) -> dict[str, go.Figure]:
    """Every figure that the run's tables allow, by name. One that they do not allow (a run without
    HARMFUL prompts has no Pareto curve) is left out."""
    drawn = {}
    for name, draw in _wanted(reading).items():
        try:
            drawn[name] = draw()
        except DialError:
            continue
    return drawn


def _wanted(reading: Reading) -> dict[str, Draw]:
    scores, summary = reading.scores, reading.summary

    def title(question: str, rows: pd.DataFrame = summary) -> str:
        return title_of(reading.config, question, rows)

    settings, threshold = reading.settings, reading.settings.get("threshold")
    if reading.kind == "other":
        return {}
    if reading.kind == "patching":
        asked = patching_title(reading.config, "Where patching moves refusal")
        return {"patching": lambda: heatmaps(summary, asked)}
    if reading.kind == "continuations":
        asked, alpha = title("Score of what is said"), unit_label("alpha", settings)
        every = title("Every completion's score")
        return {
            "curves": lambda: said.alpha_sweep(summary, asked, alpha),
            "distributions": lambda: said.distributions(scores, every, alpha),
        }
    if reading.kind == "replies":
        asked, strength = title("What is said along the dial"), unit_label("strength", settings)
        return {
            "curves": lambda: replies.reply_curves(summary, asked, strength),
            "trade_off": lambda: replies.trade_off_curve(summary, title("Over-refusal")),
            "histograms": lambda: score_histograms(scores, title("How scores are spread")),
        }
    wanted: dict[str, Draw] = {
        "curves": lambda: alpha_curves(summary, title("Refusal along the dial")),
        "pareto": lambda: pareto(
            summary, title("HARMFUL refusal against EDGE over-refusal", set_off(summary))
        ),
        "histograms": lambda: score_histograms(scores, title("How scores are spread"), threshold),
    }
    if (scores["direction"] == "conditional").any():
        held_out = scores[scores["split"] == "holdout"]
        drawn = held_out[held_out["subset"].isin(("HARMFUL", "EDGE"))]
        asked = title("What steering buys, and what it costs", drawn)
        wanted["trade_off"] = lambda: trade_off_curves(
            trade_off(held_out, wanted="HARMFUL", spared="EDGE", threshold=float(threshold or 0)),
            asked,
            f"HARMFUL ({SCORE})",
            "EDGE",
        )
    return wanted
