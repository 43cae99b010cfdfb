"""A run as one HTML page: the verdict in words, tables, figures, the dial."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from refusal_dial.common import DialError
from refusal_dial.model.precision import Rounding
from refusal_dial.report.continuation import alpha_sweep, distributions
from refusal_dial.report.decomposition import decomposition_figure, decomposition_sentences
from refusal_dial.report.dial import dials
from refusal_dial.report.direction_map import map_figure, map_sentence
from refusal_dial.report.kinds import kind_lines, kinds_figure
from refusal_dial.report.patching import heatmaps, patching_title
from refusal_dial.report.reading import RunReading
from refusal_dial.report.replies import reply_curves, trade_off_curve
from refusal_dial.report.steering import (
    CONTROL_NAMES,
    alpha_curves,
    dial_sentences,
    has_slope_p,
    pareto,
    rank_of,
    score_histograms,
    set_off,
    slope_sentences,
    trade_off_curves,
)
from refusal_dial.report.subspace import subspace_figure, subspace_sentences
from refusal_dial.report.theme import (
    SCORE_AXIS,
    in_norms,
    packed,
    packed_plotly,
    page_part,
    template,
    title_of,
    unit_label,
)
from refusal_dial.report.trace import trace_figure, trace_lines
from refusal_dial.run.folder import versions_used
from refusal_dial.stats.summary import GROUP, fairest_p
from refusal_dial.stats.trade_off import trade_off
from refusal_dial.studies.patching_summary import moved

# --------------------------------------------------------------------------------------------------
# What a run came to, in sentences: the effect, its interval, its p-value, and its controls beside.
#
# It chooses what to say and computes nothing: every number stands in a row.


P_COLUMNS = ("p_holm", "p_value", "p_paired")


@dataclass(frozen=True)
class VerdictLine:
    """A sentence about a group of prompts, and how it stands to its controls."""

    about: str
    effect: str
    controls: str


def verdict_lines(reading: RunReading) -> list[VerdictLine]:
    """What a run came to, the most telling first: what turning the dial up and down does, in words;
    whether it turns refusal, by the primary test; then the groups of prompts (`rank_of`). At most
    six of each; the tables have the rest."""
    summary = reading.summary if "strength" in reading.summary else in_norms(reading.summary)
    if reading.kind == "patching":
        return _patched(summary)
    if reading.kind == "map":
        parts = summary.groupby("labels", sort=False)
        return [VerdictLine(*map_sentence(part), "") for _, part in parts]
    if reading.kind == "kinds":
        return [VerdictLine(*line) for line in kind_lines(summary)]
    if reading.kind == "subspaces":
        return [VerdictLine(*line) for line in subspace_sentences(summary)]
    if reading.kind == "decomposition":
        found = decomposition_sentences(summary, reading.verdict)
        return [VerdictLine(*line, "") for line in found]
    if reading.kind == "other":
        return [
            VerdictLine(
                str(reading.config["experiment"]), "what it came to stands in the tables", ""
            )
        ]
    learned = summary[summary["direction"] == "learned"]
    if learned.empty:
        return [_unsteered(row, *_value(summary)) for _, row in summary.iterrows()][:6]
    keys = ["layer", *GROUP]
    groups = [(key, part) for key, part in learned.groupby(keys, sort=False)]
    groups.sort(key=lambda group: rank_of(str(group[0][1]), str(group[0][2])))
    words, numbers = (
        [VerdictLine(*line, "") for line in lines]
        for lines in (
            dial_sentences(reading.verdict, reading.summary),
            slope_sentences(reading.verdict),
        )
    )
    return words[:6] + numbers[:6] + [_steered(summary, key, part) for key, part in groups][:6]


def _value(summary: pd.DataFrame) -> tuple[str, str, str]:
    """The column to report, the stem of its interval, and its name."""
    if "refusal_rate" in summary:
        return "refusal_rate", "rate", "share refused"
    return "score_mean", "score", "mean score"


def _with_interval(row: Any, value: str, stem: str) -> str:
    text = _number(row[value])
    low, high = row.get(f"{stem}_lo"), row.get(f"{stem}_hi")
    return text if pd.isna(low) else f"{text} [{_number(low)}, {_number(high)}]"


def _number(value: Any) -> str:
    return "unknown" if pd.isna(value) else f"{value:.2f}".replace("-", "−")


def _steered(summary: pd.DataFrame, key: tuple[Any, ...], part: pd.DataFrame) -> VerdictLine:
    layer, subset, split = key
    value, stem, name = _value(summary)
    unit = "strength" if "strength" in part else "alpha"
    part = part.sort_values(unit)
    here = summary[(summary[GROUP] == [subset, split]).all(axis=1)]
    base = here.loc[here["direction"] == "baseline", value]
    unsteered = f"{_number(base.iloc[0])} unsteered" if len(base) else "unsteered unknown"
    ends = [part.iloc[0], part.iloc[-1]] if len(part) > 1 else [part.iloc[0]]
    tested = not has_slope_p(summary)  # else that is the p of the run
    reached = " and ".join(_end(row, value, stem, unit, tested) for row in ends)
    controls = here[here["layer"] == layer]
    controls = controls[~controls["direction"].isin(("learned", "baseline"))]
    return VerdictLine(
        f"{subset} {split}, layer {layer}, n = {part['n'].iloc[0]}",
        f"{name} {unsteered}, {reached}",
        _controls(controls, value, float(base.iloc[0]) if len(base) else None),
    )


def _end(row: Any, value: str, stem: str, unit: str, tested: bool) -> str:
    kind, p = fairest_p(row)
    among = f" among {CONTROL_NAMES[kind]}" if kind else ""
    if not kind:
        p = next((row[name] for name in P_COLUMNS if name in row and not pd.isna(row[name])), p)
    text = "" if pd.isna(p) or not tested else f" (p = {p:.3g}{among})"
    at = f"{row[unit]:.3g}".replace("-", "−")
    return f"{_with_interval(row, value, stem)} at {unit} {at}{text}"


def _controls(controls: pd.DataFrame, value: str, base: float | None) -> str:
    """How far each kind of control went from unsteered, at most, on average over its directions."""
    if controls.empty or base is None:
        return "no control directions to compare with"
    lines = []
    for kind, rows in controls.groupby("direction", sort=False):
        means = rows.groupby("alpha")[value].mean()
        count = max(1, rows["seed"].nunique())
        many = f"the mean of {count} {kind} directions" if count > 1 else f"{kind}"
        lines.append(f"{many} stays within {_number((means - base).abs().max())} of unsteered")
    return "; ".join(lines)


def _unsteered(row: pd.Series[Any], value: str, stem: str, name: str) -> VerdictLine:
    about = f"{row['subset']} {row['split']}, n = {row['n']}"
    return VerdictLine(about, f"{name} {_with_interval(row, value, stem)}, unsteered", "")


def _patched(summary: pd.DataFrame) -> list[VerdictLine]:
    """The strongest patch of every way and group of pairs, with the controls at the same place."""
    table, found = moved(summary), []
    place = ["layer", "site", "role", "head", "neuron"]
    patches = table[table["direction"] == "patch"]
    for (way, subset, split), part in patches.groupby(["way", *GROUP], sort=False):
        best = part.iloc[int(part["moved"].abs().argmax())]
        where = {name: best[name] for name in place if not pd.isna(best[name]) and best[name] != ""}
        same = table[(table["way"] == way) & (table[GROUP] == [subset, split]).all(axis=1)]
        for name, wanted in where.items():
            same = same[same[name] == wanted]
        controls = [
            f"{str(row['direction']).replace('_', ' ')} control {_number(row['moved'])}"
            for _, row in same[same["direction"].isin(("same_class", "random"))].iterrows()
        ]
        found.append(
            VerdictLine(
                f"{way}, {subset} pairs, n = {best['n']}",
                f"the strongest patch ({_place(where)}) moves "
                f"{_with_interval(best, 'moved', 'moved')} of the gap",
                "; ".join(controls) or "no controls at that place",
            )
        )
    return found[:6]


def _place(where: Mapping[str, Any]) -> str:
    return ", ".join(str(v) if k in ("site", "role") else f"{k} {v}" for k, v in where.items())


# --------------------------------------------------------------------------------------------------
# A run's summary as a table that the page can sort and filter.
#
# A mean and its interval become one cell, `[value, low, high]`; what is the same in every row goes
# into the caption. Plain data comes out.


STEMS = {
    "score_mean": "score",
    "refusal_rate": "rate",
    "difference": "diff",
    "effect_mean": "effect",
    "coherence": "coherence",
    "logit_rate": "logit",
}

COLUMN_NAMES = {
    "score_mean": "mean score",
    "refusal_rate": "share refused",
    "effect_mean": "effect",
    "logit_rate": "share by logit",
    "p_value": "p",
    "alpha_relative": "alpha (residual norms)",
}

SHARES = ("refusal_rate", "logit_rate", "coherence")
"""Columns that are shares: two digits."""

WHERE = ("layer", "site", "pos", "samples", "system", "way")

CHOSEN = 12
"""Columns of text with at most so many values get a menu of their own."""


def summary_table(reading: RunReading) -> dict[str, Any]:
    """`{caption, columns: [{name, kind, digits}], rows}`; kind is text, number or interval; digits
    after the point, where a column has its own."""
    frame = reading.summary
    spans = {
        name: stem
        for name, stem in STEMS.items()
        if {name, f"{stem}_lo", f"{stem}_hi"} <= set(frame)
    }
    ends = {f"{stem}_{end}" for stem in spans.values() for end in ("lo", "hi")}
    same = [c for c in frame if c in WHERE and frame.loc[frame[c] != "", c].nunique() == 1]
    about = [f"{c} {frame.loc[frame[c] != '', c].dropna().iloc[0]}" for c in same]
    columns, cells = [], []
    for name in frame.columns:
        if name in ends or name in same or _empty(frame[name]):
            continue
        values = frame[name]
        if name in spans:
            low, high = (frame[f"{spans[name]}_{end}"] for end in ("lo", "hi"))
            kind = "interval"
            cells.append([list(map(_cell, row)) for row in zip(values, low, high, strict=True)])
        else:
            kind = "number" if pd.api.types.is_numeric_dtype(values) else "text"
            cells.append([_cell(value) for value in values])
        menu = kind == "text" or name in ("layer", "seed", "alpha", "strength")
        columns.append(
            {
                "name": COLUMN_NAMES.get(name, name.replace("_", " ")),
                "kind": kind,
                "digits": 2 if name in SHARES else None,
                "menu": bool(menu and values.nunique() <= CHOSEN),
            }
        )
    rows = [list(row) for row in zip(*cells, strict=True)]
    caption = f"{reading.name}: {', '.join(about)}" if about else reading.name
    return {"caption": caption, "columns": columns, "rows": rows}


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if pd.isna(value) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    value = value.item() if hasattr(value, "item") else value
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _empty(values: pd.Series[Any]) -> bool:
    return bool((values.isna() | (values.astype(str) == "")).all())


# --------------------------------------------------------------------------------------------------
# The figures that a run has: those of its experiment, drawn from its own tables.


Draw = Callable[[], go.Figure]


def figures_of(reading: RunReading) -> dict[str, go.Figure]:
    """Every figure that the run's tables allow, by name. One that they do not allow (a run without
    HARMFUL prompts has no Pareto curve) is left out."""
    drawn = {}
    for name, draw in _wanted(reading).items():
        try:
            drawn[name] = draw()
        except DialError:
            continue
    return drawn


def _wanted(reading: RunReading) -> dict[str, Draw]:
    scores, summary = reading.scores, reading.summary

    def title(question: str, rows: pd.DataFrame = summary) -> str:
        return title_of(reading.config, question, rows)

    settings, threshold = reading.settings, reading.settings.get("threshold")
    token_by_token = title_of(reading.config, "What the direction reads at every token")
    if reading.kind == "other":
        return {}
    if reading.kind == "patching":
        asked = patching_title(reading.config, "Where patching moves refusal")
        return {"patching": lambda: heatmaps(summary, asked)}
    if reading.kind == "kinds":
        asked = title_of(reading.config, "Kinds of refusal")
        return {"kinds": lambda: kinds_figure(summary, asked)}
    if reading.kind == "subspaces":
        asked = title_of(reading.config, "When more than one dimension pays")
        return {"subspaces": lambda: subspace_figure(summary, asked)}
    if reading.kind == "map":
        asked = title_of(reading.config, "Where a direction turns refusal")
        return {"map": lambda: map_figure(summary, asked)}
    if reading.kind == "decomposition":
        asked = title_of(reading.config, "Who writes the direction")
        return {"decomposition": lambda: decomposition_figure(summary, reading.verdict, asked)}
    if reading.kind == "continuations":
        asked, alpha = title("Score of completions"), unit_label("alpha", settings)
        every = title("Every completion's score")
        return {
            "curves": lambda: alpha_sweep(summary, asked, alpha),
            "distributions": lambda: distributions(scores, every, alpha),
            "trace": lambda: trace_figure(trace_lines(reading.verdict), token_by_token),
        }
    if reading.kind == "replies":
        asked, strength = title("Completions along the dial"), unit_label("strength", settings)
        return {
            "curves": lambda: reply_curves(summary, asked, strength),
            "trade_off": lambda: trade_off_curve(summary, title("Over-refusal")),
            "trace": lambda: trace_figure(trace_lines(reading.verdict), token_by_token),
            "histograms": lambda: score_histograms(scores, title("How scores are spread")),
        }
    wanted: dict[str, Draw] = {
        "curves": lambda: alpha_curves(summary, title("Refusal along the dial")),
        "pareto": lambda: pareto(
            summary, title("HARMFUL refusal against EDGE over-refusal", set_off(summary))
        ),
        "histograms": lambda: score_histograms(scores, title("How scores are spread"), threshold),
    }
    if (scores["direction"] == "conditional").any():
        held_out = scores[scores["split"] == "holdout"]
        drawn = held_out[held_out["subset"].isin(("HARMFUL", "EDGE"))]
        asked = title("What steering buys, and what it costs", drawn)
        wanted["trade_off"] = lambda: trade_off_curves(
            trade_off(held_out, wanted="HARMFUL", others="EDGE", threshold=float(threshold or 0)),
            asked,
            f"HARMFUL ({SCORE_AXIS})",
            "EDGE",
        )
    return wanted


# --------------------------------------------------------------------------------------------------
# The page: everything about one or more runs in one HTML file that asks nothing of the network.
#
# Styles, scripts and plotly (packed) are inlined once; plotly is not run before a figure comes into
# view. Data is packed too, so no text in it can end the script that holds it; in the markup texts
# are escaped by the template. The same runs give the same bytes.


SCRIPTS = (
    *("unpacked.js", "common.js", "dial.js", "dial_rows.js", "tables.js"),
    *("fitted.js", "figures.js"),
)


def report_page(readings: Sequence[RunReading]) -> str:
    """The report of these runs, side by side. Raises `DialError` without a run, or for two runs of
    one name, which nobody could tell apart."""
    if not readings:
        raise DialError("a report takes one run folder or more")
    names = [one.name for one in readings]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DialError(f"two of the runs are called {twice[0]!r}: rename a folder, or give one")
    found = dials(readings)
    figures = [figure for one in readings for figure in _figures(one)]
    data = {
        "dial": found,
        "tables": [summary_table(one) for one in readings],
        "figures": figures,
    }
    experiments = dict.fromkeys(str(one.config["experiment"]) for one in readings)
    # The texts of runs are escaped by the template. What is marked safe there is ours: styles,
    # scripts, and plotly and the data in letters and digits only.
    return template("report.html", sentence=_sentence).render(
        title=", ".join(map(_titled, experiments)),
        runs=list(map(_run, readings)),
        has_dial=bool(found["runs"]),
        style=page_part("page.css"),
        data=packed(json.dumps(data, separators=(",", ":"), allow_nan=False)),
        plotly=packed_plotly() if figures else "",
        script="\n".join(map(page_part, SCRIPTS)),
    )


def _run(reading: RunReading) -> dict[str, Any]:
    """What the page displays of one run besides its data: verdict, and how it was made."""
    first, *rest = verdict_lines(reading)
    return {
        "name": reading.name,
        "about": f"{_about(reading)} · {reading.name}",
        "first": first,
        "rest": rest,
        "warning": _left_out(reading),
        "command": str(reading.config.get("command", "")),
        "facts": _facts(reading),
        "settings": json.dumps(dict(reading.settings), indent=2),
    }


def _titled(experiment: str) -> str:
    return experiment[:1].upper() + experiment[1:].replace("_", " ")


def _about(reading: RunReading) -> str:
    settings = reading.settings
    layer = settings.get("layer")
    layers = [layer] if isinstance(layer, int) else layer
    n = (settings.get("data") or {}).get("n_prompts")
    return " · ".join(
        filter(
            None,
            [
                str(settings["model"]["name"]),
                f"layer {', '.join(map(str, layers))}" if layers else "",
                f"{n} prompts" if n else "",
            ],
        )
    )


def _figures(reading: RunReading) -> list[dict[str, Any]]:
    return [
        {"name": f"{reading.name}: {name}", "figure": json.loads(figure.to_json())}
        for name, figure in figures_of(reading).items()
    ]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _left_out(reading: RunReading) -> str:
    """How many rows have no score, and for which reasons; empty where all have one."""
    gone = reading.verdict.get("left_out")
    if not gone:
        return ""
    why = ", ".join(f"{n} {reason}" for reason, n in gone["reasons"].items())
    return f"{gone['rows']} of {gone['of']} rows have no score and are left out: {why}."


def _facts(reading: RunReading) -> dict[str, Any]:
    """How the run was made: versions and hashes."""
    settings = reading.settings
    data = settings.get("data") or {}
    return {
        "started": reading.config.get("started", ""),
        "model": f"{settings['model']['name']}, revision {settings['model'].get('revision')}",
        "device": f"{settings['model'].get('device')}, {settings['model'].get('dtype')}",
        **({"rounding": Rounding(**off).about} if (off := reading.verdict.get("rounding")) else {}),
        **{f"prompts, {name}": value for name, value in data.items()},
        **{f"SHA-256 of {name}": value for name, value in reading.files.items()},
        **versions_used(reading.config),
    }
