"""A job: one sweep carried out into one run, with a progress bar, resumed where it stopped.

The only place where computing and writing meet. It knows the order of things (open, append,
summarise, finish, say what came out) and no statistics, hooks or models of its own. A dry run and a
preview end where the rows would begin: nothing is written then.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import pandas as pd
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial import directions
from refusal_dial.common import EVERY, DialError, DryRun, log
from refusal_dial.directions.learning import Direction
from refusal_dial.engine.recording import GIGABYTE
from refusal_dial.model.loading import identity
from refusal_dial.run.folder import (
    Run,
    append,
    check_out,
    damage,
    finish,
    kept_batches,
    open_run,
    planned_run,
    read_table,
    usable_batches,
)
from refusal_dial.run.forecast import Forecast, estimate_time, print_forecast, weights
from refusal_dial.run.machines import Machines, check_machines, compute
from refusal_dial.run.plan import Plan
from refusal_dial.run.preview import preview, print_preview
from refusal_dial.stats.summary import (
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
    """What a run is asked: where to compute and to write, whether at all, and which share of the
    rows may have no score."""

    @property
    def out(self) -> str | None: ...
    @property
    def dry_run(self) -> bool: ...
    @property
    def preview(self) -> bool: ...
    @property
    def max_missing(self) -> float: ...


def check_asked(flags: RunFlags) -> None:
    """What can be known of where a run is to be computed and written before a model is read, which
    may take minutes. Raises `DialError`."""
    check_out(flags.out, written=not (flags.dry_run or flags.preview))
    if flags.executor == "local":  # a cluster is asked once there is something to compute
        check_machines(flags)


def begin(
    experiment: str,
    settings: Mapping[str, Any],
    flags: RunFlags,
    learned: Mapping[str, Direction] = MappingProxyType({}),
) -> Run:
    """The run to be carried out, with the directions it learned in files of these names. In a dry
    run nothing is written, nor where the machines cannot carry it out."""
    run = planned_run(experiment, settings, flags.out)
    if flags.dry_run or flags.preview:
        return run
    if not run.finished:
        check_machines(flags)
        for name, direction in learned.items():
            check_same_direction(direction, run.folder / f"{name}.safetensors")
    run = open_run(experiment, settings, flags.out)
    if not run.finished:
        for name, direction in learned.items():
            save_once(direction, run.folder / f"{name}.safetensors")
    return run


SAME = 0.05
"""Two directions are one that was learned twice where they are this close, in shares of its length.
What is learned again on as many cores in other batches differs by far less."""


def check_same_direction(direction: Direction, path: Path) -> None:
    """Raises `DialError` where the file holds another direction: rows of it may be in this run."""
    there = _direction_in(path)
    if there is None:
        return
    one, other = there.norm * there.unit, direction.norm * direction.unit
    if one.shape != other.shape or float((one - other).norm()) > SAME * there.norm:
        raise DialError(
            f"{path} is not the direction of this start, so rows of two directions would stand in "
            "one run: what it was learned from changed; choose another --out"
        )


def save_once(direction: Direction, path: Path) -> None:
    """Write the direction unless it is there. Raises `DialError` where another one is."""
    check_same_direction(direction, path)
    if _direction_in(path) is None:
        directions.save(direction, path)


def _direction_in(path: Path) -> Direction | None:
    """None where the file is not there, or damaged."""
    try:
        return directions.load(path)
    except DialError:
        return None


def files_by_layer(learned: Sequence[Direction]) -> dict[str, Direction]:
    """The directions by the names of their files, one a layer."""
    return {f"direction_layer{one.provenance.layer}": one for one in learned}


def carry_out(
    run: Run,
    study: Loaded,
    plan: Plan,
    close: Close,
    flags: RunFlags,
    note: Callable[[int, pd.DataFrame], object] | None = None,
) -> tuple[Run, pd.DataFrame]:
    """Append to the run the rows of the plan's tasks that are left, and finish it; the run and its
    summary.

    `flags` says where tasks are computed. `note` is called with each task's number and rows once
    they are on disk. `close` turns all rows, as read back, into the summary and the verdict. A
    finished run is read, and nothing of it is computed again.

    Raises `DialError` before the task with which more than the share `max_missing` of all rows
    would have no score. The rows before it stay, and a rerun computes it again. In a dry run prints
    the forecast, in a preview the estimate, and raises `DryRun`.
    """
    if flags.dry_run:
        forecast = _forecast(run, study.model, plan)
        print_forecast(forecast)
        raise DryRun(forecast)
    if flags.preview:
        estimate = preview(study.model, plan)
        print_preview(estimate)
        raise DryRun(estimate)
    if run.finished:
        log.info("this run is finished already; nothing is computed again: %s", run.folder)
        return run, read_table(run.folder, "summary")
    # 1. What the log records of the model and of how it is read.
    who = identity(study.model)
    log.info("model: %s (%s, revision %s)", who.name, who.architecture, who.revision)
    log.info("device %s, dtype %s", who.device, who.dtype)
    for line in study.about:
        log.info("%s", line)
    # 2. What an earlier start left on the disk is kept.
    tasks = plan.tasks
    sizes = [task.rows for task in tasks]
    done = kept_batches(run, sizes)
    missing = Counter(dropped_reasons(read_table(run.folder, "scores")) if done else {})
    check_dropped_share(missing, sum(sizes), flags.max_missing)
    # 3. The other tasks, appended as they come.
    bar = tqdm(
        total=sum(sizes),
        initial=sum(sizes[:done]),
        unit="score",
        desc=run.experiment,
        disable=None,
        file=sys.stderr,
    )
    log.info("%d of %d rows are to be computed", sum(sizes[done:]), sum(sizes))
    last = monotonic()
    computed = compute(study.model, plan, tasks[done:], flags)
    with bar, closing(computed):
        for number, rows in enumerate(map(mark_dropped, computed), done):
            missing.update(dropped_reasons(rows))
            check_dropped_share(missing, sum(sizes), flags.max_missing)
            append(run, rows)
            bar.update(len(rows))
            if bar.disable and monotonic() - last > EVERY:
                log.info("%d of %d rows", sum(sizes[: number + 1]), sum(sizes))
                last = monotonic()
            if note is not None:
                note(number, rows)
    for reason, n in missing.items():
        log.warning("%d of %d rows have no score and are left out: %s", n, sum(sizes), reason)
    # 4. The summary of all rows, as they stand on the disk.
    log.info("summing up %d rows", sum(sizes))
    summary, found = close(read_table(run.folder, "scores"))
    finish(run, summary, with_dropped(found, missing, sum(sizes)))
    return run, summary


def _forecast(run: Run, model: TransformerBridge, plan: Plan) -> Forecast:
    sizes = [task.rows for task in plan.tasks]
    rows = sum(sizes)
    whole = run.finished and not damage(run)
    there = rows if whole else sum(sizes[: usable_batches(run, sizes)])
    return Forecast(
        experiment=run.experiment,
        folder=str(run.folder),
        grid=plan.grid,
        rows=rows,
        tasks=len(sizes),
        there=there,
        time=None if whole else estimate_time(model, plan).scaled((rows - there) / rows),
        weights_gb=weights(model),
        working_gb=plan.memory(model) / GIGABYTE,
        device=identity(model).device,
    )
