"""Results of patching: tables for the terminal, and heatmaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.table import Table

from refusal_dial.common import DialError, one_of
from refusal_dial.report.steering import _WIDTH, _console
from refusal_dial.report.theme import LINES, escaped, read_so, styled
from refusal_dial.stats.summary import GROUP, distinct
from refusal_dial.studies.pairs import role_order
from refusal_dial.studies.patching_summary import (
    attribution_agreement,
    cell_record,
    moved,
    patching_verdict,
)

# --------------------------------------------------------------------------------------------------
# Tables of patching experiments for the terminal.


MOVED = {"denoise": "towards clean", "noise": "towards corrupted"}


def print_patching(summary: pd.DataFrame, rows: str, columns: str, top: int = 8) -> None:
    """For every way and group of pairs: the share of the gap that patching moved, rows by columns
    (unless `rows` is ""), then the cells of each site that moved most, beside their controls."""
    table = moved(summary)
    for way, subset, split in distinct(table, ["way", *GROUP]):
        group = (table["way"] == way) & (table["subset"] == subset) & (table["split"] == split)
        part = table[group]
        patches = part[part["direction"] == "patch"]
        about = f"{way}, {subset} pairs (n={_range(patches['n'])})"
        if rows:
            _print_grid(patches, rows, columns, f"% of the gap moved {MOVED[way]}: {about}")
        _print_top(part, top, f"Cells that moved most: {about}")


def print_carriers(summary: pd.DataFrame, site: str) -> None:
    """One line a group of pairs: the layers where this site carries the difference."""
    for record in patching_verdict(summary):
        if record["site"] == site:
            layers = ", ".join(f"{c['layer']} ({c['moved']:z.0%})" for c in record["carries"])
            about = f"{record['way']}, {record['subset']} pairs"
            print(f"{site} carries it at layers: {layers or 'none'} [{about}]")


def print_attribution_agreement(summary: pd.DataFrame) -> None:
    """One line a group of pairs: how far the gradient can be trusted here."""
    for record in attribution_agreement(summary):
        ranks = record["rank_correlation"].items()
        text = ", ".join(f"{site} {rho:z.2f}" for site, rho in ranks if rho is not None)
        print(
            f"attribution against {record['n_cells']} exact patches, {record['way']}, "
            f"{record['subset']} pairs: rank correlation {text or 'not defined'}"
        )
        if "worst" in record:
            worst = record["worst"]
            parts = [f", {name} {worst[name]}" for name in ("head", "neuron") if name in worst]
            where = f"{worst['site']} of layer {worst['layer']} at {worst['role']}{''.join(parts)}"
            guess = f"{worst['attribution']:z.2f} against {worst['moved']:z.2f}"
            print(f"  worst disagreement: {where}: {guess}")


def _print_grid(patches: pd.DataFrame, rows: str, columns: str, title: str) -> None:
    table = Table(header_style="bold", padding=(0, 0, 0, 1))
    names, across = _rows_in_order(patches[rows], rows), _rows_in_order(patches[columns], columns)
    width = max(len(_row_label(patches, rows, name)) for name in names)
    across = _spread(across, max(2, (_WIDTH - width - 6) // 6))
    table.add_column(f"{rows} \\ {columns}")
    for name in across:
        table.add_column(str(name), justify="right")
    values = patches.pivot_table("moved", rows, columns, sort=False)
    for name in names:
        lines = [values[other].get(name, np.nan) for other in across]
        cells = ["" if np.isnan(value) else f"{100 * value:z.0f}" for value in lines]
        table.add_row(_row_label(patches, rows, name), *cells)
    _console().print(f"\n{title}", table, sep="\n")


def _print_top(part: pd.DataFrame, top: int, title: str) -> None:
    patches = part[part["direction"] == "patch"]
    order = patches["moved"].abs().sort_values(ascending=False, kind="stable").index
    each = -(-top // patches["site"].nunique())
    found = patches.loc[order].groupby("site", sort=False).head(each)
    found = found.sort_values("site", kind="stable")
    parts = [name for name in ("head", "neuron") if found[name].notna().any()]
    table = Table(header_style="bold")
    for name in ("layer", "site", "role", *parts, "n", "moved", "same class", "random", "p"):
        table.add_column(name, justify="left" if name in ("site", "role") else "right")
    for _, row in found.iterrows():
        controls = [_mean(_beside(part, row, name)) for name in ("same_class", "random")]
        record = cell_record(row)
        table.add_row(
            str(row["layer"]),
            str(row["site"]),
            _row_label(patches, "role", row["role"]),
            *(str(record.get(name, "")) for name in parts),
            str(row["n"]),
            f"{row['moved']:z.2f} [{row['moved_lo']:z.2f}, {row['moved_hi']:z.2f}]",
            *controls,
            "" if record["p_value"] is None else f"{record['p_value']:.4f}",
        )
    _console().print(f"\n{title}", table, sep="\n")


def _beside(part: pd.DataFrame, row: pd.Series[Any], direction: str) -> pd.DataFrame:
    """The control's line at the same place."""
    found = part[part["direction"] == direction]
    for name in ("layer", "site", "role"):
        found = found[found[name] == row[name]]
    for name in ("head", "neuron"):
        found = found if pd.isna(row[name]) else found[found[name] == row[name]]
    return found


def _mean(rows: pd.DataFrame) -> str:
    return "" if rows.empty else f"{rows['moved'].iloc[0]:z.2f}"


def _row_label(frame: pd.DataFrame, axis: str, name: Any) -> str:
    """A role with its token, where all pairs share it."""
    if axis != "role":
        return str(name)
    token = str(frame.loc[frame["role"] == name, "token"].iloc[0])
    return f"{name} '{token}'" if token else str(name)


def _rows_in_order(values: pd.Series[Any], axis: str) -> list[Any]:
    found = list(dict.fromkeys(values))
    if axis == "role":
        return sorted(found, key=lambda name: ((".." in name), role_order(name.split("..")[0])))
    return found if axis == "site" else sorted(found)


def _spread(values: Sequence[Any], most: int) -> list[Any]:
    """All of them, or evenly spaced ones where there is no room."""
    if len(values) <= most:
        return list(values)
    return [values[round(i)] for i in np.linspace(0, len(values) - 1, most)]


def _range(n: pd.Series[Any]) -> str:
    return str(n.max()) if n.min() == n.max() else f"{n.min()} to {n.max()}"


# --------------------------------------------------------------------------------------------------
# Heatmaps of patching: effects and their controls side by side, on one scale.
#
# A row of panels for each way and group of pairs, a panel for each of patch, same-class control,
# random control (and attribution): layers across or down, and beside them roles with their tokens,
# heads, neurons or sites. A summary becomes a plotly figure.


PANELS = {
    "patch": "patched",
    "attribution": "gradient's estimate",
    "same_class": "control: same class",
    "random": "control: random vector",
}

PATCH_AXES = ("role", "head", "neuron", "site")

COLOUR_SCALE = "RdBu_r"
"""ColorBrewer's diverging red-blue, which every common kind of colour blindness can tell apart."""

TOWARDS = {"denoise": "clean into corrupted", "noise": "corrupted into clean"}

MOST_ROWS = 40

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
    if axis not in PATCH_AXES:
        raise one_of(axis, PATCH_AXES, "axis")
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
    if layers != list(range(layers[0], layers[0] + len(layers))):
        figure.update_xaxes(type="category")  # else a layer would be as wide as what lies between
    figure.update_yaxes(autorange="reversed", type="category")
    limit = max(1.0, float(table["moved"].abs().max()))
    figure.update_layout(
        coloraxis={
            "colorscale": COLOUR_SCALE,
            "cmid": 0,
            "cmin": -limit,
            "cmax": limit,
            "colorbar": {"title": {"text": "share of<br>the gap<br>moved"}},
        }
    )
    height = 170 + len(rows) * tall + (len(rows) - 1) * GAP
    figure.update_layout(plot_bgcolor=LINES)
    return styled(figure, read_so(title, CELLS), height=height, width=260 + 380 * len(kinds))


CELLS = (
    "White: the patch changes nothing (0). Red: it makes the run the other run (1). "
    "Blue: away from it. Grey: not patched."
)


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
        table = table[table["neuron"].isin(size.nlargest(MOST_ROWS).index)]
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
