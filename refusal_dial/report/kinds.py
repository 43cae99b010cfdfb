"""Kinds of refusal: what they come to in sentences, as tables, and as heatmaps. No files, no torch.

Shows what the summary holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.table import Table

from refusal_dial.cli.flags import (
    ALL_HARMFUL,
    HARMFULNESS,
    KIND_CONTROLS,
    KIND_MARK,
    REFUSED_EDGE,
)
from refusal_dial.common import terminal
from refusal_dial.report.theme import BLUE, GREY, error_bars, escaped, styled

_ACROSS = 190


def is_control(name: str) -> bool:
    """Permuted labels, noise, or a random direction."""
    return name.startswith(KIND_CONTROLS)


def kind_lines(summary: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(about, what came out, what the controls did): whether kinds are one direction, whether
    harmfulness is another, what removing a kind leaves of the others, and whether all trade HARMFUL
    against EDGE alike."""
    cosines, scored, steered = (_of(summary, name) for name in ("cosine", "scored", "steered"))
    found = []
    # 1. Kinds among themselves: cosines, and what is left of one without another.
    pairs = cosines[_kinds(cosines) & (cosines["kind"] < cosines["other"])]
    against = cosines[cosines["kind"].map(is_control) & ~cosines["other"].map(is_control)]
    if len(pairs):
        effect = (
            f"cosines {_span(pairs['value'])} of halves that share no prompt (halves of one kind "
            f"reach {_span(pairs['ceiling'])})"
        )
        none = ((against["lo"] <= 0) & (against["hi"] >= 0)).mean()
        controls = (
            f"permuted labels and noise have {_span(against['value'])} with any direction, and "
            f"{none:.0%} of their intervals hold 0"
        )
        found.append((f"{pairs['kind'].nunique() + 1} kinds of refusal", effect, controls))
    for lines, what in (
        (scored, "of how much more another kind is refused than BENIGN prompts"),
        (steered, "of what steering along another does"),
    ):
        among = lines[_kinds(lines) & (lines["kind"] != lines["other"])]
        lines = lines[lines["other"].str.contains(KIND_MARK, regex=False)]
        if among["value"].notna().any():
            found.append(
                (
                    "one kind removed",
                    f"leaves {_span(among['value'])} {what}",
                    ", ".join(
                        f"{name} {_span(lines.loc[lines['kind'].str.startswith(name), 'value'])}"
                        for name in KIND_CONTROLS
                    ),
                )
            )
    # 2. Harmfulness against refusal.
    apart = _line(summary, "cosine", HARMFULNESS, REFUSED_EDGE)
    if pd.notna(apart["value"]):
        left = _line(summary, "scored", HARMFULNESS, ALL_HARMFUL)
        found.append(
            (
                "harmfulness, read before the template",
                f"has a cosine of {_text(apart)} with refusal of EDGE (ceiling "
                f"{apart['ceiling']:.2f}); without it {_text(left) or 'an unknown share'} of "
                "HARMFUL's refusal is left",
                "without a random direction "
                + _span(scored.loc[scored["kind"].str.startswith("random"), "value"]),
            )
        )
    # 3. The shared knob.
    knob = _of(summary, "knob")
    known = knob[knob["value"].notna() & ~knob["kind"].map(is_control)]
    if len(known):
        alone = knob[knob["kind"].str.startswith("random")]
        found.append(
            (
                "at an equal shift of HARMFUL's score",
                f"EDGE's is {_span(known['value'])} log-odds from that under all of HARMFUL, which "
                f"moves it by {known['whole'].iloc[0]:.2f}",
                f"random directions reach {_span(alone['reach'])} of HARMFUL's range, these "
                f"{_span(known['reach'])}",
            )
        )
    return found


def _kinds(lines: pd.DataFrame) -> pd.Series[bool]:
    """Both are categories."""
    one, other = (lines[name].str.contains(KIND_MARK, regex=False) for name in KEYS)
    return one & other


KEYS = ("kind", "other")


def _of(summary: pd.DataFrame, measure: str) -> pd.DataFrame:
    return summary[summary["measure"] == measure]


def _span(values: pd.Series[Any]) -> str:
    known = values.dropna()
    return f"{known.min():.2f} to {known.max():.2f}" if len(known) else "nothing"


def print_kinds(summary: pd.DataFrame) -> None:
    """The sentences, a line for every kind, and three matrices: cosines, what removing the kind of
    a row leaves of refusing the prompts of a column's kind, and of steering along it."""
    console = terminal(_ACROSS)
    for about, effect, controls in kind_lines(summary):
        console.print(f"{about}: {effect}; {controls}.", highlight=False)
    names = list(dict.fromkeys([*_of(summary, "cosine")["kind"], *_of(summary, "knob")["kind"]]))
    table = Table(
        title="Every kind beside all of HARMFUL",
        title_justify="left",
        header_style="bold",
        caption="halves: two directions of one kind, from halves of its prompts; knob: EDGE's "
        "score minus that under HARMFUL, at the same shift of HARMFUL's score (log-odds); reach: "
        "how much of that shift's range the kind has",
        caption_justify="left",
    )
    heads: tuple[str, ...] = ("n", "halves", "cosine with HARMFUL", "ceiling", "smallest\nangle")
    heads += ("own refusal left\nwithout it", "own steering left\nwithout it", "knob", "reach")
    table.add_column("kind")
    for name in heads:
        table.add_column(name, justify="right")
    for name in names:
        with_all = _line(summary, "cosine", name, ALL_HARMFUL)
        angle = _line(summary, "angle 1", name, ALL_HARMFUL)["value"]
        knob = _line(summary, "knob", name, ALL_HARMFUL)
        table.add_row(
            name,
            _as(with_all["n"], "{:.0f}"),
            _text(_line(summary, "cosine", name, name)),
            "" if name == ALL_HARMFUL else _text(with_all),
            "" if name == ALL_HARMFUL else _as(with_all["ceiling"], "{:.2f}"),
            _as(angle, "{:.0f}°"),
            *(_text(_line(summary, measure, name, name)) for measure in ("scored", "steered")),
            _text(knob),
            _as(knob["reach"], "{:.2f}"),
        )
    console.print(table)
    for measure, title in (
        ("cosine", "Cosines of halves that share no prompt"),
        ("scored", "Left of refusing the column's prompts, with the row removed"),
        ("steered", "Left of steering along the column, with the row removed"),
    ):
        console.print(_matrix(_of(summary, measure), title))


def _line(summary: pd.DataFrame, measure: str, kind: str, other: str) -> pd.Series[Any]:
    part = _of(summary, measure)
    part = part[(part["kind"] == kind) & (part["other"] == other)]
    return part.iloc[0] if len(part) else pd.Series(dtype=float).reindex(summary.columns)


def _text(line: pd.Series[Any]) -> str:
    if pd.isna(line["value"]):
        return ""
    return f"{line['value']:.2f} [{line['lo']:.2f}, {line['hi']:.2f}]"


def _as(value: Any, how: str) -> str:
    return "" if pd.isna(value) else how.format(value)


def _matrix(lines: pd.DataFrame, title: str) -> Table:
    """A row a kind, a column another, numbered as the columns are."""
    others = list(dict.fromkeys(lines["other"]))
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("")
    for i, _ in enumerate(others, 1):
        table.add_column(str(i), justify="right")
    for kind, part in lines.groupby("kind", sort=False):
        number = f"{others.index(kind) + 1} " if kind in others else ""
        values = part.set_index("other")["value"].reindex(others)
        table.add_row(f"{number}{kind}", *("" if pd.isna(v) else f"{v:.2f}" for v in values))
    return table


# --------------------------------------------------------------------------------------------------
# The same as a figure.


PANELS_OF_KINDS = {
    "cosine": "cosine of halves that share no prompt",
    "scored": "left of refusing the column's prompts, row removed",
    "steered": "left of steering along the column, row removed",
}


def kinds_figure(summary: pd.DataFrame, title: str) -> go.Figure:
    """Three heatmaps, of cosines and of what removing the row's direction leaves of the column's;
    and EDGE's score at an equal shift of HARMFUL's, with its interval, controls grey."""
    panels = [name for name in PANELS_OF_KINDS if (summary["measure"] == name).any()]
    figure = make_subplots(
        rows=len(panels) + 1,
        cols=1,
        subplot_titles=[*(PANELS_OF_KINDS[name] for name in panels), "the shared knob"],
        vertical_spacing=0.09,
    )
    for row, measure in enumerate(panels, 1):
        lines = _of(summary, measure)
        kinds, others = (list(dict.fromkeys(lines[name])) for name in ("kind", "other"))
        wide = lines.assign(text=[_hover(line) for line in lines.to_dict("records")])
        z, text = (
            wide.pivot(index="kind", columns="other", values=name).reindex(kinds)[others]
            for name in ("value", "text")
        )
        figure.add_heatmap(
            z=z.to_numpy(),
            x=_names(others),
            y=_names(kinds),
            text=text.to_numpy(),
            hovertemplate="%{y}, %{x}<br>%{text}<extra></extra>",
            coloraxis="coloraxis",
            row=row,
            col=1,
        )
        figure.update_yaxes(autorange="reversed", type="category", row=row, col=1)
        figure.update_xaxes(tickangle=-40, type="category", row=row, col=1)
    knob = _of(summary, "knob")
    knob = knob[knob["value"].notna()]
    figure.add_scatter(
        x=knob["value"],
        y=_names(knob["kind"]),
        error_x=error_bars(knob["value"], knob["lo"], knob["hi"]),
        mode="markers",
        marker={"color": [GREY if is_control(name) else BLUE for name in knob["kind"]]},
        text=[f"reaches {reach:.0%} of HARMFUL's range" for reach in knob["reach"]],
        hovertemplate="%{y}: %{x:.2f}<br>%{text}<extra></extra>",
        showlegend=False,
        row=len(panels) + 1,
        col=1,
    )
    figure.add_vline(x=0, line={"dash": "dot", "width": 1}, row=len(panels) + 1, col=1)
    figure.update_xaxes(
        title_text="EDGE's score minus that under HARMFUL, at its shift (log-odds)",
        row=len(panels) + 1,
        col=1,
    )
    figure.update_yaxes(autorange="reversed", type="category", row=len(panels) + 1, col=1)
    figure.update_layout(
        coloraxis={"colorscale": "RdBu_r", "cmid": 0, "cmin": -1, "cmax": 1},
    )
    tall = 22 * int(sum(_of(summary, name)["kind"].nunique() for name in (*panels, "knob")))
    return styled(figure, title, height=320 + 150 * len(panels) + tall, width=900)


def _names(kinds: Iterable[Any]) -> list[str]:
    return [escaped(str(kind)) for kind in kinds]


def _hover(line: dict[Any, Any]) -> str:
    ends = "" if pd.isna(line["lo"]) else f" [{line['lo']:.2f}, {line['hi']:.2f}]"
    text = "unknown" if pd.isna(line["value"]) else f"{line['value']:.2f}{ends}"
    top = "" if pd.isna(line["ceiling"]) else f"<br>halves of one kind: {line['ceiling']:.2f}"
    return f"{text}{top}<br>n = {int(np.nan_to_num(line['n']))}"
