"""Sweeps: cells times prompts, scored, as one tidy frame with a row per prompt and cell.

A cell is what is done (hooks) and how it is labelled (columns). This module knows batches and
order: prompts in batches, in each batch every cell, in each cell every prompt. It does not know
what the labels mean, and it never writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.cells import Cell
from refusal_dial.engine.recording import GIGABYTE, Sizes, budget
from refusal_dial.engine.score import Scorer, score_grid
from refusal_dial.generate.decode import Decoding
from refusal_dial.model.tokens import Tokens
from refusal_dial.run.machines import Batches


@dataclass(frozen=True)
class Budget:
    """How a sweep may use the machine; results do not depend on it beyond rounding. `rows` bounds
    what one batch yields, and so what is lost with whoever computes it, in whole cells."""

    batch_size: int = 32
    engine: str = "auto"
    memory_gb: float | None = None
    rows: int = 2**16


def batches(n_prompts: int, n_cells: int, budget: Budget) -> list[tuple[range, range]]:
    """(prompts, cells) of each batch, in order: some prompts under all cells, or under as many
    cells as `budget.rows` allows where they are more."""
    size = budget.batch_size
    some = max(1, budget.rows // size)
    return [
        (range(i, min(i + size, n_prompts)), range(c, min(c + some, n_cells)))
        for i in range(0, n_prompts, size)
        for c in range(0, n_cells, some)
    ]


def batch_sizes(n_prompts: int, n_cells: int, budget: Budget) -> list[int]:
    """Rows that each batch of a sweep yields, in order."""
    return [len(prompts) * len(cells) for prompts, cells in batches(n_prompts, n_cells, budget)]


def spread_over(n: int, k: int) -> list[int]:
    """k of n numbers, or all n, from the first to the last at equal steps."""
    k = min(n, k)
    return [round(i * (n - 1) / max(1, k - 1)) for i in range(k)]


def sweep_batches(
    model: TransformerBridge,
    tokens: Tokens,
    rows: pd.DataFrame,
    cells: Sequence[Cell],
    scorer: Scorer,
    budget: Budget,
    skip: int = 0,
) -> Iterator[pd.DataFrame]:
    """A frame per batch: the cell's labels, the prompt's columns, `score`; by prompts in batches,
    then cell, then prompt, however the cells are divided.

    `rows` describes the prompts, one line each, in the order of `tokens`. The first `skip` batches
    are left out: they were computed before. Batches do not depend on one another.
    """
    tokens = tokens.on(model)
    for prompts, numbers in batches(len(tokens), len(cells), budget)[skip:]:
        some = cells[numbers.start : numbers.stop]
        scores = score_grid(
            model,
            tokens.rows(prompts.start, prompts.stop),
            [cell.hooks for cell in some],
            scorer,
            engine=budget.engine,
            memory_gb=budget.memory_gb,
        )
        yield _tidy(some, rows.iloc[prompts.start : prompts.stop], scores.numpy())


def _tidy(cells: Sequence[Cell], batch: pd.DataFrame, scores: NDArray[np.float64]) -> pd.DataFrame:
    n = len(batch)
    columns: dict[str, Any] = {
        name: [cell.labels[name] for cell in cells for _ in range(n)] for name in cells[0].labels
    }
    for name in batch.columns:
        columns[str(name)] = list(batch[name]) * len(cells)
    columns["score"] = scores.reshape(-1)
    return pd.DataFrame({k: pd.Series(v, dtype=_dtype(v)) for k, v in columns.items()})


def _dtype(values: Any) -> str | None:
    """Whole numbers that may be missing stay whole (pandas would write 3 as 3.0)."""
    if all(v is None or (isinstance(v, int) and not isinstance(v, bool)) for v in values):
        return "Int64"
    return None


# --------------------------------------------------------------------------------------------------
# How long a sweep would take, foretold from a small part of it that is really computed.
#
#     seconds = P / p · (a + b C),  a and b from p prompts under c and under c / 4 cells
#
# for P prompts and C cells: what a prompt costs once (recording it) and what each cell adds. The
# part grows until it takes long enough to be told from noise: first to all cells, then to more
# prompts. With all cells there is nothing to tell a and b apart for. It is rough: a small batch
# fills a large device badly, so that the time foretold is too long there; and cells differ. The
# memory is what the sweep is allowed to use, or what generation may hold at once, by the estimates
# of `replay.memory`.


ENOUGH = 1.0
"""Seconds that a part takes to be told from noise."""

FIRST_PROMPTS, FIRST_CELLS = 2, 4
"""The first part."""


@runtime_checkable
class Divisible(Protocol):
    """What knows its own parts."""

    def divided(self, prompts: int, cells: int) -> Any: ...


class Times(int):
    """How often something is done, each time by itself."""

    def divided(self, prompts: int, cells: int) -> Times:
        """So often."""
        return Times(prompts)


def part_of(value: Any, prompts: int, cells: int) -> Any:
    """The same batches on the first prompts, under so many cells from all over the grid.

    Goes by type through what the batches are a partial of: a frame is of prompts, a list of cells
    is the grid, a list of frames is there already.
    """
    some = partial(part_of, prompts=prompts, cells=cells)
    match value:
        case partial():
            named = {name: some(one) for name, one in value.keywords.items()}
            return partial(value.func, *map(some, value.args), **named)
        case Divisible():
            return value.divided(prompts, cells)
        case Tokens():
            return value.rows(0, prompts)
        case pd.DataFrame():
            return value.head(prompts)
        case Mapping():
            return {name: some(one) for name, one in value.items()}
        case list() | tuple() if any(isinstance(one, Cell) for one in value):
            return [value[i] for i in spread_over(len(value), cells)]
        case list() if any(isinstance(one, pd.DataFrame) for one in value):
            return []
    return value


def estimate_time(
    model: TransformerBridge,
    batches: Batches,
    prompts: int,
    cells: int,
    clock: Callable[[], float] = perf_counter,
) -> tuple[float, int]:
    """(seconds of the whole sweep, rows that were timed)."""

    def timed(p: int, c: int) -> tuple[float, int]:
        start = clock()
        rows = sum(len(batch) for batch in part_of(batches, p, c)(model, skip=0))
        return clock() - start, rows

    p, c = min(FIRST_PROMPTS, prompts), min(FIRST_CELLS, cells)
    timed(p, c)  # what happens once: trials, kernels
    while True:
        seconds, rows = timed(p, c)
        if seconds >= ENOUGH or (p, c) == (prompts, cells):
            break
        p, c = (p, min(4 * c, cells)) if c < cells else (min(2 * p, prompts), c)
    each = 0.0
    if c < cells:
        fewer = max(1, c // 4)
        each = (seconds - timed(p, fewer)[0]) / max(1, c - fewer)
    each = min(max(0.0, each), seconds / c)
    return prompts / p * (seconds + each * (cells - c)), rows


def weights(model: TransformerBridge) -> float:
    """Gigabytes of the model's parameters and buffers, shared ones once."""
    some = [*model.original_model.parameters(), *model.original_model.buffers()]
    sizes = {one.data_ptr(): one.numel() * one.element_size() for one in some}
    return sum(sizes.values()) / GIGABYTE


def working(model: TransformerBridge, batches: Batches, rows: int) -> float:
    """Gigabytes besides the model, at most: the engine's budget, or the rows that generation holds
    at once (`rows` at most) with the keys and values of all their tokens."""
    found = list(_within(batches))
    asked = [one.memory_gb for one in found if isinstance(one, Budget)]
    room = budget(next(model.original_model.parameters()).device, asked[0] if asked else None)
    length = max((one.ids.shape[1] for one in found if isinstance(one, Tokens)), default=1)
    sizes = Sizes.of(model)
    held = [
        min(one.rows, rows) * (sizes.trunk(length + one.max_new_tokens, 0) + sizes.row())
        for one in found
        if isinstance(one, Decoding)
    ]
    return max([room, *held] if asked or not held else held) / GIGABYTE


def _within(value: Any) -> Iterator[Any]:
    """Everything that the batches are a partial of, whatever it is wrapped in."""
    match value:
        case partial():
            for one in (*value.args, *value.keywords.values()):
                yield from _within(one)
        case Mapping():
            for one in value.values():
                yield from _within(one)
        case list() | tuple() if any(isinstance(one, Divisible) for one in value):
            for one in value:
                yield from _within(one)
        case Divisible() if not isinstance(value, Times):
            for one in vars(value).values():
                yield from _within(one)
        case _:
            yield value
