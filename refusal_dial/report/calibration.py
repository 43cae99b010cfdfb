"""Results of the calibration, and of judges beside people: tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.table import Table

from refusal_dial.cli.recipes import load_recipe
from refusal_dial.report.steering import _console
from refusal_dial.report.theme import (
    BLACK,
    BLUE,
    GOLD,
    GREY,
    WINE,
    add_band,
    add_line,
    styled,
)
from refusal_dial.scoring.agreement import (
    agreement_summary,
    between_raters,
    confusion,
    confusion_table,
    crossed,
    load_labelled,
)
from refusal_dial.scoring.judge_model import load_judge
from refusal_dial.scoring.judges import judge_all
from refusal_dial.scoring.ratings import figures, load_rated
from refusal_dial.scoring.toxicity import load_toxicity
from refusal_dial.studies.calibration import published

# --------------------------------------------------------------------------------------------------
# Tables for the terminal: what a calibration came to.


NULL = {
    "null": "p-values of experiments without an effect, on the model",
    "gaussian": "p-values of experiments without an effect, on Gaussian activations",
}

PUBLISHED = Path(__file__).parents[2] / "configs" / "phi4_mini_toxicity.yaml"  # in a checkout


def print_calibration(part: str, summary: pd.DataFrame, verdict: Mapping[str, Any]) -> None:
    """The table of one part."""
    if part in NULL:
        print_uniformity(summary, NULL[part])
    elif part == "power":
        print_powers(summary)
    elif part == "intervals":
        print_coverage(summary)
    else:
        print_run_agreement(summary, verdict["off_baseline"])
        if PUBLISHED.is_file():
            print_published_runs(published(load_recipe(str(PUBLISHED)).figures, 50))


def print_uniformity(summary: pd.DataFrame, title: str) -> None:
    """A line per kind of control: how often p <= 0.05, and how far from uniform."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("among", "n", "p <= 0.05", "if fair", "KS distance", "KS p", ""):
        table.add_column(name, justify="left" if name in ("among", "") else "right")
    for _, row in summary.iterrows():
        table.add_row(
            str(row["direction"]),
            str(row["n"]),
            f"{row['under']:.3f} [{row['under_lo']:.3f}, {row['under_hi']:.3f}]",
            f"{row['expected']:.3f}",
            f"{row['ks']:.3f}",
            f"{row['ks_p']:.2g}",
            "uniform" if row["uniform"] else "not uniform",
        )
    _console().print(table)


TEST_NAMES = {
    "slope": "slope, permuted labels (own length)",
    "slope, unit length": "slope, permuted labels (unit length)",
    "shuffled": "rank among 20 shuffled draws",
    "random": "rank among 20 random directions",
}


def print_powers(summary: pd.DataFrame) -> None:
    """A line per number of prompts and test: how often p <= 0.05, by the planted effect."""
    rhos = list(dict.fromkeys(summary["rho"]))
    title = f"Share of p <= 0.05 by the planted correlation, of {summary['trials'].iloc[0]} each"
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("prompts", "test", *(f"{rho:g}" for rho in rhos)):
        table.add_column(name, justify="left" if name == "test" else "right")
    for (n, test), part in summary.groupby(["prompts", "direction"], sort=False):
        table.add_row(str(n), TEST_NAMES[str(test)], *(f"{p:.2f}" for p in part["power"]))
    _console().print(table)


TEST_COLOURS = dict(zip(TEST_NAMES, (BLUE, GOLD, WINE, GREY), strict=True))


def power_curves(summary: pd.DataFrame, title: str) -> go.Figure:
    """How often a planted effect is found, a panel per number of prompts. The dotted line is what a
    fair test finds where there is no effect: 5%."""
    sizes = list(dict.fromkeys(summary["prompts"]))
    figure = make_subplots(
        cols=len(sizes), subplot_titles=[f"{n} prompts" for n in sizes], shared_yaxes=True
    )
    for c, n in enumerate(sizes, 1):
        for test, name in TEST_NAMES.items():
            part = summary[(summary["prompts"] == n) & (summary["direction"] == test)]
            at = {"row": 1, "col": c}
            colour = TEST_COLOURS[test]
            add_band(figure, part["rho"], part["lo"], part["hi"], colour, name, at)
            add_line(figure, part["rho"], part["power"], colour, name, at, c == 1)
        figure.add_hline(0.05, line_dash="dot", line_color=BLACK, line_width=1, row=1, col=c)
    figure.update_xaxes(title_text="planted correlation of score and activation")
    figure.update_yaxes(range=[-0.03, 1.03])
    figure.update_yaxes(title_text="share of experiments with p ≤ 0.05", col=1)
    return styled(figure, title, height=460, width=180 + 330 * len(sizes))


def print_coverage(summary: pd.DataFrame) -> None:
    """A line per interval and law: how often it holds the truth, by the number of prompts."""
    title = "Share of nominal 95% intervals that hold the truth; * is not within 0.93 to 0.97"
    table = Table(title=title, title_justify="left", header_style="bold")
    sizes = list(dict.fromkeys(summary["n"]))
    for name in ("interval", "of", *(f"n = {n}" for n in sizes)):
        table.add_column(name, justify="left" if name in ("interval", "of") else "right")
    for (interval, law), part in summary.groupby(["interval", "law"], sort=False):
        lines = [
            f"{row['coverage']:.3f}{' ' if row['kept'] else '*'}" for _, row in part.iterrows()
        ]
        table.add_row(str(interval), str(law), *lines)
    _console().print(table)


def print_run_agreement(summary: pd.DataFrame, off: Mapping[str, Mapping[str, float]]) -> None:
    """Two runs side by side, and what alpha 0 has to be."""
    title = "The same openings continued twice, with other random numbers"
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("openings", "alpha", "one run", "the other", "overlap", "difference", "p (Holm)"):
        table.add_column(name, justify="left" if name == "openings" else "right")
    for _, row in summary.iterrows():
        unsteered = row["direction"] == "baseline"
        table.add_row(
            f"{row['subset']} (n={row['n']})",
            "unsteered" if unsteered else f"{row['strength']:g}",
            *(_mean(row, side) for side in ("one", "other")),
            "yes" if row["overlap"] else "NO",
            f"{row['difference']:+.3f} [{row['diff_lo']:+.3f}, {row['diff_hi']:+.3f}]",
            f"{row['p_holm']:.3f}",
        )
    _console().print(table)
    names = {"one": "one run", "other": "the other", "mixed": "one's cells on the other's baseline"}
    for run, name in names.items():
        by = ", ".join(f"{subset} by {value:+.3f}" for subset, value in off[run].items())
        text = (
            f"alpha 0 is not the baseline ({by}): it must be" if by else "alpha 0 is the baseline"
        )
        print(f"{name}: {text}")


def print_published_runs(table: pd.DataFrame) -> None:
    """The figures that two published write-ups of one study both give."""
    display = Table(
        title="Two published write-ups of one study, n = 50: the widest intervals there can be",
        title_justify="left",
        header_style="bold",
    )
    for name in ("figure", "run 1", "run 2", "overlap"):
        display.add_column(name, justify="left" if name == "figure" else "right")
    for _, row in table.iterrows():
        sides = (_mean(row, side) for side in ("one", "other"))
        display.add_row(str(row["what"]), *sides, "yes" if row["overlap"] else "NO")
    _console().print(display)


def _mean(row: Any, side: str) -> str:
    return f"{row[side]:.3f} [{row[f'{side}_lo']:.3f}, {row[f'{side}_hi']:.3f}]"


# --------------------------------------------------------------------------------------------------
# Judges beside people: what `experiments/validate_judge.py` prints.
#
# Loads labelled files, asks a judge or a scorer about them, and prints how far they agree. The
# figures are those of `agreement` and `rated`; nothing is computed here.


def print_refusal(paths: Sequence[str], name: str, device: str, cross: bool = False) -> None:
    """The confusion matrix of every file and the figures from it; with `cross`, the builtin judge's
    thresholds fitted on each file and measured on the others.

    Raises `DialError` for a file or a judge that cannot be used.
    """
    labelled = [load_labelled(path) for path in paths]
    judge = load_judge(name, device)
    for one in labelled:
        lines = [judgement.label for judgement in judge_all(judge, one.completions, one.prompts)]
        matrix = confusion(one.labels, lines)
        unscored = lines.count("unscored")
        print(f"\n{one.name}: {len(one)} completions, judge {judge.name} version {judge.version}")
        print(f"unscored: {unscored}\n\n{confusion_table(matrix)}\n")
        print(_table(agreement_summary(matrix)))
        people = between_raters(one)
        if people is not None:
            print(f"two people:\n{_table(agreement_summary(people).iloc[[2, 4]])}")
    if cross:
        figures = crossed(labelled).round(3).to_string(index=False, na_rep="-")
        print(f"\nthresholds fitted on one file:\n{figures}")


def print_toxicity(paths: Sequence[str], name: str, device: str, label: str | None = None) -> None:
    """AUC and correlation with people's ratings, for every set of texts in every file.

    Raises `DialError` for a file or a scorer that cannot be used.
    """
    sets = [one for path in paths for one in load_rated(path)]
    scorer = load_toxicity(name, device, label=label)
    for one in sets:
        scores = scorer(one.texts)
        unscored = int(np.isnan(scores).sum())
        print(f"\n{one.name}: {len(one)} texts, scorer {scorer.name} version {scorer.version}")
        print(f"unscored: {unscored}\n{_table(figures(scores, one))}")


def _table(found: pd.DataFrame) -> str:
    """Figures as text; what cannot be computed has a line of its own, with what is missing."""
    known = found[found["reason"] == ""].drop(columns="reason").round(3)
    lines = [] if known.empty else [known.to_string(index=False)]
    gone = found[found["reason"] != ""]
    lines += [f"{name}: {why}" for name, why in zip(gone["figure"], gone["reason"], strict=True)]
    return "\n".join(lines)
