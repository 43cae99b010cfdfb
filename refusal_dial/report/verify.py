"""The verdict on a direction: for the terminal, and as one HTML page that needs no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from refusal_dial.common import printable, terminal, write_whole
from refusal_dial.report.theme import template
from refusal_dial.run.folder import read_config, read_verdict, versions_used

# --------------------------------------------------------------------------------------------------
# The verdict for the terminal: claims, intervals, p-values, reasons, and what is not shown.


_WIDTH = 118

STYLES = {"pass": "bold green", "fail": "bold red", "not shown": "bold yellow"}

CLAIM_COLUMNS = ("claim", "verdict", "estimate", "95% interval", "p corrected", "reason")


def print_verification(verdict: Mapping[str, Any]) -> None:
    """The verdict, its claims, the controls, the rates, and what is not shown."""
    console = terminal(_WIDTH)
    console.print(_about(verdict["direction"]), highlight=False)
    console.print(primary_line(verdict["claims"]), highlight=False)
    console.print(_claims(verdict["claims"]))
    for line in control_lines(verdict["claims"]):
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


ANSWERS = {"pass": "yes", "fail": "no", "not shown": "not shown"}


def primary_line(claims: list[Mapping[str, Any]]) -> str:
    """`turns refusal: yes, ...`: the claim by slope in words. Empty in a run of an older version,
    which has none."""
    for one in claims:
        if one["name"] == "turns it, by slope":
            return f"turns refusal: {ANSWERS[one['status']]}, {printable(one['reason'])}"
    return ""


def _about(one: Mapping[str, Any]) -> str:
    return (
        f"{printable(one['file'])}: layer {one['layer']}, {one['site']}, position {one['pos']}, "
        f"alpha ±{one['alpha']:g} ({one['alpha_relative']:.2f} of the mean norm)"
    )


def _claims(claims: list[Mapping[str, Any]]) -> Table:
    table = Table(show_lines=False, header_style="bold")
    for name in CLAIM_COLUMNS:
        table.add_column(name, justify="right" if name in CLAIM_COLUMNS[2:5] else "left")
    for one in claims:
        status = Text(one["status"], style=STYLES[one["status"]])
        estimate = f"{format_number(one['estimate'])} {one['unit']}"
        p = format_number(one["p_corrected"], 3)
        table.add_row(
            one["name"], status, estimate, format_interval(one), p, printable(one["reason"])
        )
    return table


def control_lines(claims: list[Mapping[str, Any]]) -> list[str]:
    """A line a kind of control: how far it went, and what would have stood out."""
    lines = []
    for one in claims:
        for row in one["details"]:
            if "within" in row:
                lines.append(
                    f"{row['kind']} x{row['draws']}: 95% of swings within ±"
                    f"{format_number(row['within'])}, p = {format_number(row['p'], 4)}, smallest "
                    "swing to "
                    f"stand out {format_number(row['smallest'])}"
                )
    return lines


def _rates(rows: list[Mapping[str, Any]]) -> Table:
    table = Table(title="Refusal rates, held-out prompts", title_justify="left")
    for name in ("prompts", "n", "unsteered", "+alpha", "-alpha"):
        table.add_column(name, justify="left" if name == "prompts" else "right")
    for row in rows:
        cells = [format_rate(row[name]) for name in ("unsteered", "up", "down")]
        table.add_row(row["subset"], str(row["n"]), *cells)
    return table


def format_rate(values: list[float | None]) -> str:
    """`0.36 [0.28, 0.45]`."""
    mean, low, high = map(format_number, values)
    return f"{mean} [{low}, {high}]"


def format_interval(claim: Mapping[str, Any]) -> str:
    """`[1.20, 1.40]`."""
    low, high = map(format_number, claim["interval"])
    return f"[{low}, {high}]"


def format_number(value: float | None, digits: int = 2) -> str:
    """A number as people read it; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


# --------------------------------------------------------------------------------------------------
# The verdict as one HTML page that asks nothing of the network. Every text in it is escaped.


def verdict_page(verdict: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The page of one verdict."""
    one = verdict["direction"]
    about = (
        f"{one['file']}: layer {one['layer']}, {one['site']}, position {one['pos']}, alpha "
        f"±{one['alpha']:g} ({one['alpha_relative']:.2f} mean residual norms), SHA-256 "
        f"{one['sha256']}"
    )
    circumstances = {
        "started": config.get("started"),
        "versions": versions_used(config),
        "settings": config.get("settings"),
    }
    return template("verdict.html").render(
        verdict=verdict,
        about=about,
        primary=primary_line(verdict["claims"]),
        columns=CLAIM_COLUMNS,
        controls=control_lines(verdict["claims"]),
        command=str(config.get("command", "")),
        settings=json.dumps(circumstances, indent=2, ensure_ascii=False),
        number=format_number,
        interval=format_interval,
        rate=format_rate,
        status_class=lambda status: status.replace(" ", "-"),
    )


def write_verdict(folder: Path) -> Path:
    """The page of a finished verification, written into its run folder."""
    path = folder / "verdict.html"
    write_whole(path, verdict_page(read_verdict(folder), read_config(folder)))
    return path
