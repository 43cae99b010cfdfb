"""The verdict for the terminal: claims, intervals, p-values, reasons, and what is not shown.

Takes the verdict as summary.json has it, and prints. It computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from refusal_dial.types import printable

WIDTH = 118
STYLES = {"pass": "bold green", "fail": "bold red", "not shown": "bold yellow"}
COLUMNS = ("claim", "verdict", "estimate", "95% interval", "p corrected", "reason")


def print_verdict(verdict: Mapping[str, Any]) -> None:
    """The verdict, its claims, the controls, the rates, and what is not shown."""
    console = Console(width=None if Console().is_terminal else WIDTH, markup=False, emoji=False)
    console.print(_about(verdict["direction"]), highlight=False)
    console.print(_claims(verdict["claims"]))
    for line in controls_said(verdict["claims"]):
        console.print(f"  {line}", highlight=False)
    console.print(_rates(verdict["rates"]))
    console.print("What is not shown:", style="bold")
    for line in verdict["not_shown"]:
        console.print(f"- {printable(line)}", highlight=False)
    console.print(
        Text.assemble(
            "verdict: ",
            (verdict["status"].upper(), STYLES[verdict["status"]]),
            f": {printable(verdict['reason'])}",
        )
    )


def _about(one: Mapping[str, Any]) -> str:
    return (
        f"{printable(one['file'])}: layer {one['layer']}, {one['site']}, position {one['pos']}, "
        f"alpha ±{one['alpha']:g} ({one['alpha_relative']:.2f} of the mean norm)"
    )


def _claims(claims: list[Mapping[str, Any]]) -> Table:
    table = Table(show_lines=False, header_style="bold")
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in COLUMNS[2:5] else "left")
    for one in claims:
        status = Text(one["status"], style=STYLES[one["status"]])
        estimate = f"{number(one['estimate'])} {one['unit']}"
        p = number(one["p_corrected"], 3)
        table.add_row(one["name"], status, estimate, interval(one), p, printable(one["reason"]))
    return table


def controls_said(claims: list[Mapping[str, Any]]) -> list[str]:
    """A line a kind of control: how far it went, and what would have stood out."""
    lines = []
    for one in claims:
        for row in one["details"]:
            if "within" in row:
                lines.append(
                    f"{row['kind']} x{row['draws']}: 95% of swings within ±"
                    f"{number(row['within'])}, p = {number(row['p'], 4)}, smallest swing to "
                    f"stand out {number(row['smallest'])}"
                )
    return lines


def _rates(rows: list[Mapping[str, Any]]) -> Table:
    table = Table(title="Refusal rates, held-out prompts", title_justify="left")
    for name in ("prompts", "n", "unsteered", "+alpha", "-alpha"):
        table.add_column(name, justify="left" if name == "prompts" else "right")
    for row in rows:
        cells = [rate(row[name]) for name in ("unsteered", "up", "down")]
        table.add_row(row["subset"], str(row["n"]), *cells)
    return table


def rate(values: list[float | None]) -> str:
    """`0.36 [0.28, 0.45]`."""
    mean, low, high = map(number, values)
    return f"{mean} [{low}, {high}]"


def interval(claim: Mapping[str, Any]) -> str:
    """`[1.20, 1.40]`."""
    low, high = map(number, claim["interval"])
    return f"[{low}, {high}]"


def number(value: float | None, digits: int = 2) -> str:
    """A number as people read it; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
