"""What a sweep would find, estimated from one gradient, and how wrong that estimate is.

    score(cell) ≈ score + sum over its edits of (edit(h) - h) · d score / d h

The tangent at the unsteered model (`engine.slopes.first_order`), for every row of a plan, in about
the time of one backward pass a prompt. It is blind to saturation, so some cells spread
over the plan are computed exactly, and the error on these is printed beside the estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import DialError, format_value, terminal
from refusal_dial.run.plan import Plan, compute_all
from refusal_dial.stats.summary import prediction_quality

SAMPLE_PROMPTS, SAMPLE_CELLS = 16, 48
"""The part that is computed exactly too."""

MOST_LINES = 16
"""Lines of the estimate that are printed: those that move most."""

PREVIEW_PLACE = ("way", "layer", "site", "role", "head", "neuron", "pos", "alpha_relative")

MEASURED = ("direction", "score", "base", "effect", "clean", "corrupted")


@runtime_checkable
class Tangent(Plan, Protocol):
    """A plan whose rows are scores of edits, and so have a tangent."""

    def shrink(self, prompts: int, cells: int) -> Tangent:
        """The same on the first prompts, under so many cells."""
        ...

    def estimate(self, model: TransformerBridge) -> pd.DataFrame:
        """Its rows (controls may be left out) with `score` as the gradient has it, and `base`, the
        score without the cell."""
        ...


@dataclass(frozen=True, eq=False)
class Preview:
    """`rows` as the gradient has them; `sample`, of some of them `estimate` and `exact`, the change
    of the score by either."""

    rows: pd.DataFrame
    sample: pd.DataFrame


def preview(model: TransformerBridge, plan: Plan) -> Preview:
    """Estimate every row, and compute some exactly. Raises `DialError` for a plan whose rows are no
    scores of edits."""
    if not isinstance(plan, Tangent):
        raise DialError(
            "--preview: expected a sweep of scores, whose slope can be taken; these rows are "
            "completions or measures of several kinds: --dry-run says how long they take"
        )
    rows = plan.estimate(model)
    part = plan.shrink(min(SAMPLE_PROMPTS, plan.grid.n_prompts), min(SAMPLE_CELLS, plan.grid.cells))
    estimated, exact = part.estimate(model), compute_all(model, part)
    keys = [name for name in estimated if name in exact and name not in MEASURED]
    both = estimated.merge(exact, on=["direction", *keys], suffixes=("", "_exact"))
    sample = both.assign(
        estimate=both["score"] - both["base"], exact=both["score_exact"] - both["base"]
    )
    return Preview(rows, sample)


def errors(sample: pd.DataFrame) -> pd.DataFrame:
    """By distance of alpha (by site, where nothing was steered) how well the changes were
    estimated: `n, correlation, error` of `stats.summary.prediction_quality`."""
    by = "alpha_relative" if "alpha_relative" in sample else "site"
    key = sample[by].abs().round(6) if by == "alpha_relative" else sample[by]
    moved = sample[(sample["exact"] != 0) | (sample["estimate"] != 0)]
    found = [
        {by: value, **prediction_quality(part["estimate"], part["exact"])}
        for value, part in moved.groupby(key, sort=True)
    ]
    return pd.DataFrame(found, columns=[by, "n", "correlation", "error"])


def print_preview(found: Preview) -> None:
    """The estimated mean change of the score by place and group of prompts, the largest first; then
    the error on what was computed exactly."""
    from rich.table import Table

    console = terminal()
    rows = found.rows[found.rows["direction"].isin(("learned", "patch"))]
    names = [name for name in PREVIEW_PLACE if name in rows and rows[name].nunique() > 1]
    groups = [name for name in ("subset", "split") if name in rows]
    change = rows.assign(change=rows["score"] - rows["base"])
    means = change.groupby([*names, *groups], dropna=False, sort=False)["change"].mean()
    table = means.reset_index()
    if len(table) > MOST_LINES:
        order = table["change"].abs().sort_values(ascending=False, kind="stable").index
        table = table.loc[sorted(order[:MOST_LINES])]
    print("preview: mean change of the score, estimated from one gradient")
    if rows.empty:
        print("nothing is steered here: only the unsteered model is scored")
        return
    shown = Table()
    for name in (*names, *groups, "estimate"):
        shown.add_column(name.replace("alpha_relative", "alpha (residual norms)"), justify="right")
    for _, row in table.iterrows():
        cells = ["" if pd.isna(row[n]) else _short(row[n]) for n in (*names, *groups)]
        shown.add_row(*cells, f"{row['change']:+.3f}")
    console.print(shown)
    if len(means) > MOST_LINES:
        print(f"{MOST_LINES} of {len(means):,} lines, those that move most")
    _print_errors(errors(found.sample))
    print("a preview: nothing is written; compute it: the same command without --preview")


def _print_errors(table: pd.DataFrame) -> None:
    by = str(table.columns[0])
    for _, row in table.iterrows():
        what = f"alpha {row[by]:g}" if by == "alpha_relative" else str(row[by])
        print(
            f"measured error, {what}: {row['error']:.0%} of the exact changes (root mean square), "
            f"correlation {row['correlation']:.2f}, {int(row['n'])} rows computed exactly"
        )


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else format_value(value, 40).strip("'")
