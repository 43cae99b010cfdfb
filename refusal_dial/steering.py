"""Steering: learn a direction per layer, and lay out the cells that turn it up and down.

The cells are the baseline, the learned direction at every alpha, and as many random directions at
the same layer, site, position and alphas. This module builds them. It does not run them and does
not know which of them works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from refusal_dial.controls import random_directions
from refusal_dial.directions import Direction, Provenance, top_bottom
from refusal_dial.flags import RELATIVE_ALPHAS, SteeringFlags
from refusal_dial.hooks import steer
from refusal_dial.model import identity
from refusal_dial.prompts import Prompt, data_hash
from refusal_dial.study import Study
from refusal_dial.sweep import Cell
from refusal_dial.types import DialError

LABELS = ("direction", "seed", "layer", "site", "pos", "alpha", "alpha_relative")
BASELINE = Cell(dict(zip(LABELS, ("baseline", None, None, "", None, 0.0, 0.0), strict=True)))


def learn(
    study: Study, flags: SteeringFlags, prompts: Sequence[Prompt], balanced: bool = False
) -> list[Direction]:
    """For each layer, the top-scored of `prompts` minus the bottom-scored (see `top_bottom`).

    `balanced` takes equally many of each category into top and bottom.
    """
    who, rows = identity(study.model), study.rows(prompts)
    categories = [prompt.category for prompt in prompts] if balanced else None
    return [
        top_bottom(
            study.activations[study.layers.index(layer)][rows],
            [float(score) for score in study.scores[rows]],
            Provenance(
                layer=layer,
                site=flags.site,
                pos=flags.pos,
                model=who.name,
                revision=who.revision,
                seed=flags.seed,
                prompt_ids=tuple(prompt.id for prompt in prompts),
                data_hash=data_hash(prompts),
            ),
            k=flags.k,
            categories=categories,
        )
        for layer in study.layers
    ]


def placed(direction: Direction, study: Study, flags: SteeringFlags, layer: int) -> Direction:
    """A direction from a file, to be used at this layer, site and position of this model.

    Raises `DialError` if it is not as wide as the model's residual stream.
    """
    width = int(study.model.cfg.d_model)
    if len(direction.unit) != width:
        raise DialError(
            f"the direction is {len(direction.unit)} wide (learned on "
            f"{direction.provenance.model or 'an unnamed model'}) and this model's residual "
            f"stream is {width}: use a direction of the same model"
        )
    here = replace(direction.provenance, layer=layer, site=flags.site, pos=flags.pos)
    return replace(direction, provenance=here)


def alphas_at(study: Study, flags: SteeringFlags, layer: int) -> list[tuple[float, float]]:
    """(alpha, alpha / mean residual norm) for each step of the dial at one layer.

    alpha is always what `steer` takes. `--alphas auto` and `--alpha-unit residual` are multiples of
    the layer's mean residual norm, which alpha is rounded to four digits of.
    """
    norm = study.residual_norm(layer)
    if flags.alphas and flags.alpha_unit == "absolute":
        return [(alpha, round(alpha / norm, 6)) for alpha in flags.alphas]
    return [(float(f"{r * norm:.4g}"), r) for r in flags.alphas or RELATIVE_ALPHAS]


def steering_cells(study: Study, flags: SteeringFlags, learned: Sequence[Direction]) -> list[Cell]:
    """The baseline, then for each learned direction itself and `--n-random` random ones, each at
    every alpha."""
    cells = [BASELINE]
    for direction in learned:
        layer = direction.provenance.layer
        controls = random_directions(direction, flags.n_random, flags.seed)
        named: list[tuple[str, int | None, Direction]] = [("learned", None, direction)]
        named += [("random", seed, control) for seed, control in enumerate(controls)]
        for name, seed, one in named:
            for alpha, relative in alphas_at(study, flags, layer):
                place = (layer, flags.site, flags.pos)
                hook = steer(one, alpha, layer=layer, pos=flags.pos, site=flags.site)
                values = (name, seed, *place, alpha, relative)
                cells.append(Cell(dict(zip(LABELS, values, strict=True)), [hook]))
    return cells
