"""What a run would compute, and what that would take, as a dry run prints it.

Takes the grid and the measured figures, and prints. It does not know the model, and it times
nothing (`probe` does).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_VALUES_LISTED = 8
"""Values of an axis that are written out; of more, the first and the last."""

_WIDTH = 118


@dataclass(frozen=True)
class Grid:
    """What a sweep computes: so many prompts of each group, under so many cells, whose labels take
    these values."""

    prompts: Mapping[str, int]
    cells: int
    axes: Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Forecast:
    """A run that was not begun. `seconds` are those of the rows that are not `there` yet, None
    where nothing would be computed; they were foretold from `timed` rows."""

    experiment: str
    folder: str
    grid: Grid
    rows: int
    batches: int
    there: int
    seconds: float | None
    timed: int
    weights_gb: float
    working_gb: float
    device: str


def grid_of(prompts: Mapping[str, int], labels: Sequence[Mapping[str, Any]]) -> Grid:
    """The grid of cells with these labels: of each label its values, in order."""
    names = dict.fromkeys(name for one in labels for name in one)
    axes = {name: _values(one.get(name) for one in labels) for name in names}
    return Grid(prompts, len(labels), {name: values for name, values in axes.items() if values})


def _values(some: Iterable[Any]) -> tuple[Any, ...]:
    """The different values; numbers by size, other things as they come."""
    values = list(dict.fromkeys(value for value in some if value is not None and value != ""))
    return tuple(sorted(values) if all(isinstance(v, int | float) for v in values) else values)


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
    from rich.console import Console
    from rich.table import Table

    grid = forecast.grid
    table = Table(title=f"Dry run: {forecast.experiment}", title_justify="left")
    for name, justify in (("", "left"), ("n", "right"), ("which", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    said = ", ".join(f"{group} {n}" for group, n in grid.prompts.items())
    table.add_row("prompts", f"{sum(grid.prompts.values()):,}", said)
    table.add_row("cells", f"{grid.cells:,}", "", end_section=True)
    for name, values in grid.axes.items():
        table.add_row(name, f"{len(values):,}", _shown(values))
    width = None if Console().is_terminal else _WIDTH
    Console(width=width, markup=False, emoji=False).print(table)
    print(f"rows: {forecast.rows:,} in {forecast.batches:,} batches")
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
    if forecast.seconds is None:
        return "none: this run is finished already"
    return (
        f"about {duration(forecast.seconds)}, foretold from {forecast.timed:,} rows timed here; "
        "loading and the summary come on top"
    )


def _shown(values: Sequence[Any]) -> str:
    texts = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    if len(texts) > MOST_VALUES_LISTED:
        return f"{texts[0]} to {texts[-1]}"
    return ", ".join(texts)
