"""The page: everything about one or more runs in one HTML file that asks nothing of the network.

Styles, scripts and plotly are inlined once; plotly is not run before a figure comes into view. Data
is JSON without a `<`, so no text can end the script that holds it; in the markup it is escaped. The
same runs give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

from refusal_dial.report.dial import dials
from refusal_dial.report.figures import figures_of
from refusal_dial.report.reading import Reading
from refusal_dial.report.summary_tables import summary_table
from refusal_dial.report.verdicts import verdict_of
from refusal_dial.types import DialError

SCRIPTS = ("common.js", "dial.js", "dial_rows.js", "tables.js", "figures.js")


def page(readings: Sequence[Reading]) -> str:
    """The report of these runs, side by side. Raises `DialError` without a run, or for two runs of
    one name, which nobody could tell apart."""
    if not readings:
        raise DialError("a report takes one run folder or more")
    names = [one.name for one in readings]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DialError(f"two of the runs are called {twice[0]!r}: rename a folder, or give one")
    told = dials(readings)
    figures = [figure for one in readings for figure in _figures(one)]
    data = {
        "dial": told,
        "tables": [summary_table(one) for one in readings],
        "figures": figures,
    }
    experiments = dict.fromkeys(str(one.config["experiment"]) for one in readings)
    return Template(_own("page.html")).substitute(
        title=escape(", ".join(map(_titled, experiments))),
        subtitle=" <br>".join(escape(f"{_about(one)} · {one.name}") for one in readings),
        style=_own("page.css"),
        verdict="\n".join(_verdict(one, alone=len(readings) == 1) for one in readings),
        dial_hidden="" if told["runs"] else "hidden",
        made="\n".join(map(_made, readings)),
        data=_json(data),
        plotly=get_plotlyjs().replace("</script", "<\\/script") if figures else "",
        script="\n".join(map(_own, SCRIPTS)),
    )


def _titled(experiment: str) -> str:
    return experiment[:1].upper() + experiment[1:].replace("_", " ")


def _own(name: str) -> str:
    return files("refusal_dial.report").joinpath(name).read_text(encoding="utf-8")


def _json(data: Any) -> str:
    """JSON that is inert inside a script element, whatever the texts in it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _about(reading: Reading) -> str:
    settings = reading.settings
    layer = settings.get("layer")
    layers = [layer] if isinstance(layer, int) else layer
    n = (settings.get("data") or {}).get("n_prompts")
    return " · ".join(
        filter(
            None,
            [
                str(settings["model"]["name"]),
                f"layer {', '.join(map(str, layers))}" if layers else "",
                f"{n} prompts" if n else "",
            ],
        )
    )


def _figures(reading: Reading) -> list[dict[str, Any]]:
    return [
        {"name": f"{reading.name}: {name}", "figure": json.loads(figure.to_json())}
        for name, figure in figures_of(reading).items()
    ]


def _verdict(reading: Reading, alone: bool) -> str:
    first, *rest = verdict_of(reading)
    head = "" if alone else f"<h3>{escape(reading.name)}</h3>"
    more = "".join(
        f"<li><b>{escape(one.about)}</b>: {escape(one.effect)}. "
        f"<span class='muted'>{escape(_sentence(one.controls))}</span></li>"
        for one in rest
    )
    return (
        f"<article class='verdict'>{head}"
        f"<p class='lead'><b>{escape(first.about)}</b><br>{escape(_sentence(first.effect))}</p>"
        f"<p>{escape(_sentence(first.controls))}</p>"
        + (f"<ul>{more}</ul>" if more else "")
        + f"{_left_out(reading)}</article>"
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _left_out(reading: Reading) -> str:
    gone = reading.verdict.get("left_out")
    if not gone:
        return ""
    why = ", ".join(f"{n} {reason}" for reason, n in gone["reasons"].items())
    said = f"{gone['rows']} of {gone['of']} rows have no score and are left out: {why}."
    return f"<p class='warning'>{escape(said)}</p>"


def _made(reading: Reading) -> str:
    """How the run was made: command, versions, hashes and every setting."""
    settings = reading.settings
    data = settings.get("data") or {}
    facts: dict[str, Any] = {
        "started": reading.config.get("started", ""),
        "model": f"{settings['model']['name']}, revision {settings['model'].get('revision')}",
        "device": f"{settings['model'].get('device')}, {settings['model'].get('dtype')}",
        **{f"prompts, {name}": value for name, value in data.items()},
        **{f"SHA-256 of {name}": value for name, value in reading.files.items()},
        **(reading.config.get("versions") or {}),
    }
    command, every = str(reading.config.get("command", "")), json.dumps(dict(settings), indent=2)
    return (
        f"<article><h3>{escape(reading.name)}</h3>"
        f"<pre class='command' tabindex='0'>{escape(command)}</pre><dl>{_facts(facts)}</dl>"
        f"<details><summary>Every setting</summary><pre tabindex='0'>{escape(every)}</pre>"
        "</details></article>"
    )


def _facts(facts: Mapping[str, Any]) -> str:
    return "".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>"
        for name, value in facts.items()
    )
