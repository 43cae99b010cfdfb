"""Conditional steering: add a direction only where a detector fires.

    h <- h + 1[h·d > threshold] alpha r

d is the detector's unit direction, r the one that steers. The condition is read from the very
activation that is edited, so it is decided row by row and token by token: at the last prompt token,
at each generated token, or at both, as `pos` says. A decision at the prompt that holds for the
whole reply, or one read at another layer, is `steer` with an alpha a row:
`steer(r, alpha * detector.fires(h).float(), ...)`.

The threshold is calibrated on prompts that the detector should pass by, for a stated rate of false
positives. How many of those it should catch it does catch is not known here: that takes a sweep.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal_dial.directions import Direction
from refusal_dial.hooks import Edit
from refusal_dial.operations import Add, HasUnit, Rows, Rowwise, scaled, unit_of
from refusal_dial.types import DialError, Hook, Pos, check_pos, hook_name


@dataclass(frozen=True, eq=False)
class AddIf(Rowwise):
    """`h <- h + 1[h·d > threshold] v`. Rows that do not fire are bit-equal. The projection is
    computed in float32 at least, so that half precision does not decide."""

    vector: Float[Tensor, "*batch width"]
    unit: Float[Tensor, "*watched width"]
    threshold: float

    def __call__(self, rows: Rows) -> Rows:
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        unit = self.unit.to(wide)
        unit = unit[:, None] if unit.ndim == 2 else unit
        fires = (wide * unit).sum(-1, keepdim=True) > self.threshold
        return torch.where(fires, Add(self.vector)(rows), rows)


@dataclass(frozen=True, eq=False)
class Detector:
    """Fires where `h·d > threshold`. `rate` is the stated rate of false positives, promised on
    average over draws of the `n` prompts it was calibrated on."""

    direction: Direction
    threshold: float
    rate: float
    n: int

    def fires(self, activations: Float[Tensor, "row d_model"]) -> Bool[Tensor, " row"]:
        """Which rows are over the threshold."""
        unit = self.direction.unit.to(activations.device)
        return activations.float() @ unit.float() > self.threshold


def calibrate(
    direction: Direction, negatives: Float[Tensor, "prompt d_model"], rate: float
) -> Detector:
    """The lowest threshold with `P(h·d > threshold) <= rate` for one more prompt like these.

    With the n projections sorted downwards, `threshold = p[k]`, `k = floor(rate (n + 1)) - 1`
    (counted from 0): of n + 1 exchangeable prompts the new one is over it with probability at most
    (k + 1) / (n + 1) (split conformal prediction, Vovk et al. 2005).

    Raises `DialError` for a rate outside (0, 1), activations that are not finite, or too few
    prompts to promise the rate at all.
    """
    if not 0 < rate < 1:
        raise DialError(f"the rate of false positives must be between 0 and 1, not {rate}")
    n, needed = len(negatives), math.ceil(1 / rate - 1e-9) - 1
    if n < needed:
        raise DialError(
            f"a rate of false positives of {rate:g} takes at least {needed} prompts to calibrate "
            f"on, and these are {n}"
        )
    projections = negatives.float() @ direction.unit.float().to(negatives.device)
    if not bool(torch.isfinite(projections).all()):
        raise DialError("the activations to calibrate on hold NaN or infinite values")
    k = math.floor(rate * (n + 1) + 1e-9) - 1
    return Detector(direction, float(projections.sort(descending=True).values[k]), rate, n)


def steer_if(
    direction: HasUnit | Float[Tensor, "*batch d_model"],
    alpha: int | float | Float[Tensor, " batch"],
    detector: Detector,
    *,
    layer: int,
    pos: Pos = -1,
    site: str = "resid_pre",
) -> Hook:
    """`h <- h + 1[h·d > threshold] alpha r`, at every token that `pos` names by itself.

    `pos=-1` decides at the last prompt token and again at each generated one; `"last_prompt"` and
    `"generated"` decide at one of the two. An earlier hook at the same place is seen by the
    condition, a later one is not. Raises `DialError` as `steer` does, and for a detector that was
    learned at another layer or site.
    """
    name = hook_name(site, layer)
    check_pos(pos)
    at = detector.direction.provenance
    if (at.layer, at.site) != (layer, site):
        raise DialError(
            f"the detector reads {at.site} of layer {at.layer} and this steers {site} of layer "
            f"{layer}: steer there, or give steer an alpha a row, alpha * detector.fires(...)"
        )
    unit = unit_of(direction)
    vector = scaled(alpha, unit)
    watch = unit_of(detector.direction).float().to(unit.device)
    return name, Edit(layer, site, pos, AddIf(vector, watch, detector.threshold))
