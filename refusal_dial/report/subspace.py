"""Subspaces beside one direction at equal damage, as a table. No files, no torch."""

from __future__ import annotations

import pandas as pd
from rich.table import Table

from refusal_dial.common import terminal

_BROAD = 130


def print_subspaces(summary: pd.DataFrame) -> None:
    """Every way at every k: HARMFUL's score and share refused, EDGE's and BENIGN's, the damage, and
    what k over 1 gains over one direction pushed to the same damage."""
    by = {str(name): part.reset_index(drop=True) for name, part in summary.groupby("subset")}
    table = Table(
        title="Removed from every block, on prompts that nothing was learned from",
        title_justify="left",
        header_style="bold",
        caption="gain: how much lower HARMFUL's score is than under the best one direction, pushed "
        "beyond 0, that does no more damage; more dimensions pay where the interval is above 0",
        caption_justify="left",
    )
    for name in ("way", "k", "push", "HARMFUL\nscore", *(f"{subset}\nrefused" for subset in by)):
        table.add_column(name, justify="left" if name == "way" else "right")
    table.add_column("KL, BENIGN\n(nats)", justify="right")
    table.add_column("gain at\nequal damage", justify="right")
    for i, row in enumerate(by["HARMFUL"].to_dict("records")):
        kind = str(row["direction"])
        name = kind if pd.isna(row["seed"]) else f"{kind} {int(row['seed'])}"
        gain = ""
        if pd.notna(row["gain"]):
            gain = f"{row['gain']:+.2f} [{row['gain_lo']:+.2f}, {row['gain_hi']:+.2f}]"
        table.add_row(
            name,
            f"{row['k']:g}",
            f"{row['push']:g}",
            f"{row['score_mean']:+.2f}",
            *(f"{part['refusal_rate'][i]:.2f}" for part in by.values()),
            f"{row['kl']:.4f}",
            gain,
        )
    terminal(_BROAD).print(table)
