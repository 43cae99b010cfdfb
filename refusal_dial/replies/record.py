"""The experiment log: a run on replies as a page of Markdown, tables and circumstances.

Takes what a run folder holds and returns text. It computes nothing but the choice of what to show,
and whatever came from prompts or models stands in it as plain text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from refusal_dial.replies.conditions import named, unshown
from refusal_dial.replies.layers import CHOOSE, REPORT, best, inverted, table
from refusal_dial.run_columns import REPLIES

MARKS = "\\`*_{}[]<>|#"
COLUMNS = (*REPLIES, "unclear", "unscored")
SETTINGS = (
    *("model.name", "model.revision", "model.device", "model.dtype"),
    *("data.source", "data.hash", "seed", "judge.name", "judge.version"),
)
VERDICT = (
    *("judge.judge", "judge.version", "judge.unscored"),
    *(f"judge.measured[].{name}" for name in ("on", "n", "two_way", "three_way")),
    *(f"coherence[].{name}" for name in ("layer", "toward", "tolerance", "holds_to")),
)
"""What the log is made of: columns of summary.csv, settings, and parts of summary.json."""


def page(
    config: Mapping[str, Any],
    verdict: Mapping[str, Any],
    summary: pd.DataFrame,
    norms: Mapping[int, float],
) -> str:
    """The log of one run. `norms` are the lengths of the vectors by layer, where it kept any."""
    settings = config["settings"]
    who = settings["model"]
    parts = [f"# {plain(config['experiment'])}: {plain(who['name'])}", _circumstances(config)]
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
    settings, versions = config["settings"], config.get("versions", {})
    who, data, judge = settings["model"], settings["data"], settings["judge"]
    lines = {
        "command": config.get("command", ""),
        "started": config.get("started", ""),
        "model": f"{who['name']}, revision {who['revision']}, {who['device']}, {who['dtype']}",
        "prompts": f"{data['source']}, hash {data['hash']}; seed {settings['seed']}",
        "judge": f"{judge['name']}, version {judge['version']}",
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
    }
    return "\n".join(f"- {name}: {plain(value)}" for name, value in lines.items())


def _layers(summary: pd.DataFrame) -> list[str]:
    half = table(summary, REPORT)
    found, wrong = best(summary), inverted(summary)
    said = (
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
    return [*parts, said]


def _conditions(summary: pd.DataFrame) -> list[str]:
    rows = named(summary)
    subsets = list(dict.fromkeys(rows["subset"]))
    body = []
    for condition, part in rows.groupby("condition", sort=False):
        by = part.set_index("subset")
        values = by[["refusal_rate", "rate_lo", "rate_hi"]].reindex(subsets)
        cells = ["{:.0%} [{:.0%}, {:.0%}]".format(*values.loc[s].astype(float)) for s in subsets]
        mean = (part["coherence"] * part["n"]).sum() / part["n"].sum()
        body.append((condition, *cells, f"{mean:.2f}"))
    heads = ("condition", *(f"{s} refused" for s in subsets), "coherence")
    weak = unshown(rows)
    return ["## Conditions", _rows(heads, body), *(f"- {plain(one)}" for one in weak)]


def _groups(summary: pd.DataFrame) -> list[str]:
    """Every cell but the controls, the two readings side by side."""
    shown = summary[summary["direction"].isin(("baseline", "learned"))]
    heads = ["prompts", "n", "layer", "strength", "system", "refused", "by logit", "difference"]
    heads += ["p (Holm)", "coherence", "unclear", "unscored"]
    body = [
        (
            f"{row['subset']} {row['split']}",
            row["n"],
            "" if pd.isna(row["layer"]) else row["layer"],
            f"{row['strength']:g}",
            row["system"],
            f"{row['refusal_rate']:.2f} [{row['rate_lo']:.2f}, {row['rate_hi']:.2f}]",
            f"{row['logit_rate']:.2f}",
            f"{row['difference']:+.2f} [{row['diff_lo']:+.2f}, {row['diff_hi']:+.2f}]",
            "" if pd.isna(row["p_holm"]) else f"{row['p_holm']:.4f}",
            f"{row['coherence']:.2f}",
            f"{row['unclear']:.2f}",
            row["unscored"],
        )
        for _, row in shown.iterrows()
    ]
    return ["## Every cell", _rows(heads, body)]


def _judge(verdict: Mapping[str, Any]) -> str:
    told = verdict["judge"]
    known = [
        f"- measured on {plain(m['on'])} (n={m['n']}): {m['two_way']:.3f} two-way, "
        f"{m['three_way']:.3f} three-way"
        for m in told["measured"]
    ] or ["- its accuracy was not measured"]
    apart = told.get("disagrees_with_substring")
    lines = [
        f"- {plain(told['judge'])}, version {plain(told['version'])}; unscored {told['unscored']}; "
        f"disagrees with the phrase list on {'-' if apart is None else format(apart, '.1%')}",
        *known,
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


def plain(value: object) -> str:
    """A value as one line of text: whatever Markdown would read as markup is escaped."""
    text = " ".join(str(value).split())
    return "".join(f"\\{c}" if c in MARKS else c for c in text)


def _rows(heads: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    told = ([str(cell).replace("|", "\\|") for cell in row] for row in body)
    lines = [heads, ["---"] * len(heads), *told]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
