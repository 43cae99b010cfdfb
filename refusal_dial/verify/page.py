"""The verdict as one HTML page that asks nothing of the network. Every text in it is escaped.

Takes the verdict as summary.json has it and the run's config. It computes nothing: the same run
gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from string import Template
from typing import Any

from refusal_dial.verify.shown import COLUMNS, controls_said, interval, number, rate

PAGE = Template("""<!doctype html>
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


def page(verdict: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The page of one verdict."""
    one = verdict["direction"]
    about = (
        f"{one['file']}: layer {one['layer']}, {one['site']}, position {one['pos']}, alpha "
        f"±{one['alpha']:g} ({one['alpha_relative']:.2f} of the mean norm), SHA-256 {one['sha256']}"
    )
    circumstances = {name: config.get(name) for name in ("started", "versions", "settings")}
    return PAGE.substitute(
        status=escape(verdict["status"]),
        class_=verdict["status"].replace(" ", "-"),
        reason=escape(verdict["reason"]),
        about=escape(about),
        head="".join(f"<th>{escape(name)}</th>" for name in COLUMNS),
        claims="".join(map(_claim, verdict["claims"])),
        controls=_items(controls_said(verdict["claims"])),
        rates="".join(map(_rate, verdict["rates"])),
        missing=_items(verdict["not_shown"]),
        command=escape(str(config.get("command", ""))),
        settings=escape(json.dumps(circumstances, indent=2, ensure_ascii=False)),
    )


def _items(lines: Iterable[str]) -> str:
    return "".join(f"<li>{escape(line)}</li>" for line in lines)


def _claim(one: Mapping[str, Any]) -> str:
    kind = one["status"].replace(" ", "-")
    figures = (
        f"{number(one['estimate'])} {one['unit']}",
        interval(one),
        number(one["p_corrected"], 3),
    )
    return (
        f"<tr><td><b>{escape(one['name'])}</b><br>{escape(one['says'])}</td>"
        f"<td class='{kind}'>{escape(one['status'])}</td>"
        + "".join(f"<td class='n'>{escape(text)}</td>" for text in figures)
        + f"<td>{escape(one['reason'])}</td></tr>"
    )


def _rate(row: Mapping[str, Any]) -> str:
    cells = [str(row["n"]), *(rate(row[name]) for name in ("unsteered", "up", "down"))]
    shown = "".join(f"<td class='n'>{escape(text)}</td>" for text in cells)
    return f"<tr><td>{escape(row['subset'])}</td>{shown}</tr>"
