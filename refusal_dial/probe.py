"""How long a sweep would take, foretold from a small part of it that is really computed.

    seconds = P / p · (a + b C),  a and b from p prompts under c and under c / 4 cells

for P prompts and C cells: what a prompt costs once (recording it) and what each cell adds. The part
grows until it takes long enough to be told from noise: first to all cells, then to more prompts.
With all cells there is nothing to tell a and b apart for. It is rough: a small batch fills a large
device badly, so that the time foretold is too long there; and cells differ. The memory is what the
sweep is allowed to use, or what generation may hold at once, by the estimates of `replay.memory`.

This module times. It writes nothing, and prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.replay.memory import GIGABYTE, Sizes, budget
from refusal_dial.sampling import Decoding
from refusal_dial.sweep import Budget, Cell, spread
from refusal_dial.tokens import Tokens
from refusal_dial.workers import Batches

ENOUGH = 1.0
"""Seconds that a part takes to be told from noise."""
PROMPTS, CELLS = 2, 4
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
            return [value[i] for i in spread(len(value), cells)]
        case list() if any(isinstance(one, pd.DataFrame) for one in value):
            return []
    return value


def foretell(
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

    p, c = min(PROMPTS, prompts), min(CELLS, cells)
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
