"""Pairs of cell and prompt gathered into rectangles that run as one batch.

Pairs that leave the trunk at the same position run together, prompts by cells, each cell from its
own block on. This module weighs work against the cost of starting it. It knows no tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from refusal_dial.replay.plan import NOTHING

Starts = Int[np.ndarray, "cell batch"]
Within = Bool[np.ndarray, "cell batch"]


@dataclass(frozen=True, eq=False)
class Rectangle:
    """Prompts by cells (in order of the block they start at), all leaving the trunk at `first`."""

    first: int
    prompts: tuple[int, ...]
    cells: tuple[int, ...]
    starts: tuple[int, ...]
    used: Bool[np.ndarray, "prompt cell"]  # the other pairs are computed only to fill the rectangle

    def part(self, prompts: slice, cells: slice) -> Rectangle:
        return Rectangle(
            self.first,
            self.prompts[prompts],
            self.cells[cells],
            self.starts[cells],
            self.used[prompts, cells],
        )

    def pieces(self, tokens: int, length: int) -> Iterator[Rectangle]:
        """Parts of at most `tokens` tokens, or of one branch where that is already more."""
        each = length - self.first
        rows = max(1, min(len(self.prompts), tokens // each))
        wide = max(1, tokens // (each * rows))
        for i in range(0, len(self.prompts), rows):
            for j in range(0, len(self.cells), wide):
                yield self.part(slice(i, i + rows), slice(j, j + wide))

    def halves(self) -> tuple[Rectangle, Rectangle]:
        """The same work in two parts, by cells while there are several, then by prompts."""
        everything = slice(None)
        if len(self.cells) > 1:
            middle = len(self.cells) // 2
            low, high = slice(0, middle), slice(middle, None)
            return self.part(everything, low), self.part(everything, high)
        middle = len(self.prompts) // 2
        return (
            self.part(slice(0, middle), everything),
            self.part(slice(middle, None), everything),
        )


def rectangles(
    start: Starts, first: Starts, n_layers: int, length: int, spare: float
) -> Iterator[Rectangle]:
    """All pairs that change something, each in one rectangle.

    A pair may run from an earlier position than its own, and a rectangle may hold unused pairs,
    where that costs at most `spare` tokens' way through the model, about what starting another
    rectangle costs.
    """
    for p, within in _classes(start, first, spare):
        for group in _groups(start, within, n_layers, spare / (length - p)):
            used = within[:, group]
            begin = _begin(start, within, group, n_layers)
            cells = np.flatnonzero(used.any(1))
            cells = cells[np.argsort(begin[cells], kind="stable")]
            yield Rectangle(
                p, tuple(group), tuple(cells.tolist()), tuple(begin[cells].tolist()), used[cells].T
            )


def _classes(start: Starts, first: Starts, spare: float) -> Iterator[tuple[int, Within]]:
    """Pairs by first position, neighbours together where the earlier start costs little."""
    changed = start != NOTHING
    found, counts = np.unique(first[changed], return_counts=True)
    low, members = 0, list[int]()
    for p, count in zip(found.tolist(), counts.tolist(), strict=True):
        if members and count * (p - low) > spare:
            yield low, changed & np.isin(first, members)
            members = []
        low = low if members else p
        members.append(p)
    if members:
        yield low, changed & np.isin(first, members)


def _groups(start: Starts, within: Within, n_layers: int, spare: float) -> list[list[int]]:
    """Prompts with the same cells, and others with them where the gaps to fill cost little."""
    patterns: dict[bytes, list[int]] = {}
    for b in np.flatnonzero(within.any(0)).tolist():
        pattern = np.where(within[:, b], start[:, b], NOTHING)
        patterns.setdefault(pattern.tobytes(), []).append(b)
    groups: list[list[int]] = []
    for mine in sorted(patterns.values(), key=len, reverse=True):
        cost = _cost(start, within, mine, n_layers)
        for group in groups:
            apart = cost + _cost(start, within, group, n_layers)
            if _cost(start, within, group + mine, n_layers) - apart <= spare * n_layers:
                group.extend(mine)
                break
        else:
            groups.append(mine)
    return [sorted(group) for group in groups]


def _begin(
    start: Starts, within: Within, group: list[int], n_layers: int
) -> Int[np.ndarray, " cell"]:
    """The block at which each cell starts, to serve every prompt of the group."""
    return np.asarray(np.where(within[:, group], start[:, group], n_layers).min(1))


def _cost(start: Starts, within: Within, group: list[int], n_layers: int) -> int:
    return int((n_layers - _begin(start, within, group, n_layers)).sum()) * len(group)
