"""Sweeps: cells times prompts, scored, as one tidy frame with a row per prompt and cell.

A cell is what is done (hooks) and how it is labelled (columns). This module knows batches and
order: prompts in batches, in each batch every cell, in each cell every prompt. It does not know
what the labels mean, and it never writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.engine import Scorer, score_grid
from refusal_dial.tokens import Tokens
from refusal_dial.types import Hook


@dataclass(frozen=True, eq=False)
class Cell:
    """One intervention: the columns that name it, and its hooks (none = the model as it is)."""

    labels: Mapping[str, Any]
    hooks: Sequence[Hook] = field(default_factory=tuple)


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


def spread(n: int, k: int) -> list[int]:
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
