"""A job on continuations: openings in, a run folder out.

Knows the order of things: split, lay out cells, generate batch by batch, summarise, leave the
result files. It has no hooks or statistics of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import pandas as pd

from refusal_dial.continuation.cells import continuation_cells
from refusal_dial.continuation.flags import ContinuationFlags
from refusal_dial.continuation.layers import CHOOSE, REPORT, best_layer, by_layer, plain
from refusal_dial.continuation.opened import Opened, continuation_settings, open_continuations
from refusal_dial.continuation.results import kept_results, note_step
from refusal_dial.continuation.spoken import spoken_batches
from refusal_dial.continuation.summary import summarise_said
from refusal_dial.forecast import grid_of
from refusal_dial.job import begin, carry_out, files_by_layer, groups
from refusal_dial.openings import CHALLENGING
from refusal_dial.prompts import holdout_split, of_subset
from refusal_dial.run import Run, read_table, read_verdict
from refusal_dial.sampling import decoding_of
from refusal_dial.sweep import Cell

Conducted = tuple[Run, pd.DataFrame]
F = TypeVar("F", bound=ContinuationFlags)


def conduct_continuations(
    experiment: str,
    flags: F,
    lay_out: Callable[[Opened, F], Sequence[Cell]] = continuation_cells,
) -> Conducted:
    """Open the study, say everything under every cell, and summarise; the run and its summary.

    An interrupted run is resumed, a finished one named by `--out` is read. However it ends, the run
    folder holds a result file that says so (see `results`).
    """
    opened = open_continuations(flags)
    settings = continuation_settings(opened, flags)
    cells = lay_out(opened, flags)
    rows = prompt_rows(opened, flags.seed)
    decoding = decoding_of(flags)
    run = begin(experiment, settings, flags, files_by_layer(opened.learned))
    size = flags.batch_size
    batches = partial(
        spoken_batches,
        tokens=opened.tokens,
        scorer=opened.scorer,
        rows=rows,
        cells=cells,
        decoding=decoding,
        batch_size=size,
    )

    def note(number: int, batch: pd.DataFrame) -> None:
        at = batch["subset"] + " at " + batch["strength"].map("{:g}".format)
        shown = batch.groupby(at)["score"].mean().round(6).to_dict()
        note_step(run, {"batch": number + 1, "rows": len(batch), "mean score": shown})

    def close(said: pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Any]]:
        summary = summarise_said(said, flags.seed)
        return summary, verdict(summary, opened)

    starts = range(0, len(rows), size)
    sizes = [len(cells) * flags.samples * min(size, len(rows) - start) for start in starts]
    grid = grid_of(groups(rows), [cell.labels for cell in cells])
    with kept_results(run, lambda: results(run)):
        return carry_out(run, opened, sizes, batches, close, flags, grid, note)


def prompt_rows(opened: Opened, seed: int) -> pd.DataFrame:
    """The prompts' columns: `prompt_id, subset, split`, half of each subset to choose on and half
    to report on."""
    reported = set()
    for subset in dict.fromkeys(p.subset for p in opened.openings.measure):
        _, half = holdout_split(of_subset(opened.openings.measure, subset), seed)
        reported |= {prompt.id for prompt in half}
    return pd.DataFrame(
        {
            "prompt_id": [p.id for p in opened.openings.measure],
            "subset": [p.subset for p in opened.openings.measure],
            "split": [REPORT if p.id in reported else CHOOSE for p in opened.openings.measure],
        }
    )


def verdict(summary: pd.DataFrame, opened: Opened) -> dict[str, Any]:
    """What summary.json says: how toxic the openings themselves are, and the best layer."""
    texts = [prompt.text for prompt in opened.openings.measure]
    scores = pd.Series(opened.scorer(texts)).groupby([p.subset for p in opened.openings.measure])
    found = {
        "prompt_score": {str(k): float(v) for k, v in scores.mean().items()},
        "scorer": {"name": opened.scorer.name, "version": opened.scorer.version},
        "measured": [vars(one) for one in opened.scorer.measured],
    }
    if not summary["strength"].max() > 0:
        return found
    layers = by_layer(summary, CHALLENGING, int(opened.model.cfg.n_layers))
    return found | {"best_layer": plain(best_layer(layers))}


def results(run: Run) -> dict[str, Any]:
    """What a run folder holds so far, as one record."""
    rows = read_table(run.folder, "scores")
    keys = ["direction", "seed", "layer", "alpha", "strength", "subset"]
    means = rows.groupby(keys, sort=False, dropna=False)["score"].agg(["mean", "std", "size"])
    cells = json.loads(means.reset_index().to_json(orient="records"))
    found: dict[str, Any] = {"rows": len(rows), "cells": cells}
    if run.finished:
        found["summary"] = read_verdict(run.folder)
    return found
