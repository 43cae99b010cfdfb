"""Subspaces beside one direction at equal damage: words, a table, a figure. No files, no torch."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.table import Table

from refusal_dial.common import terminal
from refusal_dial.report.theme import (
    BLUE,
    GOLD,
    GREY,
    TEAL,
    VIOLET,
    add_line,
    add_unsteered,
    colour_of,
    error_bars,
    styled,
)

_BROAD = 150

WAY_COLOURS = {"iterated": GOLD, "span": BLUE, "cone": TEAL, "independent": VIOLET, "random": GREY}


def subspace_sentences(summary: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(about, what came out, what random axes did): whether more dimensions pay, and whether the
    axes of each way see each other's removal."""
    several = summary[(summary["subset"] == "HARMFUL") & (summary["k"] > 1)]
    random = several["direction"] == "random"
    alone, found = several[random], []
    for (way, k), part in several[~random].groupby(["direction", "k"], sort=False):
        row, beside = part.iloc[0], alone[alone["k"] == k]
        what = "is not known: no one direction does as little damage"
        if pd.notna(row["gain"]):
            paid = "pays" if row["gain_lo"] > 0 else "does not pay"
            what = f"{paid}: a gain of {_gain(row)} over one direction at equal damage"
        apart = f"the removal of one axis moves the reading of another by {_dependence(row)}"
        found.append((f"{way}, {k:g} axes", f"{what}; {apart}", _random(beside)))
    return found


def _random(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "no random axes beside"
    gains = ", ".join(map(_gain, rows.to_dict("records")))
    moved = rows["dependence"].dropna()
    return f"random axes: {gains}, and {moved.min():.3f} to {moved.max():.3f}"


def _gain(row: Any) -> str:
    if pd.isna(row["gain"]):
        return "unknown"
    return f"{row['gain']:+.2f} [{row['gain_lo']:+.2f}, {row['gain_hi']:+.2f}]"


def _dependence(row: Any) -> str:
    if pd.isna(row["dependence"]):
        return "unknown"
    ends = f"[{row['dependence_lo']:.3f}, {row['dependence_hi']:.3f}]"
    return f"{row['dependence']:.3f} {ends}"


def print_subspaces(summary: pd.DataFrame) -> None:
    """Every way at every k: HARMFUL's score and share refused, EDGE's and BENIGN's, the damage, and
    what k over 1 gains over one direction pushed to the same damage, and how far its axes see each
    other's removal."""
    for about, effect, controls in subspace_sentences(summary):
        print(f"{about}: {effect}; {controls}")
    by = {str(name): part.reset_index(drop=True) for name, part in summary.groupby("subset")}
    table = Table(
        title="Removed from every block, on prompts that nothing was learned from",
        title_justify="left",
        header_style="bold",
        caption="gain: how much lower HARMFUL's score is than under the best one direction, pushed "
        "beyond 0, that does no more damage; more dimensions pay where the interval is above 0; "
        "axes apart: how far the removal of one axis moves the cosine with another "
        "(0: independent)",
        caption_justify="left",
    )
    for name in ("way", "k", "push", "HARMFUL\nscore", *(f"{subset}\nrefused" for subset in by)):
        table.add_column(name, justify="left" if name == "way" else "right")
    table.add_column("KL, BENIGN\n(nats)", justify="right")
    table.add_column("gain at\nequal damage", justify="right")
    table.add_column("axes\napart", justify="right")
    for i, row in enumerate(by["HARMFUL"].to_dict("records")):
        kind = str(row["direction"])
        name = kind if pd.isna(row["seed"]) else f"{kind} {int(row['seed'])}"
        table.add_row(
            name,
            f"{row['k']:g}",
            f"{row['push']:g}",
            f"{row['score_mean']:+.2f}",
            *(f"{part['refusal_rate'][i]:.2f}" for part in by.values()),
            f"{row['kl']:.4f}",
            "" if pd.isna(row["gain"]) else _gain(row),
            "" if pd.isna(row["dependence"]) else f"{row['dependence']:.3f}",
        )
    terminal(_BROAD).print(table)


def subspace_figure(summary: pd.DataFrame, title: str) -> go.Figure:
    """HARMFUL's score against the damage to BENIGN, one direction of every way pushed as a line and
    several axes as diamonds; the gain of several at equal damage; and how far one axis's removal
    moves what is read along another. Intervals over prompts; random axes grey."""
    harmful = summary[summary["subset"] == "HARMFUL"].reset_index(drop=True)
    several = harmful[harmful["k"] > 1]
    figure = make_subplots(
        1,
        3,
        column_widths=[0.46, 0.27, 0.27],
        horizontal_spacing=0.11,
        subplot_titles=(
            "HARMFUL's score and what it costs",
            "gain at equal damage",
            "moved by another axis's removal",
        ),
    )
    base = harmful[harmful["direction"] == "baseline"].iloc[0]
    first = {"row": 1, "col": 1}
    for way, part in harmful[harmful["k"] > 0].groupby("direction", sort=False):
        name, colour = str(way), WAY_COLOURS.get(str(way), colour_of(str(way)))
        one = part[part["k"] == 1].sort_values("push")
        if name == "random":
            _points(figure, one, colour, "random, 1 axis", "circle")
        else:
            add_line(figure, one["kl"], one["score_mean"], colour, f"{name}, 1 axis", first, True)
        for k, rows in part[part["k"] > 1].groupby("k"):
            _points(figure, rows, colour, f"{name}, {k:g} axes", "diamond")
    add_unsteered(figure, float(base["kl"]), float(base["score_mean"]), 1)
    labels = [
        f"{row['direction']}, {row['k']:g}" + ("" if pd.isna(row["seed"]) else f" ({row['seed']})")
        for row in several.to_dict("records")
    ]
    colours = [WAY_COLOURS.get(way, colour_of(way)) for way in several["direction"]]
    for col, name in enumerate(("gain", "dependence"), 2):
        figure.add_scatter(
            x=several[name],
            y=labels,
            error_x=error_bars(several[name], several[f"{name}_lo"], several[f"{name}_hi"]),
            mode="markers",
            marker={"color": colours, "size": 8},
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
            showlegend=False,
            row=1,
            col=col,
        )
        figure.add_vline(x=0, line={"dash": "dot", "width": 1}, row=1, col=col)
        figure.update_yaxes(autorange="reversed", type="category", row=1, col=col)
    figure.update_xaxes(title_text="KL at the last token, BENIGN (nats)", row=1, col=1)
    figure.update_yaxes(title_text="HARMFUL's score (log-odds)", row=1, col=1)
    figure.update_xaxes(title_text="log-odds lower than one direction", row=1, col=2)
    figure.update_xaxes(title_text="change of a cosine", row=1, col=3)
    return styled(figure, title, height=520, width=1150)


def _points(figure: go.Figure, rows: pd.DataFrame, colour: str, name: str, symbol: str) -> None:
    figure.add_scatter(
        x=rows["kl"],
        y=rows["score_mean"],
        error_y=error_bars(rows["score_mean"], rows["score_lo"], rows["score_hi"]),
        mode="markers",
        name=name,
        marker={"color": colour, "symbol": symbol, "size": 9},
        hovertemplate=f"{name}<br>KL %{{x:.3f}}, score %{{y:.2f}}<extra></extra>",
        row=1,
        col=1,
    )
