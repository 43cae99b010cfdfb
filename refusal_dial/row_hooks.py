"""One set of hooks for a batch whose rows belong to different cells.

Row i of the batch is prompt `prompts[i]` under the hooks of cell `cells[i]`. A hook of one cell
leaves the rows of all others bit-equal; additions at one place become one, with a vector a row.
This module knows hooks and rows. It does not run a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from jaxtyping import Int
from torch import Tensor

from refusal_dial.hooks import Edit
from refusal_dial.operations import Add
from refusal_dial.replay.bulk import KNOWN, restrict
from refusal_dial.types import Hook

LAST = (-1, (-1,), "last_prompt")


@dataclass(frozen=True, eq=False)
class RowHook:
    """Applies each function to its own rows of the batch, and to no other."""

    parts: tuple[tuple[Int[Tensor, " _"], Callable[..., Any]], ...]

    def __call__(self, activation: Tensor, hook: object = None) -> Tensor:
        out = activation.clone()
        for rows, function in self.parts:
            index = rows.to(activation.device)
            changed = function(activation[index], hook)
            if changed is not None:
                out[index] = changed
        return out


def is_known(hook: Hook) -> bool:
    """Does this hook treat every batch row by itself, as data says how?"""
    return isinstance(hook[1], Edit) and isinstance(hook[1].operation, KNOWN)


def row_hooks(
    grid: Sequence[Sequence[Hook]], cells: Int[Tensor, " row"], prompts: Int[Tensor, " row"]
) -> list[Hook]:
    """The hooks of a batch with `cells[i]` and `prompts[i]` in row i.

    A cell's several hooks at one place keep their order. A hook that is not an edit is given all
    the rows of its cell as they stand in the batch.
    """
    slots: dict[tuple[str, int], list[tuple[Tensor, Callable[..., Any]]]] = {}
    for cell in sorted(set(cells.tolist())):
        rows = (cells == cell).nonzero().flatten()
        seen: dict[str, int] = {}
        for name, function in grid[cell]:
            if is_known((name, function)):
                function = restrict(cast(Edit, function), prompts[rows])
            slots.setdefault((name, seen.get(name, 0)), []).append((rows, function))
            seen[name] = seen.get(name, 0) + 1
    return [
        (name, _one_addition(parts, len(cells)) or RowHook(tuple(parts)))
        for (name, _), parts in slots.items()
    ]


def _one_addition(parts: Sequence[tuple[Tensor, Callable[..., Any]]], n: int) -> Edit | None:
    """Additions at the same positions as one, zero in the rows that have none."""
    edits = [function for _, function in parts if isinstance(function, Edit)]
    if len(edits) < len(parts) or not all(isinstance(e.operation, Add) for e in edits):
        return None
    first = edits[0]
    if any(isinstance(e.pos, Tensor | slice) or e.pos != first.pos for e in edits):
        return None
    vectors = [cast(Add, edit.operation).vector for edit in edits]
    every = vectors[0].new_zeros(n, vectors[0].shape[-1])
    for (rows, _), vector in zip(parts, vectors, strict=True):
        every[rows.to(every.device)] = vector
    return replace(first, operation=Add(every))


def leaves_the_rest_alone(grid: Sequence[Sequence[Hook]]) -> bool:
    """Is the last prompt token the first that any of these hooks can change?"""
    return all(
        is_known(hook)
        and not isinstance(hook[1].pos, Tensor | slice)  # type: ignore[attr-defined]
        and hook[1].pos in (*LAST, "generated")  # type: ignore[attr-defined]
        for cell in grid
        for hook in cell
    )


def at_the_last_token(grid: Sequence[Sequence[Hook]]) -> list[list[Hook]]:
    """The hooks for a forward pass that sees the last prompt token alone.

    To an edit such a pass looks like a decoding step, so what edits the last prompt token edits
    everything here, and what edits generated tokens nothing.
    """
    return [
        [(name, replace(edit, pos="all")) for name, edit in cell if edit.pos in LAST]  # type: ignore[attr-defined,type-var]
        for cell in grid
    ]
