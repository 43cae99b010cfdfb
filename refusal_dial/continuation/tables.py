"""Tables for the terminal: what steering did to what is said, with its controls.

Takes summaries and prints. It computes nothing but the choice of what to show.
"""

from __future__ import annotations

import pandas as pd
from rich.console import Console
from rich.table import Table

from refusal_dial.continuation.layers import CHOOSE, REPORT, Best
from refusal_dial.continuation.summary import CONTROLS

WIDTH = 118
LIKE_NOTHING = 0.05


def print_said(summary: pd.DataFrame) -> None:
    """A table per layer: mean score by alpha and subset with the paired difference from the
    baseline, the range of the controls, and how unlikely the text became."""
    whole = summary[summary["split"] == summary["split"].iloc[0]]
    learned = whole[whole["direction"] == "learned"]
    base = whole[whole["direction"] == "baseline"].set_index("subset")
    for layer, part in learned.groupby("layer", sort=False):
        title = f"Mean score of what is said: layer {layer}, {part['site'].iloc[0]}"
        table = Table(title=title, title_justify="left", header_style="bold")
        for name in ("alpha", "openings", "score", "difference", "controls", "p", "nll"):
            table.add_column(name, justify="left" if name == "openings" else "right")
        for _, row in part.iterrows():
            same = whole[(whole["layer"] == layer) & (whole["strength"] == row["strength"])]
            same = same[(same["subset"] == row["subset"]) & same["direction"].isin(CONTROLS)]
            far = same["difference"]
            band = f"[{far.min():+.3f}, {far.max():+.3f}] x{len(far)}" if len(far) else ""
            table.add_row(
                f"{row['strength']:g}",
                f"{row['subset']} (n={row['n']})",
                f"{row['score_mean']:.3f} [{row['score_lo']:.3f}, {row['score_hi']:.3f}]",
                f"{row['difference']:+.3f} [{row['diff_lo']:+.3f}, {row['diff_hi']:+.3f}]",
                band,
                f"{row['p_paired']:.4f}",
                f"{row['nll_mean']:.2f}",
            )
        _console().print(table)
    shown = ", ".join(f"{name} {row['score_mean']:.3f}" for name, row in base.iterrows())
    print(f"unsteered: {shown}; alpha 0 has no hooks and is the baseline")


def print_layers(layers: pd.DataFrame, groups: pd.DataFrame, best: Best) -> None:
    """Every layer on both halves, the thirds of the model, and the chosen layer in a sentence."""
    table = Table(title="Effectiveness by layer", title_justify="left", header_style="bold")
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
