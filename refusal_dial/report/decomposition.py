"""Who writes a direction: its verdict and its largest writers for the terminal, and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.table import Table

from refusal_dial.common import terminal
from refusal_dial.report.patching import COLOUR_SCALE
from refusal_dial.report.steering import LIKE_NOTHING
from refusal_dial.report.theme import BLUE, GREY, styled

MOST_WRITERS = 12

MOST_TICKS = 16
"""Heads that all have their number beside the map; of more, some."""

_WIDE = 170


def part_name(row: pd.Series[Any]) -> str:
    """`head 15.3`, `neuron 12.1040`, `embed`, or `other neurons 12`."""
    layer, unit = row["layer"], row["unit"]
    if pd.isna(layer):
        return str(row["kind"])
    return f"{row['kind']} {layer}" + ("" if pd.isna(unit) else f".{int(unit)}")


def decomposition_sentences(
    summary: pd.DataFrame, record: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """(about, what was found): who writes it, whether that matters, and gates."""
    units = summary[summary["kind"].isin(("head", "neuron"))]
    shown = units[units["p_shuffled"] <= LIKE_NOTHING]
    best = units.iloc[0]
    n = int(best["n"])
    writers = (
        f"{len(shown)} of {len(units)} heads and neurons that are listed write more for refused "
        f"prompts than permuted labels explain (corrected p <= {LIKE_NOTHING:g}); most of all "
        f"{part_name(best)}: {best['share']:.0%} of the difference "
        f"[{best['share_lo']:.0%}, {best['share_hi']:.0%}], p = {best['p_shuffled']:.2g}"
    )
    found = [(f"who writes it, {n} pairs", writers)]
    replaced = units[units["d_score_denoise"].notna()]
    moved = replaced[replaced["p_score"] <= LIKE_NOTHING]
    most = replaced.iloc[int(replaced["d_score_denoise"].abs().argmax())]
    causes = (
        f"{len(moved)} of {len(replaced)} that were replaced change the score, beyond another "
        f"prompt of the same side (corrected p <= {LIKE_NOTHING:g}); most of all "
        f"{part_name(most)}: "
        f"{most['d_score_denoise']:+.2f} [{most['d_score_denoise_lo']:+.2f}, "
        f"{most['d_score_denoise_hi']:+.2f}] written into complied prompts"
    )
    found.append(("which of them matter", causes))
    found.append(("all of them together", "; ".join(_sets(record))))
    gates = record.get("gates") or []
    sure = [one for one in gates if one["p"] <= LIKE_NOTHING]
    said = "none was shown" if gates else "not searched for"
    if sure:
        first = sure[0]
        said = (
            f"{len(sure)} pairs of a head and a later writer; strongest: head {first['head']} "
            f"changes what {first['later']} writes by {first['change']:+.2f} (p = {first['p']:.2g})"
        )
    found.append(("gates: heads that change later writers", said))
    return found


def _sets(record: Mapping[str, Any]) -> list[str]:
    """What the set of writers moves and keeps of the gap in the score, beside random sets."""
    together = [
        one
        for one in record["together"]
        if one["measure"] == "score" and one["way"] == "denoise" and one["share"] is not None
    ]
    enough = [
        one for one in record["enough"] if one["measure"] == "score" and one["share"] is not None
    ]
    found = []
    for rows, what in (
        (together, "written into complied prompts they move"),
        (enough, "kept alone they hold"),
    ):
        top = [one["share"] for one in rows if one["set"] == "top"]
        others = [one["share"] for one in rows if one["set"] == "random_set"]
        if top:
            beside = (
                f", random sets of their size {min(others):.0%} to {max(others):.0%}"
                if others
                else ""
            )
            found.append(f"{what} {top[0]:.0%} of the gap in the score{beside}")
    return found


def print_decomposition(summary: pd.DataFrame, record: Mapping[str, Any]) -> None:
    """The verdict, then the largest parts with what replacing them did."""
    console = terminal(_WIDE)
    for about, said in decomposition_sentences(summary, record):
        console.print(f"{about}: {said}", highlight=False)
    role = str(summary["dest_role"].iloc[0])
    where = "the last position" if role == "end-1" else role
    table = Table(
        title=f"What writes the direction at {where}, refused minus complied prompts",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("part")
    for name in (
        *("share of the\ndifference", "p\n(corrected)", "reads\nmostly", "r·h\nif swapped"),
        *(
            "score, into\ncomplied",
            "another of\nthe same side",
            "random\nas far",
            "mean of\nthe other",
        ),
        *("score, into\nrefused", "knocked\nout", "p\n(score)", "tangent", "repair"),
    ):
        table.add_column(name, justify="right")
    for _, row in summary.head(MOST_WRITERS).iterrows():
        share = f"{row['share']:+.0%} [{row['share_lo']:+.0%}, {row['share_hi']:+.0%}]"
        source = row["top_source_role"]
        names = ("d_projection", "d_score_denoise", "same_class", "norm_matched", "mean_by_role")
        table.add_row(
            part_name(row),
            share,
            _shown(row["p_shuffled"], ".2g"),
            "" if pd.isna(source) else str(source),
            *(_shown(row[name], "+.2f") for name in names),
            *(_shown(row[name], "+.2f") for name in ("d_score_noise", "knockout")),
            _shown(row["p_score"], ".2g"),
            _shown(row["attribution"], "+.2f"),
            _shown(row["repair"], ".2f"),
        )
    console.print(table)
    print(
        f"the parts add up to r·h within {record['completeness']:.1e} of it; its difference is "
        f"{record['gap_projection']:+.2f}, the mean residual norm {record['residual_norm']:.2f}"
    )
    print(
        "into complied: the part of the refused prompt written into the complied one, and back; "
        "repair: 1 where later parts undo what the part changed of r·h, under 0 where they amplify"
    )
    gates = [one for one in record.get("gates") or [] if one["p"] <= LIKE_NOTHING][:6]
    for one in gates:
        print(
            f"gate: head {one['head']} -> {one['later']}: {one['change']:+.2f} (p = {one['p']:.2g})"
        )


def _shown(value: Any, form: str) -> str:
    return "" if pd.isna(value) else format(value, form)


def decomposition_figure(summary: pd.DataFrame, record: Mapping[str, Any], title: str) -> go.Figure:
    """Layer by head the share that each writes, with a dot where permuted labels do not explain
    it; and how much the first k heads and neurons write together."""
    heads = summary[summary["kind"] == "head"]
    grid = heads.pivot_table("share", "unit", "layer")
    limit = max(0.01, float(np.abs(grid.to_numpy()).max()))
    figure = make_subplots(
        rows=1,
        cols=2,
        column_widths=[0.62, 0.38],
        horizontal_spacing=0.2,
        subplot_titles=(
            "heads: share of the difference<br><sup>dot: corrected p ≤ 0.05</sup>",
            "the first k heads and neurons together",
        ),
    )
    figure.add_heatmap(
        z=grid.to_numpy(),
        x=[int(layer) for layer in grid.columns],
        y=[int(head) for head in grid.index],
        coloraxis="coloraxis",
        hovertemplate="layer %{x}, head %{y}<br>%{z:.1%}<extra></extra>",
        row=1,
        col=1,
    )
    sure = heads[heads["p_shuffled"] <= LIKE_NOTHING]
    figure.add_scatter(
        x=sure["layer"].astype(int),
        y=sure["unit"].astype(int),
        mode="markers",
        marker={"color": "black", "size": 5},
        hoverinfo="skip",
        showlegend=False,
        row=1,
        col=1,
    )
    curve: Sequence[float] = record["curve"]
    figure.add_scatter(
        x=list(range(1, len(curve) + 1)),
        y=list(curve),
        mode="lines",
        line={"color": BLUE},
        showlegend=False,
        hovertemplate="first %{x}: %{y:.0%}<extra></extra>",
        row=1,
        col=2,
    )
    figure.add_hline(y=1, line={"dash": "dot", "width": 1, "color": GREY}, row=1, col=2)
    figure.update_xaxes(title_text="layer", row=1, col=1)
    figure.update_yaxes(title_text="head", tickformat="d", row=1, col=1)
    if len(grid) <= MOST_TICKS:
        figure.update_yaxes(dtick=1, row=1, col=1)
    figure.update_xaxes(title_text="heads and neurons, the largest first", row=1, col=2)
    figure.update_yaxes(title_text="share of the difference", tickformat=".0%", row=1, col=2)
    bar = {"title": {"text": "share"}, "x": 0.5, "thickness": 14, "tickformat": ".0%"}
    scale = {"colorscale": COLOUR_SCALE, "cmin": -limit, "cmax": limit, "colorbar": bar}
    figure.update_layout(coloraxis=scale)
    return styled(figure, title, height=460, width=1000)
