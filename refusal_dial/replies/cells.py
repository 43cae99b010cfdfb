"""What is done to the model while it replies: nothing, a direction at each strength, controls; each
of it with and without a system message where there is one.

This module builds cells; it does not run them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from refusal_dial.controls import random_directions
from refusal_dial.directions import Direction
from refusal_dial.replies.flags import ReplyFlags
from refusal_dial.strengths import UNSTEERED, Named, strength_cells
from refusal_dial.study import Study
from refusal_dial.sweep import Cell


def reply_cells(study: Study, flags: ReplyFlags, learned: Sequence[Direction]) -> list[Cell]:
    """The unsteered model, then for each learned direction itself at every strength, and
    `--n-random` random ones at every strength but 0. All without a system message of their own."""
    cells = [UNSTEERED]
    for direction in learned:
        layer = direction.provenance.layer
        norm = study.residual_norm(layer)
        step = {"residual": norm, "norm": direction.norm, "absolute": 1.0}[flags.alpha_unit]
        named: list[Named] = [("learned", None, direction)]
        controls = random_directions(direction, flags.n_random, flags.seed)
        named += [("random", number, one) for number, one in enumerate(controls)]
        cells += strength_cells(
            named, flags.alphas, step, norm, layer=layer, site=flags.site, pos=flags.pos
        )
    return [under(cell, "") for cell in cells]


def under(cell: Cell, system: str) -> Cell:
    """The same cell under a system message, by the name that it has in the rows."""
    return replace(cell, labels={**cell.labels, "system": system})


def with_and_without(cells: Sequence[Cell], system: str) -> list[Cell]:
    """All cells as they are; then the unsteered model and the learned direction under `system`."""
    both = [cell for cell in cells if cell.labels["direction"] in ("baseline", "learned")]
    return [*cells, *(under(cell, system) for cell in both)]
