"""A grid over two dials: away from toxicity by one, refusal by the other; a cell is their hooks.

A control is the same grid with a random direction, as long, in place of toxicity's. This module
builds cells; it does not run them.
"""

from __future__ import annotations

from itertools import product

from refusal_dial.controls import random_directions
from refusal_dial.directions import Direction
from refusal_dial.hooks import steer
from refusal_dial.objectives.flags import ObjectiveFlags
from refusal_dial.objectives.opened import Both
from refusal_dial.strengths import UNSTEERED
from refusal_dial.sweep import Cell


def objective_cells(both: Both, flags: ObjectiveFlags) -> list[Cell]:
    """The unsteered model, then every pair of steps: both directions (`learned`), and a random one
    with refusal's (`random`) wherever the first dial is turned."""
    first, second = both.toxicity, both.refusal
    layer = first.provenance.layer
    step = both.openings.step(layer, flags.alpha_unit)
    norm = both.study.residual_norm(flags.refusal_layer)
    named: list[tuple[str, int | None, Direction]] = [("learned", None, first)]
    controls = random_directions(first, flags.n_random, flags.seed)
    named += [("random", number, one) for number, one in enumerate(controls)]
    cells = [Cell({**UNSTEERED.labels, "refusal_strength": 0.0})]
    for (kind, number, one), strength, other in product(named, flags.alphas, flags.refusal_alphas):
        if strength == 0 and kind == "random":
            continue
        alpha = float(f"{strength * step:.4g}")
        dials = ((one, alpha, layer), (second, float(f"{other * norm:.4g}"), flags.refusal_layer))
        hooks = [
            steer(direction, by, layer=at, pos=flags.pos, site=flags.site)
            for direction, by, at in dials
            if by
        ]
        labels = {
            **UNSTEERED.labels,
            "direction": kind,
            "seed": number,
            "layer": layer,
            "site": flags.site,
            "pos": flags.pos,
            "alpha": alpha,
            "alpha_relative": round(alpha / both.openings.step(layer, "residual"), 6),
            "strength": strength,
            "refusal_strength": other,
        }
        cells.append(Cell(labels, hooks))
    return cells
