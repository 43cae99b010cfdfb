"""Tables for the terminal: what was said under the dial, and who judged it.

Takes summaries and prints. It computes nothing but the choice of what to show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from refusal_dial.replies.conditions import control_range, unshown
from refusal_dial.replies.layers import Best

WIDTH = 118


def print_replies(summary: pd.DataFrame) -> None:
    """A table per layer and group of prompts: by strength, the share refused by judge and by logit,
    the paired difference, the random directions' range, and coherence."""
    base = summary[(summary["direction"] == "baseline") & (summary["system"] == "")]
    learned = summary[(summary["direction"] == "learned") & (summary["system"] == "")]
    for (layer, subset, split), part in learned.groupby(["layer", "subset", "split"], sort=False):
        own = base[(base["subset"] == subset) & (base["split"] == split)].iloc[0]
        title = (
            f"{subset} {split} (n={own['n']}), layer {layer}: unsteered "
            f"{own['refusal_rate']:.2f} refused, coherence {own['coherence']:.2f}"
        )
        table = _table(
            title, ("alpha", "refused", "by logit", "difference", "random", "p", "coherence")
        )
        near = summary[(summary["direction"] == "random") & (summary["layer"] == layer)]
        near = near[(near["subset"] == subset) & (near["split"] == split)]
        for _, row in part.sort_values("strength").iterrows():
            far = near.loc[near["strength"] == row["strength"], "difference"]
            band = f"[{far.min():+.2f}, {far.max():+.2f}] x{len(far)}" if len(far) else ""
            table.add_row(
                f"{row['alpha']:g}",
                _with(row, "refusal_rate", "rate"),
                f"{row['logit_rate']:.2f}",
                _with(row, "difference", "diff", "+"),
                band,
                f"{row['p_holm']:.4f}",
                _with(row, "coherence", "coherence"),
            )
        _console().print(table)


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


def print_conditions(rows: pd.DataFrame, summary: pd.DataFrame) -> None:
    """The conditions with refusal and coherence by subset, each refusal beside its difference from
    base; then, in words, what is not significant."""
    subsets = list(dict.fromkeys(rows["subset"]))
    columns = [f"{s}\nrefused (n={rows[rows['subset'] == s]['n'].iloc[0]})" for s in subsets]
    table = _table("System message against steering", ("condition", *columns, "coherence"))
    for condition, part in rows.groupby("condition", sort=False):
        cells = []
        for subset in subsets:
            row = part[part["subset"] == subset].iloc[0]
            shift = "" if condition == "base" else f"\n{_with(row, 'difference', 'diff', '+')}"
            cells.append(_with(row, "refusal_rate", "rate") + shift)
        mean = (part["coherence"] * part["n"]).sum() / part["n"].sum()
        table.add_row(str(condition), *cells, f"{mean:.2f}")
    _console().print(table)
    for _, row in control_range(summary).iterrows():
        print(
            f"random directions at {row['strength']:g} (x{row['n']}), {row['subset']}: difference "
            f"{row['lo']:+.2f} to {row['hi']:+.2f}"
        )
    for sentence in unshown(rows):
        print(sentence)


def print_layers(half: pd.DataFrame, found: Best, wrong: Sequence[int]) -> None:
    """Layer by strength (`layers.table` of the reporting half), the chosen cell, and the layers
    whose polarity is inverted."""
    table = _table(
        "Contrast vectors by layer and strength, on the half that nothing was chosen on",
        (
            "layer",
            "strength",
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
    print(
        f"best on one half: layer {found.layer}, strength {found.strength:g} "
        f"({found.chosen_on:+.2f}); on the other half {found.reported:+.2f}"
    )
    for layer in wrong:
        print(f"layer {layer}: polarity inverted (refusal falls as the vector is added)")


def print_norms(norms: Mapping[int, float]) -> None:
    """The length of every layer's vector before it was normalised."""
    shown = ", ".join(f"layer {layer} {norm:.2f}" for layer, norm in norms.items())
    print(f"vector norms: {shown}")


def print_judge(record: Mapping[str, Any]) -> None:
    """Who judged, how well where known, what it left unscored, and where coherence ends."""
    told = record["judge"]
    known = "; ".join(f"{m['on']} {m['two_way']:.3f} two-way" for m in told["measured"])
    apart = told["disagrees_with_substring"]
    print(
        f"judge: {told['judge']} version {told['version']} ({known or 'accuracy not measured'}); "
        f"unscored {told['unscored']}, disagrees with the phrase list on "
        f"{'nothing scored' if apart is None else format(apart, '.1%')}"
    )
    for one in record["coherence"]:
        holds = f"stays within {one['tolerance']:g} of unsteered to strength {one['holds_to']:g}"
        falls = "and does not fall beyond on this dial"
        if one["breaks_at"] is not None:
            falls = f"and is {one['coherence_there']:.2f} at {one['breaks_at']:g}"
        print(f"coherence, layer {one['layer']}, toward {one['toward']} refusal: {holds}, {falls}")


def _with(row: pd.Series[Any], name: str, stem: str, sign: str = "") -> str:
    lo, hi = row[f"{stem}_lo"], row[f"{stem}_hi"]
    return f"{row[name]:{sign}.2f} [{lo:{sign}.2f}, {hi:{sign}.2f}]"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table


def _console() -> Console:
    width = None if Console().is_terminal else WIDTH
    return Console(width=width, markup=False, emoji=False)
