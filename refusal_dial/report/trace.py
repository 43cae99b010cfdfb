"""The projection at every token of prompt and reply, as a figure. No files, no torch.

Draws what `generate.trace` measured. Tokens are data: every text is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_dial.common import DialError, printable
from refusal_dial.report.theme import BLACK, BLUE, LIGHT_BLUE, escaped, styled

TRACE_AXIS = "projection (mean residual norms)"

TRACE_FIELDS: Mapping[str, type] = {
    **{"panel": str, "name": str},
    **{"prompt": int, "tokens": list, "values": list},
}
"""What a trace holds: which prompt (and layer) it is of, under what, how many tokens are the
prompt's, and every token with its projection."""


def trace_lines(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The traces that a run's summary.json holds (`TRACE_FIELDS`).

    Raises `DialError` where it holds none, or they are not what a run writes."""
    lines = verdict.get("trace")
    if not isinstance(lines, list) or not lines:
        raise DialError("this run traced no reply")
    for line in lines:
        held = isinstance(line, dict) and all(
            isinstance(line.get(name), kind) for name, kind in TRACE_FIELDS.items()
        )
        if not held or not all(v is None or isinstance(v, int | float) for v in line["values"]):
            raise DialError(
                f"a trace holds {', '.join(TRACE_FIELDS)}: this one holds something else"
            )
        if len(line["tokens"]) != len(line["values"]):
            raise DialError(
                f"a trace has a number for every token, not {len(line['values'])} for "
                f"{len(line['tokens'])}"
            )
    return [dict(line) for line in lines]


def trace_figure(lines: Sequence[Mapping[str, Any]], title: str) -> go.Figure:
    """A panel for each prompt, a line for each way the model was run: the projection at every
    token, its text where one points. The prompt's tokens stand below; after the dashed line comes
    the reply, which differs from line to line. The unsteered model is black."""
    panels = list(dict.fromkeys(str(line["panel"]) for line in lines))
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        subplot_titles=[escaped(printable(one)) for one in panels],
        vertical_spacing=0.3 / max(1, len(panels)),
    )
    shown: set[str] = set()
    for row, panel in enumerate(panels, 1):
        mine = [line for line in lines if str(line["panel"]) == panel]
        for line, colour in zip(mine, _colours(len(mine)), strict=True):
            n, name = int(line["prompt"]), str(line["name"])
            texts = [escaped(repr(str(token))) for token in line["tokens"]]
            where = ["prompt" if i < n else f"reply, token {i - n + 1}" for i in range(len(texts))]
            figure.add_scatter(
                x=list(range(len(texts))),
                y=list(line["values"]),
                mode="lines+markers",
                line={"color": colour, "width": 1.5},
                marker={"size": 4},
                name=escaped(name),
                legendgroup=name,
                showlegend=name not in shown,
                text=[f"{text}<br>{place}" for text, place in zip(texts, where, strict=True)],
                hovertemplate="%{text}<br>%{y:.3f}<extra>" + escaped(name) + "</extra>",
                row=row,
                col=1,
            )
            shown.add(name)
        n = max(int(line["prompt"]) for line in mine)
        ticks = [escaped(repr(str(token))) for token in mine[0]["tokens"][:n]]
        figure.update_xaxes(
            tickvals=list(range(len(ticks))), ticktext=ticks, tickangle=-60, row=row, col=1
        )
        figure.add_vline(x=n - 0.5, line={"dash": "dash", "width": 1}, row=row, col=1)
    figure.update_yaxes(title_text=TRACE_AXIS)
    return styled(figure, title, height=180 + 330 * len(panels), width=980)


def _colours(n: int) -> list[str]:
    """Black for the first, which is the unsteered model; pale for the lowest alpha of two."""
    ways = cycle((BLUE,) if n == 2 else (LIGHT_BLUE, BLUE))
    return [BLACK, *(next(ways) for _ in range(n - 1))]
