"""What is done to the model: nothing, the learned direction, random ones, shuffled ones.

Controls are as long as the learned direction at the same alpha, and added at the same place. This
module builds cells; it does not run them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from refusal_dial.continuation.flags import ContinuationFlags
from refusal_dial.continuation.opened import Opened
from refusal_dial.controls import random_directions, shuffled_directions
from refusal_dial.directions import Direction, mean_diff
from refusal_dial.strengths import UNSTEERED, Named, strength_cells
from refusal_dial.sweep import Cell


def relearned(opened: Opened, layer: int, labels: Sequence[float]) -> Direction:
    """The direction of a layer learned from the same openings under other labels, 1 for BENIGN."""
    i = opened.layers.index(layer)
    benign = torch.tensor(labels) > 0.5
    about = opened.learned[i].provenance
    return mean_diff(opened.pooled[i][benign], opened.pooled[i][~benign], about)


def continuation_cells(opened: Opened, flags: ContinuationFlags) -> list[Cell]:
    """The baseline, then for each layer the learned direction at every alpha, and the controls at
    every alpha but 0. A cell of alpha 0 has no hooks: it is the baseline."""
    cells = [UNSTEERED]
    half = opened.pooled.shape[1] // 2
    benign = [1.0] * half + [0.0] * (opened.pooled.shape[1] - half)
    for layer, learned in zip(opened.layers, opened.learned, strict=True):
        named: list[Named] = [("learned", None, learned)]
        controls = random_directions(learned, flags.n_random, flags.seed)
        named += [("random", i, one) for i, one in enumerate(controls)]
        shuffled = shuffled_directions(
            learned, partial(relearned, opened, layer), benign, flags.n_shuffled, flags.seed
        )
        named += [("shuffled", i, one) for i, one in enumerate(shuffled)]
        cells += turned(opened, flags, layer, named)
    return cells


def turned(
    opened: Opened, flags: ContinuationFlags, layer: int, named: Sequence[Named]
) -> list[Cell]:
    """The directions at every step of the dial at one layer."""
    return strength_cells(
        named,
        flags.alphas,
        opened.step(layer, flags.alpha_unit),
        opened.step(layer, "residual"),
        layer=layer,
        site=flags.site,
        pos=flags.pos,
    )
