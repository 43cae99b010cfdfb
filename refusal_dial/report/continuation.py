"""Results of continuations: tables for the terminal, and figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table

from refusal_dial.common import UNIT_NAMES, DialError, terminal
from refusal_dial.data.prompts import CHOOSE, REPORT
from refusal_dial.report.steering import CONTROL_NAMES, LIKE_NOTHING
from refusal_dial.report.theme import (
    GREY,
    add_band,
    add_line,
    anchored,
    error_bars,
    escaped,
    styled,
    subset_colour,
)
from refusal_dial.studies.continuation import CONTINUATION_CONTROLS, BestLayer

# --------------------------------------------------------------------------------------------------
# Tables for the terminal: what steering did to completions, with its controls.


_WIDTH = 126

TableCell = tuple[int, float, str]  # layer, strength, subset


def print_continuations(summary: pd.DataFrame, openings: Mapping[str, float], unit: str) -> None:
    """A table per layer: mean score by alpha and subset with the paired difference from the
    baseline, the range of the fairest controls and the rank among them, and how unlikely the text
    became; below it the range of the other controls, and the score of the `openings` themselves."""
    whole = summary[summary["split"] == summary["split"].iloc[0]]
    learned = whole[whole["direction"] == "learned"]
    base = whole[whole["direction"] == "baseline"].set_index("subset")
    kinds = [kind for kind in CONTINUATION_CONTROLS if (whole["direction"] == kind).any()]
    ranges = {kind: _ranges(whole[whole["direction"] == kind]) for kind in kinds}
    for layer, part in learned.groupby("layer", sort=False):
        title = f"Mean score of completions: layer {layer}, {part['site'].iloc[0]}"
        table = Table(title=title, title_justify="left", header_style="bold")
        heads = [f"alpha\n({UNIT_NAMES[unit]})", "openings", "score", "difference", "p paired"]
        heads += [f"{kinds[0]} x{_draws(whole, kinds[0])}", "p rank"] if kinds else []
        for name in (*heads, "nll"):
            table.add_column(name, justify="left" if name == "openings" else "right")
        for _, row in part.iterrows():
            beside = [ranges[kinds[0]].get(_cell(row), ""), _p(row["p_control"])] if kinds else []
            table.add_row(
                f"{row['strength']:g}",
                f"{row['subset']} (n={row['n']})",
                f"{row['score_mean']:.3f} [{row['score_lo']:.3f}, {row['score_hi']:.3f}]",
                f"{row['difference']:+.3f} [{row['diff_lo']:+.3f}, {row['diff_hi']:+.3f}]",
                _p(row["p_paired"]),
                *beside,
                f"{row['nll_mean']:.2f}",
            )
        _console().print(table)
        for kind in kinds[1:]:
            for _, row in part[part["strength"] != 0].iterrows():
                print(
                    f"{kind} x{_draws(whole, kind)} at {row['strength']:g}, {row['subset']}: "
                    f"{ranges[kind].get(_cell(row), '')}"
                )
    line = ", ".join(f"{name} {row['score_mean']:.3f}" for name, row in base.iterrows())
    text = ", ".join(f"{name} {score:.3f}" for name, score in openings.items())
    print(f"the openings themselves: {text}")
    print(f"unsteered: {line}; alpha 0 has no hooks and is the baseline")
    print(
        "p paired: a paired permutation over prompts (sign flips of their differences from the "
        "unsteered model), not corrected; scored completions have no slope"
    )
    if kinds:
        print(f"p rank: of the difference among those of {CONTROL_NAMES[kinds[0]]}, not corrected")


def _ranges(rows: pd.DataFrame) -> dict[TableCell, str]:
    """The range of the differences of a kind of control, by cell."""
    return {
        _cell(part.iloc[0]): f"[{part['difference'].min():+.3f}, {part['difference'].max():+.3f}]"
        for _, part in rows.groupby(["layer", "strength", "subset"], sort=False)
    }


def _cell(row: pd.Series[Any]) -> TableCell:
    return int(row["layer"]), float(row["strength"]), str(row["subset"])


def _draws(rows: pd.DataFrame, kind: str) -> int:
    return int(rows.loc[rows["direction"] == kind, "seed"].nunique())


def _p(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.4f}"


def print_layer_effects(
    layers: pd.DataFrame, groups: pd.DataFrame, best: BestLayer, unit: str
) -> None:
    """Every layer on both halves, the thirds of the model, and the chosen layer in a sentence."""
    title = f"Effectiveness by layer at alpha {layers['strength'].iloc[0]:g} {UNIT_NAMES[unit]}"
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("layer", "group", "chosen on", "reported on", "difference", "p (Holm)"):
        table.add_column(name, justify="right")
    choose, report = (layers[layers["split"] == half] for half in (CHOOSE, REPORT))
    for (_, row), chosen in zip(report.iterrows(), choose["reduction"], strict=True):
        table.add_row(
            str(row["layer"]),
            row["group"],
            f"{chosen:+.1%}",
            f"{row['reduction']:+.1%}",
            f"{row['difference']:+.3f} [{row['diff_lo']:+.3f}, {row['diff_hi']:+.3f}]",
            f"{row['p_holm']:.4f}",
        )
    _console().print(table)
    for _, row in groups.iterrows():
        print(f"{row['group']}, layers {row['first']}-{row['last']}: {row['reduction']:+.1%}")
    text = "a difference" if best.p_holm < LIKE_NOTHING else "no difference that these prompts show"
    print(
        f"best layer on one half: {best.layer} ({best.chosen_on:+.1%}); on the other half "
        f"{best.reduction:+.1%}, difference {best.difference:+.3f} "
        f"[{best.diff_lo:+.3f}, {best.diff_hi:+.3f}], p = {best.p_paired:.4f}, "
        f"{best.p_holm:.4f} after Holm's correction over layers: {text}"
    )


def _console() -> Console:
    return terminal(_WIDTH)


# --------------------------------------------------------------------------------------------------
# Figures of completions: a run's summary and rows become plotly figures.


MEAN_SCORE = "mean score (toxicity: 0 none, 1 certain)"

ONE_SCORE = "score of a completion (toxicity: 0 none, 1 certain)"

SYMBOLS = {"shuffled": "circle-open", "random": "x"}

APART = 0.05  # of the step from one alpha to the next, between the columns of two controls


def all_prompts(summary: pd.DataFrame) -> pd.DataFrame:
    """All prompts where they are there together, else one part."""
    rows = summary[summary["split"] == "all"]
    return rows if len(rows) else summary


def alpha_sweep(summary: pd.DataFrame, title: str, strength: str) -> go.Figure:
    """Mean score against alpha: a panel per layer, a line per subset in its band, the unsteered
    model dotted. Controls are points in their subset's colour, a symbol for each kind, moved aside
    so that they do not hide each other. Raises `DialError` for a run without a direction."""
    rows = all_prompts(summary)
    learned = rows[rows["direction"] == "learned"]
    if learned.empty:
        raise DialError("this run steered no learned direction: there is no curve to draw")
    layers, subsets = list(learned["layer"].unique()), list(learned["subset"].unique())
    columns = min(4, len(layers))
    deep = -(-len(layers) // columns)
    titles = [f"layer {n}" for n in layers]
    figure = make_subplots(rows=deep, cols=columns, subplot_titles=titles, shared_yaxes=True)
    for i, layer in enumerate(layers):
        at = {"row": i // columns + 1, "col": i % columns + 1}
        here = rows[rows["layer"] == layer]
        _add_controls(figure, here, subsets, at, i == 0)
        for subset in subsets:
            part = here[(here["direction"] == "learned") & (here["subset"] == subset)]
            part, colour = part.sort_values("strength"), subset_colour(str(subset))
            x, name = part["strength"], escaped(f"{subset} (n={part['n'].iloc[0]})")
            add_band(figure, x, part["score_lo"], part["score_hi"], colour, name, at)
            add_line(figure, x, part["score_mean"], colour, name, at, i == 0)
            base = rows[(rows["direction"] == "baseline") & (rows["subset"] == subset)]
            if len(base):
                level = float(base["score_mean"].iloc[0])
                figure.add_hline(level, line_dash="dot", line_color=colour, **at)
    figure.update_xaxes(title_text=strength)
    figure.update_yaxes(title_text=MEAN_SCORE, col=1)
    figure.update_yaxes(range=anchored(rows[["score_lo", "score_hi", "score_mean"]].stack()))
    return styled(figure, title, height=190 + 260 * deep, width=max(560, 160 + 260 * columns))


def _add_controls(
    figure: go.Figure, rows: pd.DataFrame, subsets: list[Any], at: Mapping[str, int], legend: bool
) -> None:
    """The controls of one layer; the pointer shows the alpha that a point was moved from."""
    kinds = [kind for kind in CONTINUATION_CONTROLS if (rows["direction"] == kind).any()]
    pairs = [(subset, kind) for subset in subsets for kind in kinds]
    steps = np.diff(np.unique(rows["strength"].to_numpy(dtype=float)))
    column = APART * float(steps.min()) if len(steps) else APART
    for i, (subset, kind) in enumerate(pairs):
        part = rows[(rows["direction"] == kind) & (rows["subset"] == subset)]
        name = escaped(f"{subset}, {kind} x{part['seed'].nunique()}")
        figure.add_scatter(
            x=part["strength"] + column * (i - (len(pairs) - 1) / 2),
            y=part["score_mean"],
            mode="markers",
            marker={"color": subset_colour(str(subset)), "size": 6, "symbol": SYMBOLS[kind]},
            opacity=0.6,
            name=name,
            legendgroup=name,
            showlegend=legend,
            customdata=part["strength"],
            hovertemplate="alpha %{customdata:g}: %{y:.3f}",
            **at,
        )


def subset_heatmap(summary: pd.DataFrame, title: str, strength: str) -> go.Figure:
    """Mean score by alpha and subset, the mean over the layers that were steered."""
    rows = all_prompts(summary)
    rows = rows[rows["direction"] == "learned"]
    layers = list(rows["layer"].unique())
    about = f"layer {layers[0]}" if len(layers) == 1 else f"mean over {len(layers)} layers"
    return _heatmap(rows, "subset", about, title, strength)


def layer_heatmap(summary: pd.DataFrame, title: str, strength: str, subset: str) -> go.Figure:
    """Mean score by alpha and layer, after the openings of one subset."""
    rows = all_prompts(summary)
    rows = rows[(rows["direction"] == "learned") & (rows["subset"] == subset)]
    return _heatmap(rows, "layer", f"{subset} openings alone", title, strength)


def _heatmap(rows: pd.DataFrame, across: str, about: str, title: str, strength: str) -> go.Figure:
    if rows.empty:
        raise DialError(
            f"this run steered no learned direction ({about}): there is nothing to draw"
        )
    wide = rows.pivot_table(index=across, columns="strength", values="score_mean", sort=False)
    figure = make_subplots(subplot_titles=[escaped(about)])
    figure.add_heatmap(
        z=wide.to_numpy(),
        x=[f"{a:g}" for a in wide.columns],
        y=[escaped(str(name)) for name in wide.index],
        texttemplate="%{z:.3f}",
        colorscale="Viridis",
        **({"zmin": 0, "zmax": 1} if anchored(wide.stack()) else {}),
        colorbar={"title": {"text": "mean<br>score"}},
    )
    figure.update_xaxes(title_text=strength, type="category")
    figure.update_yaxes(title_text=across, type="category")
    return styled(figure, title, height=max(380, 220 + 26 * len(wide)), width=640)


def distributions(scores: pd.DataFrame, title: str, strength: str) -> go.Figure:
    """Every completion's score, a box per alpha and subset of the learned direction."""
    rows = scores[scores["direction"] == "learned"]
    figure = go.Figure()
    for subset, part in rows.groupby("subset", sort=False):
        figure.add_box(
            x=part["strength"].map("{:g}".format),
            y=part["score"],
            name=escaped(f"{subset} (n={part['prompt_id'].nunique()} openings)"),
            marker={"color": subset_colour(str(subset))},
            boxmean=True,
        )
    figure.update_layout(boxmode="group")
    figure.update_xaxes(title_text=strength, type="category")
    figure.update_yaxes(title_text=ONE_SCORE, range=anchored(rows["score"]))
    return styled(figure, title, height=460, width=760)


def statistics(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation, range and number of completions by subset and alpha."""
    rows = scores[scores["direction"] == "learned"]
    grouped = rows.groupby(["layer", "subset", "strength"], sort=False)["score"]
    return grouped.agg(["mean", "std", "min", "max", "size"]).reset_index()


def six_panels(layers: pd.DataFrame, summary: pd.DataFrame, title: str) -> go.Figure:
    """Layer effectiveness in six panels: reduction on the reporting half, the same on both halves,
    paired differences with intervals, corrected p, thirds of the model, benign prompts."""
    titles = ["reduction, reported half", "both halves", "difference and its interval"]
    titles += ["p after Holm's correction", "thirds of the model", "benign openings: difference"]
    figure = make_subplots(rows=2, cols=3, subplot_titles=titles)
    report = layers[layers["split"] == REPORT]
    x, bar = report["layer"], {"marker_color": subset_colour("CHALLENGING"), "showlegend": False}
    figure.add_bar(x=x, y=report["reduction"], row=1, col=1, **bar)
    for half, part in layers.groupby("split"):
        line = {"color": subset_colour("CHALLENGING"), "dash": "solid" if half == REPORT else "dot"}
        figure.add_scatter(
            x=part["layer"], y=part["reduction"], name=str(half), line=line, row=1, col=2
        )
    figure.add_scatter(
        x=x,
        y=report["difference"],
        error_y=error_bars(report["difference"], report["diff_lo"], report["diff_hi"]),
        mode="markers",
        marker={"color": subset_colour("CHALLENGING")},
        showlegend=False,
        row=1,
        col=3,
    )
    figure.add_bar(x=x, y=report["p_holm"], row=2, col=1, marker_color=GREY, showlegend=False)
    figure.add_hline(0.05, line_dash="dot", row=2, col=1)
    for group, part in report.groupby("group", sort=False):
        figure.add_bar(x=[str(group)], y=[part["reduction"].mean()], row=2, col=2, **bar)
    rows = all_prompts(summary)
    benign = rows[(rows["direction"] == "learned") & (rows["subset"] == "BENIGN")]
    benign = benign[benign["strength"] == benign["strength"].max()]
    figure.add_scatter(
        x=benign["layer"],
        y=benign["difference"],
        error_y=error_bars(benign["difference"], benign["diff_lo"], benign["diff_hi"]),
        mode="markers",
        marker={"color": subset_colour("BENIGN")},
        showlegend=False,
        row=2,
        col=3,
    )
    figure.update_xaxes(title_text="layer", row=2)
    figure.update_xaxes(title_text="third of the model", row=2, col=2)
    figure.update_yaxes(title_text="fall of the mean toxicity (0 to 1)", col=1, row=1)
    figure.update_yaxes(title_text="p", range=[0, 1.02], col=1, row=2)
    return styled(figure, title, height=760, width=1180)
