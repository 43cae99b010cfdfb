"""The grid over two dials as a table and as a figure. No files, no torch.

Shows what the summary holds.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.table import Table

from refusal_dial.common import UNIT_NAMES, terminal
from refusal_dial.report.theme import (
    GREY,
    add_better,
    add_unsteered,
    anchored,
    colour_of,
    error_bars,
    read_so,
    styled,
)
from refusal_dial.studies.objectives import OBJECTIVE_RATES, OBJECTIVES

_WIDTH = 136

OBJECTIVE_HEADS = {
    "toxicity": "toxicity,\nchallenging",
    "benign": "toxicity,\nbenign",
    "refused": "HARMFUL\nrefused",
    "cost": "EDGE\nrefused",
}

DIALS = ["strength", "refusal_strength"]


def print_objectives(summary: pd.DataFrame, overlap: float, unit: str) -> None:
    """Every pair of steps with its figures, the range of toxicity that random directions give in
    place of toxicity's at the same two steps, and a star on the front."""
    random = summary[summary["direction"] == "random"]
    table = Table(
        title=f"Two dials at once (alphas in {UNIT_NAMES[unit]})",
        title_justify="left",
        header_style="bold",
    )
    beside = f"random instead\n(x{random['seed'].nunique()})"
    first, *others = OBJECTIVE_HEADS.values()
    for name in ("toxicity\ndial", "refusal\ndial", first, beside, *others, "front"):
        table.add_column(name, justify="right")
    for _, row in summary[summary["direction"] == "learned"].iterrows():
        same = random[(random[DIALS] == row[DIALS]).all(axis=1)]["toxicity"]
        toxicity, *others = (_with(row, name) for name in OBJECTIVES)
        table.add_row(
            *(f"{row[name]:g}" for name in DIALS),
            toxicity,
            f"{same.min():.3f} to {same.max():.3f}" if len(same) else "",
            *others,
            "*" if row["front"] else "",
        )
    terminal(_WIDTH).print(table)
    base = summary[summary["direction"] == "baseline"].iloc[0]
    text = ", ".join(
        f"{OBJECTIVE_HEADS[n].replace(chr(10), ' ')} {base[n]:.2f}" for n in OBJECTIVES
    )
    print(f"unsteered: {text}")
    print(f"overlap of the two directions (squared cosine): {overlap:.4f}")


def _with(row: pd.Series[Any], name: str) -> str:
    digits = 2 if name in OBJECTIVE_RATES else 3
    value, lo, hi = (row[key] for key in (name, f"{name}_lo", f"{name}_hi"))
    return f"{value:.{digits}f} [{lo:.{digits}f}, {hi:.{digits}f}]"


def front_counts(summary: pd.DataFrame) -> str:
    """What the figure's three figures are of, and how many: the most that any cell has."""
    n = {name: int(summary[f"{name}_n"].max()) for name in ("toxicity", "refused", "cost")}
    return (
        f"{n['toxicity']} {OBJECTIVES['toxicity']} openings, {n['refused']} "
        f"{OBJECTIVES['refused']} and "
        f"{n['cost']} {OBJECTIVES['cost']} prompts"
    )


def front_figure(summary: pd.DataFrame, title: str) -> go.Figure:
    """Toxicity against over-refusal, colour the share of HARMFUL refused; the front is drawn as a
    line, random directions as grey crosses, the unsteered model as a diamond."""
    random = summary[summary["direction"] == "random"]
    base = summary[summary["direction"] == "baseline"]
    best = summary[(summary["direction"] != "random") & summary["front"]].sort_values("cost")
    learned = summary[summary["direction"] == "learned"]
    figure = make_subplots(rows=1, cols=1)
    figure.add_scatter(
        x=random["cost"],
        y=random["toxicity"],
        mode="markers",
        marker={"color": colour_of("random"), "symbol": "x", "size": 6},
        name="random direction in place of toxicity's",
    )
    figure.add_scatter(
        x=best["cost"],
        y=best["toxicity"],
        mode="lines",
        line={"color": "#000000", "width": 1, "dash": "dot"},
        name="front",
    )
    figure.add_scatter(
        x=learned["cost"],
        y=learned["toxicity"],
        error_y={
            **error_bars(learned["toxicity"], learned["toxicity_lo"], learned["toxicity_hi"]),
            "thickness": 1,
            "color": GREY,
        },
        mode="markers+text",
        marker={
            "size": 12,
            "color": learned["refused"],
            "coloraxis": "coloraxis",
        },
        text=[f"{a:g}, {b:g}" for a, b in zip(*(learned[name] for name in DIALS), strict=True)],
        textposition=[f"top {'left' if x > 0.5 else 'right'}" for x in learned["cost"]],
        showlegend=False,
    )
    bar = {"title": {"text": "HARMFUL<br>refused"}}
    figure.update_layout(coloraxis={"colorscale": "Cividis", "cmin": 0, "cmax": 1, "colorbar": bar})
    for x, y in zip(base["cost"], base["toxicity"], strict=True):
        add_unsteered(figure, float(x), float(y), 1)
    add_better(figure, 1, down=True)
    figure.update_xaxes(title_text="share of EDGE refused (over-refusal)", range=[-0.03, 1.03])
    figure.update_yaxes(
        title_text="mean toxicity after CHALLENGING openings (0 none, 1 certain)",
        range=anchored(summary["toxicity"]),
    )
    return styled(figure, read_so(title, TWO_DIALS), height=560, width=860)


TWO_DIALS = (
    "Each point is a step of toxicity's dial and one of refusal's. Less toxic and less "
    "over-refusal: down and left is better. No other pair beats one on the front."
)
