"""Rows of what was said become a table: means, paired differences, intervals, p-values.

    difference = mean over prompts of (mean score of its samples under the cell - the baseline's)

The unit is the prompt, never the sample: samples of a prompt are averaged first. Intervals are BCa
over prompts. `p_paired` is that of the sign-flip permutation test of the differences, `p_control`
the rank of the shift among those of the fairest controls that there are at the same place and
alpha: shuffled labels, else random directions, which are no fair null (docs/validity.md). This
module knows columns. It knows no models, and which way is better is the reader's to say.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from refusal_dial.comparison import fair_ranks
from refusal_dial.missing import held_intervals, held_means
from refusal_dial.stats import mean_interval, sign_flip_p
from refusal_dial.types import DialError

AXES = ["direction", "seed", "layer", "site", "pos", "alpha", "strength"]
GROUP = ["subset", "split"]
COLUMNS = [*AXES, *GROUP, "n", "samples", "score_mean", "score_lo", "score_hi"]
COLUMNS += ["difference", "diff_lo", "diff_hi", "reduction", "p_paired", "p_control", "nll_mean"]
COLUMNS += ["nll_difference"]
CONTROLS = ("shuffled", "random")  # the fairest first


def per_prompt(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per cell and prompt: the mean of its samples' `score` and `nll`, and how many samples
    have a score. What could not be scored is no zero: it is left out, and a prompt without any
    scored sample has NaN.

    Raises `DialError` where no sample has a score.
    """
    if rows["score"].isna().all():
        raise DialError(f"none of {len(rows)} completions has a score")
    keys = [*AXES, *GROUP, "prompt_id"]
    grouped = rows.groupby(keys, sort=False, dropna=False)
    return grouped.agg(
        score=("score", "mean"), nll=("nll", "mean"), samples=("score", "count")
    ).reset_index()


def summarise_said(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """One row per cell and group of prompts, both splits together as `split` = `all` first.

    `reduction` is `-difference / score_mean of the baseline`. `n` prompts have a score both under
    the cell and in the baseline; others are left out of every difference.

    Raises `DialError` if a cell lacks prompts that another has, or the baseline is missing.
    """
    means = per_prompt(rows)
    parts = [means.assign(split="all"), means] if means["split"].nunique() > 1 else [means]
    tables = [
        _group(part, seed)
        for whole in parts
        for _, part in whole.groupby(GROUP, sort=False, dropna=False)
    ]
    return pd.concat(tables, ignore_index=True)[COLUMNS]


def _group(part: pd.DataFrame, seed: int) -> pd.DataFrame:
    cell = part.groupby(AXES, sort=False, dropna=False).ngroup()
    table = part[~cell.duplicated()][[*AXES, *GROUP, "samples"]].reset_index(drop=True)
    wide = {
        name: part.assign(cell=cell).pivot(index="cell", columns="prompt_id", values=name)
        for name in ("score", "nll")
    }
    score, nll = wide["score"].to_numpy(), wide["nll"].to_numpy()
    who = f"{part['subset'].iloc[0]} {part['split'].iloc[0]}"
    if len(part) != score.size:
        raise DialError(f"{who}: every cell needs every prompt once")
    base = (table["direction"] == "baseline").to_numpy()
    if not base.any():
        raise DialError(f"{who}: the baseline is missing")
    shift, unlikely = score - score[base][0], nll - nll[base][0]
    means = held_intervals(score, partial(mean_interval, seed=seed))
    differences = held_intervals(shift, partial(mean_interval, seed=seed))
    with np.errstate(divide="ignore", invalid="ignore"):
        unsteered = held_means(np.where(np.isfinite(shift), score[base][0], np.nan))
        reduction = -held_means(shift) / unsteered
    return table.assign(
        n=np.isfinite(shift).sum(1),
        score_mean=held_means(score),
        score_lo=means[:, 0],
        score_hi=means[:, 1],
        difference=held_means(shift),
        diff_lo=differences[:, 0],
        diff_hi=differences[:, 1],
        reduction=reduction,
        p_paired=[sign_flip_p(row[np.isfinite(row)], seed)[0] for row in shift],
        p_control=fair_ranks(table, shift, ["layer", "strength"]),
        nll_mean=held_means(nll),
        nll_difference=held_means(unlikely),
    )
