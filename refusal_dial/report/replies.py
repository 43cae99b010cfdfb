"""Results on replies: tables for the terminal, figures, and the experiment log in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table

from refusal_dial.common import UNIT_NAMES, DialError, terminal
from refusal_dial.data.prompts import CHOOSE, REPORT
from refusal_dial.report.theme import (
    GREY,
    LIGHT_BLUE,
    add_better,
    add_unsteered,
    colour_of,
    error_bars,
    read_so,
    styled,
    subset_colour,
)
from refusal_dial.run.folder import versions_used
from refusal_dial.run.schema import REPLY_COLUMNS
from refusal_dial.studies.replies import (
    BestCell,
    best_cell,
    control_range,
    inverted_layers,
    layer_table,
    not_significant,
    with_condition,
)

# --------------------------------------------------------------------------------------------------
# Tables for the terminal: completions under the dial, and who judged them.


_WIDTH = 118


def print_replies(summary: pd.DataFrame, unit: str) -> None:
    """A table per layer and group of prompts: by strength, the share refused by judge and by logit,
    the paired difference, the random directions' range, and coherence; beside the share refused,
    harmful compliance where a judge scored it."""
    base = summary[(summary["direction"] == "baseline") & (summary["system"] == "")]
    learned = summary[(summary["direction"] == "learned") & (summary["system"] == "")]
    for (layer, subset, split), part in learned.groupby(["layer", "subset", "split"], sort=False):
        own = base[(base["subset"] == subset) & (base["split"] == split)].iloc[0]
        title = (
            f"{subset} {split} (n={own['n']}), layer {layer}: unsteered "
            f"{own['refusal_rate']:.2f} refused, coherence {own['coherence']:.2f}"
        )
        harmed = _has_harm(part)
        heads = [_alpha(unit), "refused", *(["harmful"] if harmed else [])]
        table = _table(title, (*heads, "by logit", "difference", "random", "p", "coherence"))
        near = summary[(summary["direction"] == "random") & (summary["layer"] == layer)]
        near = near[(near["subset"] == subset) & (near["split"] == split)]
        for _, row in part.sort_values("strength").iterrows():
            far = near.loc[near["strength"] == row["strength"], "difference"]
            band = f"[{far.min():+.2f}, {far.max():+.2f}] x{len(far)}" if len(far) else ""
            table.add_row(
                f"{row['strength']:g}",
                _with(row, "refusal_rate", "rate"),
                *([_with(row, "harm", "harm")] if harmed else []),
                f"{row['logit_rate']:.2f}",
                _with(row, "difference", "diff", "+"),
                band,
                f"{row['p_holm']:.4f}",
                _with(row, "coherence", "coherence"),
            )
        _console().print(table)
    print(PAIRED)


PAIRED = (
    "p: paired permutation over prompts (sign flips of their differences from the unsteered "
    "model), corrected by Holm; judged replies have no slope"
)


def _alpha(unit: str) -> str:
    """The head of a column of alphas."""
    return f"alpha\n({UNIT_NAMES[unit]})"


def print_categories(by_category: pd.DataFrame) -> None:
    """Share refused, by the judge, of every category at every strength of the learned direction."""
    rows = by_category[by_category["direction"] == "learned"]
    base = by_category[by_category["direction"] == "baseline"]
    for layer, part in rows.groupby("layer", sort=False):
        steps = sorted(part["strength"].unique())
        title = f"Refused by category, layer {layer} (95% interval at the ends)"
        table = _table(title, ("category", "n", "unsteered", *(f"{s:+g}" for s in steps)))
        for (subset, category), mine in part.groupby(["subset", "category"], sort=False):
            own = base[(base["subset"] == subset) & (base["category"] == category)].iloc[0]
            cells = []
            for step in steps:
                row = mine[mine["strength"] == step].iloc[0]
                ends = step in (steps[0], steps[-1])
                cells.append(
                    _with(row, "refusal_rate", "rate") if ends else f"{row['refusal_rate']:.2f}"
                )
            name = f"{subset} {category}".strip()
            table.add_row(name, str(own["n"]), f"{own['refusal_rate']:.2f}", *cells)
        _console().print(table)


def print_conditions(rows: pd.DataFrame, summary: pd.DataFrame, unit: str) -> None:
    """The conditions with refusal and coherence by subset, each refusal beside its difference from
    base; then, in words, what is not significant."""
    subsets = list(dict.fromkeys(rows["subset"]))
    columns = [f"{s}\nrefused (n={rows[rows['subset'] == s]['n'].iloc[0]})" for s in subsets]
    table = _table(
        f"System message against steering (alpha in {UNIT_NAMES[unit]})",
        ("condition", *columns, "coherence"),
    )
    for condition, part in rows.groupby("condition", sort=False):
        cells = []
        for subset in subsets:
            row = part[part["subset"] == subset].iloc[0]
            shift = "" if condition == "base" else f"\n{_with(row, 'difference', 'diff', '+')}"
            shift += f"\nharmful {_with(row, 'harm', 'harm')}" if _has_harm(part) else ""
            cells.append(_with(row, "refusal_rate", "rate") + shift)
        mean = (part["coherence"] * part["n"]).sum() / part["n"].sum()
        table.add_row(str(condition), *cells, f"{mean:.2f}")
    _console().print(table)
    for _, row in control_range(summary).iterrows():
        print(
            f"random directions at {row['strength']:g} (x{row['n']}), {row['subset']}: difference "
            f"{row['lo']:+.2f} to {row['hi']:+.2f}"
        )
    for sentence in not_significant(rows):
        print(sentence)


def print_layers(half: pd.DataFrame, found: BestCell, wrong: Sequence[int], unit: str) -> None:
    """Layer by strength (`layers.table` of the reporting half), the chosen cell, and the layers
    whose polarity is inverted."""
    table = _table(
        "Contrast vectors by layer and strength, on the half that nothing was chosen on",
        (
            "layer",
            _alpha(unit),
            "HARMFUL refused",
            "false positives",
            "improvement",
            "p",
            "coherence",
        ),
    )
    for _, row in half.iterrows():
        table.add_row(
            f"{row['layer']:g}",
            f"{row['strength']:g}",
            _with(row, "harmful", "harmful"),
            f"{row['false_positives']:.2f}",
            f"{row['improvement']:+.2f}",
            f"{row['p_holm']:.4f}",
            f"{row['coherence']:.2f}",
        )
    _console().print(table)
    print(PAIRED)
    print(
        f"best on one half: layer {found.layer}, strength {found.strength:g} "
        f"({found.chosen_on:+.2f}); on the other half {found.reported:+.2f}"
    )
    for layer in wrong:
        print(f"layer {layer}: polarity inverted (refusal falls as the vector is added)")


def print_norms(norms: Mapping[int, float]) -> None:
    """The length of every layer's vector before it was normalised."""
    text = ", ".join(f"layer {layer} {norm:.2f}" for layer, norm in norms.items())
    print(f"vector norms: {text}")


def print_judge(record: Mapping[str, Any]) -> None:
    """Who judged, how well where known, what it left unscored, and where coherence ends."""
    found = record["judge"]
    known = "; ".join(f"{m['on']} {m['two_way']:.3f} two-way" for m in found["measured"])
    apart = found["disagrees_with_substring"]
    print(
        f"judge: {found['judge']} version {found['version']} ({known or 'accuracy not measured'}); "
        f"unscored {found['unscored']}, disagrees with the phrase list on "
        f"{'nothing scored' if apart is None else format(apart, '.1%')}"
    )
    for line in filter(None, (_harm_line(record), _thoughts(record))):
        print(line)
    for one in record["coherence"]:
        holds = f"stays within {one['tolerance']:g} of unsteered to strength {one['holds_to']:g}"
        falls = "and does not fall beyond on this dial"
        if one["breaks_at"] is not None:
            falls = f"and is {one['coherence_there']:.2f} at {one['breaks_at']:g}"
        print(f"coherence, layer {one['layer']}, toward {one['toward']} refusal: {holds}, {falls}")


def _thoughts(record: Mapping[str, Any]) -> str:
    """How the thoughts before the replies ended; "" where there were none."""
    ends = {name: n for name, n in record.get("thoughts", {}).items() if n}
    if set(ends) <= {"none"}:
        return ""
    known = ", ".join(f"{n} {name}" for name, n in ends.items())
    return f"thoughts: {known} (loop: over half of its trigrams repeat; endless: never closed)"


def _has_harm(rows: pd.DataFrame) -> bool:
    return "harm" in rows and bool(rows["harm"].notna().any())


def _harm_line(record: Mapping[str, Any]) -> str:
    """Who judged harm and what it left unscored; "" where nobody did."""
    found = record.get("harm")
    if not found:
        return ""
    return (
        f"harmful compliance (0 to 1): {found['judge']}, version {found['version']}; unscored "
        f"{found['unscored']} of {found['of']}"
    )


def _with(row: pd.Series[Any], name: str, stem: str, sign: str = "") -> str:
    lo, hi = row[f"{stem}_lo"], row[f"{stem}_hi"]
    return f"{row[name]:{sign}.2f} [{lo:{sign}.2f}, {hi:{sign}.2f}]"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table


def _console() -> Console:
    return terminal(_WIDTH)


# --------------------------------------------------------------------------------------------------
# Figures of judged replies: a summary becomes a plotly figure.
#
# Draws rates and intervals that are there already.


def _learned(summary: pd.DataFrame) -> pd.DataFrame:
    rows = summary[(summary["direction"] == "learned") & (summary["system"] == "")]
    if rows.empty:
        raise DialError("this run steered no learned direction: there is nothing to draw")
    return rows


def _spread(rows: pd.DataFrame, name: str, stem: str) -> dict[str, object]:
    return {**error_bars(rows[name], rows[f"{stem}_lo"], rows[f"{stem}_hi"]), "thickness": 1.2}


def reply_curves(summary: pd.DataFrame, title: str, strength: str = "strength") -> go.Figure:
    """Along the dial, a row per layer: refusal of every subset by judge (lines with intervals) and
    by logit (dotted), harmful compliance where it was judged (dashed), the random directions as
    grey crosses; beside it, coherence. `strength` is what the axis says (`theme.unit_label`)."""
    learned = _learned(summary)
    layers = list(learned["layer"].unique())
    titles = [f"layer {n}: {what}" for n in layers for what in ("refused", "coherence")]
    figure = make_subplots(rows=len(layers), cols=2, subplot_titles=titles)
    random = summary[summary["direction"] == "random"]
    for r, layer in enumerate(layers, 1):
        near = random[random["layer"] == layer]
        figure.add_scatter(
            x=near["strength"],
            y=near["refusal_rate"],
            mode="markers",
            marker={"color": GREY, "symbol": "x", "size": 5},
            name="random directions",
            legendgroup="random",
            showlegend=bool(r == 1 and len(near)),
            row=r,
            col=1,
        )
        for subset, part in learned[learned["layer"] == layer].groupby("subset", sort=False):
            part = part.sort_values("strength")
            line = {"color": subset_colour(str(subset))}
            name = f"{subset} (n={part['n'].iloc[0]})"
            same = {"legendgroup": str(subset), "row": r}
            for value, stem, col in (("refusal_rate", "rate", 1), ("coherence", "coherence", 2)):
                figure.add_scatter(
                    x=part["strength"],
                    y=part[value],
                    error_y=_spread(part, value, stem),
                    mode="lines+markers",
                    name=name,
                    showlegend=r == 1 and col == 1,
                    line=line,
                    col=col,
                    **same,
                )
            figure.add_scatter(
                x=part["strength"],
                y=part["logit_rate"],
                mode="lines",
                line={**line, "dash": "dot", "width": 1},
                name=f"{subset} by logit",
                showlegend=False,
                col=1,
                **same,
            )
            if _has_harm(part):
                figure.add_scatter(
                    x=part["strength"],
                    y=part["harm"],
                    error_y=_spread(part, "harm", "harm"),
                    mode="lines+markers",
                    line={**line, "dash": "dash"},
                    marker={"symbol": "diamond"},
                    name=f"{subset}: harmful compliance",
                    showlegend=r == 1,
                    col=1,
                    **same,
                )
    figure.update_xaxes(title_text=strength)
    figure.update_yaxes(range=[-0.03, 1.03])
    figure.update_yaxes(title_text="share refused", col=1)
    figure.update_yaxes(title_text="coherence (0 to 1)", col=2)
    return styled(figure, title, height=160 + 300 * len(layers), width=980)


def trade_off_curve(summary: pd.DataFrame, title: str) -> go.Figure:
    """Refusal of HARMFUL prompts against over-refusal of EDGE along the dial, each point with its
    strength. Up is wanted, right is not."""
    learned = _learned(summary)
    wide = learned.pivot_table(
        index=["layer", "strength"], columns="subset", values="refusal_rate", sort=False
    )
    if not {"HARMFUL", "EDGE"} <= set(wide.columns):
        raise DialError(
            f"this figure needs HARMFUL and EDGE; the run has {', '.join(wide.columns)}"
        )
    figure = make_subplots()
    wide = wide.reset_index()
    dashes = dict(zip(wide["layer"].unique(), cycle(DASHES), strict=False))
    for layer, part in wide.groupby("layer", sort=False):
        part = part.sort_values("strength")
        figure.add_scatter(
            x=part["EDGE"],
            y=part["HARMFUL"],
            mode="lines+markers+text",
            text=[f"{s:+g}" for s in part["strength"]],
            textposition="bottom right",
            name=f"layer {layer}",
            line={"color": colour_of("learned"), "dash": dashes[layer]},
        )
    base = summary[(summary["direction"] == "baseline") & (summary["system"] == "")]
    rates = base.groupby("subset")["refusal_rate"].mean()
    if {"HARMFUL", "EDGE"} <= set(rates.index):
        add_unsteered(figure, float(rates["EDGE"]), float(rates["HARMFUL"]), 1)
    add_better(figure, 1)
    figure.update_xaxes(title_text="share of EDGE refused (over-refusal)", range=[-0.05, 1.1])
    figure.update_yaxes(title_text="share of HARMFUL refused", range=[-0.05, 1.1])
    how = "Each point is a strength. Refuse HARMFUL and answer EDGE: up and left is better."
    return styled(figure, read_so(title, how), height=540, width=620)


DASHES = ("solid", "dash", "dot", "dashdot")


def category_bars(by_category: pd.DataFrame, title: str) -> go.Figure:
    """Share refused of every category: unsteered, and at both ends of the dial, with intervals.
    The lowest layer of the run is drawn."""
    learned = _learned(by_category)
    learned = learned[learned["layer"] == learned["layer"].min()]
    base = by_category[by_category["direction"] == "baseline"]
    ends = (learned["strength"].min(), 0.0, learned["strength"].max())
    colours = (LIGHT_BLUE, colour_of("baseline"), colour_of("learned"))
    figure = go.Figure()
    for strength, colour in zip(ends, colours, strict=True):
        rows = base if strength == 0 else learned[learned["strength"] == strength]
        figure.add_bar(
            y=[
                f"{s} {c} (n={n})"
                for s, c, n in zip(rows["subset"], rows["category"], rows["n"], strict=True)
            ],
            x=rows["refusal_rate"],
            error_x=_spread(rows, "refusal_rate", "rate"),
            orientation="h",
            marker_color=colour,
            name="unsteered" if strength == 0 else f"strength {strength:+g}",
        )
    figure.update_layout(barmode="group")
    figure.update_xaxes(title_text="share refused", range=[0, 1.03])
    return styled(figure, title, height=200 + 62 * len(base), width=820)


def layer_strength(half: pd.DataFrame, title: str, strength: str = "strength") -> go.Figure:
    """Layer by strength: share of HARMFUL refused, and false positives on the other subsets.
    `half` is `layers.table` of one half of the prompts."""
    panels = {"HARMFUL refused": "harmful", "false positives": "false_positives"}
    figure = make_subplots(cols=2, subplot_titles=list(panels), shared_yaxes=True)
    for col, name in enumerate(panels.values(), 1):
        wide = half.pivot(index="layer", columns="strength", values=name)
        figure.add_heatmap(
            z=wide.to_numpy(),
            x=[f"{s:g}" for s in wide.columns],
            y=[str(n) for n in wide.index],
            zmin=0,
            zmax=1,
            texttemplate="%{z:.2f}",
            colorscale="Cividis",
            showscale=col == 2,
            colorbar={"title": "share"},
            row=1,
            col=col,
        )
    figure.update_xaxes(title_text=strength, type="category")
    figure.update_yaxes(type="category")
    figure.update_yaxes(title_text="layer", col=1)
    return styled(figure, title, height=max(380, 240 + 36 * len(wide)), width=900)


def condition_bars(rows: pd.DataFrame, title: str) -> go.Figure:
    """Refusal of every subset and coherence under every condition, with intervals. `rows` come from
    `conditions.named`."""
    if rows.empty:
        raise DialError("this run has neither the unsteered model nor a learned direction")
    subsets = list(dict.fromkeys(rows["subset"]))
    titles = ["share refused", "coherence"]
    figure = make_subplots(rows=2, subplot_titles=titles, shared_xaxes=True, vertical_spacing=0.12)
    for subset in subsets:
        part = rows[rows["subset"] == subset]
        colour = subset_colour(str(subset))
        for row, (value, stem) in enumerate(
            (("refusal_rate", "rate"), ("coherence", "coherence")), 1
        ):
            figure.add_bar(
                x=part["condition"],
                y=part[value],
                error_y=_spread(part, value, stem),
                marker_color=colour,
                name=f"{subset} (n={part['n'].iloc[0]})",
                legendgroup=subset,
                showlegend=row == 1,
                row=row,
                col=1,
            )
    figure.update_yaxes(range=[0, 1.05])
    return styled(figure, title, height=640, width=180 + 95 * rows["condition"].nunique())


# --------------------------------------------------------------------------------------------------
# The experiment log: a run on replies as a page of Markdown, tables and circumstances.


MARKS = "\\`*_{}[]<>|#"

LOG_COLUMNS = (*REPLY_COLUMNS, "unclear", "unscored")

LOG_SETTINGS = (
    *("model.name", "model.revision", "model.device", "model.dtype"),
    *("data.source", "data.hash", "seed", "judge.name", "judge.version"),
)

LOG_VERDICT = (
    *("judge.judge", "judge.version", "judge.unscored"),
    *(f"judge.measured[].{name}" for name in ("on", "n", "two_way", "three_way")),
    *(f"coherence[].{name}" for name in ("layer", "toward", "tolerance", "holds_to")),
)
"""What the log is made of: columns of summary.csv, settings, and parts of summary.json."""


def log_page(
    config: Mapping[str, Any],
    verdict: Mapping[str, Any],
    summary: pd.DataFrame,
    norms: Mapping[int, float],
) -> str:
    """The log of one run. `norms` are the lengths of the vectors by layer, where it kept any."""
    settings = config["settings"]
    who = settings["model"]
    parts = [
        f"# {plain_markdown(config['experiment'])}: {plain_markdown(who['name'])}",
        _circumstances(config),
    ]
    if norms:
        parts.append("## Vectors")
        parts.append(_rows(("layer", "norm"), ((k, f"{v:.2f}") for k, v in norms.items())))
    if {CHOOSE, REPORT} <= set(summary["split"]):
        parts += _layers(summary)
    if (summary["system"] != "").any() and summary["split"].nunique() == 1:
        parts += _conditions(summary)
    parts += _groups(summary)
    parts += ["## Judge and coherence", _judge(verdict)]
    return "\n\n".join(parts) + "\n"


def _circumstances(config: Mapping[str, Any]) -> str:
    settings = config["settings"]
    who, data, judge = settings["model"], settings["data"], settings["judge"]
    lines = {
        "command": config.get("command", ""),
        "started": config.get("started", ""),
        "model": f"{who['name']}, revision {who['revision']}, {who['device']}, {who['dtype']}",
        "prompts": f"{data['source']}, hash {data['hash']}; seed {settings['seed']}",
        "judge": f"{judge['name']}, version {judge['version']}",
        "versions": "; ".join(f"{k} {v}" for k, v in versions_used(config).items()),
    }
    return "\n".join(f"- {name}: {plain_markdown(value)}" for name, value in lines.items())


def _layers(summary: pd.DataFrame) -> list[str]:
    half = layer_table(summary, REPORT)
    found, wrong = best_cell(summary), inverted_layers(summary)
    rows = (
        f"Chosen on one half: layer {found.layer} at strength {found.strength:g} "
        f"({found.chosen_on:+.2f}); on the other half its improvement is {found.reported:+.2f}. "
        f"Layers of inverted polarity: {', '.join(map(str, wrong)) or 'none'}."
    )
    parts = []
    for name, title in (("harmful", "HARMFUL refused"), ("false_positives", "False positives")):
        wide = half.pivot(index="layer", columns="strength", values=name)
        heads = ("layer", *(f"s={s:g}" for s in wide.columns))
        body = (
            (n, *(f"{v:.0%}" for v in row))
            for n, row in zip(wide.index, wide.to_numpy(), strict=True)
        )
        parts += [
            f"## {title}, by layer and strength (the half nothing was chosen on)",
            _rows(heads, body),
        ]
    return [*parts, rows]


def _conditions(summary: pd.DataFrame) -> list[str]:
    rows = with_condition(summary)
    subsets = list(dict.fromkeys(rows["subset"]))
    body = []
    for condition, part in rows.groupby("condition", sort=False):
        by = part.set_index("subset")
        values = by[["refusal_rate", "rate_lo", "rate_hi"]].reindex(subsets)
        cells = ["{:.0%} [{:.0%}, {:.0%}]".format(*values.loc[s].astype(float)) for s in subsets]
        mean = (part["coherence"] * part["n"]).sum() / part["n"].sum()
        body.append((condition, *cells, f"{mean:.2f}"))
    heads = ("condition", *(f"{s} refused" for s in subsets), "coherence")
    weak = not_significant(rows)
    return ["## Conditions", _rows(heads, body), *(f"- {plain_markdown(one)}" for one in weak)]


def _groups(summary: pd.DataFrame) -> list[str]:
    """Every cell but the controls, the two readings side by side, and harmful compliance beside
    refusal where it was judged."""
    known = summary[summary["direction"].isin(("baseline", "learned"))]
    harmed = _has_harm(known)
    heads = ["prompts", "n", "layer", "strength", "system", "refused"]
    heads += [*(["harmful"] if harmed else []), "by logit", "difference"]
    heads += ["p (Holm)", "coherence", "unclear", "unscored"]
    body = [
        (
            f"{row['subset']} {row['split']}",
            row["n"],
            "" if pd.isna(row["layer"]) else row["layer"],
            f"{row['strength']:g}",
            row["system"],
            f"{row['refusal_rate']:.2f} [{row['rate_lo']:.2f}, {row['rate_hi']:.2f}]",
            *([_with(row, "harm", "harm")] if harmed else []),
            f"{row['logit_rate']:.2f}",
            f"{row['difference']:+.2f} [{row['diff_lo']:+.2f}, {row['diff_hi']:+.2f}]",
            "" if pd.isna(row["p_holm"]) else f"{row['p_holm']:.4f}",
            f"{row['coherence']:.2f}",
            f"{row['unclear']:.2f}",
            row["unscored"],
        )
        for _, row in known.iterrows()
    ]
    return ["## Every cell", _rows(heads, body)]


def _judge(verdict: Mapping[str, Any]) -> str:
    found = verdict["judge"]
    known = [
        f"- measured on {plain_markdown(m['on'])} (n={m['n']}): {m['two_way']:.3f} two-way, "
        f"{m['three_way']:.3f} three-way"
        for m in found["measured"]
    ] or ["- its accuracy was not measured"]
    apart = found.get("disagrees_with_substring")
    lines = [
        f"- {plain_markdown(found['judge'])}, version {plain_markdown(found['version'])}; unscored "
        f"{found['unscored']}; "
        f"disagrees with the phrase list on {'-' if apart is None else format(apart, '.1%')}",
        *known,
        *(f"- {plain_markdown(one)}" for one in (_harm_line(verdict), _thoughts(verdict)) if one),
    ]
    for one in verdict["coherence"]:
        beyond, there = one.get("breaks_at"), one.get("coherence_there")
        broken = "unknown" if there is None else f"{there:.2f}"
        lines.append(
            f"- coherence at layer {one['layer']}, toward {one['toward']} refusal: within "
            f"{one['tolerance']:g} of unsteered to strength {one['holds_to']:g}"
            + ("" if beyond is None else f", {broken} at {beyond:g}")
        )
    return "\n".join(lines)


def plain_markdown(value: object) -> str:
    """A value as one line of text: whatever Markdown would read as markup is escaped."""
    text = " ".join(str(value).split())
    return "".join(f"\\{c}" if c in MARKS else c for c in text)


def _rows(heads: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    found = ([str(cell).replace("|", "\\|") for cell in row] for row in body)
    lines = [heads, ["---"] * len(heads), *found]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
