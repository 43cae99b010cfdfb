"""What a selection tried, kept and dropped, and why, for the terminal.

Takes frames and prints. It computes nothing but the choice of what to show.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.table import Table

from refusal_dial.common import terminal
from refusal_dial.studies.selection import MEASURES, dropped

MOST_KEPT = 8

_WIDTH = 118


def print_selection(ranked: pd.DataFrame, rule: str) -> None:
    """How many candidates were dropped for which reason, and the best of those that were kept."""
    console = terminal(_WIDTH)
    kept = ranked[ranked["dropped"] == ""]
    positions = ", ".join(str(pos) for pos in sorted(ranked["pos"].unique()))
    console.print(
        f"tried {len(ranked)} candidates: positions {positions}, layers "
        f"{ranked['layer'].min()} to {ranked['layer'].max()}; kept {len(kept)} by rule {rule}",
        highlight=False,
    )
    for reason, n in dropped(ranked).items():
        console.print(f"  dropped {n}: {reason}", highlight=False)
    table = Table(title="Best of the kept, on validation prompts", title_justify="left")
    for name in ("", "pos", "layer", "bypass", "induce", "KL"):
        table.add_column(name, justify="right")
    for i, row in enumerate(kept.head(MOST_KEPT).to_dict("records")):
        figures = (f"{row[name]:.3f}" for name in MEASURES)
        table.add_row("chosen" if i == 0 else "", f"{row['pos']}", f"{row['layer']}", *figures)
    console.print(table)


def print_report(report: Mapping[str, Any]) -> None:
    """What the chosen direction does to test prompts, which it was not chosen on."""
    console = terminal(_WIDTH)
    lines = {
        "bypass": "HARMFUL, ablated: mean score",
        "induce": "harmless, added: mean score",
        "kl": "harmless, ablated: mean KL",
    }
    console.print("On test prompts, which no choice was made on:")
    for measure, what in lines.items():
        row = report["test"][measure]
        low, high = row["interval"]
        console.print(
            f"  {what} {row['base']:.2f} -> {row['changed']:.2f}, change {row['change']:+.2f} "
            f"[{low:.2f}, {high:.2f}], n={row['n']}",
            highlight=False,
        )
