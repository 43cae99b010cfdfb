"""A calibration carried out: each part into a run of its own, resumed where it stopped.

Knows the order of things. What is simulated, and what it came to, is for the other modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.calibration import coverage, gaussian, nulls
from refusal_dial.calibration.contradiction import agreement
from refusal_dial.calibration.flags import PARTS, CalibrationFlags
from refusal_dial.calibration.uniform import uniformity
from refusal_dial.continuation.cells import continuation_cells
from refusal_dial.continuation.flags import ContinuationFlags
from refusal_dial.continuation.job import prompt_rows
from refusal_dial.continuation.opened import continuation_settings, open_continuations
from refusal_dial.continuation.spoken import spoken_batches
from refusal_dial.forecast import Grid, grid_of, shown_forecast
from refusal_dial.job import Close, begin, carry_out, groups
from refusal_dial.probe import Times
from refusal_dial.run import Run
from refusal_dial.sampling import decoding_of
from refusal_dial.study import Study, open_study, study_settings
from refusal_dial.sweep import Cell
from refusal_dial.tokens import Tokens
from refusal_dial.toxicity import TextScorer
from refusal_dial.workers import Batches

RUNS = 2
Conducted = tuple[Run, pd.DataFrame]
Laid = tuple[list[int], Batches, Close]


def conduct_calibration(flags: CalibrationFlags) -> dict[str, Conducted]:
    """The run and the summary of each part that `--part` names. With `--out` each has a folder of
    its name in there."""
    parts = PARTS if flags.part == "all" else (flags.part,)
    study = open_study(flags, flags.layer or None, flags.site, flags.pos)
    found = {}
    for part in parts:
        out = None if flags.out is None else str(Path(flags.out) / part)
        one = replace(flags, part=part, out=out)
        with shown_forecast():
            if part == "contradiction":
                found[part] = conduct_contradiction(one)
                continue
            sizes, batches, close = LAID_OUT[part](study, one)
            run = begin(f"calibrate_{part}", study_settings(study, one), one)
            found[part] = carry_out(run, study, sizes, batches, close, one, _grid(part, one))
    return found


def _null(study: Study, flags: CalibrationFlags) -> Laid:
    nulls.check_enough(study, flags)  # before a folder is made for it
    sizes = _sizes(flags.n_experiments, nulls.SIZE, len(nulls.kinds(flags)))
    n = Times(flags.n_experiments)
    return sizes, partial(nulls.null_batches, study=study, flags=flags, n=n), _uniform


def _gaussian(study: Study, flags: CalibrationFlags) -> Laid:
    batches = partial(
        gaussian.gaussian_batches,
        n=Times(flags.n_gaussian),
        n_learn=flags.n_learn,
        n_report=flags.n_report,
        draws=flags.n_random,
        seed=flags.seed,
    )
    return _sizes(flags.n_gaussian, gaussian.SIZE, gaussian.ROWS), batches, _uniform


def _intervals(study: Study, flags: CalibrationFlags) -> Laid:
    batches = partial(coverage.coverage_batches, n_trials=Times(flags.n_trials), seed=flags.seed)
    return [1] * len(coverage.plan(flags.n_trials)), batches, _covered


def _uniform(rows: pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Any]]:
    summary = uniformity(rows)
    return summary, {"uniform": dict(zip(summary["direction"], summary["uniform"], strict=True))}


def _covered(rows: pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Any]]:
    summary = coverage.covered(rows)
    return summary, {"kept": int(summary["kept"].sum()), "of": len(summary)}


def _sizes(n: int, size: int, each: int) -> list[int]:
    return [each * min(size, n - start) for start in range(0, n, size)]


LAID_OUT = {"null": _null, "gaussian": _gaussian, "intervals": _intervals}


def _grid(part: str, flags: CalibrationFlags) -> Grid:
    if part == "intervals":
        laws = {f"{case.interval}: {case.law}": None for case in coverage.CASES}
        axes: dict[str, Sequence[Any]] = {"intervals": list(laws), "prompts": coverage.SIZES}
        return Grid({"samples": flags.n_trials}, len(laws) * len(coverage.SIZES), axes)
    n = flags.n_experiments if part == "null" else flags.n_gaussian
    return Grid({"experiments": n}, 1, {"p-values of": nulls.kinds(flags)})


def conduct_contradiction(flags: CalibrationFlags) -> Conducted:
    """What the same openings are continued with twice, with other random numbers: 50 challenging
    and 50 benign ones, or as many as are held out, a sample each, alpha -1, 0 and 1, as in the
    published study."""
    asked = ContinuationFlags(
        samples=1,
        n_random=0,
        n_shuffled=0,
        model=flags.model,
        seed=flags.seed,
        device=flags.device,
        dtype=flags.dtype,
        device_map=flags.device_map,
    )
    opened = open_continuations(asked)
    settings = continuation_settings(opened, asked) | {"part": flags.part, "runs": RUNS}
    run = begin("calibrate_contradiction", settings, flags)
    cells, rows = continuation_cells(opened, asked), prompt_rows(opened, asked.seed)
    batches = partial(
        twice_batches,
        tokens=opened.tokens,
        scorer=opened.scorer,
        rows=rows,
        cells=cells,
        flags=asked,
    )
    sizes = RUNS * _sizes(len(rows), asked.batch_size, len(cells))
    grid = grid_of(groups(rows), [cell.labels for cell in cells])
    close = partial(agreement, seed=flags.seed)
    return carry_out(run, opened, sizes, batches, close, flags, grid)


def twice_batches(
    model: TransformerBridge,
    *,
    tokens: Tokens,
    scorer: TextScorer,
    rows: pd.DataFrame,
    cells: Sequence[Cell],
    flags: ContinuationFlags,
    skip: int = 0,
) -> Iterator[pd.DataFrame]:
    """The batches of each run in turn, with the column `run`, without the first `skip`."""
    each = -(-len(rows) // flags.batch_size)
    for number in range(skip // each, RUNS):
        decoding = replace(decoding_of(flags), seed=flags.seed + number)
        left = max(0, skip - number * each)
        said = spoken_batches(
            model, tokens, scorer, rows, cells, decoding, flags.batch_size, skip=left
        )
        for batch in said:
            yield batch.assign(run=f"sampling seed {flags.seed + number}")
