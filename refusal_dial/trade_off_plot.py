"""The trade-off as a figure: gain against cost along alpha, a panel per layer.

Draws what `trade_off` computed. No files, no torch, no statistics of its own.
"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_dial.theme import colour_of, styled
from refusal_dial.types import DialError

NAMES = {
    "learned": "always",
    "conditional": "behind the detector",
    "random_detector": "behind random detectors (mean)",
}


def trade_off_curves(table: pd.DataFrame, title: str, wanted: str, spared: str) -> go.Figure:
    """Up is wanted, right is not. Each point is an alpha; bars are 95% intervals over prompts.

    Raises `DialError` for a table without cells that these names know.
    """
    table = table[table["direction"].isin(NAMES)]
    if table.empty:
        raise DialError(f"no cells to draw: expected directions {', '.join(NAMES)}")
    layers = list(table["layer"].unique())
    figure = make_subplots(cols=len(layers), subplot_titles=[f"layer {n}" for n in layers])
    for c, layer in enumerate(layers, 1):
        part = table[table["layer"] == layer]
        for name in [name for name in NAMES if (part["direction"] == name).any()]:
            cells = part[part["direction"] == name]
            mean = cells.groupby("alpha")[["gain", "cost"]].mean().reset_index()
            bars = {}
            if name != "random_detector":
                ends = cells.sort_values("alpha")
                for axis, value in (("error_y", "gain"), ("error_x", "cost")):
                    bars[axis] = {
                        "array": ends[f"{value}_hi"] - ends[value],
                        "arrayminus": ends[value] - ends[f"{value}_lo"],
                        "thickness": 1,
                    }
            figure.add_scatter(
                x=mean["cost"],
                y=mean["gain"],
                mode="lines+markers",
                name=NAMES[name],
                legendgroup=name,
                showlegend=c == 1,
                line={"color": colour_of(name)},
                text=[f"alpha {alpha:g}" for alpha in mean["alpha"]],
                hovertemplate="%{text}<br>cost %{x:.2f}, gain %{y:.2f}<extra></extra>",
                row=1,
                col=c,
                **bars,
            )
    figure.update_xaxes(title_text=f"rise of the share refused, {spared}")
    figure.update_yaxes(title_text=f"rise of the mean score, {wanted}", col=1)
    return styled(figure, title, height=480, width=140 + 420 * len(layers))
