"""The map of the dial: its verdict and its strongest places for the terminal, and a heatmap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.table import Table

from refusal_dial.report.patching import COLOUR_SCALE
from refusal_dial.report.steering import LIKE_NOTHING, _console
from refusal_dial.report.theme import escaped, styled
from refusal_dial.studies.direction_map import LABEL_SETS

MOST_PLACES = 8

LAST_LAYERS = (
    "towards the last layers this becomes trivial: the labels are a function of that very "
    "activation; HARMFUL against BENIGN is not"
)


BESIDE = {
    "scores": " (trivial towards the last layers, which hold the label)<br>"
    "<sup>dot: corrected p ≤ 0.05, slope over 0; white: every permuted direction is the same</sup>"
}
"""What is said beside a panel."""


def map_sentence(part: pd.DataFrame) -> tuple[str, str]:
    """One set of labels, and at how many places its slope is over 0, and the first of them."""
    about = LABEL_SETS[str(part["labels"].iloc[0])]
    tested = part[part["p"].notna()]
    shown = tested[(tested["p_corrected"] <= LIKE_NOTHING) & (tested["slope"] > 0)]
    left_out = f"; {len(part) - len(tested)} places have no p" if len(tested) < len(part) else ""
    if shown.empty:
        return about, f"turns the score at no place that was shown, of {len(tested)}{left_out}"
    best = shown.sort_values("z", kind="stable").iloc[-1]
    first = shown.sort_values(["layer", "pos"], ascending=[True, False]).iloc[0]
    return (
        about,
        f"turns the score at {len(shown)} of {len(tested)} places (corrected p <= "
        f"{LIKE_NOTHING:g}), first at layer {first['layer']} (position {first['pos']}), most "
        f"clearly at layer {best['layer']} (position {best['pos']}, z = {best['z']:.1f}, corrected "
        f"p = {best['p_corrected']:.2g}){left_out}",
    )


def print_map(summary: pd.DataFrame, record: Mapping[str, Any]) -> None:
    """A sentence for each set of labels, its places with the largest z, and how well the slope
    predicted what the dial did."""
    console = _console()
    for labels, part in summary.groupby("labels", sort=False):
        console.print(": ".join(map_sentence(part)), highlight=False)
        table = Table(title=LABEL_SETS[str(labels)], title_justify="left", header_style="bold")
        for name in ("layer", "pos", "token", "slope", "z", "p", "p corrected", "p unit length"):
            table.add_column(name, justify="left" if name == "token" else "right")
        for _, row in part.sort_values("z", ascending=False).head(MOST_PLACES).iterrows():
            table.add_row(
                *(str(row["layer"]), str(row["pos"]), str(row["token"])),
                *(f"{row['slope']:+.3g}", f"{row['z']:.1f}", f"{row['p']:.2g}"),
                *(f"{row['p_corrected']:.2g}", f"{row['p_unit']:.2g}"),
            )
        console.print(table)
    n = int(summary["n"].max())
    print(
        f"slope: of the mean score of {record['held_out']} held-out EDGE prompts, at the "
        f"direction's own length; p: one-sided, among {n:,} permuted labels; corrected: two-sided, "
        "for every place of the map"
    )
    print(LAST_LAYERS)
    table = Table(
        title="Slope times alpha against the dial itself, over directions of the activations' "
        "covariance",
        title_justify="left",
        header_style="bold",
    )
    for name in ("layer", "alpha\n(residual\nnorms)", "directions", "correlation", "error"):
        table.add_column(name, justify="right")
    for row in record.get("agreement", []):
        figures = ("none" if row[n] is None else f"{row[n]:.2f}" for n in ("correlation", "error"))
        table.add_row(str(row["layer"]), f"{row['alpha_relative']:g}", str(row["n"]), *figures)
    console.print(table)
    print(
        "error: root mean square of predicted minus measured, as a share of the measured change's "
        "own; at 1 the prediction is no better than 0"
    )


def map_figure(summary: pd.DataFrame, title: str) -> go.Figure:
    """A heatmap for each set of labels: z of the slope, layers across, positions down. A dot marks
    what is shown after correction for every place; a place where every permuted direction is the
    same has no colour."""
    names = list(dict.fromkeys(summary["labels"]))
    figure = make_subplots(
        rows=len(names),
        cols=1,
        subplot_titles=[escaped(LABEL_SETS[name]) + BESIDE.get(name, "") for name in names],
        shared_xaxes=True,
        vertical_spacing=0.18,
    )
    limit = max(1.0, float(np.nanmax(np.abs(summary["z"].to_numpy(dtype=float)), initial=0)))
    for row, name in enumerate(names, 1):
        part = summary[summary["labels"] == name]
        where = part.drop_duplicates("pos").sort_values("pos", ascending=False)
        rows = {
            int(one["pos"]): f"{one['pos']} {escaped(str(one['token']))}".strip()
            for _, one in where.iterrows()
        }
        z = part.pivot_table("z", "pos", "layer", dropna=False).reindex(list(rows))
        hover = part.assign(
            text=[
                f"slope {one['slope']:+.3f}, z {one['z']:.2f}<br>p {one['p']:.4f}, corrected "
                f"{one['p_corrected']:.4f}"
                + (f"<br>{escaped(str(one['reason']))}" if pd.isna(one["p"]) else "")
                for _, one in part.iterrows()
            ]
        ).pivot(index="pos", columns="layer", values="text")
        figure.add_heatmap(
            z=z.to_numpy(),
            x=list(z.columns),
            y=list(rows.values()),
            text=hover.reindex(list(rows)).to_numpy(),
            hovertemplate="layer %{x}, position %{y}<br>%{text}<extra></extra>",
            coloraxis="coloraxis",
            row=row,
            col=1,
        )
        shown = part[(part["p_corrected"] <= LIKE_NOTHING) & (part["slope"] > 0)]
        figure.add_scatter(
            x=shown["layer"],
            y=[rows[int(pos)] for pos in shown["pos"]],
            mode="markers",
            marker={"color": "black", "size": 4},
            hoverinfo="skip",
            showlegend=False,
            row=row,
            col=1,
        )
        figure.update_yaxes(type="category", autorange="reversed", row=row, col=1)
    figure.update_yaxes(title_text="position")
    figure.update_xaxes(title_text="layer", row=len(names))
    figure.update_layout(
        coloraxis={
            "colorscale": COLOUR_SCALE,
            **{"cmid": 0, "cmin": -limit, "cmax": limit},
            "colorbar": {"title": {"text": "z of the<br>slope"}},
        }
    )
    tall = sum(60 + 34 * summary.loc[summary["labels"] == name, "pos"].nunique() for name in names)
    return styled(figure, title, height=220 + tall, width=900)
