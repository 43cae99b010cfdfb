"""Figures of judged replies: a summary becomes a plotly figure. No files, no torch.

Draws rates and intervals that are there already.
"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_dial.theme import GREY, styled, subset_colour
from refusal_dial.types import DialError


def _learned(summary: pd.DataFrame) -> pd.DataFrame:
    rows = summary[(summary["direction"] == "learned") & (summary["system"] == "")]
    if rows.empty:
        raise DialError("this run steered no learned direction: there is nothing to draw")
    return rows


def _spread(rows: pd.DataFrame, name: str, stem: str) -> dict[str, object]:
    return {
        "array": rows[f"{stem}_hi"] - rows[name],
        "arrayminus": rows[name] - rows[f"{stem}_lo"],
        "thickness": 1.2,
    }


def reply_curves(summary: pd.DataFrame, title: str, strength: str = "strength") -> go.Figure:
    """Along the dial, a row per layer: refusal of every subset by judge (lines with intervals) and
    by logit (dotted), the random directions as grey crosses; beside it, coherence. `strength` is
    what the axis says (`theme.unit_label`)."""
    learned = _learned(summary)
    layers = list(learned["layer"].unique())
    titles = [f"layer {n}: {what}" for n in layers for what in ("refused", "coherence")]
    figure = make_subplots(rows=len(layers), cols=2, subplot_titles=titles)
    random = summary[summary["direction"] == "random"]
    for r, layer in enumerate(layers, 1):
        near = random[random["layer"] == layer]
        figure.add_scatter(
            x=near["strength"],
            y=near["refusal_rate"],
            mode="markers",
            marker={"color": GREY, "symbol": "x", "size": 5},
            name="random directions",
            legendgroup="random",
            showlegend=bool(r == 1 and len(near)),
            row=r,
            col=1,
        )
        for subset, part in learned[learned["layer"] == layer].groupby("subset", sort=False):
            part = part.sort_values("strength")
            line = {"color": subset_colour(str(subset))}
            name = f"{subset} (n={part['n'].iloc[0]})"
            same = {"legendgroup": str(subset), "row": r}
            for value, stem, col in (("refusal_rate", "rate", 1), ("coherence", "coherence", 2)):
                figure.add_scatter(
                    x=part["strength"],
                    y=part[value],
                    error_y=_spread(part, value, stem),
                    mode="lines+markers",
                    name=name,
                    showlegend=r == 1 and col == 1,
                    line=line,
                    col=col,
                    **same,
                )
            figure.add_scatter(
                x=part["strength"],
                y=part["logit_rate"],
                mode="lines",
                line={**line, "dash": "dot", "width": 1},
                name=f"{subset} by logit",
                showlegend=False,
                col=1,
                **same,
            )
    figure.update_xaxes(title_text=strength)
    figure.update_yaxes(range=[-0.03, 1.03])
    figure.update_yaxes(title_text="share refused", col=1)
    return styled(figure, title, height=160 + 300 * len(layers), width=980)


def trade_off_curve(summary: pd.DataFrame, title: str) -> go.Figure:
    """Refusal of HARMFUL prompts against over-refusal of EDGE along the dial, each point with its
    strength. Up is wanted, right is not."""
    learned = _learned(summary)
    wide = learned.pivot_table(
        index=["layer", "strength"], columns="subset", values="refusal_rate", sort=False
    )
    if not {"HARMFUL", "EDGE"} <= set(wide.columns):
        raise DialError(
            f"this figure needs HARMFUL and EDGE; the run has {', '.join(wide.columns)}"
        )
    figure = go.Figure()
    for layer, part in wide.reset_index().groupby("layer", sort=False):
        part = part.sort_values("strength")
        figure.add_scatter(
            x=part["EDGE"],
            y=part["HARMFUL"],
            mode="lines+markers+text",
            text=[f"{s:+g}" for s in part["strength"]],
            textposition="bottom right",
            name=f"layer {layer}",
        )
    figure.update_xaxes(title_text="EDGE refused (over-refusal)", range=[-0.05, 1.1])
    figure.update_yaxes(title_text="HARMFUL refused", range=[-0.05, 1.1])
    return styled(figure, title, height=520, width=620)


def category_bars(by_category: pd.DataFrame, title: str) -> go.Figure:
    """Share refused of every category: unsteered, and at both ends of the dial, with intervals.
    The lowest layer of the run is drawn."""
    learned = _learned(by_category)
    learned = learned[learned["layer"] == learned["layer"].min()]
    base = by_category[by_category["direction"] == "baseline"]
    ends = (learned["strength"].min(), 0.0, learned["strength"].max())
    colours = ("#56B4E9", "#BBBBBB", "#E69F00")
    figure = go.Figure()
    for strength, colour in zip(ends, colours, strict=True):
        rows = base if strength == 0 else learned[learned["strength"] == strength]
        figure.add_bar(
            y=[
                f"{s} {c} (n={n})"
                for s, c, n in zip(rows["subset"], rows["category"], rows["n"], strict=True)
            ],
            x=rows["refusal_rate"],
            error_x=_spread(rows, "refusal_rate", "rate"),
            orientation="h",
            marker_color=colour,
            name="unsteered" if strength == 0 else f"strength {strength:+g}",
        )
    figure.update_layout(barmode="group")
    figure.update_xaxes(title_text="share refused", range=[0, 1.03])
    return styled(figure, title, height=200 + 62 * len(base), width=820)


def layer_strength(half: pd.DataFrame, title: str, strength: str = "strength") -> go.Figure:
    """Layer by strength: share of HARMFUL refused, and false positives on the other subsets.
    `half` is `layers.table` of one half of the prompts."""
    panels = {"HARMFUL refused": "harmful", "false positives": "false_positives"}
    figure = make_subplots(cols=2, subplot_titles=list(panels), shared_yaxes=True)
    for col, name in enumerate(panels.values(), 1):
        wide = half.pivot(index="layer", columns="strength", values=name)
        figure.add_heatmap(
            z=wide.to_numpy(),
            x=[f"{s:g}" for s in wide.columns],
            y=[str(n) for n in wide.index],
            zmin=0,
            zmax=1,
            texttemplate="%{z:.2f}",
            colorscale="Cividis",
            showscale=col == 2,
            colorbar={"title": "share"},
            row=1,
            col=col,
        )
    figure.update_xaxes(title_text=strength, type="category")
    figure.update_yaxes(type="category")
    figure.update_yaxes(title_text="layer", col=1)
    return styled(figure, title, height=max(380, 240 + 36 * len(wide)), width=900)


def condition_bars(rows: pd.DataFrame, title: str) -> go.Figure:
    """Refusal of every subset and coherence under every condition, with intervals. `rows` come from
    `conditions.named`."""
    if rows.empty:
        raise DialError("this run has neither the unsteered model nor a learned direction")
    subsets = list(dict.fromkeys(rows["subset"]))
    titles = ["share refused", "coherence"]
    figure = make_subplots(rows=2, subplot_titles=titles, shared_xaxes=True, vertical_spacing=0.12)
    for subset in subsets:
        part = rows[rows["subset"] == subset]
        colour = subset_colour(str(subset))
        for row, (value, stem) in enumerate(
            (("refusal_rate", "rate"), ("coherence", "coherence")), 1
        ):
            figure.add_bar(
                x=part["condition"],
                y=part[value],
                error_y=_spread(part, value, stem),
                marker_color=colour,
                name=f"{subset} (n={part['n'].iloc[0]})",
                legendgroup=subset,
                showlegend=row == 1,
                row=row,
                col=1,
            )
    figure.update_yaxes(range=[0, 1.05])
    return styled(figure, title, height=640, width=180 + 95 * rows["condition"].nunique())
