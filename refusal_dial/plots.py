"""Figures: a tidy frame becomes a plotly figure. No files, no torch.

One theme: colour-blind-safe (Okabe and Ito 2008), a direction always in its own colour, intervals
drawn as bands. A figure shows what a summary holds; it does not compute statistics of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_dial.summary import GROUP, PLACE, distinct, prompt_groups, random_band
from refusal_dial.types import DialError

COLOURS = {"learned": "#0072B2", "random": "#767676", "baseline": "#000000"}
LABELS = {"refusal_rate": "refusal rate", "score_mean": "mean refusal score (log-odds)"}
BANDS = {"refusal_rate": ("rate_lo", "rate_hi"), "score_mean": ("score_lo", "score_hi")}


def title_of(config: Mapping[str, Any], question: str) -> str:
    """Question, then model, site and position, from a run's config."""
    settings = config["settings"]
    where = (
        f"{settings['model']['name']}, {settings.get('site', '')}, position {settings.get('pos')}"
    )
    return f"{question}<br><sup>{_escaped(where)}</sup>"


def _escaped(text: str) -> str:
    """Plotly reads a little HTML in titles; names are data."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def alpha_curves(summary: pd.DataFrame, title: str, value: str = "refusal_rate") -> go.Figure:
    """`value` against alpha: a row per layer, a column per group of prompts.

    The learned direction with its interval over prompts; the mean of the random directions with
    their 2.5-97.5% range; the unsteered model as a dotted line.
    """
    learned = summary[summary["direction"] == "learned"]
    places = _places(learned)
    groups = prompt_groups(learned)
    counts = learned.groupby(GROUP, sort=False)["n"].first()
    titles = [
        f"layer {place[0]}: {subset} {split} (n={counts[(subset, split)]})"
        for place in places
        for subset, split in groups
    ]
    figure = make_subplots(
        rows=len(places), cols=len(groups), subplot_titles=titles, shared_yaxes=True
    )
    band = random_band(summary, value)
    for r, place in enumerate(places, 1):
        for c, group in enumerate(groups, 1):
            first = r == c == 1
            here = _at(band, place, group).sort_values("alpha")
            if len(here):
                _band(figure, here["alpha"], here["lo"], here["hi"], "random", r, c)
                _line(figure, here["alpha"], here["mean"], "random", r, c, first, "random (mean)")
            one = _at(learned, place, group).sort_values("alpha")
            lo, hi = BANDS[value]
            _band(figure, one["alpha"], one[lo], one[hi], "learned", r, c)
            _line(figure, one["alpha"], one[value], "learned", r, c, first, "learned")
            base = summary[(summary["direction"] == "baseline")]
            base = base[(base[GROUP] == list(group)).all(axis=1)]
            if len(base):
                colour = COLOURS["baseline"]
                figure.add_hline(
                    float(base[value].iloc[0]), line_dash="dot", line_color=colour, row=r, col=c
                )
    figure.update_xaxes(title_text="alpha (residual-stream units)")
    figure.update_yaxes(title_text=LABELS[value], col=1)
    if value == "refusal_rate":
        figure.update_yaxes(range=[-0.03, 1.03])
    return _styled(figure, title, height=160 + 300 * len(places), width=140 + 270 * len(groups))


def pareto(summary: pd.DataFrame, title: str) -> go.Figure:
    """HARMFUL refusal against EDGE over-refusal along alpha, a panel per layer.

    Up is wanted, right is not. A random direction's curve shows what merely disturbing the model
    buys; each point is labelled with its alpha.
    """
    learned = summary[summary["direction"] == "learned"]
    places = _places(learned)
    held_out = set(learned.loc[learned["split"] == "holdout", "subset"])
    if not {"EDGE", "HARMFUL"} <= held_out:
        have = ", ".join(sorted(held_out)) or "none"
        raise DialError(f"this figure needs held-out EDGE and HARMFUL prompts; the run has {have}")
    figure = make_subplots(cols=len(places), subplot_titles=[f"layer {p[0]}" for p in places])
    for c, place in enumerate(places, 1):
        for name in ("random", "learned"):
            table = _trade_off(summary, name, place)
            for seed, part in table.groupby("seed", dropna=False):
                shown = name == "learned" or seed == 0
                figure.add_scatter(
                    x=part["EDGE"],
                    y=part["HARMFUL"],
                    mode="lines+markers",
                    name=name,
                    legendgroup=name,
                    showlegend=bool(c == 1 and shown),
                    opacity=1.0 if name == "learned" else 0.35,
                    line={"color": COLOURS[name]},
                    text=[f"alpha {alpha:g}" for alpha in part["alpha"]],
                    hovertemplate="%{text}<br>EDGE %{x:.2f}, HARMFUL %{y:.2f}<extra></extra>",
                    row=1,
                    col=c,
                )
    figure.update_xaxes(title_text="EDGE refused (over-refusal)", range=[-0.03, 1.03])
    figure.update_yaxes(title_text="HARMFUL refused", range=[-0.03, 1.03], col=1)
    return _styled(figure, title, height=480, width=140 + 420 * len(places))


def _places(learned: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Where the learned direction was steered."""
    if learned.empty:
        raise DialError("this run steered no learned direction: there is no curve to draw")
    return distinct(learned, PLACE)


def _trade_off(summary: pd.DataFrame, name: str, place: tuple[Any, ...]) -> pd.DataFrame:
    """One line per seed and alpha, a column per subset: the refusal rate on held-out prompts."""
    rows = summary[(summary["direction"] == name) & (summary["split"] == "holdout")]
    rows = rows[(rows[PLACE] == list(place)).all(axis=1)]
    rows = rows.assign(seed=rows["seed"].fillna(0))
    wide = rows.pivot(index=["seed", "alpha"], columns="subset", values="refusal_rate")
    wide = wide.reset_index()
    return wide.sort_values(["seed", "alpha"])


def _at(frame: pd.DataFrame, place: tuple[Any, ...], group: tuple[Any, ...]) -> pd.DataFrame:
    return frame[(frame[[*PLACE, *GROUP]] == [*place, *group]).all(axis=1)]


def _line(
    figure: go.Figure, x: Any, y: Any, colour: str, row: int, col: int, legend: bool, name: str
) -> None:
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines+markers",
        name=name,
        legendgroup=colour,
        showlegend=legend,
        line={"color": COLOURS[colour]},
        row=row,
        col=col,
    )


def _band(figure: go.Figure, x: Any, lo: Any, hi: Any, colour: str, row: int, col: int) -> None:
    figure.add_scatter(
        x=[*x, *x[::-1]],
        y=[*hi, *lo[::-1]],
        fill="toself",
        fillcolor=COLOURS[colour],
        opacity=0.18,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=colour,
        row=row,
        col=col,
    )


def _styled(figure: go.Figure, title: str, height: int, width: int) -> go.Figure:
    return figure.update_layout(
        template="simple_white",
        title={"text": title, "x": 0.02, "xanchor": "left"},
        height=height,
        width=width,
        legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        margin={"t": 110, "l": 70, "r": 30, "b": 100},
        font={"family": "Helvetica, Arial, sans-serif", "size": 13},
    )
