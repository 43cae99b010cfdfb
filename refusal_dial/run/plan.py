"""What a run computes, as one value: its tasks in the order of their rows, and how to compute one.

A task is some prompts under some cells. Whoever computes it keeps the gain of sharing one recording
of these prompts, and no task depends on another: so a run resumes at `plan.tasks[done:]`, workers
are each given a task, and a dry run times `plan.shrink(...)`. A plan pickles, and it never writes.

    SweepPlan   cells times prompts, scored from the logits
    DriftPlan   how far cells move the unsteered model's replies
    Parts       several plans, one after the other
    Known       rows that are computed already
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.cells import Cell
from refusal_dial.common import T
from refusal_dial.engine.recording import Sizes, budget
from refusal_dial.engine.score import Scorer, score_grid
from refusal_dial.engine.slopes import first_order
from refusal_dial.generate.decode import Decoding, generate
from refusal_dial.generate.likelihood import kl_per_token
from refusal_dial.model.tokens import Tokens

C = TypeVar("C", bound="CellPlan")


@dataclass(frozen=True)
class Task:
    """Some prompts under some cells, in one part of a plan: so many rows."""

    rows: int
    prompts: range
    cells: range = range(0)
    part: int = 0


@dataclass(frozen=True)
class Grid:
    """What a plan computes, for a dry run to print: so many prompts of each group, under so many
    cells, whose labels take these values."""

    prompts: Mapping[str, int]
    cells: int
    axes: Mapping[str, Sequence[Any]]

    @property
    def n_prompts(self) -> int:
        """Prompts of all groups."""
        return sum(self.prompts.values())


@runtime_checkable
class Plan(Protocol):
    """What a run computes. Has to pickle."""

    @property
    def tasks(self) -> Sequence[Task]:
        """In the order of their rows."""
        ...

    @property
    def grid(self) -> Grid:
        """Prompts, cells and their labels."""
        ...

    def compute(self, model: TransformerBridge, task: Task) -> pd.DataFrame:
        """The rows of one task."""
        ...

    def shrink(self, prompts: int, cells: int) -> Plan:
        """The same on the first prompts, under so many cells from all over the grid."""
        ...

    def memory(self, model: TransformerBridge) -> float:
        """Bytes besides the model that computing a task may take, at most."""
        ...


@dataclass(frozen=True)
class Budget:
    """How a sweep may use the machine; results do not depend on it beyond rounding. `rows` bounds
    what one task makes, and so what is lost with whoever computes it, in whole cells."""

    batch_size: int = 32
    engine: str = "auto"
    memory_gb: float | None = None
    rows: int = 2**16

    def memory(self, model: TransformerBridge) -> float:
        """Bytes that the engine may take."""
        return float(budget(next(model.original_model.parameters()).device, self.memory_gb))


def batches(n: int, size: int) -> list[range]:
    """0 to n in ranges of `size`, the last one shorter."""
    return [range(i, min(i + size, n)) for i in range(0, n, size)]


def spread_over(n: int, k: int) -> list[int]:
    """k of n numbers, or all n, from the first to the last at equal steps."""
    k = min(n, k)
    return [round(i * (n - 1) / max(1, k - 1)) for i in range(k)]


def some_of(things: Sequence[T], k: int) -> tuple[T, ...]:
    """k of them, or all, from all over."""
    return tuple(things[i] for i in spread_over(len(things), k))


def grid_of(prompts: Mapping[str, int], labels: Sequence[Mapping[str, Any]]) -> Grid:
    """The grid of cells with these labels: of each label its values, in order."""
    names = dict.fromkeys(name for one in labels for name in one)
    axes = {name: _values(one.get(name) for one in labels) for name in names}
    return Grid(prompts, len(labels), {name: values for name, values in axes.items() if values})


def _values(some: Iterable[Any]) -> tuple[Any, ...]:
    """The different values; numbers by size, other things as they come."""
    values = list(dict.fromkeys(value for value in some if value is not None and value != ""))
    return tuple(sorted(values) if all(isinstance(v, int | float) for v in values) else values)


def groups(rows: pd.DataFrame) -> dict[str, int]:
    """How many prompts of each subset and split, where the rows have these columns."""
    names = [name for name in ("subset", "split") if name in rows]
    if not names:
        return {"prompts": len(rows)}
    counts = rows.groupby(names, sort=False).size()
    keys = [group if isinstance(group, tuple) else (group,) for group in counts.index]
    return {" ".join(map(str, key)): int(n) for key, n in zip(keys, counts, strict=True)}


def generation_memory(
    model: TransformerBridge, decoding: Decoding, length: int, rows: int
) -> float:
    """Bytes that generation holds at once: of so many rows, at most those that `decoding` allows,
    the keys and values of all tokens, and the logits of one."""
    sizes = Sizes.of(model)
    each = sizes.trunk(length + decoding.steps, 0) + sizes.row()
    return float(min(decoding.rows, rows) * each)


def compute_all(model: Any, plan: Plan) -> pd.DataFrame:
    """The rows of every task, in this process. Some plans ask no model."""
    frames = [plan.compute(model, task) for task in plan.tasks]
    return pd.concat(frames, ignore_index=True)


def tasks_over(
    prompts: int, cells: int, size: int, each: int = 1, most: int | None = None
) -> list[Task]:
    """Prompts in batches of `size`, each under all cells, or under some of them after the other
    where all would be more than `most` rows; `each` rows a prompt and cell."""
    found = []
    for some in batches(prompts, size):
        few = cells if most is None else min(cells, most // (each * len(some)))
        found += [
            Task(each * len(part) * len(some), some, part) for part in batches(cells, max(1, few))
        ]
    return found


@dataclass(frozen=True, eq=False)
class CellPlan:
    """What plans of prompts under cells share: `rows` are the prompts' columns, one line each, in
    the order of `tokens`. A plan adds what it computes."""

    tokens: Tokens
    rows: pd.DataFrame
    cells: Sequence[Cell]

    @property
    def grid(self) -> Grid:
        return grid_of(groups(self.rows), [cell.labels for cell in self.cells])

    def shrink(self: C, prompts: int, cells: int) -> C:
        return replace(
            self,
            tokens=self.tokens.rows(0, prompts),
            rows=self.rows.head(prompts),
            cells=some_of(self.cells, cells),
        )

    def part(self, model: TransformerBridge, task: Task) -> tuple[Tokens, pd.DataFrame]:
        """A task's prompts, where the model reads them, and their columns."""
        start, stop = task.prompts.start, task.prompts.stop
        return self.tokens.rows(start, stop).on(model), self.rows.iloc[start:stop]


@dataclass(frozen=True, eq=False)
class SweepPlan(CellPlan):
    """Cells times prompts, scored: a row per prompt and cell, by prompts in batches, then cell,
    then prompt, however the cells are divided.

    `columns` are those of the frame, of the cells' labels, the prompts' columns and `score`.
    """

    scorer: Scorer
    budget: Budget
    columns: Sequence[str] = ()

    @property
    def tasks(self) -> list[Task]:
        """Some prompts under all cells, or under as many as `budget.rows` allows."""
        some = max(1, self.budget.rows // self.budget.batch_size)
        return [
            Task(len(prompts) * len(cells), prompts, cells)
            for prompts in batches(len(self.rows), self.budget.batch_size)
            for cells in batches(len(self.cells), some)
        ]

    def compute(self, model: TransformerBridge, task: Task) -> pd.DataFrame:
        cells = self.cells[task.cells.start : task.cells.stop]
        tokens, rows = self.part(model, task)
        scores = score_grid(
            model,
            tokens,
            [cell.hooks for cell in cells],
            self.scorer,
            engine=self.budget.engine,
            memory_gb=self.budget.memory_gb,
        )
        return cell_rows(cells, rows, scores.numpy(), self.columns)

    def memory(self, model: TransformerBridge) -> float:
        return self.budget.memory(model)

    def estimate(self, model: TransformerBridge) -> pd.DataFrame:
        """The rows as the gradient has them (see `run.preview`), with `base`."""
        frames = []
        for some in batches(len(self.rows), self.budget.batch_size):
            tokens = self.tokens.rows(some.start, some.stop).on(model)
            grid = [(), *(cell.hooks for cell in self.cells)]
            scores = first_order(model, tokens, grid, self.scorer).numpy()
            frame = cell_rows(self.cells, self.rows.iloc[some.start : some.stop], scores[1:])
            frames.append(frame.assign(base=np.tile(scores[0], len(self.cells))))
        return pd.concat(frames, ignore_index=True)


@dataclass(frozen=True, eq=False)
class DriftPlan(CellPlan):
    """How far each cell moves the next token along the unsteered model's own replies (KL a token,
    `generate.likelihood.kl_per_token`): a row per prompt and cell, `score` being the KL."""

    decoding: Decoding
    budget: Budget
    columns: Sequence[str] = ()

    @property
    def tasks(self) -> list[Task]:
        return tasks_over(len(self.rows), len(self.cells), self.budget.batch_size)

    def compute(self, model: TransformerBridge, task: Task) -> pd.DataFrame:
        tokens, rows = self.part(model, task)
        replies = generate(model, tokens, [()], self.decoding, keys=list(rows["prompt_id"]))
        grid = [cell.hooks for cell in self.cells]
        kl = kl_per_token(model, tokens, grid, [one.ids for one in replies])
        return cell_rows(self.cells, rows, kl.double().cpu().numpy(), self.columns)

    def memory(self, model: TransformerBridge) -> float:
        most, length = max(task.rows for task in self.tasks), self.tokens.ids.shape[1]
        generation = generation_memory(model, self.decoding, length, most)
        return max(self.budget.memory(model), generation)


def cell_rows(
    cells: Sequence[Cell],
    batch: pd.DataFrame,
    scores: NDArray[np.float64],
    columns: Sequence[str] = (),
) -> pd.DataFrame:
    """A row per cell and prompt, of `scores` "cell prompt": the cell's labels, the prompt's columns
    and `score`; of these `columns`, or all."""
    n = len(batch)
    found: dict[str, Any] = {
        name: [cell.labels[name] for cell in cells for _ in range(n)] for name in cells[0].labels
    }
    for name in batch.columns:
        found[str(name)] = list(batch[name]) * len(cells)
    found["score"] = scores.reshape(-1)
    frame = pd.DataFrame({k: pd.Series(v, dtype=_dtype(v)) for k, v in found.items()})
    return frame[list(columns)] if columns else frame


def _dtype(values: Any) -> str | None:
    """Whole numbers that may be missing stay whole (pandas would write 3 as 3.0)."""
    if all(v is None or (isinstance(v, int) and not isinstance(v, bool)) for v in values):
        return "Int64"
    return None


@dataclass(frozen=True, eq=False)
class Parts:
    """Several plans, one after the other, under the grid of the whole."""

    parts: Sequence[Plan]
    grid: Grid

    @property
    def tasks(self) -> list[Task]:
        return [replace(t, part=i) for i, plan in enumerate(self.parts) for t in plan.tasks]

    def compute(self, model: TransformerBridge, task: Task) -> pd.DataFrame:
        return self.parts[task.part].compute(model, task)

    def shrink(self, prompts: int, cells: int) -> Parts:
        """Of every part the same share of its prompts and of its cells."""
        share, of = prompts / self.grid.n_prompts, cells / self.grid.cells
        parts = [
            one.shrink(ceil(share * one.grid.n_prompts), ceil(of * one.grid.cells))
            for one in self.parts
        ]
        return replace(self, parts=parts)

    def memory(self, model: TransformerBridge) -> float:
        return max(one.memory(model) for one in self.parts)


@dataclass(frozen=True, eq=False)
class Known:
    """Rows that are computed already, a frame a task."""

    frames: Sequence[pd.DataFrame]

    @property
    def tasks(self) -> list[Task]:
        return [Task(len(frame), range(i, i + 1)) for i, frame in enumerate(self.frames)]

    @property
    def grid(self) -> Grid:
        return Grid({}, 0, {})

    def compute(self, model: TransformerBridge, task: Task) -> pd.DataFrame:
        return self.frames[task.prompts.start]

    def shrink(self, prompts: int, cells: int) -> Known:
        """Nothing: there is nothing to time."""
        return Known(())

    def memory(self, model: TransformerBridge) -> float:
        return 0.0
