"""Figures of the dial: a tidy frame becomes a plotly figure. No files, no torch.

Every kind of direction that a run has is drawn, learned and controls alike, each in the colour that
`theme` gives it. A figure shows what a summary holds; it does not compute statistics of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_dial.summary import GROUP, PLACE, distinct, prompt_groups, random_band
from refusal_dial.theme import (
    ALPHA,
    BLACK,
    SCORE,
    add_band,
    add_line,
    colour_of,
    escaped,
    styled,
    subset_colour,
)
from refusal_dial.types import DialError

LABELS = {"refusal_rate": "share refused", "score_mean": f"mean {SCORE}"}
BANDS = {"refusal_rate": ("rate_lo", "rate_hi"), "score_mean": ("score_lo", "score_hi")}
LEARNED = "learned, band: 95% interval over prompts"
BINS = 40


def alpha_curves(summary: pd.DataFrame, title: str, value: str = "refusal_rate") -> go.Figure:
    """`value` against alpha: a row per layer, a column per group of prompts.

    The learned direction with its 95% interval over prompts; of each kind of control the mean over
    its directions with their 2.5-97.5% range (one direction alone is a line); the unsteered model
    as a dotted line.
    """
    learned = summary[summary["direction"] == "learned"]
    places = _places(learned)
    groups = prompt_groups(learned)
    counts = learned.groupby(GROUP, sort=False)["n"].first()
    titles = [
        escaped(f"layer {place[0]}: {subset} {split} (n={counts[(subset, split)]})")
        for place in places
        for subset, split in groups
    ]
    figure = make_subplots(
        rows=len(places), cols=len(groups), subplot_titles=titles, shared_yaxes=True
    )
    bands = {kind: random_band(summary, value, kind) for kind in control_kinds(summary)}
    names = {kind: _control_name(kind, band) for kind, band in bands.items()}
    lo, hi = BANDS[value]
    for r, place in enumerate(places, 1):
        for c, group in enumerate(groups, 1):
            first, at = r == c == 1, {"row": r, "col": c}
            for kind, band in bands.items():
                here = _at(band, place, group).sort_values("alpha")
                name, colour = names[kind], colour_of(kind)
                if len(here) and here["n_seeds"].max() > 1:
                    add_band(figure, here["alpha"], here["lo"], here["hi"], colour, name, at)
                if len(here):
                    add_line(figure, here["alpha"], here["mean"], colour, name, at, first)
            one, colour = _at(learned, place, group).sort_values("alpha"), colour_of("learned")
            add_band(figure, one["alpha"], one[lo], one[hi], colour, LEARNED, at)
            add_line(figure, one["alpha"], one[value], colour, LEARNED, at, first)
            base = summary[(summary["direction"] == "baseline")]
            base = base[(base[GROUP] == list(group)).all(axis=1)]
            if len(base):
                level = float(base[value].iloc[0])
                figure.add_hline(level, line_dash="dot", line_color=BLACK, line_width=1, **at)
    figure.update_xaxes(title_text=ALPHA, row=len(places))
    figure.update_yaxes(title_text=LABELS[value], col=1)
    if value == "refusal_rate":
        figure.update_yaxes(range=[-0.03, 1.03])
    return styled(figure, title, height=160 + 300 * len(places), width=140 + 270 * len(groups))


def _control_name(kind: str, band: pd.DataFrame) -> str:
    n = int(band["n_seeds"].max())
    return kind if n == 1 else f"{kind}, mean of {n}, band: 2.5-97.5% of them"


def control_kinds(summary: pd.DataFrame) -> list[str]:
    """What was steered besides the learned direction, in order of first appearance."""
    kinds = dict.fromkeys(summary["direction"])
    return [str(kind) for kind in kinds if kind not in ("learned", "baseline")]


def pareto(summary: pd.DataFrame, title: str) -> go.Figure:
    """HARMFUL refusal against EDGE over-refusal along alpha, a panel per layer.

    Up is wanted, right is not. A random direction's curve shows what merely disturbing the model
    buys. The ends of the learned curve are labelled with their alpha; the pointer shows the others.
    """
    learned = summary[summary["direction"] == "learned"]
    places = _places(learned)
    held_out = set(set_off(learned)["subset"])
    if not {"EDGE", "HARMFUL"} <= held_out:
        have = (
            ", ".join(sorted(set(learned.loc[learned["split"] == "holdout", "subset"]))) or "none"
        )
        raise DialError(f"this figure needs held-out EDGE and HARMFUL prompts; the run has {have}")
    figure = make_subplots(cols=len(places), subplot_titles=_counted(learned, places))
    for c, place in enumerate(places, 1):
        for name in (*control_kinds(summary), "learned"):
            table = _trade_off(summary, name, place)
            for seed, part in table.groupby("seed", dropna=False):
                shown = name == "learned" or seed == table["seed"].min()
                figure.add_scatter(
                    x=part["EDGE"],
                    y=part["HARMFUL"],
                    mode="lines+markers+text" if name == "learned" else "lines+markers",
                    name=name,
                    legendgroup=name,
                    showlegend=bool(c == 1 and shown),
                    opacity=1.0 if name == "learned" else 0.35,
                    line={"color": colour_of(name)},
                    text=_ends(part["alpha"]) if name == "learned" else None,
                    textposition=[f"bottom {'left' if x > 0.5 else 'right'}" for x in part["EDGE"]],
                    cliponaxis=False,
                    customdata=part["alpha"],
                    hovertemplate="alpha %{customdata:g}<br>EDGE %{x:.2f}, HARMFUL %{y:.2f}"
                    "<extra></extra>",
                    row=1,
                    col=c,
                )
    figure.update_xaxes(title_text="share of EDGE refused (over-refusal)", range=[-0.03, 1.03])
    figure.update_yaxes(title_text="share of HARMFUL refused", range=[-0.03, 1.03], col=1)
    return styled(figure, title, height=480, width=140 + 420 * len(places))


def set_off(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that `pareto` sets against each other: held-out EDGE and HARMFUL prompts."""
    return rows[(rows["split"] == "holdout") & rows["subset"].isin(("EDGE", "HARMFUL"))]


def _places(learned: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Where the learned direction was steered."""
    if learned.empty:
        raise DialError("this run steered no learned direction: there is no curve to draw")
    return distinct(learned, PLACE)


def _ends(alphas: pd.Series[Any]) -> list[str]:
    """The first and the last, and nothing between."""
    ends = (alphas.iloc[0], alphas.iloc[-1])
    return [f"alpha {alpha:g}" if alpha in ends else "" for alpha in alphas]


def _trade_off(summary: pd.DataFrame, name: str, place: tuple[Any, ...]) -> pd.DataFrame:
    """One line per seed and alpha, a column per subset: the refusal rate on held-out prompts."""
    rows = set_off(summary)
    rows = rows[rows["direction"] == name]
    rows = rows[(rows[PLACE] == list(place)).all(axis=1)]
    rows = rows.assign(seed=rows["seed"].fillna(-1))
    wide = rows.pivot(index=["seed", "alpha"], columns="subset", values="refusal_rate")
    wide = wide.reset_index()
    return wide.sort_values(["seed", "alpha"])


def _at(frame: pd.DataFrame, place: tuple[Any, ...], group: tuple[Any, ...]) -> pd.DataFrame:
    return frame[(frame[[*PLACE, *GROUP]] == [*place, *group]).all(axis=1)]


def _counted(learned: pd.DataFrame, places: list[tuple[Any, ...]]) -> list[str]:
    held = set_off(learned).drop_duplicates("subset").set_index("subset")["n"]
    counts = f"n = {held['EDGE']} EDGE, {held['HARMFUL']} HARMFUL"
    return [f"layer {place[0]} ({counts})" for place in places]


def score_histograms(scores: pd.DataFrame, title: str, threshold: float | None = 0.0) -> go.Figure:
    """How the scores of each subset are spread: unsteered, and under the learned direction at the
    lowest and the highest alpha of each layer, from the rows themselves. A dotted line marks the
    threshold; all panels share bins and axes. Raises `DialError` where no row has a score."""
    scores = scores[scores["score"].notna()]
    panels = {"unsteered": scores[scores["direction"] == "baseline"]}
    learned = scores[scores["direction"] == "learned"]
    for layer, part in learned.groupby("layer", sort=False):
        for alpha in sorted({part["alpha"].min(), part["alpha"].max()}):
            panels[f"layer {layer}, alpha {alpha:g}"] = part[part["alpha"] == alpha]
    panels = {name: rows for name, rows in panels.items() if len(rows)}
    if not panels:
        raise DialError("no row of this run has a score: there is nothing to draw")
    every = pd.concat(panels.values())
    edges = np.histogram_bin_edges(every["score"].to_numpy(dtype=float), BINS)
    middles, subsets = (edges[:-1] + edges[1:]) / 2, list(dict.fromkeys(every["subset"]))
    figure = make_subplots(
        rows=len(panels),
        subplot_titles=list(panels),
        shared_xaxes=True,
        vertical_spacing=0.25 / len(panels),
    )
    for r, rows in enumerate(panels.values(), 1):
        for subset in subsets:
            part = rows.loc[rows["subset"] == subset, "score"].to_numpy(dtype=float)
            name = f"{subset} (n={len(part)})"
            colour = subset_colour(str(subset))
            figure.add_bar(
                x=middles,
                y=np.histogram(part, edges)[0] / max(1, len(part)),
                width=np.diff(edges),
                name=escaped(name),
                legendgroup=str(subset),
                showlegend=r == 1,
                marker={"color": colour, "line": {"width": 0}},
                opacity=0.6,
                hovertemplate="%{x:.2f}: %{y:.1%}",
                row=r,
                col=1,
            )
        if threshold is not None:
            figure.add_vline(threshold, line_dash="dot", line_color=BLACK, line_width=1, row=r)
    figure.update_xaxes(title_text=SCORE, row=len(panels))
    figure.update_yaxes(title_text="share of prompts", row=(len(panels) + 1) // 2)
    figure.update_yaxes(tickformat=".0%")
    figure.update_layout(barmode="overlay", bargap=0)
    return styled(figure, title, height=190 + 170 * len(panels), width=760)
