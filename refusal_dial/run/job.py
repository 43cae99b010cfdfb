"""A job: one sweep carried out into one run, with a progress bar, resumed where it stopped.

The only place where computing and writing meet. It knows the order of things (open, append,
summarise, finish, say what came out) and no statistics, hooks or models of its own. A dry run ends
where the rows would begin: nothing is written then.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import pandas as pd
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial import directions
from refusal_dial.common import DryRun, log
from refusal_dial.directions.learning import Direction
from refusal_dial.model.loading import identity
from refusal_dial.run.folder import (
    Run,
    append,
    damage,
    finish,
    kept_batches,
    open_run,
    planned_run,
    read_table,
    usable_batches,
)
from refusal_dial.run.forecast import Forecast, Grid, print_forecast
from refusal_dial.run.machines import Batches, Machines, check_machines, compute
from refusal_dial.run.plan import estimate_time, weights, working
from refusal_dial.stats.comparison import (
    check_dropped_share,
    dropped_reasons,
    mark_dropped,
    with_dropped,
)

Close = Callable[[pd.DataFrame], tuple[pd.DataFrame, Mapping[str, Any]]]


@runtime_checkable
class Loaded(Protocol):
    """What a job is carried out on: a model, and what the log says about how it is read."""

    @property
    def model(self) -> TransformerBridge: ...

    @property
    def about(self) -> tuple[str, ...]: ...


@runtime_checkable
class RunFlags(Machines, Protocol):
    """What a job is told: where to compute and to write, whether at all, and which share of the
    rows may have no score."""

    @property
    def out(self) -> str | None: ...
    @property
    def dry_run(self) -> bool: ...
    @property
    def max_missing(self) -> float: ...


def begin(
    experiment: str,
    settings: Mapping[str, Any],
    flags: RunFlags,
    learned: Mapping[str, Direction] = MappingProxyType({}),
) -> Run:
    """The run to be carried out, with the directions it learned in files of these names. In a dry
    run nothing is written, nor where the machines cannot carry it out."""
    run = planned_run(experiment, settings, flags.out)
    if flags.dry_run:
        return run
    if not run.finished:
        check_machines(flags)
    run = open_run(experiment, settings, flags.out)
    if not run.finished:
        for name, direction in learned.items():
            directions.save(direction, run.folder / f"{name}.safetensors")
    return run


def files_by_layer(learned: Sequence[Direction]) -> dict[str, Direction]:
    """The directions by the names of their files, one a layer."""
    return {f"direction_layer{one.provenance.layer}": one for one in learned}


def groups(rows: pd.DataFrame) -> dict[str, int]:
    """How many prompts of each subset and split."""
    counts = rows.groupby(["subset", "split"], sort=False).size()
    return {" ".join(map(str, group)): int(n) for group, n in counts.items()}  # type: ignore[call-overload]


def carry_out(
    run: Run,
    study: Loaded,
    sizes: Sequence[int],
    batches: Batches,
    close: Close,
    flags: RunFlags,
    grid: Grid,
    note: Callable[[int, pd.DataFrame], object] | None = None,
) -> tuple[Run, pd.DataFrame]:
    """Append to the run what is left of its batches, and finish it; the run and its summary.

    `sizes` are the rows of every batch in order, and `flags` says where `batches` are computed.
    `grid` is what they are batches of.
    `note` is called with each batch's number and rows once they are on disk. `close` turns all
    rows, as read back, into the summary and the verdict. A finished run is read, and nothing of it
    is computed again.

    Raises `DialError` before the batch with which more than the share `max_missing` of all rows
    would have no score. The rows before it stay, and a rerun computes it again. Raises `DryRun` in
    a dry run.
    """
    if flags.dry_run:
        forecast = _forecast(run, study.model, sizes, batches, grid)
        print_forecast(forecast)
        raise DryRun(forecast)
    if run.finished:
        log.info("this run is finished already; nothing is computed again: %s", run.folder)
        return run, read_table(run.folder, "summary")
    who = identity(study.model)
    log.info("model: %s (%s, revision %s)", who.name, who.architecture, who.revision)
    log.info("device %s, dtype %s", who.device, who.dtype)
    for line in study.about:
        log.info("%s", line)
    kept = kept_batches(run, sizes)
    missing = Counter(dropped_reasons(read_table(run.folder, "scores")) if kept else {})
    check_dropped_share(missing, sum(sizes), flags.max_missing)
    bar = tqdm(
        total=sum(sizes),
        initial=sum(sizes[:kept]),
        unit="score",
        desc=run.experiment,
        disable=None,
        file=sys.stderr,
    )
    computed = compute(study.model, batches, kept, len(sizes), flags)
    with bar, closing(computed):
        for number, batch in enumerate(map(mark_dropped, computed), kept):
            missing.update(dropped_reasons(batch))
            check_dropped_share(missing, sum(sizes), flags.max_missing)
            append(run, batch)
            bar.update(len(batch))
            if note is not None:
                note(number, batch)
    for reason, n in missing.items():
        log.warning("%d of %d rows have no score and are left out: %s", n, sum(sizes), reason)
    summary, found = close(read_table(run.folder, "scores"))
    finish(run, summary, with_dropped(found, missing, sum(sizes)))
    return run, summary


def _forecast(
    run: Run, model: TransformerBridge, sizes: Sequence[int], batches: Batches, grid: Grid
) -> Forecast:
    rows = sum(sizes)
    whole = run.finished and not damage(run)
    there = rows if whole else sum(sizes[: usable_batches(run, sizes)])
    seconds, timed = None, 0
    if not whole:
        entire, timed = estimate_time(model, batches, sum(grid.prompts.values()), grid.cells)
        seconds = entire * (rows - there) / rows
    return Forecast(
        experiment=run.experiment,
        folder=str(run.folder),
        grid=grid,
        rows=rows,
        batches=len(sizes),
        there=there,
        seconds=seconds,
        timed=timed,
        weights_gb=weights(model),
        working_gb=working(model, batches, max(sizes)),
        device=identity(model).device,
    )
