"""Tables for the terminal: what a calibration came to. Takes frames and prints."""

from __future__ import annotations

import pandas as pd
from rich.table import Table

from refusal_dial.tables import _console

NULL = {
    "null": "p-values of experiments without an effect, on the model",
    "gaussian": "p-values of experiments without an effect, on Gaussian activations",
}


def print_calibration(part: str, summary: pd.DataFrame) -> None:
    """The table of one part."""
    print_uniformity(summary, NULL[part])


def print_uniformity(summary: pd.DataFrame, title: str) -> None:
    """A line per kind of control: how often p <= 0.05, and how far from uniform."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("among", "n", "p <= 0.05", "if fair", "KS distance", "KS p", ""):
        table.add_column(name, justify="left" if name in ("among", "") else "right")
    for _, row in summary.iterrows():
        table.add_row(
            str(row["direction"]),
            str(row["n"]),
            f"{row['under']:.3f} [{row['under_lo']:.3f}, {row['under_hi']:.3f}]",
            f"{row['expected']:.3f}",
            f"{row['ks']:.3f}",
            f"{row['ks_p']:.2g}",
            "uniform" if row["uniform"] else "not uniform",
        )
    _console().print(table)
