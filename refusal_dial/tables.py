"""Tables for the terminal: a summary as a person wants to read it.

Takes frames and prints. It computes nothing but the choice of what to show.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from refusal_dial.comparison import CONTROLS, CORRECTED, NULLS, fairest_p
from refusal_dial.summary import PLACE, distinct, prompt_groups, random_band, verdict

WIDTH = 118
LIKE_NOTHING = 0.05
SAID = {
    "random": "random directions",
    "covariance": "directions of the activations' covariance",
    "shuffled": "directions from shuffled labels",
    "flipped": "sign flipped",
    "length": "direction of prompt length",
    "fold": "learned without one fold",
}


def print_dial(summary: pd.DataFrame, shown: str = "learned") -> None:
    """A table per layer: refusal rate by alpha for each group of prompts, with its interval, its
    p-value among the fairest controls corrected for all alphas and layers, and the mean and 95%
    range of the random directions. Runs of older versions have uncorrected p-values."""
    console = _console()
    learned = summary[summary["direction"] == shown]
    band = random_band(summary)
    base = summary[summary["direction"] == "baseline"].set_index(["subset", "split"])
    for place in distinct(learned, PLACE):
        layer, site, pos = place
        part = learned[(learned[PLACE] == list(place)).all(axis=1)]
        groups = prompt_groups(part)
        title = f"Refusal rate, {shown} direction: layer {layer}, {site}, position {pos}"
        table = Table(title=title, title_justify="left", header_style="bold")
        table.add_column("alpha", justify="right")
        for subset, split in groups:
            row = base.loc[(subset, split)] if (subset, split) in base.index else None
            about = "" if row is None else f"\nunsteered {row['refusal_rate']:.2f}, n={row['n']}"
            table.add_column(f"{subset} {split}{about}", justify="right")
        here = band[(band[PLACE] == list(place)).all(axis=1)]
        if len(here):
            table.add_column(f"random x{here['n_seeds'].iloc[0]}\n{groups[0][0]} {groups[0][1]}")
        for alpha, cells in part.groupby("alpha"):
            line = [f"{alpha:g}"]
            line += [_rate(cells, group) for group in groups]
            match = here[(here["alpha"] == alpha) & (here["subset"] == groups[0][0])]
            match = match[match["split"] == groups[0][1]]
            if len(match):
                one = match.iloc[0]
                line.append(f"{one['mean']:.2f} [{one['lo']:.2f}, {one['hi']:.2f}]")
            table.add_row(*line)
        console.print(table)
    kinds = {fairest_p(row)[0] for _, row in learned.iterrows()} - {""}
    if kinds:
        among = " or ".join(SAID[kind] for kind in NULLS if kind in kinds)
        console.print(
            f"p: rank of the mean score among {among}, corrected for every alpha and layer.",
            highlight=False,
        )


def print_controls(summary: pd.DataFrame) -> None:
    """A table per layer: of every kind of control the refusal rate at the lowest and the highest
    alpha, the mean and 95% range over its draws, and the learned direction's p among them."""
    for place in distinct(summary[summary["direction"] == "learned"], PLACE):
        here = summary[(summary[PLACE] == list(place)).all(axis=1)]
        subset, split = prompt_groups(here)[0]
        here = here[(here["subset"] == subset) & (here["split"] == split)]
        kinds = [kind for kind in CONTROLS if (here["direction"] == kind).any()]
        if not kinds:
            continue
        table = Table(
            title=f"Controls, refusal rate on {subset} {split}: layer {place[0]}",
            title_justify="left",
            header_style="bold",
        )
        ends = sorted({here["alpha"].min(), here["alpha"].max()})
        for name in ("direction", "draws", *(f"alpha {alpha:g}" for alpha in ends)):
            table.add_column(name, justify="left" if name == "direction" else "right")
        for kind in ("learned", *kinds):
            mine = here[here["direction"] == kind]
            shown = [_control(mine, here, kind, alpha) for alpha in ends]
            n = mine["seed"].nunique()
            table.add_row(SAID.get(kind, kind), str(n) if n else "", *shown)
        _console().print(table)


def _control(mine: pd.DataFrame, here: pd.DataFrame, kind: str, alpha: float) -> str:
    rates = mine.loc[mine["alpha"] == alpha, "refusal_rate"]
    if kind == "learned" or len(rates) == 1:
        return f"{rates.iloc[0]:.2f}"
    low, high = rates.quantile(0.025), rates.quantile(0.975)
    learned = here[(here["direction"] == "learned") & (here["alpha"] == alpha)].iloc[0]
    p = learned.get(CORRECTED.get(kind, ""), float("nan"))
    tested = "" if pd.isna(p) else f" p={p:.3f}"
    return f"{rates.mean():.2f} [{low:.2f}, {high:.2f}]{tested}"


def _rate(cells: pd.DataFrame, group: tuple[Any, ...]) -> str:
    row = cells[(cells["subset"] == group[0]) & (cells["split"] == group[1])].iloc[0]
    text = f"{row['refusal_rate']:.2f} [{row['rate_lo']:.2f}, {row['rate_hi']:.2f}]"
    p = fairest_p(row)[1]
    return text if pd.isna(p) else f"{text} p={p:.3f}"


def print_verdict(summary: pd.DataFrame) -> None:
    """What the learned direction did to EDGE, a sentence per layer and split, controls included.

    Where it does no more than the fairest controls do, what these prompts and draws could have
    shown."""
    fairest = next((kind for kind in NULLS if (summary["direction"] == kind).any()), "")
    for record in verdict(summary):
        if record["subset"] != "EDGE":
            continue
        both = [record[name] for name in ("lowest", "highest")]
        far = record["random_mean_off_baseline"]
        control = "no random directions to compare with"
        if far is not None:
            control = f"the mean of the random directions stays within {far:.2f} of unsteered"
        said = (
            f"EDGE {record['split']}, layer {record['layer']}: refusal rate "
            f"{_shown(record['baseline_rate'])} unsteered, {' and '.join(map(_end, both))}; "
            f"{control}."
        )
        nulls = [nothing_shown(end, fairest, record["n"]) for end in both] if fairest else []
        _console().print(" ".join([said, *filter(None, nulls)]), highlight=False)


def _end(end: dict[str, Any]) -> str:
    p = fairest_p(end)[1]
    tested = "" if pd.isna(p) else f" (p = {p:.3f})"
    return f"{_shown(end['refusal_rate'])} at alpha {end['alpha']:g}{tested}"


def nothing_shown(end: dict[str, Any], kind: str, n: int) -> str:
    """The sentence of a null result: what moved, and the smallest shift that n prompts and this
    many draws could have shown. Empty where an effect is shown, or nothing was tested."""
    p = end[CORRECTED[kind]]
    if p is None or p <= LIKE_NOTHING or not end["alpha"]:
        return ""
    said = f"No more than {SAID[kind]} at alpha {end['alpha']:g} (p = {p:.3f}):"
    if end["detectable"] is None:
        return f"{said} with so few draws or prompts no effect could have shown."
    share = ""
    if end["gap_share"] and end["shift"]:
        part = abs(end["detectable"] / end["shift"] * end["gap_share"])
        share = f", {part:.2f} of the gap between HARMFUL and BENIGN"
    return (
        f"{said} the mean score moves by {end['shift']:+.2f}, and the smallest shift that these "
        f"{n} prompts and draws could have shown is {end['detectable']:.2f}{share}."
    )


def _shown(rate: float | None) -> str:
    return "unknown" if rate is None else f"{rate:.2f}"


def print_groups(summary: pd.DataFrame, title: str) -> None:
    """One line per cell and group of prompts: mean score and refusal rate with their intervals."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("prompts", "n", "mean score", "refusal rate"):
        table.add_column(name, justify="left" if name == "prompts" else "right")
    for _, row in summary.iterrows():
        table.add_row(
            str(row["subset"]),
            str(row["n"]),
            f"{row['score_mean']:.2f} [{row['score_lo']:.2f}, {row['score_hi']:.2f}]",
            f"{row['refusal_rate']:.2f} [{row['rate_lo']:.2f}, {row['rate_hi']:.2f}]",
        )
    _console().print(table)


def print_band(summary: pd.DataFrame) -> None:
    """A table per layer: mean refusal rate over random directions with its 95% range, by alpha."""
    band = random_band(summary)
    for place in distinct(band, PLACE):
        part = band[(band[PLACE] == list(place)).all(axis=1)]
        title = f"Refusal rate, {part['n_seeds'].iloc[0]} random directions: layer {place[0]}"
        table = Table(title=title, title_justify="left", header_style="bold")
        table.add_column("alpha", justify="right")
        groups = prompt_groups(part)
        for subset, split in groups:
            table.add_column(f"{subset} {split}", justify="right")
        for alpha, cells in part.groupby("alpha"):
            rows = [cells[(cells["subset"] == s) & (cells["split"] == t)] for s, t in groups]
            ranges = [
                f"{r['mean'].iloc[0]:.2f} [{r['lo'].iloc[0]:.2f}, {r['hi'].iloc[0]:.2f}]"
                for r in rows
            ]
            table.add_row(f"{alpha:g}", *ranges)
        _console().print(table)


def _console() -> Console:
    width = None if Console().is_terminal else WIDTH
    return Console(width=width, markup=False, emoji=False)  # [nan, nan] is an interval, no style


def print_trade_off(table: pd.DataFrame) -> None:
    """A table per layer: gain where it is wanted and cost where it is not by alpha, for steering
    always, behind the detector, and behind random detectors (mean over their seeds)."""
    for layer, part in table.groupby("layer", sort=False):
        title = f"Gain on wanted prompts (score), cost on spared ones (rate): layer {layer}"
        shown = Table(title=title, title_justify="left", header_style="bold")
        for name in ("alpha", "always: gain", "cost", "conditional: kept", "paid"):
            shown.add_column(name, justify="right")
        shown.add_column("random\nkept", justify="right")
        for alpha, cells in part.groupby("alpha"):
            always, gated = (cells[cells["direction"] == n] for n in ("learned", "conditional"))
            random = cells[cells["direction"] == "random_detector"]
            line = [_with_interval(always.iloc[0], name) for name in ("gain", "cost")]
            line += [_with_interval(gated.iloc[0], name) for name in ("kept", "paid")]
            shown.add_row(f"{alpha:.3g}", *line, f"{random['kept'].mean():.2f}")
        _console().print(shown)


def _with_interval(row: pd.Series[Any], name: str) -> str:
    return f"{row[name]:.2f} [{row[f'{name}_lo']:.2f}, {row[f'{name}_hi']:.2f}]"
