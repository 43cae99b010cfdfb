"""Results of steering: tables for the terminal, dose-response figures, the trade-off,
directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table

from refusal_dial.common import UNIT_NAMES, DialError, terminal
from refusal_dial.report.theme import (
    ALPHA,
    BLACK,
    BLUE,
    GREY,
    SCORE_AXIS,
    add_band,
    add_better,
    add_draws,
    add_line,
    add_unsteered,
    colour_of,
    error_bars,
    escaped,
    in_norms,
    read_so,
    styled,
    subset_colour,
)
from refusal_dial.stats.summary import (
    CEILING,
    COMPARED_KINDS,
    CORRECTED,
    FLOOR,
    GROUP,
    NULLS,
    PLACE,
    at_limit,
    distinct,
    fairest_p,
    prompt_groups,
    random_band,
    verdict,
)

# --------------------------------------------------------------------------------------------------
# Tables for the terminal: a summary as a person wants to read it.


ALPHA_HEAD = "alpha\n(residual\nnorms)"

_WIDTH = 118

LIKE_NOTHING = 0.05

LEAST_RATE = 0.005  # a change of a share that two digits show

FIRST_SUBSETS = ("EDGE", "CHALLENGING", "HARMFUL")

UNSEEN = ("holdout", "report", "all")

LIMITED = (
    f"rates stay under {FLOOR:g} or over {CEILING:g}, so the shift of the mean score from the "
    "unsteered model is displayed, with its 95% interval over prompts"
)

CONTROL_NAMES = {
    "random": "random directions",
    "covariance": "directions of the activations' covariance",
    "shuffled": "directions from shuffled labels",
    "flipped": "sign flipped",
    "length": "direction of prompt length",
    "fold": "learned without one fold",
}


def has_slope_p(summary: pd.DataFrame) -> bool:
    """Whether the primary p, that of the slope, is known. Then it is the only one displayed: what
    stands at each alpha beside it is description."""
    return "p_slope" in summary and bool(summary["p_slope"].notna().any())


def print_dial(summary: pd.DataFrame, direction: str = "learned") -> None:
    """A table per layer: refusal rate by alpha for each group of prompts, with its interval, and
    the mean and 95% range of the random directions. Where no slope was tested, with the p-value
    among the fairest controls corrected for all alphas and layers; runs of older versions have
    uncorrected ones."""
    console, summary = _console(), in_norms(summary)
    tested = not has_slope_p(summary)
    learned = summary[summary["direction"] == direction]
    base = summary[summary["direction"] == "baseline"].set_index(["subset", "split"])
    for place in distinct(learned, PLACE):
        layer, site, pos = place
        part = learned[(learned[PLACE] == list(place)).all(axis=1)]
        groups = prompt_groups(part)
        still = limited_groups(summary, part)
        title = f"Refusal rate, {direction} direction: layer {layer}, {site}, position {pos}"
        table = Table(title=title, title_justify="left", header_style="bold")
        table.add_column(ALPHA_HEAD, justify="right")
        for subset, split in groups:
            row = base.loc[(subset, split)] if (subset, split) in base.index else None
            about = "" if row is None else f"\nunsteered {row['refusal_rate']:.2f}, n={row['n']}"
            if row is not None and (subset, split) in still:
                about = f"\nSHIFT of the score\nunsteered {row['score_mean']:.2f}, n={row['n']}"
            table.add_column(f"{subset} {split}{about}", justify="right")
        first = "shift" if groups[0] in still else "refusal_rate"
        here = random_band(summary[(summary[PLACE] == list(place)).all(axis=1)], first)
        if len(here):
            table.add_column(f"random x{here['n_seeds'].iloc[0]}\n{groups[0][0]} {groups[0][1]}")
        for alpha, cells in part.groupby("alpha"):
            line = [f"{alpha:g}"]
            line += [_rate(cells, group, tested, group in still) for group in groups]
            match = here[(here["alpha"] == alpha) & (here["subset"] == groups[0][0])]
            match = match[match["split"] == groups[0][1]]
            if len(match):
                one = match.iloc[0]
                line.append(f"{one['mean']:.2f} [{one['lo']:.2f}, {one['hi']:.2f}]")
            table.add_row(*line)
        console.print(table)
        if still:
            names = ", ".join(" ".join(map(str, group)) for group in groups if group in still)
            console.print(f"{names}: {LIMITED}", highlight=False)
    kinds = {fairest_p(row)[0] for _, row in learned.iterrows()} - {""}
    if not tested:
        console.print(
            "The one p of this run is that of the slope (p_slope): rates by alpha are described, "
            "not tested.",
            highlight=False,
        )
    elif kinds:
        among = " or ".join(CONTROL_NAMES[kind] for kind in NULLS if kind in kinds)
        console.print(
            f"p: rank of the mean score among {among}, corrected for every alpha and layer.",
            highlight=False,
        )


def print_controls(summary: pd.DataFrame) -> None:
    """A table per layer: of every kind of control the refusal rate at the lowest and the highest
    alpha, the mean and 95% range over its draws; where no slope was tested, the learned direction's
    p among them."""
    summary = in_norms(summary)
    tested = not has_slope_p(summary)
    for place in distinct(summary[summary["direction"] == "learned"], PLACE):
        here = summary[(summary[PLACE] == list(place)).all(axis=1)]
        subset, split = prompt_groups(here)[0]
        here = here[(here["subset"] == subset) & (here["split"] == split)]
        kinds = [kind for kind in COMPARED_KINDS if (here["direction"] == kind).any()]
        if not kinds:
            continue
        still = (subset, split) in limited_groups(summary, here[here["direction"] == "learned"])
        what = "shift of the mean score" if still else "refusal rate"
        table = Table(
            title=f"Controls, {what} on {subset} {split}: layer {place[0]}",
            title_justify="left",
            header_style="bold",
        )
        ends = sorted({here["alpha"].min(), here["alpha"].max()})
        for name in (
            "direction",
            "draws",
            *(f"alpha {alpha:g}\n(residual norms)" for alpha in ends),
        ):
            table.add_column(name, justify="left" if name == "direction" else "right")
        for kind in ("learned", *kinds):
            mine = here[here["direction"] == kind]
            value = "shift" if still else "refusal_rate"
            direction = [_control(mine, here, kind, alpha, tested, value) for alpha in ends]
            n = mine["seed"].nunique()
            table.add_row(CONTROL_NAMES.get(kind, kind), str(n) if n else "", *direction)
        _console().print(table)


def _control(
    mine: pd.DataFrame, here: pd.DataFrame, kind: str, alpha: float, tested: bool, value: str
) -> str:
    rates = mine.loc[mine["alpha"] == alpha, value]
    if kind == "learned" or len(rates) == 1:
        return f"{rates.iloc[0]:.2f}"
    low, high = rates.quantile(0.025), rates.quantile(0.975)
    learned = here[(here["direction"] == "learned") & (here["alpha"] == alpha)].iloc[0]
    p = learned.get(CORRECTED.get(kind, ""), float("nan"))
    text = "" if pd.isna(p) or not tested else f" p={p:.3f}"
    return f"{rates.mean():.2f} [{low:.2f}, {high:.2f}]{text}"


def limited_groups(summary: pd.DataFrame, steered: pd.DataFrame) -> set[tuple[Any, ...]]:
    """The groups of prompts whose refusal rates, unsteered and in these rows, are all at the floor
    or all at the ceiling (`stats.summary.at_limit`)."""
    base = summary[summary["direction"] == "baseline"]
    rows = pd.concat([base, steered])
    return {group for group in distinct(steered, GROUP) if at_limit(rows[_of_group(rows, group)])}


def _of_group(rows: pd.DataFrame, group: tuple[Any, ...]) -> pd.Series[bool]:
    return (rows[GROUP] == list(group)).all(axis=1)


def _rate(cells: pd.DataFrame, group: tuple[Any, ...], tested: bool, still: bool) -> str:
    row = cells[_of_group(cells, group)].iloc[0]
    text = f"{row['refusal_rate']:.2f} [{row['rate_lo']:.2f}, {row['rate_hi']:.2f}]"
    if still:
        text = f"{row['shift']:+.2f} [{row['shift_lo']:+.2f}, {row['shift_hi']:+.2f}]"
    p = fairest_p(row)[1]
    return text if pd.isna(p) or not tested else f"{text} p={p:.3f}"


def print_slopes(record: Mapping[str, Any], summary: pd.DataFrame) -> None:
    """What turning the dial up and down does, in words; then the primary test with its numbers: two
    lines a layer (see `dial_sentences` and `slope_sentences`)."""
    words = dict(dial_sentences(record, summary))
    for row, (about, answer) in zip(record.get("slope", []), slope_sentences(record), strict=True):
        if (dial := f"the dial, layer {row['layer']}") in words:
            print(f"{dial}: {words[dial]}")
        print(f"{about}: {answer}")


def dial_sentences(record: Mapping[str, Any], summary: pd.DataFrame) -> list[tuple[str, str]]:
    """(`the dial, layer 20`, `turned up, yes, it refuses more; turned down, not shown (...)`) of
    every layer that a run's summary.json has a test of, on the most telling prompts (`rank_of`).

    Either way is judged at its furthest alpha. It is a yes where the primary test is (its one-sided
    p is at most 0.05) and the score moved the way of the dial, its 95% interval (of replies: the
    paired p at 0.05) without 0; a no where it moved against the dial by as much; else not shown.
    """
    learned, found = in_norms(summary[summary["direction"] == "learned"]), []
    for test in record.get("slope", []):
        here = learned[learned["layer"] == test["layer"]]
        groups = sorted(distinct(here, GROUP), key=lambda group: rank_of(*map(str, group)))
        if not groups:
            continue
        same = summary[_of_group(summary, groups[0]) & (summary["direction"] == "baseline")]
        rows = here[_of_group(here, groups[0])].sort_values("alpha")
        base = float(same["refusal_rate"].iloc[0])
        ways = []
        for name, sign, end in (("up", 1, rows.iloc[-1]), ("down", -1, rows.iloc[0])):
            if sign * end["alpha"] > 0:
                ways.append(f"turned {name}, {_turned(end, base, sign, test)}")
        if ways:
            found.append((f"the dial, layer {test['layer']}", "; ".join(ways)))
    return found


def _turned(end: pd.Series[Any], base: float, sign: int, test: Mapping[str, Any]) -> str:
    """One way of the dial: yes, no or not shown, and what the model does."""
    # 1. How far the end of the dial is from unsteered, and whether that is more than chance.
    rate = float(end["refusal_rate"]) - base
    change, sure = rate, end.get("p_paired", np.nan) <= LIKE_NOTHING
    if not pd.isna(low := end.get("shift_lo", np.nan)):
        change, sure = float(end["shift"]), low > 0 or end["shift_hi"] < 0
    if not sure:
        return f"not shown (no change beyond chance at alpha {end['alpha']:g})"
    # 2. In words: of the refusals, where they moved with the score.
    does = f"it refuses {'more' if change > 0 else 'less'}"
    if rate * change <= 0 or abs(rate) < LEAST_RATE:
        does = f"the score {'rises' if change > 0 else 'falls'}, the refusals do not"
    if change * sign < 0:
        return f"no, {does}"
    # 3. Whether labels that mean nothing would have done as much.
    if test["p"] is None:
        return f"not shown ({test['reason']})"
    if test["p"] > LIKE_NOTHING:
        return f"not shown ({does}, as it does with permuted labels)"
    return f"yes, {does}"


def rank_of(subset: str, split: str) -> tuple[int, int]:
    """The order of groups of prompts: those that nothing was learned from first, and of these EDGE,
    where the dial has room to turn."""
    seen = UNSEEN.index(split) if split in UNSEEN else len(UNSEEN)
    return seen, FIRST_SUBSETS.index(subset) if subset in FIRST_SUBSETS else len(FIRST_SUBSETS)


def slope_sentences(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(`turns refusal, layer 20`, the answer in words and its p) of every layer that a run's
    summary.json has a test of. Yes where the one-sided p at the direction's own length is at most
    0.05; no where the slope points the other way by as much; else not shown."""
    found = []
    for row in record.get("slope", []):
        about = f"turns refusal, layer {row['layer']}"
        if row["p"] is None:
            found.append((about, f"not shown, {row['reason']}"))
            continue
        answer = "yes" if row["p"] <= LIKE_NOTHING else "not shown"
        if row["p"] >= 1 - LIKE_NOTHING:
            answer = "no, it turns the other way"
        among = f"{int(row['n']):,} permuted labels (own length), {row['p_unit']:.2g} (unit length)"
        on = row.get("on", "held-out EDGE prompts")
        slope = f"slope {row['slope']:+.2f} on {on}"
        found.append((about, f"{answer}, p = {row['p']:.2g} among {among}; {slope}"))
    return found


def print_verdict(summary: pd.DataFrame) -> None:
    """What the learned direction did to EDGE, a sentence per layer and split, controls included.

    Where it does no more than the fairest controls do, what these prompts and draws could have
    shown."""
    fairest = next((kind for kind in NULLS if (summary["direction"] == kind).any()), "")
    tested = not has_slope_p(summary)
    fairest = fairest if tested else ""
    for record in verdict(in_norms(summary)):
        if record["subset"] != "EDGE":
            continue
        both = [record[name] for name in ("lowest", "highest")]
        far = record["random_mean_off_baseline"]
        control = "no random directions to compare with"
        if far is not None:
            control = f"the mean of the random directions stays within {far:.2f} of unsteered"
        text = (
            f"EDGE {record['split']}, layer {record['layer']}: refusal rate "
            f"{_significant(record['baseline_rate'])} unsteered, "
            f"{' and '.join(_end(end, tested) for end in both)}; {control}."
        )
        mine = summary[(summary["direction"] == "learned") & (summary["layer"] == record["layer"])]
        if ("EDGE", record["split"]) in limited_groups(summary, mine):
            text = _moved(in_norms(mine), record)
        nulls = [nothing_significant(end, fairest, record["n"]) for end in both] if fairest else []
        unit = f"Alphas are in {UNIT_NAMES['residual']}."
        _console().print(" ".join([text, *filter(None, nulls), unit]), highlight=False)


def _moved(mine: pd.DataFrame, record: Mapping[str, Any]) -> str:
    """The verdict where rates are at a limit: how far the mean score moved at either end."""
    rows = mine[_of_group(mine, ("EDGE", record["split"]))].sort_values("alpha")
    ends = [
        f"by {row['shift']:+.2f} [{row['shift_lo']:+.2f}, {row['shift_hi']:+.2f}] at alpha "
        f"{row['alpha']:g}"
        for _, row in rows.iloc[[0, -1]].iterrows()
    ]
    return (
        f"EDGE {record['split']}, layer {record['layer']}: the mean score moves "
        f"{' and '.join(ends)}; the refusal rate stays at {_significant(record['baseline_rate'])}."
    )


def _end(end: dict[str, Any], tested: bool) -> str:
    p = fairest_p(end)[1]
    text = "" if pd.isna(p) or not tested else f" (p = {p:.3f})"
    return f"{_significant(end['refusal_rate'])} at alpha {end['alpha']:g}{text}"


def nothing_significant(end: dict[str, Any], kind: str, n: int) -> str:
    """The sentence of a null result: what moved, and the smallest shift that n prompts and this
    many draws could have shown. Empty where an effect is shown, or nothing was tested."""
    p = end[CORRECTED[kind]]
    if p is None or p <= LIKE_NOTHING or not end["alpha"]:
        return ""
    text = (
        f"Not distinguishable from {CONTROL_NAMES[kind]} at alpha {end['alpha']:g} (p = {p:.3f}):"
    )
    if end["detectable"] is None:
        return f"{text} with so few draws or prompts no effect could have shown."
    share = ""
    if end["gap_share"] and end["shift"]:
        part = abs(end["detectable"] / end["shift"] * end["gap_share"])
        share = f", {part:.2f} of the gap between HARMFUL and BENIGN"
    return (
        f"{text} the mean score moves by {end['shift']:+.2f}, and the smallest shift that these "
        f"{n} prompts and draws could have shown is {end['detectable']:.2f}{share}."
    )


def _significant(rate: float | None) -> str:
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
    band = random_band(in_norms(summary))
    for place in distinct(band, PLACE):
        part = band[(band[PLACE] == list(place)).all(axis=1)]
        title = f"Refusal rate, {part['n_seeds'].iloc[0]} random directions: layer {place[0]}"
        table = Table(title=title, title_justify="left", header_style="bold")
        table.add_column(ALPHA_HEAD, justify="right")
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
    return terminal(_WIDTH)


def print_trade_off(table: pd.DataFrame) -> None:
    """A table per layer: gain where it is wanted and cost where it is not by alpha, for steering
    always, behind the detector, and behind random detectors (mean over their seeds). Where a share
    has no value, a line below the table gives the reason."""
    for layer, part in table.groupby("layer", sort=False):
        title = f"Gain on wanted prompts (score), cost on others (rate): layer {layer}"
        direction = Table(title=title, title_justify="left", header_style="bold")
        for name in (ALPHA_HEAD, "always: gain", "cost", "conditional: kept", "paid"):
            direction.add_column(name, justify="right")
        direction.add_column("random\nkept", justify="right")
        for alpha, cells in part.groupby("alpha"):
            always, gated = (cells[cells["direction"] == n] for n in ("learned", "conditional"))
            random = cells[cells["direction"] == "random_detector"]
            line = [_with_interval(always.iloc[0], name) for name in ("gain", "cost")]
            line += [_with_interval(gated.iloc[0], name) for name in ("kept", "paid")]
            direction.add_row(f"{alpha:.3g}", *line, _or_none(f"{random['kept'].mean():.2f}"))
        _console().print(direction)
        if part[["gain", "cost", "kept", "paid"]].isna().any(axis=None):
            print(
                "none: always-on steering moves nothing there, or no prompt has a score under both "
                "(the model overflows), so there is no share of it"
            )


def _with_interval(row: pd.Series[Any], name: str) -> str:
    return _or_none(f"{row[name]:.2f} [{row[f'{name}_lo']:.2f}, {row[f'{name}_hi']:.2f}]")


def _or_none(text: str) -> str:
    """A value; `none` for one that does not exist."""
    return "none" if text.startswith("nan") else text


# --------------------------------------------------------------------------------------------------
# Figures of the dial: a tidy frame becomes a plotly figure.
#
# Every kind of direction that a run has is drawn, learned and controls alike, each in the colour
# that `theme` gives it. A figure shows what a summary holds; it does not compute statistics of its
# own.


VALUE_LABELS = {
    "refusal_rate": "share refused",
    "score_mean": f"mean {SCORE_AXIS}",
    "shift": f"shift of the mean {SCORE_AXIS}",
}

BANDS = {
    "refusal_rate": ("rate_lo", "rate_hi"),
    "score_mean": ("score_lo", "score_hi"),
    "shift": ("shift_lo", "shift_hi"),
}

LEARNED = "learned, band: 95% interval over prompts"

BINS = 40


def alpha_curves(summary: pd.DataFrame, title: str, value: str | None = None) -> go.Figure:
    """`value` against alpha: a row per layer, a column per group of prompts. None is the refusal
    rate, and the mean score's shift for a group whose rates are all at the floor or the ceiling.

    The learned direction with its 95% interval over prompts, over a thin line for every control
    direction; the unsteered model as a dotted line. Prompts that were learned from come last.
    """
    summary = in_norms(summary)
    learned = summary[summary["direction"] == "learned"]
    places = _places(learned)
    groups = sorted(prompt_groups(learned), key=lambda group: str(group[1]) == "train")
    counts = learned.groupby(GROUP, sort=False)["n"].first()
    titles = [
        escaped(f"layer {place[0]}: {subset} {split} (n={counts[(subset, split)]})")
        for place in places
        for subset, split in groups
    ]
    still = limited_groups(summary, learned) if value is None else set()
    drawn = {group: value or ("shift" if group in still else "refusal_rate") for group in groups}
    alike = len(set(drawn.values())) == 1
    figure = make_subplots(
        rows=len(places), cols=len(groups), subplot_titles=titles, shared_yaxes=alike
    )
    kinds = control_kinds(summary)
    for r, place in enumerate(places, 1):
        for c, group in enumerate(groups, 1):
            first, at, what = r == c == 1, {"row": r, "col": c}, drawn[group]
            for kind in kinds:
                control = summary[summary["direction"] == kind]
                draws = _draws(_at(control, place, group), what)
                if draws:
                    add_draws(figure, draws, colour_of(kind), _control_name(control), at, first)
            one, colour = _at(learned, place, group).sort_values("alpha"), colour_of("learned")
            lo, hi = BANDS[what]
            add_band(figure, one["alpha"], one[lo], one[hi], colour, LEARNED, at)
            add_line(figure, one["alpha"], one[what], colour, LEARNED, at, first)
            base = summary[(summary["direction"] == "baseline")]
            base = base[(base[GROUP] == list(group)).all(axis=1)]
            if len(base):
                level = 0.0 if what == "shift" else float(base[what].iloc[0])
                figure.add_hline(level, line_dash="dot", line_color=BLACK, line_width=1, **at)
            if c == 1 or not alike:
                figure.update_yaxes(title_text=VALUE_LABELS[what], **at)
            if what == "refusal_rate":
                figure.update_yaxes(range=[-0.03, 1.03], **at)
    figure.update_xaxes(title_text=ALPHA, row=len(places))
    return styled(figure, title, height=160 + 300 * len(places), width=140 + 270 * len(groups))


def _control_name(control: pd.DataFrame) -> str:
    n, kind = control["seed"].nunique(), str(control["direction"].iloc[0])
    return f"{kind}, {n} draws, a line each" if n > 1 else kind


def _draws(control: pd.DataFrame, value: str) -> list[tuple[Any, Any]]:
    """The curve of every draw of a control."""
    ordered = control.assign(seed=control["seed"].fillna(-1)).sort_values("alpha")
    return [(one["alpha"], one[value]) for _, one in ordered.groupby("seed", sort=True)]


def control_kinds(summary: pd.DataFrame) -> list[str]:
    """What was steered besides the learned direction, in order of first appearance."""
    kinds = dict.fromkeys(summary["direction"])
    return [str(kind) for kind in kinds if kind not in ("learned", "baseline")]


def pareto(summary: pd.DataFrame, title: str) -> go.Figure:
    """HARMFUL refusal against EDGE over-refusal along alpha, a panel per layer.

    Up is wanted, right is not. A random direction's curve shows what merely disturbing the model
    buys. The unsteered model is a diamond. The ends of the learned curve are labelled with their
    alpha; the pointer shows the others.
    """
    summary = in_norms(summary)
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
                direction = name == "learned" or seed == table["seed"].min()
                figure.add_scatter(
                    x=part["EDGE"],
                    y=part["HARMFUL"],
                    mode="lines+markers+text" if name == "learned" else "lines+markers",
                    name=name,
                    legendgroup=name,
                    showlegend=bool(c == 1 and direction),
                    opacity=1.0 if name == "learned" else 0.35,
                    line={"color": colour_of(name), "width": 2 if name == "learned" else 1},
                    marker={"size": 6 if name == "learned" else 4},
                    text=_ends(part["alpha"]) if name == "learned" else None,
                    textposition=[f"bottom {'left' if x > 0.5 else 'right'}" for x in part["EDGE"]],
                    cliponaxis=False,
                    customdata=part["alpha"],
                    hovertemplate="alpha %{customdata:g}<br>EDGE %{x:.2f}, HARMFUL %{y:.2f}"
                    "<extra></extra>",
                    row=1,
                    col=c,
                )
        base = set_off(summary[summary["direction"] == "baseline"])
        rates = base.groupby("subset")["refusal_rate"].mean()
        if {"EDGE", "HARMFUL"} <= set(rates.index):
            add_unsteered(figure, float(rates["EDGE"]), float(rates["HARMFUL"]), c)
        add_better(figure, c)
    figure.update_xaxes(title_text="share of EDGE refused (over-refusal)", range=[-0.03, 1.03])
    figure.update_yaxes(title_text="share of HARMFUL refused", range=[-0.03, 1.03], col=1)
    return styled(figure, read_so(title, PARETO), height=500, width=140 + 420 * len(places))


PARETO = (
    "Each point is an alpha. Refuse HARMFUL and answer EDGE: up and left is better. "
    "Where a control's line is as high, the direction buys nothing."
)


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
    scores = in_norms(scores[scores["score"].notna()])
    panels = {"unsteered": scores[scores["direction"] == "baseline"]}
    learned = scores[scores["direction"] == "learned"]
    for layer, part in learned.groupby("layer", sort=False):
        for alpha in sorted({part["alpha"].min(), part["alpha"].max()}):
            panels[f"layer {layer}, alpha {alpha:.3g}"] = part[part["alpha"] == alpha]
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
    figure.update_xaxes(title_text=SCORE_AXIS, row=len(panels))
    figure.update_yaxes(title_text="share of prompts", row=(len(panels) + 1) // 2)
    figure.update_yaxes(tickformat=".0%")
    figure.update_layout(barmode="overlay", bargap=0)
    return styled(figure, title, height=190 + 170 * len(panels), width=760)


# --------------------------------------------------------------------------------------------------
# The trade-off as a figure: gain against cost along alpha, a panel per layer.
#
# Draws what `trade_off` computed.


CURVE_NAMES = {
    "learned": "always",
    "conditional": "behind the detector",
    "random_detector": "behind random detectors (mean)",
}


def trade_off_curves(table: pd.DataFrame, title: str, wanted: str, others: str) -> go.Figure:
    """Up is wanted, right is not. Each point is an alpha; bars are 95% intervals over prompts.

    Raises `DialError` for a table without cells that these names know.
    """
    table = table[table["direction"].isin(CURVE_NAMES)]
    if table.empty:
        raise DialError(f"no cells to draw: expected directions {', '.join(CURVE_NAMES)}")
    layers = list(table["layer"].unique())
    figure = make_subplots(cols=len(layers), subplot_titles=[f"layer {n}" for n in layers])
    for c, layer in enumerate(layers, 1):
        part = table[table["layer"] == layer]
        for name in [name for name in CURVE_NAMES if (part["direction"] == name).any()]:
            cells = part[part["direction"] == name]
            mean = cells.groupby("alpha")[["gain", "cost"]].mean().reset_index()
            bars = {}
            if name != "random_detector":
                ends = cells.sort_values("alpha")
                for axis, value in (("error_y", "gain"), ("error_x", "cost")):
                    found = error_bars(ends[value], ends[f"{value}_lo"], ends[f"{value}_hi"])
                    bars[axis] = {**found, "thickness": 1}
            figure.add_scatter(
                x=mean["cost"],
                y=mean["gain"],
                mode="lines+markers",
                name=CURVE_NAMES[name],
                legendgroup=name,
                showlegend=c == 1,
                line={"color": colour_of(name)},
                text=[f"alpha {alpha:g}" for alpha in mean["alpha"]],
                hovertemplate="%{text}<br>cost %{x:.2f}, gain %{y:.2f}<extra></extra>",
                row=1,
                col=c,
                **bars,
            )
        add_unsteered(figure, 0.0, 0.0, c)
        add_better(figure, c)
    figure.update_xaxes(title_text=f"rise of the share refused, {others}")
    figure.update_yaxes(title_text=f"rise of the mean score, {wanted}", col=1)
    return styled(figure, read_so(title, TRADE_OFF), height=500, width=140 + 420 * len(layers))


TRADE_OFF = (
    "Each point is an alpha. Gain without cost: up and left is better. A detector pays where its "
    "line is above that of steering always."
)


# --------------------------------------------------------------------------------------------------
# Figures of directions themselves: how long they were at each layer, and how alike layers are.
#
#     cosine(i, j) = u_i . u_j,   u unit vectors
#
# A cosine near 1 between neighbouring layers says that the residual stream carries one direction
# on; in d dimensions two random directions have a cosine of about ±1 / sqrt(d).


Vectors = Mapping[int, NDArray[np.float64]]


def norms_by_layer(
    norms: Mapping[int, float], title: str, residual: Mapping[int, float] | None = None
) -> go.Figure:
    """The norm of the raw difference in means at each layer, in residual-stream units; beside it,
    where known, the mean norm of the activations there. Raises `DialError` without a direction."""
    if not norms:
        raise DialError("no direction to draw: give a run folder that holds direction*.safetensors")
    figure = go.Figure()
    for name, values, colour in (
        ("direction (raw difference)", norms, BLUE),
        ("mean activation", residual or {}, GREY),
    ):
        layers = sorted(values)
        if layers:
            add_line(figure, layers, [values[n] for n in layers], colour, name, {}, True)
    figure.update_xaxes(title_text="layer", dtick=max(1, len(norms) // 12))
    figure.update_yaxes(title_text="norm (residual-stream units)", rangemode="tozero")
    return styled(figure, title, height=440, width=760)


def layer_cosines(units: Vectors, title: str) -> go.Figure:
    """The cosine between every two layers' directions. Raises `DialError` for fewer than two, or
    for directions of different widths."""
    layers = sorted(units)
    if len(layers) < 2:
        raise DialError(
            f"cosines between layers take two or more directions, and here is {len(layers)}: "
            "run the experiment with --layer all"
        )
    widths = {len(units[n]) for n in layers}
    if len(widths) > 1:
        raise DialError(f"directions of different models: widths {sorted(widths)}")
    table = cosine_matrix([units[n] for n in layers])
    figure = go.Figure(
        go.Heatmap(
            z=table,
            x=layers,
            y=layers,
            colorscale="RdBu_r",
            zmid=0,
            zmin=-1,
            zmax=1,
            colorbar={"title": {"text": "cosine"}},
            hovertemplate="layers %{x} and %{y}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="layer", type="category")
    figure.update_yaxes(title_text="layer", type="category", scaleanchor="x", autorange="reversed")
    return styled(figure, title, height=640, width=720)


def cosine_matrix(vectors: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """`u_i . u_j` for all pairs, each vector divided by its norm first."""
    stacked = np.stack(vectors).astype(float)
    unit = stacked / np.linalg.norm(stacked, axis=1, keepdims=True)
    return np.clip(unit @ unit.T, -1, 1)
