"""Cells by strength: a few directions at one place, each turned to every step of a dial.

    alpha = strength * step

The step is what strength 1 is as long as: the mean residual norm, the direction's own norm before
it was normalised, 1. A cell of alpha 0 has no hooks: it is the unsteered model. This module builds
cells; it does not run them.
"""

from __future__ import annotations

from collections.abc import Sequence

from refusal_dial.directions import Direction
from refusal_dial.hooks import steer
from refusal_dial.steering import BASELINE, LABELS
from refusal_dial.sweep import Cell

UNSTEERED = Cell({**BASELINE.labels, "strength": 0.0})

Named = tuple[str, int | None, Direction]
"""What a direction is called in the rows: its kind, its number among its kind, and itself."""


def strength_cells(
    named: Sequence[Named],
    strengths: Sequence[float],
    step: float,
    norm: float,
    *,
    layer: int,
    site: str,
    pos: int,
) -> list[Cell]:
    """A cell per direction and strength, in this order. Controls are as long as the learned
    direction, and have no cell of strength 0.

    `norm` is the mean residual norm, which `alpha_relative` is a multiple of.
    """
    cells = []
    for kind, number, direction in named:
        for strength in strengths:
            if strength == 0 and kind != "learned":
                continue
            alpha = float(f"{strength * step:.4g}")
            values = (kind, number, layer, site, pos, alpha, round(alpha / norm, 6))
            labels = {**dict(zip(LABELS, values, strict=True)), "strength": strength}
            hooks = [steer(direction, alpha, layer=layer, pos=pos, site=site)] if alpha else []
            cells.append(Cell(labels, hooks))
    return cells
