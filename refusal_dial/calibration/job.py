"""A calibration carried out: each part into a run of its own, resumed where it stopped.

Knows the order of things. What is simulated, and what it came to, is for the other modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import pandas as pd

from refusal_dial.calibration import gaussian, nulls
from refusal_dial.calibration.flags import PARTS, CalibrationFlags
from refusal_dial.calibration.uniform import uniformity
from refusal_dial.forecast import Grid, shown_forecast
from refusal_dial.job import Close, begin, carry_out
from refusal_dial.probe import Times
from refusal_dial.run import Run
from refusal_dial.study import Study, open_study, study_settings
from refusal_dial.workers import Batches

Conducted = tuple[Run, pd.DataFrame]


def conduct_calibration(flags: CalibrationFlags) -> dict[str, Conducted]:
    """The run and the summary of each part that `--part` names. With `--out` each has a folder of
    its name in there."""
    study = open_study(flags, flags.layer or None, flags.site, flags.pos)
    found = {}
    for part in PARTS if flags.part == "all" else (flags.part,):
        out = None if flags.out is None else str(Path(flags.out) / part)
        one = replace(flags, part=part, out=out)
        sizes, batches, close = LAID_OUT[part](study, one)
        with shown_forecast():
            run = begin(f"calibrate_{part}", study_settings(study, one), one)
            grid = Grid({"experiments": GRIDS[part](one)}, 1, {"p-values of": nulls.kinds(one)})
            found[part] = carry_out(run, study, sizes, batches, close, one, grid)
    return found


Laid = tuple[list[int], Batches, Close]


def _null(study: Study, flags: CalibrationFlags) -> Laid:
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


def _uniform(rows: pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Any]]:
    summary = uniformity(rows)
    return summary, {"uniform": dict(zip(summary["direction"], summary["uniform"], strict=True))}


def _sizes(n: int, size: int, each: int) -> list[int]:
    return [each * min(size, n - start) for start in range(0, n, size)]


LAID_OUT = {"null": _null, "gaussian": _gaussian}
GRIDS = {"null": attrgetter("n_experiments"), "gaussian": attrgetter("n_gaussian")}
