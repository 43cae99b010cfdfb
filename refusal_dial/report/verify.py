"""The verdict on a direction: for the terminal, and as one HTML page that needs no network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from refusal_dial.common import printable, write_whole
from refusal_dial.run.folder import read_config, read_verdict, versions_used

# --------------------------------------------------------------------------------------------------
# The verdict for the terminal: claims, intervals, p-values, reasons, and what is not shown.


_WIDTH = 118

STYLES = {"pass": "bold green", "fail": "bold red", "not shown": "bold yellow"}

CLAIM_COLUMNS = ("claim", "verdict", "estimate", "95% interval", "p corrected", "reason")


def print_verification(verdict: Mapping[str, Any]) -> None:
    """The verdict, its claims, the controls, the rates, and what is not shown."""
    console = Console(width=None if Console().is_terminal else _WIDTH, markup=False, emoji=False)
    console.print(_about(verdict["direction"]), highlight=False)
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


VERDICT_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Verdict: $status</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; }
th, td { border-bottom: 1px solid #ccc; }
td.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.pass { color: #0a6b2d; } .fail { color: #a81418; } .not-shown { color: #7a5200; }
.pass, .fail, .not-shown { font-weight: 600; white-space: nowrap; }
pre { overflow-x: auto; background: #f4f4f4; padding: .6rem; }
@media (prefers-color-scheme: dark) {
  body { background: #16181b; color: #e6e6e6; } pre { background: #24272b; }
  .pass { color: #5fd38a; } .fail { color: #ff8a8a; } .not-shown { color: #e6b84d; }
}
</style></head><body>
<h1>Verdict: <span class="$class_">$status</span></h1>
<p>$reason</p><p>$about</p>
<table><thead><tr>$head</tr></thead><tbody>$claims</tbody></table>
<h2>Controls</h2><ul>$controls</ul>
<h2>Refusal rates, held-out prompts</h2>
<table><thead><tr><th>prompts</th><th>n</th><th>unsteered</th><th>+alpha</th><th>-alpha</th></tr>
</thead><tbody>$rates</tbody></table>
<h2>What is not shown</h2><ul>$missing</ul>
<h2>How it was made</h2><pre>$command</pre>
<details><summary>Every setting, and versions</summary><pre>$settings</pre></details>
</body></html>
""")


def verdict_page(verdict: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The page of one verdict."""
    one = verdict["direction"]
    about = (
        f"{one['file']}: layer {one['layer']}, {one['site']}, position {one['pos']}, alpha "
        f"±{one['alpha']:g} ({one['alpha_relative']:.2f} of the mean norm), SHA-256 {one['sha256']}"
    )
    circumstances = {
        "started": config.get("started"),
        "versions": versions_used(config),
        "settings": config.get("settings"),
    }
    return VERDICT_PAGE.substitute(
        status=escape(verdict["status"]),
        class_=verdict["status"].replace(" ", "-"),
        reason=escape(verdict["reason"]),
        about=escape(about),
        head="".join(f"<th>{escape(name)}</th>" for name in CLAIM_COLUMNS),
        claims="".join(map(_claim, verdict["claims"])),
        controls=_items(control_lines(verdict["claims"])),
        rates="".join(map(_rate, verdict["rates"])),
        missing=_items(verdict["not_shown"]),
        command=escape(str(config.get("command", ""))),
        settings=escape(json.dumps(circumstances, indent=2, ensure_ascii=False)),
    )


def write_verdict(folder: Path) -> Path:
    """The page of a finished verification, written into its run folder."""
    path = folder / "verdict.html"
    write_whole(path, verdict_page(read_verdict(folder), read_config(folder)))
    return path


def _items(lines: Iterable[str]) -> str:
    return "".join(f"<li>{escape(line)}</li>" for line in lines)


def _claim(one: Mapping[str, Any]) -> str:
    kind = one["status"].replace(" ", "-")
    figures = (
        f"{format_number(one['estimate'])} {one['unit']}",
        format_interval(one),
        format_number(one["p_corrected"], 3),
    )
    return (
        f"<tr><td><b>{escape(one['name'])}</b><br>{escape(one['says'])}</td>"
        f"<td class='{kind}'>{escape(one['status'])}</td>"
        + "".join(f"<td class='n'>{escape(text)}</td>" for text in figures)
        + f"<td>{escape(one['reason'])}</td></tr>"
    )


def _rate(row: Mapping[str, Any]) -> str:
    cells = [str(row["n"]), *(format_rate(row[name]) for name in ("unsteered", "up", "down"))]
    shown = "".join(f"<td class='n'>{escape(text)}</td>" for text in cells)
    return f"<tr><td>{escape(row['subset'])}</td>{shown}</tr>"
