"""Tables of patching experiments for the terminal.

Takes a summary and prints what a person wants to see first. It computes nothing but the choice of
what to show.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from refusal_dial.patching.roles import role_order
from refusal_dial.patching.summary import agreement, cell_record, moved, patching_verdict
from refusal_dial.summary import GROUP, distinct
from refusal_dial.tables import WIDTH, _console

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


def print_agreement(summary: pd.DataFrame) -> None:
    """One line a group of pairs: how far the gradient can be trusted here."""
    for record in agreement(summary):
        ranks = record["rank_correlation"].items()
        shown = ", ".join(f"{site} {rho:z.2f}" for site, rho in ranks if rho is not None)
        print(
            f"attribution against {record['n_cells']} exact patches, {record['way']}, "
            f"{record['subset']} pairs: rank correlation {shown or 'not defined'}"
        )
        if "worst" in record:
            worst = record["worst"]
            parts = [f", {name} {worst[name]}" for name in ("head", "neuron") if name in worst]
            where = f"{worst['site']} of layer {worst['layer']} at {worst['role']}{''.join(parts)}"
            guess = f"{worst['attribution']:z.2f} against {worst['moved']:z.2f}"
            print(f"  worst disagreement: {where}: {guess}")


def _print_grid(patches: pd.DataFrame, rows: str, columns: str, title: str) -> None:
    table = Table(header_style="bold", padding=(0, 0, 0, 1))
    names, across = _in_order(patches[rows], rows), _in_order(patches[columns], columns)
    width = max(len(_label(patches, rows, name)) for name in names)
    across = _spread(across, max(2, (WIDTH - width - 6) // 6))
    table.add_column(f"{rows} \\ {columns}")
    for name in across:
        table.add_column(str(name), justify="right")
    values = patches.pivot_table("moved", rows, columns, sort=False)
    for name in names:
        shown = [values[other].get(name, np.nan) for other in across]
        cells = ["" if np.isnan(value) else f"{100 * value:z.0f}" for value in shown]
        table.add_row(_label(patches, rows, name), *cells)
    _console().print(f"\n{title}", table, sep="\n")


def _print_top(part: pd.DataFrame, top: int, title: str) -> None:
    patches = part[part["direction"] == "patch"]
    order = patches["moved"].abs().sort_values(ascending=False, kind="stable").index
    each = -(-top // patches["site"].nunique())
    shown = patches.loc[order].groupby("site", sort=False).head(each)
    shown = shown.sort_values("site", kind="stable")
    parts = [name for name in ("head", "neuron") if shown[name].notna().any()]
    table = Table(header_style="bold")
    for name in ("layer", "site", "role", *parts, "n", "moved", "same class", "random", "p"):
        table.add_column(name, justify="left" if name in ("site", "role") else "right")
    for _, row in shown.iterrows():
        controls = [_mean(_beside(part, row, name)) for name in ("same_class", "random")]
        record = cell_record(row)
        table.add_row(
            str(row["layer"]),
            str(row["site"]),
            _label(patches, "role", row["role"]),
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


def _label(frame: pd.DataFrame, axis: str, name: Any) -> str:
    """A role with its token, where all pairs share it."""
    if axis != "role":
        return str(name)
    token = str(frame.loc[frame["role"] == name, "token"].iloc[0])
    return f"{name} '{token}'" if token else str(name)


def _in_order(values: pd.Series[Any], axis: str) -> list[Any]:
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
