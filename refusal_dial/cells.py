"""Cells of a sweep, and the one unit of alpha: directions times alphas at a place become hooks.

    v = alpha · |1|_unit · r        r the unit direction, |1|_unit how long alpha = 1 is:

    residual   the mean norm of the residual stream at the place (the default everywhere)
    norm       the length of the learned direction before it was normalised, as CAA adds it
    absolute   1: residual-stream units

A cell is what is done (hooks) and the columns that name it (labels). Every sweep takes its cells
from `cells_at`, so `alpha` (absolute), `alpha_relative` (alpha / mean residual norm) and `strength`
(alpha as it was given, in its unit) mean the same in every table. A cell of alpha 0 has no hooks:
it is the unsteered model. Controls are added at the length of the direction they stand beside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from refusal_dial.common import FAR, Hook, log
from refusal_dial.directions import Direction
from refusal_dial.hooks import Detector, steer, steer_if

CELL_LABELS = ("direction", "seed", "layer", "site", "pos", "alpha", "alpha_relative", "strength")

Named = tuple[str, int | None, Direction]
"""What a direction is called in the rows: its kind, its number among its kind, and itself."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One intervention: the columns that name it, and its hooks (none = the model as it is)."""

    labels: Mapping[str, Any]
    hooks: Sequence[Hook] = field(default_factory=tuple)


BASELINE = Cell(
    dict(zip(CELL_LABELS, ("baseline", None, None, "", None, 0.0, 0.0, 0.0), strict=True))
)


@dataclass(frozen=True)
class Alpha:
    """One step of the dial: as given in its unit, in residual-stream units, in residual norms."""

    given: float
    absolute: float
    relative: float


@dataclass(frozen=True)
class SteeringPlace:
    """Where a direction is added; `norm` is the mean residual norm there."""

    layer: int
    site: str
    pos: int
    norm: float


def unit_length(unit: str, norm: float, direction: Direction) -> float:
    """How long alpha = 1 is, in residual-stream units; `norm` is the mean residual norm."""
    return {"residual": norm, "norm": direction.norm, "absolute": 1.0}[unit]


def alphas_in(
    given: Sequence[float], unit: str, norm: float, direction: Direction
) -> tuple[Alpha, ...]:
    """Alphas in a unit, with what each adds. Absolute ones are taken as they are; others are
    rounded to four digits, so that a table can be typed again.

    Warns of the furthest beyond `FAR` mean residual norms: such a vector drowns what was there.
    """
    length, found = unit_length(unit, norm, direction), []
    for alpha in given:
        absolute = alpha if unit == "absolute" else float(f"{alpha * length:.4g}")
        relative = alpha if unit == "residual" else round(absolute / norm, 6)
        found.append(Alpha(alpha, absolute, relative))
    most = max(found, key=lambda one: abs(one.relative), default=None)
    if most is not None and abs(most.relative) > FAR:
        log.warning(
            "alpha %g (%s) adds %.3g mean residual norms, over %g: little else is left there",
            most.given,
            unit,
            abs(most.relative),
            FAR,
        )
    return tuple(found)


def steer_at(direction: Direction, alpha: float, place: SteeringPlace) -> Hook:
    """`hooks.steer` at a place, by an absolute alpha."""
    return steer(direction, alpha, layer=place.layer, pos=place.pos, site=place.site)


def steer_where(detector: Detector) -> Callable[[Direction, float, SteeringPlace], Hook]:
    """`hooks.steer_if` at a place: only where this detector fires."""

    def hook(direction: Direction, alpha: float, place: SteeringPlace) -> Hook:
        return steer_if(
            direction, alpha, detector, layer=place.layer, pos=place.pos, site=place.site
        )

    return hook


def cells_at(
    named: Sequence[Named],
    alphas: Sequence[Alpha],
    place: SteeringPlace,
    hook: Callable[[Direction, float, SteeringPlace], Hook] = steer_at,
) -> list[Cell]:
    """A cell per direction and alpha, in this order. `hook` says how one is added: always,
    or, by `steer_where`, where a detector fires."""
    cells = []
    for kind, number, direction in named:
        for alpha in alphas:
            values = (kind, number, place.layer, place.site, place.pos)
            steps = (alpha.absolute, alpha.relative, alpha.given)
            hooks = [hook(direction, alpha.absolute, place)] if alpha.absolute else []
            cells.append(Cell(dict(zip(CELL_LABELS, (*values, *steps), strict=True)), hooks))
    return cells


def turned(alphas: Sequence[Alpha]) -> tuple[Alpha, ...]:
    """Those that are not 0: a control at alpha 0 is the baseline once more."""
    return tuple(alpha for alpha in alphas if alpha.absolute)


def numbered(kind: str, drawn: Sequence[Direction]) -> list[Named]:
    """Draws of one kind of control, with their numbers."""
    return [(kind, number, one) for number, one in enumerate(drawn)]


def labelled(cell: Cell, **labels: Any) -> Cell:
    """The same cell with these labels too, or in place of its own."""
    return replace(cell, labels={**cell.labels, **labels})
