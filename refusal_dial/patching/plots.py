"""Heatmaps of patching: effects and their controls side by side, on one scale.

A row of panels for each way and group of pairs, a panel for each of patch, same-class control,
random control (and attribution): layers across or down, and beside them roles with their tokens,
heads, neurons or sites. A summary becomes a plotly figure. No files, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_dial.patching.roles import role_order
from refusal_dial.patching.summary import moved
from refusal_dial.summary import GROUP, distinct
from refusal_dial.theme import escaped, styled
from refusal_dial.types import DialError, one_of

PANELS = {
    "patch": "patched",
    "attribution": "gradient's estimate",
    "same_class": "control: same class",
    "random": "control: random vector",
}
AXES = ("role", "head", "neuron", "site")
SCALE = "RdBu_r"
"""ColorBrewer's diverging red-blue, which every common kind of colour blindness can tell apart."""
TOWARDS = {"denoise": "clean into corrupted", "noise": "corrupted into clean"}
SHOWN = 40
GAP = 60  # pixels between rows of panels, for their titles


def patching_title(config: Mapping[str, Any], question: str) -> str:
    """Question; then model, the pairs used and those left out, and the gap, from a run's config."""
    settings = config["settings"]
    pairs = settings["pairs"]
    about = (
        f"{settings['model']['name']}, n = {pairs['used']} of {pairs['matched']} matched pairs "
        f"({pairs['excluded']} left out: scores closer than {settings['gap']:g})"
    )
    return f"{question}<br><sup>{escaped(about)}</sup>"


def axis_of(summary: pd.DataFrame) -> str:
    """What varies besides the layer: role, head, neuron or site."""
    patches = summary[summary["direction"] == "patch"]
    for axis in ("neuron", "head"):
        if patches[axis].notna().all() and len(patches):
            return axis
    return "role" if patches["role"].nunique() > patches["site"].nunique() else "site"


def heatmaps(summary: pd.DataFrame, title: str, axis: str | None = None) -> go.Figure:
    """The share of the gap moved, layer by `axis` (found from the summary if None).

    0 (white) is a patch that changes nothing and 1 (red) one that makes the run the other run, both
    ways round; blue is away from it. All panels share the scale. Of neurons the 40 that move most
    are drawn. Raises `DialError` for an unknown axis or a run without patches along it.
    """
    axis = axis_of(summary) if axis is None else axis
    if axis not in AXES:
        raise one_of(axis, AXES, "axis")
    table = _drawn(moved(summary), axis)
    rows = distinct(table, ["way", *GROUP])
    kinds = [kind for kind in PANELS if (table["direction"] == kind).any()]
    names = _in_order(table, axis)
    layers = sorted(int(layer) for layer in table["layer"].unique())
    tall = max(120, 18 * len(names))
    figure = make_subplots(
        rows=len(rows),
        cols=len(kinds),
        subplot_titles=[_panel_title(table, row, kind) for row in rows for kind in kinds],
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=GAP / (len(rows) * tall + (len(rows) - 1) * GAP),
    )
    labels = [escaped(_label(table, axis, name)) for name in names]
    for r, row in enumerate(rows, 1):
        for c, kind in enumerate(kinds, 1):
            part = table[(table[["way", *GROUP]] == list(row)).all(axis=1)]
            part = part[part["direction"] == kind]
            figure.add_trace(_heatmap(part, axis, names, labels, layers), row=r, col=c)
    figure.update_xaxes(title_text="layer", row=len(rows))
    figure.update_yaxes(autorange="reversed", type="category")
    limit = max(1.0, float(table["moved"].abs().max()))
    figure.update_layout(
        coloraxis={
            "colorscale": SCALE,
            "cmid": 0,
            "cmin": -limit,
            "cmax": limit,
            "colorbar": {"title": {"text": "share of<br>the gap<br>moved"}},
        }
    )
    height = 170 + len(rows) * tall + (len(rows) - 1) * GAP
    return styled(figure, title, height=height, width=260 + 380 * len(kinds))


def _drawn(table: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The cells that the axis tells apart."""
    if axis in ("head", "neuron"):
        table = table[table[axis].notna()]
    else:
        table = table[table["head"].isna() & table["neuron"].isna()]
    patches = table[table["direction"] == "patch"]
    if patches.empty:
        raise DialError(f"this run patched no {axis}s: there is no heatmap to draw")
    if axis == "neuron":
        size = patches.groupby("neuron")["moved"].agg(lambda share: share.abs().max())
        table = table[table["neuron"].isin(size.nlargest(SHOWN).index)]
    if axis == "site":
        return table[table["role"] == patches["role"].iloc[-1]]
    return table[table["site"] == patches["site"].iloc[0]]


def _in_order(table: pd.DataFrame, axis: str) -> list[Any]:
    found = list(dict.fromkeys(table[axis]))
    if axis == "role":
        return sorted(found, key=lambda name: (".." in name, role_order(name.split("..")[0])))
    return found if axis == "site" else sorted(found)


def _label(table: pd.DataFrame, axis: str, name: Any) -> str:
    """A role with its token, where all pairs share it."""
    if axis != "role":
        return f"{axis} {name}" if axis != "site" else str(name)
    token = table.loc[table["role"] == name, "token"].iloc[0]
    return f"{name} '{token}'" if token else str(name)


def _panel_title(table: pd.DataFrame, row: tuple[Any, ...], kind: str) -> str:
    part = table[(table[["way", *GROUP]] == list(row)).all(axis=1) & (table["direction"] == kind)]
    if part.empty:
        return ""
    low, high = part["n"].min(), part["n"].max()
    n = f"n={high}" if low == high else f"n={low} to {high}"
    return f"{PANELS[kind]}<br><sup>{row[0]} ({TOWARDS[row[0]]}), {row[1]} pairs, {n}</sup>"


def _heatmap(
    part: pd.DataFrame, axis: str, names: list[Any], labels: list[str], layers: list[int]
) -> go.Heatmap:
    """One panel; the pointer shows the effect with its interval and the number of pairs."""
    at = {(row[axis], row["layer"]): row for _, row in part.iterrows()}
    values = np.full((len(names), len(layers)), np.nan)
    hover = np.full(values.shape, "", dtype=object)
    for i, name in enumerate(names):
        for j, layer in enumerate(layers):
            row = at.get((name, layer))
            if row is not None:
                values[i, j] = row["moved"]
                p = "" if pd.isna(row["p_value"]) else f"<br>p = {row['p_value']:.4f}"
                hover[i, j] = (
                    f"layer {layer}, {labels[i]}<br>{row['moved']:z.3f} "
                    f"[{row['moved_lo']:z.3f}, {row['moved_hi']:z.3f}], n = {row['n']}{p}"
                )
    return go.Heatmap(
        z=values,
        x=list(layers),
        y=labels,
        text=hover,
        hovertemplate="%{text}<extra></extra>",
        coloraxis="coloraxis",
    )
