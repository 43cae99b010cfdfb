"""Steering at every position beside the last one, as a table and as a figure. No files, no torch.

Shows what the summary holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.table import Table

from refusal_dial.common import UNIT_NAMES, terminal
from refusal_dial.report.theme import SCORE_AXIS, add_band, add_line, colour_of, styled
from refusal_dial.stats.summary import CEILING, FLOOR

_LINE = 150

_SUBSETS = ("HARMFUL", "EDGE", "BENIGN")


def print_positions(summary: pd.DataFrame) -> None:
    """At every position: what share of each subset is refused with the direction of the last one
    added there, how much that is more than at the last one (with its interval, and a star where
    the score differs after Holm's correction), and the KL of replies. Where no rate of a subset is
    over 0.02 or under 0.98, the shift of its mean score stands in their place."""
    scored, kept = (summary[summary["measure"] == name] for name in ("score", "kl"))
    have = [name for name in _SUBSETS if (scored["subset"] == name).any()]
    base = scored[scored["direction"] == "baseline"].set_index("subset")
    still = {name for name in have if _at_limit(scored[scored["subset"] == name])}
    about = [
        f"{name} {base['refusal_rate'][name]:.2f} (mean score {base['score_mean'][name]:+.2f})"
        for name in have
    ]
    print("unsteered, refused: " + ", ".join(about))
    console = terminal(_LINE)
    for strength, part in scored[scored["direction"] == "learned"].groupby("strength"):
        table = Table(
            title=f"The direction of the last position at alpha {strength:g}, position by position",
            title_justify="left",
            header_style="bold",
            caption="* the score differs from that at the last position (p_holm <= 0.05)",
            caption_justify="left",
        )
        table.add_column("position")
        for name in have:
            what = "SHIFT of\nthe score" if name in still else "refused"
            table.add_column(f"{name}\n{what}", justify="right")
            table.add_column("more than at\nthe last", justify="right", no_wrap=True)
        table.add_column("KL a token,\nBENIGN replies", justify="right")
        costs = kept[(kept["direction"] == "learned") & (kept["strength"] == strength)]
        for role in dict.fromkeys(part["role"]):
            cells: list[str] = [str(role)]
            for name in have:
                row = part[(part["role"] == role) & (part["subset"] == name)].iloc[0]
                value = f"{row['shift']:+.2f}" if name in still else f"{row['refusal_rate']:.2f}"
                cells += [value, _more(row, name in still)]
            cost = costs[costs["role"] == role]["score_mean"]
            table.add_row(*cells, f"{cost.iloc[0]:.4f}" if len(cost) else "")
        console.print(table)


def _at_limit(rows: pd.DataFrame) -> bool:
    """Whether all rates are at the floor or all at the ceiling, so that they tell nothing."""
    rates = rows["refusal_rate"].dropna()
    return bool((rates < FLOOR).all() or (rates > CEILING).all())


def _more(row: pd.Series[Any], shift: bool) -> str:
    name, stem = ("difference", "diff") if shift else ("rate_difference", "rate_diff")
    if pd.isna(row[name]):
        return ""
    star = "*" if row["p_holm"] <= 0.05 else " "
    return f"{row[name]:+.2f} [{row[f'{stem}_lo']:+.2f}, {row[f'{stem}_hi']:+.2f}]{star}"


def positions_figure(summary: pd.DataFrame, title: str, unit: str) -> go.Figure:
    """The mean score of every subset, and the KL of replies, against the position that is steered:
    a line for each direction and alpha with the interval of the mean; dots for the unsteered
    model, grey for random directions."""
    panels = [("score", name) for name in _SUBSETS if (summary["subset"] == name).any()]
    panels.append(("kl", "BENIGN"))
    titles = [f"{name}, {'KL a token' if measure == 'kl' else 'score'}" for measure, name in panels]
    figure = make_subplots(1, len(panels), subplot_titles=titles, horizontal_spacing=0.06)
    for i, (measure, subset) in enumerate(panels, 1):
        at = {"row": 1, "col": i}
        part = summary[(summary["measure"] == measure) & (summary["subset"] == subset)]
        roles = list(dict.fromkeys(part["role"][part["role"].notna() & (part["role"] != "")]))
        base = part[part["direction"] == "baseline"]["score_mean"].iloc[0]
        figure.add_hline(y=base, line={"dash": "dot", "width": 1}, **at)
        steered = part[part["direction"] != "baseline"]
        cells = steered.groupby(["direction", "seed", "strength"], sort=False, dropna=False)
        for _, mine in cells:
            cell = mine.iloc[0]
            shown = i == 1 and bool(pd.isna(cell["seed"]) or cell["seed"] == 0)
            name, strength = str(cell["direction"]), float(cell["strength"])
            _draw(figure, mine.set_index("role"), name, strength, at, shown)
        figure.update_xaxes(categoryorder="array", categoryarray=roles, tickangle=-60, **at)
        axis = "KL a token (nats)" if measure == "kl" else SCORE_AXIS
        figure.update_yaxes(title_text=axis if i in (1, len(panels)) else "", **at)
    figure.update_xaxes(title_text=f"steered position (alpha in {UNIT_NAMES.get(unit, unit)})")
    return styled(figure, title, height=520, width=340 * len(panels))


def _draw(
    figure: go.Figure,
    mine: pd.DataFrame,
    kind: str,
    strength: float,
    at: Mapping[str, int],
    legend: bool,
) -> None:
    name = f"{kind} at {strength:g}"
    colour = colour_of(kind)
    add_line(figure, list(mine.index), mine["score_mean"], colour, name, at, legend)
    figure.data[-1].line.dash = "solid" if strength > 0 else "dash"
    if kind == "learned":
        lo, hi = list(mine["score_lo"]), list(mine["score_hi"])
        add_band(figure, list(mine.index), lo, hi, colour, name, at)
