"""Tables for the terminal: what steering did to what is said, with its controls.

Takes summaries and prints. It computes nothing but the choice of what to show.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from refusal_dial.continuation.layers import CHOOSE, REPORT, Best
from refusal_dial.continuation.summary import CONTROLS
from refusal_dial.tables import SAID

WIDTH = 126
LIKE_NOTHING = 0.05
Cell = tuple[int, float, str]  # layer, strength, subset


def print_said(summary: pd.DataFrame, openings: Mapping[str, float]) -> None:
    """A table per layer: mean score by alpha and subset with the paired difference from the
    baseline, the range of the fairest controls and the rank among them, and how unlikely the text
    became; below it the range of the other controls, and the score of the `openings` themselves."""
    whole = summary[summary["split"] == summary["split"].iloc[0]]
    learned = whole[whole["direction"] == "learned"]
    base = whole[whole["direction"] == "baseline"].set_index("subset")
    kinds = [kind for kind in CONTROLS if (whole["direction"] == kind).any()]
    ranges = {kind: _ranges(whole[whole["direction"] == kind]) for kind in kinds}
    for layer, part in learned.groupby("layer", sort=False):
        title = f"Mean score of what is said: layer {layer}, {part['site'].iloc[0]}"
        table = Table(title=title, title_justify="left", header_style="bold")
        heads = ["alpha", "openings", "score", "difference", "p paired"]
        heads += [f"{kinds[0]} x{_draws(whole, kinds[0])}", "p rank"] if kinds else []
        for name in (*heads, "nll"):
            table.add_column(name, justify="left" if name == "openings" else "right")
        for _, row in part.iterrows():
            beside = [ranges[kinds[0]].get(_cell(row), ""), _p(row["p_control"])] if kinds else []
            table.add_row(
                f"{row['strength']:g}",
                f"{row['subset']} (n={row['n']})",
                f"{row['score_mean']:.3f} [{row['score_lo']:.3f}, {row['score_hi']:.3f}]",
                f"{row['difference']:+.3f} [{row['diff_lo']:+.3f}, {row['diff_hi']:+.3f}]",
                _p(row["p_paired"]),
                *beside,
                f"{row['nll_mean']:.2f}",
            )
        _console().print(table)
        for kind in kinds[1:]:
            for _, row in part[part["strength"] != 0].iterrows():
                print(
                    f"{kind} x{_draws(whole, kind)} at {row['strength']:g}, {row['subset']}: "
                    f"{ranges[kind].get(_cell(row), '')}"
                )
    shown = ", ".join(f"{name} {row['score_mean']:.3f}" for name, row in base.iterrows())
    told = ", ".join(f"{name} {score:.3f}" for name, score in openings.items())
    print(f"the openings themselves: {told}")
    print(f"unsteered: {shown}; alpha 0 has no hooks and is the baseline")
    print(
        "p paired: sign flips of the prompts' differences from the unsteered model, not corrected"
    )
    if kinds:
        print(f"p rank: of the difference among those of {SAID[kinds[0]]}, not corrected")


def _ranges(rows: pd.DataFrame) -> dict[Cell, str]:
    """The range of the differences of a kind of control, by cell."""
    return {
        _cell(part.iloc[0]): f"[{part['difference'].min():+.3f}, {part['difference'].max():+.3f}]"
        for _, part in rows.groupby(["layer", "strength", "subset"], sort=False)
    }


def _cell(row: pd.Series[Any]) -> Cell:
    return int(row["layer"]), float(row["strength"]), str(row["subset"])


def _draws(rows: pd.DataFrame, kind: str) -> int:
    return int(rows.loc[rows["direction"] == kind, "seed"].nunique())


def _p(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.4f}"


def print_layers(layers: pd.DataFrame, groups: pd.DataFrame, best: Best) -> None:
    """Every layer on both halves, the thirds of the model, and the chosen layer in a sentence."""
    title = f"Effectiveness by layer at alpha {layers['strength'].iloc[0]:g}"
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("layer", "group", "chosen on", "reported on", "difference", "p (Holm)"):
        table.add_column(name, justify="right")
    choose, report = (layers[layers["split"] == half] for half in (CHOOSE, REPORT))
    for (_, row), chosen in zip(report.iterrows(), choose["reduction"], strict=True):
        table.add_row(
            str(row["layer"]),
            row["group"],
            f"{chosen:+.1%}",
            f"{row['reduction']:+.1%}",
            f"{row['difference']:+.3f} [{row['diff_lo']:+.3f}, {row['diff_hi']:+.3f}]",
            f"{row['p_holm']:.4f}",
        )
    _console().print(table)
    for _, row in groups.iterrows():
        print(f"{row['group']}, layers {row['first']}-{row['last']}: {row['reduction']:+.1%}")
    told = "a difference" if best.p_holm < LIKE_NOTHING else "no difference that these prompts show"
    print(
        f"best layer on one half: {best.layer} ({best.chosen_on:+.1%}); on the other half "
        f"{best.reduction:+.1%}, difference {best.difference:+.3f} "
        f"[{best.diff_lo:+.3f}, {best.diff_hi:+.3f}], p = {best.p_paired:.4f}, "
        f"{best.p_holm:.4f} after Holm's correction over layers: {told}"
    )


def _console() -> Console:
    width = None if Console().is_terminal else WIDTH
    return Console(width=width, markup=False, emoji=False)
