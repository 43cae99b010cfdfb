"""What a run would compute, what that would take, and how a dry run prints it.

    seconds = t · (1 + (C - c) b / w) · (B s + P / p (1 - s))

for P prompts and C cells, from p prompts under c cells that took t seconds and w seconds of the
processor; b is what a cell adds to w, from c / 4 cells beside them, and s the share of w that a
batch costs however many prompts are in it, from p / 2 prompts; B is how many batches there are to
one of the part. What else the machine does makes t long, and cells do not look dear by it. The
part grows until it takes long enough to be distinguished from noise: first to all cells, then to
more prompts. Then it is timed several times; the median is printed, with its range. All of it takes
at most `LIMIT` seconds, as far as a first part allows. The estimate is rough: a small batch fills a
large device badly, so that it is too long there; and cells differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter, process_time
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import terminal
from refusal_dial.engine.recording import GIGABYTE
from refusal_dial.run.plan import Grid, Plan

ENOUGH = 1.0
"""Seconds that a part takes to be distinguished from noise."""

LIMIT = 15.0
"""Seconds that timing may take."""

REPEATS = 5
"""How often the last part is timed, at most."""

FIRST_PROMPTS, FIRST_CELLS = 2, 4
"""The first part."""

MOST_VALUES_LISTED = 8
"""Values of an axis that are written out; of more, the first and the last."""

_WIDTH = 118


@dataclass(frozen=True)
class Estimate:
    """Seconds of a whole plan: the median of several estimates, the least and the most; and how
    many rows were timed for each."""

    seconds: float
    least: float
    most: float
    rows: int

    def scaled(self, share: float) -> Estimate:
        """The same of a share of the plan."""
        return Estimate(self.seconds * share, self.least * share, self.most * share, self.rows)


@dataclass(frozen=True)
class Forecast:
    """A run that was not begun. `time` is that of the rows that are not `there` yet, None where
    nothing would be computed."""

    experiment: str
    folder: str
    grid: Grid
    rows: int
    tasks: int
    there: int
    time: Estimate | None
    weights_gb: float
    working_gb: float
    device: str


def estimate_time(
    model: TransformerBridge,
    plan: Plan,
    clock: Callable[[], float] = perf_counter,
    worked: Callable[[], float] = process_time,
) -> Estimate:
    """How long the whole plan would take here, from a small part of it that is really computed.
    `worked` is the processor's time for this process."""
    begun = clock()

    def timed(p: int, c: int) -> tuple[float, float, int, int]:
        part, start, work = plan.shrink(p, c), clock(), worked()
        tasks = part.tasks
        rows = sum(len(part.compute(model, task)) for task in tasks)
        return clock() - start, worked() - work, rows, len(tasks)

    def left() -> float:
        return LIMIT - (clock() - begun)

    # 1. What happens once (checks, kernels) is not timed.
    prompts, cells = plan.grid.n_prompts, plan.grid.cells
    p, c = min(FIRST_PROMPTS, prompts), min(FIRST_CELLS, cells)
    timed(p, c)
    # 2. The part grows until it is long enough, while there is time for a larger one.
    while True:
        seconds, work, rows, tasks = timed(p, c)
        grown = (p, min(4 * c, cells)) if c < cells else (min(2 * p, prompts), c)
        times = grown[0] * grown[1] / (p * c)
        if seconds >= ENOUGH or grown == (p, c) or 2 * times * seconds > left():
            break
        p, c = grown
    # 3. It is timed again, as often as there is time. Where it has not all cells, a quarter of them
    # is timed beside it, to tell what each cell adds from what a prompt costs once; where it has
    # not all prompts, half of them, to tell what a batch costs once.
    found = []
    while True:
        start, each, once = clock(), 0.0, 0.0
        if c < cells and work > 0:
            fewer = max(1, c // 4)
            each = (1 - timed(p, fewer)[1] / work) / max(1, c - fewer)
            each = min(max(0.0, each), 1 / c)
        if 1 < p < prompts and work > 0:
            _, half, _, there = timed(p // 2, c)
            apart = p * there - p // 2 * tasks  # 0 where half of the prompts fill half the batches
            once = tasks * (p * half / work - p // 2) / apart if apart > 0 else 0.0
            once = min(max(0.0, once), 1.0)
        times = prompts / p
        batches = min(times, len(plan.tasks) / max(1, tasks))
        found.append(seconds * (1 + each * (cells - c)) * (batches * once + times * (1 - once)))
        if len(found) == REPEATS or (clock() - start) + 2 * seconds > left():
            break
        seconds, work, rows, tasks = timed(p, c)
    return Estimate(median(found), min(found), max(found), rows)


def weights(model: TransformerBridge) -> float:
    """Gigabytes of the model's parameters and buffers, shared ones once."""
    some = [*model.original_model.parameters(), *model.original_model.buffers()]
    sizes = {one.data_ptr(): one.numel() * one.element_size() for one in some}
    return sum(sizes.values()) / GIGABYTE


def duration(seconds: float) -> str:
    """`0.4 s`, `42 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for unit, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {below}"
    return f"{whole // 60} min {whole % 60} s"


def print_forecast(forecast: Forecast) -> None:
    """The grid as a table; the rows, the time and the memory as lines below it."""
    from rich.table import Table

    grid = forecast.grid
    table = Table(title=f"Dry run: {forecast.experiment}", title_justify="left")
    for name, justify in (("", "left"), ("n", "right"), ("which", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    by_group = ", ".join(f"{group} {n}" for group, n in grid.prompts.items())
    table.add_row("prompts", f"{grid.n_prompts:,}", by_group)
    table.add_row("cells", f"{grid.cells:,}", "", end_section=True)
    for name, values in grid.axes.items():
        table.add_row(name, f"{len(values):,}", _values_text(values))
    terminal(_WIDTH).print(table)
    print(f"rows: {forecast.rows:,} in {forecast.tasks:,} batches")
    if forecast.there:
        print(f"there already: {forecast.there:,} rows")
    print(f"time: {_time(forecast)}")
    print(
        f"memory: {forecast.weights_gb:.2f} GB of weights, and at most about "
        f"{forecast.working_gb:.2f} GB besides ({forecast.device})"
    )
    print(f"run: {forecast.folder} (a dry run: nothing is written)")
    print("compute it: the same command without --dry-run")


def _time(forecast: Forecast) -> str:
    time = forecast.time
    if time is None:
        return "none: this run is finished already"
    return (
        f"about {duration(time.seconds)} ({duration(time.least)} to {duration(time.most)}), "
        f"estimated from {time.rows:,} rows timed here; loading and the summary come on top"
    )


def _values_text(values: Sequence[Any]) -> str:
    texts = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    if len(texts) > MOST_VALUES_LISTED:
        return f"{texts[0]} to {texts[-1]}"
    return ", ".join(texts)
