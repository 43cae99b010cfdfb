"""What the dial costs beside what it does: a summary of capability as tables and one figure.

Shows what the summary holds. No files, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.table import Table

from refusal_dial.common import UNIT_NAMES, DialError, terminal
from refusal_dial.report.theme import BLUE, GREY, error_bars, escaped, styled
from refusal_dial.stats.summary import CEILING, FLOOR
from refusal_dial.studies.capability import KL, LOSS, REFUSED, SCORE

CAPABILITY_TABLE = (
    *("direction", "seed", "layer", "alpha", "strength", "measure", "prompts", "n"),
    *("value", "lo", "hi", "difference", "diff_lo", "diff_hi"),
)

NATS = {LOSS: "loss on plain text (nats a token)", KL: "KL of harmless replies (nats a token)"}

LINES_OF_TASKS = (("solid", "circle"), ("dash", "square"), ("dot", "diamond"), ("dashdot", "x"))
"""All are the learned direction's, and have its colour."""

_WIDTH = 136


def print_capability(summary: pd.DataFrame, unit: str, chance: Mapping[str, float]) -> None:
    """A table a layer: by strength the share refused and every measure of capability, each with its
    paired difference from the unsteered model and its interval; then, in words, which differences
    leave out 0, the range that random directions give, and which tasks the unsteered model cannot
    do better than by `chance`. Where no share refused of a subset is over 0.02 or under 0.98, its
    mean score stands in its place."""
    console = terminal(_WIDTH)
    learned = summary[summary["direction"] == "learned"]
    random = summary[summary["direction"] == "random"]
    names = list(dict.fromkeys(zip(summary["measure"], summary["prompts"], strict=True)))
    shares = summary[summary["measure"] == REFUSED].groupby("prompts")["value"]
    still = [name for name, one in shares if (one <= FLOOR).all() or (one >= CEILING).all()]
    hidden = {(REFUSED if prompts in still else SCORE, prompts) for _, prompts in names}
    names = [one for one in names if one not in hidden]
    for layer, part in learned.groupby("layer", sort=False):
        title = f"What the dial costs, layer {layer} (alpha in {UNIT_NAMES[unit]})"
        table = Table(title=title, title_justify="left", header_style="bold")
        table.add_column("alpha", justify="right")
        for name, prompts in names:
            n = part[(part["measure"] == name) & (part["prompts"] == prompts)]["n"].iloc[0]
            table.add_column(f"{_called(name, prompts)}\n(n={n})", justify="right")
        for strength, row in part.sort_values("strength").groupby("strength"):
            by = row.set_index(["measure", "prompts"])
            cells = [_cell(by.loc[one], one[0], strength) for one in names]
            table.add_row(f"{strength:g}", *cells)
        console.print(table)
        for line in _sentences(part, random[random["layer"] == layer]):
            print(line)
    base = summary[summary["direction"] == "baseline"]
    for name, share in chance.items():
        own = base[base["measure"] == name].iloc[0]
        if not float(own["lo"]) > share:
            print(
                f"{name}: unsteered {own['value']:.2f} is not shown to be above chance "
                f"({share:.2f}), so steering could not be shown to cost any of it"
            )


def _called(name: str, prompts: str) -> str:
    if name in (REFUSED, SCORE):
        return f"{prompts}\n{name}"
    return {LOSS: "text\nloss", KL: "reply\nKL"}.get(name, f"{name}\nright")


def _cell(row: pd.Series[Any], name: str, strength: object) -> str:
    digits = 3 if name in NATS else 2
    value = f"{row['value']:.{digits}f}"
    if not strength or name == KL:
        return f"{value}\n[{row['lo']:.2f}, {row['hi']:.2f}]"
    lo, hi = row["diff_lo"], row["diff_hi"]
    return f"{value}\n{row['difference']:+.{digits}f}\n[{lo:+.2f}, {hi:+.2f}]"


def _sentences(part: pd.DataFrame, random: pd.DataFrame) -> list[str]:
    """For each step of the dial: what it costs by an interval that leaves out 0, else that nothing
    was shown to change; and what random directions as long do."""
    lines = []
    costs = part[~part["measure"].isin([REFUSED, SCORE, KL]) & (part["strength"] != 0)]
    for strength, rows in costs.groupby("strength"):
        worse = rows["difference"].where(rows["measure"] == LOSS, -rows["difference"]) > 0
        sure = (rows["diff_lo"] > 0) | (rows["diff_hi"] < 0)
        found = [
            f"{row['measure']} {row['difference']:+.3f} [{row['diff_lo']:+.3f}, "
            f"{row['diff_hi']:+.3f}]"
            for _, row in rows[worse & sure].iterrows()
        ]
        same = random[random["strength"] == strength]
        spans = [
            f"{name} {far['difference'].min():+.3f} to {far['difference'].max():+.3f}"
            for name, far in same[same["measure"].isin(rows["measure"])].groupby(
                "measure", sort=False
            )
        ]
        verdict = "; ".join(found) or "no loss shown: every interval holds 0 or a gain"
        beside = f" (random directions: {', '.join(spans)})" if spans else ""
        moved = part[(part["measure"] == SCORE) & (part["strength"] == strength)]
        dial = ", ".join(
            f"{row['prompts']} {row['difference']:+.2f} [{row['diff_lo']:+.2f}, "
            f"{row['diff_hi']:+.2f}]"
            for _, row in moved.iterrows()
        )
        lines.append(f"at {strength:g}: refusal score {dial}; cost: {verdict}{beside}")
    return lines


def capability_figure(summary: pd.DataFrame, model: str) -> go.Figure:
    """Capability against refusal along the dial, each point a step with its strength: task
    accuracy, loss on plain text, and drift of harmless replies, with intervals; random directions
    are grey crosses. Right is more refusal: the mean score of EDGE prompts (of the first subset
    where a run has none).

    The lowest layer of the run is drawn. Raises `DialError` for a run without refusal."""
    learned = summary[summary["direction"] == "learned"]
    if learned.empty or not (summary["measure"] == SCORE).any():
        raise DialError("this figure needs a learned direction and the refusal score of prompts")
    layer = learned["layer"].min()
    scored = summary[summary["measure"] == SCORE]
    subset = "EDGE" if (scored["prompts"] == "EDGE").any() else str(scored["prompts"].iloc[0])
    known = (REFUSED, SCORE, LOSS, KL)
    tasks = [name for name in dict.fromkeys(summary["measure"]) if name not in known]
    titles = ["tasks: share right", *NATS.values()]
    figure = make_subplots(rows=1, cols=3, subplot_titles=titles, horizontal_spacing=0.08)
    panels = [(name, LINES_OF_TASKS[i % len(LINES_OF_TASKS)], 1) for i, name in enumerate(tasks)]
    panels += [(LOSS, LINES_OF_TASKS[0], 2), (KL, LINES_OF_TASKS[0], 3)]
    key = ["direction", "seed", "strength"]
    for kind in ("random", "learned"):
        mine = summary[(summary["direction"] == kind) & (summary["layer"] == layer)]
        at = mine[(mine["measure"] == SCORE) & (mine["prompts"] == subset)]
        at = at[[*key, "value", "lo", "hi"]].rename(columns=lambda c: c if c in key else f"x_{c}")
        for name, (dash, symbol), col in panels:
            rows = mine[mine["measure"] == name].merge(at, on=key).sort_values("strength")
            if kind == "random":
                figure.add_scatter(
                    x=rows["x_value"],
                    y=rows["value"],
                    mode="markers",
                    marker={"color": GREY, "symbol": "x", "size": 5},
                    name="random directions",
                    legendgroup="random",
                    showlegend=bool(len(rows)) and name == panels[0][0],
                    row=1,
                    col=col,
                )
                continue
            figure.add_scatter(
                x=rows["x_value"],
                y=rows["value"],
                error_x=_spread(rows, "x_"),
                error_y=_spread(rows, ""),
                mode="lines+markers+text" if name in NATS else "lines+markers",
                text=[f"{s:+g}" if s else "0" for s in rows["strength"]],
                textposition="top center",
                textfont={"size": 9},
                line={"color": BLUE, "width": 1, "dash": dash},
                marker={"symbol": symbol},
                name=escaped(f"{name} (n={rows['n'].iloc[0]})"),
                row=1,
                col=col,
            )
    figure.update_xaxes(title_text=f"refusal score of {subset} (log-odds)")
    figure.update_yaxes(range=[-0.03, 1.03], col=1)
    title = f"What the dial costs beside what it does<br><sup>{escaped(model)}, layer {layer}</sup>"
    return styled(figure, title, height=460, width=1100)


def _spread(rows: pd.DataFrame, stem: str) -> dict[str, object]:
    value, lo, hi = (rows[f"{stem}{name}"] for name in ("value", "lo", "hi"))
    return {**error_bars(value, lo, hi), "thickness": 0.8}
