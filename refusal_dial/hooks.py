"""Hooks as values: `steer`, `ablate`, `clamp`, `rotate`, `patch` and `steer_if` return `(name,
function)`.

    steer    h <- h + alpha r          ablate   h <- h - (h·r) r
    clamp    h <- h + (c - h·r) r      patch    h <- value
    rotate   h <- h turned towards r by an angle, its norm kept
    steer_if h <- h + 1[h·d > threshold] alpha r

Of several directions at once, a list of hooks, one an axis of an orthonormal basis R of their span:

    ablate_subspace  h <- h - R R'h        affine  h <- h - R R'h + R R'mean

Lists of hooks are joined by +. First the operations on rows of an activation, then the hooks that
apply one at a site, a layer and positions, then the conditional one with its detector.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal_dial.common import (
    ALL,
    FURTHEST,
    DialError,
    Hook,
    Pos,
    check_pos,
    format_value,
    hook_name,
    positions,
)
from refusal_dial.directions.learning import TOLERANCE, Direction, basis

# --------------------------------------------------------------------------------------------------
# What an edit does to the rows it selects (add, project away, clamp, turn, set), and what it takes.
#
#     new rows = operation(rows),  rows `batch pos width`
#
# A `Rowwise` operation is frozen data that treats each row by itself. Its tensors are one vector,
# one a batch row, or one a batch row and position, so it can say which rows it fits.


Activations = Float[Tensor, "batch pos width"]

Operation = Callable[[Tensor], Tensor]


class Rowwise:
    """An operation whose tensors are one vector, one a batch row, or one a batch row and
    position."""

    def misfit(self, batch: int, width: int, k: Callable[[], int]) -> str:
        """Why a tensor does not fit rows of shape (batch, k(), width), or "". `k` is asked only of
        a tensor that has positions, and where it is 0 there is nothing to fit."""
        for value in vars(self).values():
            if not isinstance(value, Tensor):
                continue
            shape = tuple(value.shape)
            if shape[-1] != width:
                return f"expected a vector of width {width}, not {shape[-1]}: read it in this model"
            if len(shape) > 1 and shape[0] != batch:
                return f"expected one vector or alpha, or one for each of {batch} prompts: {shape}"
            if len(shape) > 2 and (here := k()) not in (0, shape[1]):
                return f"expected a vector for each of the {here} positions of pos: {shape}"
        return ""


def _spread(value: Tensor, rows: Tensor) -> Tensor:
    """One vector, or one vector a batch row, ready to broadcast over positions."""
    value = value.to(rows)
    return value[:, None] if value.ndim == 2 else value


@dataclass(frozen=True, eq=False)
class Add(Rowwise):
    """`h <- h + v`. `vector` is one vector, or one a batch row."""

    vector: Float[Tensor, "*batch width"]

    def __call__(self, rows: Activations) -> Activations:
        return rows + _spread(self.vector, rows)


@dataclass(frozen=True, eq=False)
class Project(Rowwise):
    """`h <- h - (h·r) r`: what is left has no component along the unit vector r."""

    unit: Float[Tensor, "*batch width"]

    def __call__(self, rows: Activations) -> Activations:
        r = _spread(self.unit, rows)
        return rows - (rows * r).sum(-1, keepdim=True) * r


@dataclass(frozen=True, eq=False)
class Clamp(Rowwise):
    """`h <- h + (value - h·r) r`: the component along the unit vector r becomes `value`."""

    unit: Float[Tensor, "*batch width"]
    value: int | float

    def __call__(self, rows: Activations) -> Activations:
        r = _spread(self.unit, rows)
        return rows + (self.value - (rows * r).sum(-1, keepdim=True)) * r


@dataclass(frozen=True, eq=False)
class Rotate(Rowwise):
    """`h <- cos(a) h + sin(a) |h| u`, u the unit vector of `r - (r·h) h / |h|^2`, and a as far as
    `turn` (radians) but no further than r or -r. Computed in float32 at least. A row of zeros, or
    one along r already, stays as it is."""

    unit: Float[Tensor, "*batch width"]
    turn: float

    def __call__(self, rows: Activations) -> Activations:
        if self.turn == 0:
            return rows
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        r = _spread(self.unit, wide)
        size = wide.norm(dim=-1, keepdim=True)
        along = (wide * r).sum(-1, keepdim=True)
        across = r * size - wide * along / size.clamp(min=1e-30)  # |across| = |h| sin(between)
        left = across.norm(dim=-1, keepdim=True)
        between = torch.atan2(left, along)
        a = torch.clamp(torch.full_like(between, self.turn), between - math.pi, between)
        turned = a.cos() * wide + a.sin() * size * across / left.clamp(min=1e-30)
        return torch.where(left > size * 1e-6, turned, wide).to(rows.dtype)


@dataclass(frozen=True, eq=False)
class Set(Rowwise):
    """`h <- value`: one vector, one a batch row, or one a batch row and position."""

    value: Float[Tensor, "*batch width"]

    def __call__(self, rows: Activations) -> Activations:
        return _spread(self.value, rows).expand_as(rows)


@runtime_checkable
class HasUnit(Protocol):
    """Anything with a unit vector, such as `directions.Direction`."""

    @property
    def unit(self) -> Float[Tensor, " d_model"]: ...


def vectors(value: object, what: str) -> Tensor:
    """A tensor that is one vector, or several."""
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        remedy = "torch.as_tensor(...) makes one of it" if hasattr(value, "shape") else "give one"
        raise DialError(f"{what} must be a torch tensor, not {kind}: {remedy}")
    if not 1 <= value.ndim <= 3 or value.dtype == torch.bool:
        raise DialError(f"{what} must be a vector or several, not shape {tuple(value.shape)}")
    return value


def numbers_of(value: object, what: str) -> Tensor:
    """One finite number, or one a batch row, in float32. Raises `DialError` for anything else, and
    beyond `FURTHEST`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        found = torch.as_tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        found = None
    if found is None or found.ndim > 1:
        raise DialError(
            f"{what} must be a number, or one a prompt, not {format_value(value)}"
        ) from None
    if not bool(torch.isfinite(found).all()):
        raise DialError(f"{what} must be finite, not {format_value(value)}")
    if found.numel() and float(found.abs().max()) > FURTHEST:
        raise DialError(
            f"{what} must be from {-FURTHEST:g} to {FURTHEST:g}, not {format_value(value)}: no "
            "model can "
            "take the norm of an activation further out"
        )
    return found


def scaled(alpha: object, unit: Tensor) -> Tensor:
    """`alpha r`: one vector, or one a batch row. Raises `DialError` for alphas that are no finite
    numbers, or not as many as there are directions."""
    scale = numbers_of(alpha, "alpha").to(unit.device)
    if scale.ndim == 1 and unit.ndim == 2 and len(scale) != len(unit):
        raise DialError(f"{len(scale)} alphas for {len(unit)} directions: expected as many")
    return scale[..., None] * unit.float()


def unit_of(
    direction: HasUnit | Float[Tensor, "*batch d_model"],
) -> Float[Tensor, "*batch d_model"]:
    """The unit vector of a direction, or a tensor of unit vectors as it is.

    Raises `DialError` for what is no tensor, or a vector that is not finite or whose norm is not 1
    within `TOLERANCE`.
    """
    unit = vectors(getattr(direction, "unit", direction), "a direction")
    norms = unit.float().norm(dim=-1)
    if not bool(torch.isfinite(norms).all()):
        raise DialError("the direction holds NaN or infinite values")
    if bool((norms - 1).abs().max() > TOLERANCE):
        raise DialError(
            f"a direction is a unit vector and this one has norm {norms.max().item():.4g}: "
            "divide it by its norm (and multiply alpha by it for the same addition)"
        )
    return unit


# --------------------------------------------------------------------------------------------------
# Hooks as values: `steer`, `ablate`, `clamp`, `rotate` and `patch` each return one pair,
# and those of several directions a list of pairs.
#
# The function is an `Edit`: frozen data that says where (layer, site, positions, head or neuron)
# and what (an operation on the selected rows), and that is itself callable as a TransformerLens
# hook. So the same value runs in `model.run_with_hooks`, in `with model.hooks(...)`, and in the
# replay engine, which reads the data instead of calling the function. Several hooks are a list,
# composed by `+`.
#
# An edit is pure: it returns a new tensor, in the activation's own dtype and on its device, and
# leaves unselected positions bit-equal.


WRITTEN: tuple[str, ...] = ("resid_pre", "attn_out", "mlp_out")


@dataclass(frozen=True, eq=False, repr=False)
class Edit:
    """`h[:, pos] <- operation(h[:, pos])` at one site of one layer.

    `head` selects one head of `z` (rows of width d_head), `neuron` one neuron of `mlp_post`
    (rows of width 1). `pos` is read by `types.positions`; an integer tensor holds one position a
    batch row.
    """

    layer: int
    site: str
    pos: Pos
    operation: Operation
    head: int | None = None
    neuron: int | None = None

    def __repr__(self) -> str:
        what = type(self.operation).__name__.lower()
        return f"{what}@{self.site}[layer={self.layer}, pos={self.pos}]"

    def __call__(self, activation: Tensor, hook: object = None) -> Tensor:
        """The edited activation, a new tensor. `hook` is TransformerLens's and is not used."""
        self.check(activation.shape)
        index = self.index(activation)
        if index is None:
            return activation
        rows = activation[index]
        if per_row := isinstance(self.pos, Tensor):
            rows = rows[:, None]
        edited = self.operation(rows)
        out = activation.clone()
        out[index] = (edited[:, 0] if per_row else edited).to(activation.dtype)
        return out

    def check(self, shape: Sequence[int]) -> None:
        """Raises `DialError` where this does not fit an activation of shape `batch pos width` (z:
        `batch pos head width`). A length of 1 is a decoding step, where any pos is fine."""
        batch, length, width = shape[0], shape[1], shape[-1]
        for unit, name, n in ((self.head, "head", shape[-2]), (self.neuron, "neuron", width)):
            if unit is not None and not 0 <= unit < n:
                raise DialError(
                    f"{name} {unit} is out of range: {self.site} of layer {self.layer} has "
                    f"{name}s 0 to {n - 1}"
                )
        if isinstance(self.pos, Tensor):
            _check_rows(self.pos, batch, length)
        elif not isinstance(self.pos, str):
            positions(self.pos, length)
        if isinstance(self.operation, Rowwise):
            width = width if self.neuron is None else 1
            why = self.operation.misfit(batch, width, lambda: self._count(length))
            if why:
                raise DialError(f"{self.site} of layer {self.layer}: {why}")

    def _count(self, length: int) -> int:
        """How many positions of so many this edits."""
        return 1 if isinstance(self.pos, Tensor) else len(positions(self.pos, length))

    def index(self, activation: Tensor) -> tuple[Any, ...] | None:
        """The index of the rows to edit, or None where this edit touches nothing."""
        length = activation.shape[1]
        unit: tuple[Any, ...] = ()
        if self.head is not None:
            unit = (self.head,)
        elif self.neuron is not None:
            unit = (slice(self.neuron, self.neuron + 1),)
        if isinstance(self.pos, Tensor):
            if length == 1:
                return None
            batch = torch.arange(activation.shape[0], device=activation.device)
            return (batch, self.pos.to(activation.device) % length, *unit)
        where = positions(self.pos, length)
        if not where:
            return None
        if where == list(range(where[0], where[-1] + 1)):  # a run of positions: slice, no gather
            return (slice(None), slice(where[0], where[-1] + 1), *unit)
        return (slice(None), torch.tensor(where, device=activation.device), *unit)


def _check_rows(pos: Tensor, batch: int, length: int) -> None:
    """Raises `DialError` for positions, one a batch row, that are not as many or not inside."""
    if len(pos) != batch:
        raise DialError(
            f"pos holds {len(pos)} positions for {batch} prompts: expected one a prompt"
        )
    if length > 1 and batch:
        for p in {int(end) for end in torch.aminmax(pos)}:
            positions(p, length)


def _hook(
    operation: Operation,
    layer: SupportsIndex,
    pos: Pos,
    site: str,
    head: int | None = None,
    neuron: int | None = None,
) -> Hook:
    name = hook_name(site, layer)
    layer = operator.index(layer)
    check_pos(pos)
    if (head is None) == (site == "z"):
        raise DialError(f"site 'z' needs head=, and only it does: site {site!r}, head {head}")
    if neuron is not None and site != "mlp_post":
        raise DialError(f"neuron= is for site 'mlp_post', not {site!r}")
    head, neuron = _whole(head, "head"), _whole(neuron, "neuron")
    pos = tuple(pos) if isinstance(pos, list) else pos
    return name, Edit(layer, site, pos, operation, head, neuron)


def _whole(number: object, what: str) -> int | None:
    if number is None or (isinstance(number, Integral) and not isinstance(number, bool)):
        return None if number is None else int(number)
    raise DialError(f"{what} must be a whole number from 0 up, not {format_value(number)}")


def steer(
    direction: HasUnit | Float[Tensor, "*batch d_model"],
    alpha: int | float | Float[Tensor, " batch"],
    *,
    layer: SupportsIndex,
    pos: Pos = ALL,
    site: str = "resid_pre",
) -> Hook:
    """`h <- h + alpha r`, r the unit direction.

    alpha is in the residual stream's own units: at |alpha| equal to the residual's norm the
    addition is as long as what it is added to. A tensor of alphas, or of directions, gives each
    batch row its own. Adding s times the raw mean difference, as CAA does (Rimsky et al. 2024), is
    `alpha = s * direction.norm`. Along several directions at once it is the unit vector of their
    sum, or a list with a `steer` for each.

    Raises `DialError` for an alpha that is not finite, a vector that is not a unit vector, an
    unknown site, or a bad position.
    """
    return _hook(Add(scaled(alpha, unit_of(direction))), layer, pos, site)


def ablate(
    direction: HasUnit | Float[Tensor, " d_model"],
    *,
    layer: SupportsIndex,
    pos: Pos = ALL,
    site: str = "resid_pre",
) -> Hook:
    """`h <- h - (h·r) r`: directional ablation (Arditi et al. 2024). Idempotent."""
    return _hook(Project(unit_of(direction).float()), layer, pos, site)


def ablate_everywhere(
    direction: HasUnit | Float[Tensor, " d_model"], n_layers: int, *, pos: Pos = ALL
) -> list[Hook]:
    """`ablate` at every block's input and at what every attention and MLP adds: nothing that a
    block reads or writes has a component along r (Arditi et al. 2024). What the last block leaves
    has none either. `scripts/export_model.py` writes the same into the weights.
    """
    layers = range(n_layers)
    return [ablate(direction, layer=n, pos=pos, site=site) for n in layers for site in WRITTEN]


def clamp(
    direction: HasUnit | Float[Tensor, " d_model"],
    value: int | float,
    *,
    layer: SupportsIndex,
    pos: Pos = ALL,
    site: str = "resid_pre",
) -> Hook:
    """`h <- h + (value - h·r) r`: the component along r becomes `value`, the rest stays.
    `clamp(r, 0.0)` is `ablate(r)`."""
    number = numbers_of(value, "value")
    if number.ndim:
        raise DialError(f"value must be one number, not {format_value(value)}")
    return _hook(Clamp(unit_of(direction).float(), float(value)), layer, pos, site)


def rotate(
    direction: HasUnit | Float[Tensor, "*batch d_model"],
    degrees: int | float,
    *,
    layer: SupportsIndex,
    pos: Pos = ALL,
    site: str = "resid_pre",
) -> Hook:
    """`h <- |h| (cos(b - a) r + sin(b - a) u)`, b the angle between h and r, a = `degrees`, u the
    unit vector of what of h is orthogonal to r: h turned in the plane of h and r, its norm kept.

    Above 0 towards r, below 0 away from it, and no further than r or -r: `rotate(r, 180)` is
    `|h| r`. An addition lengthens what it is added to, a turn does not (compare Vu and Nguyen 2025,
    arXiv 2510.26243, who turn in one fixed plane). Raises `DialError` for an angle that is not
    finite, and as `steer` does.
    """
    angle = numbers_of(degrees, "degrees")
    if angle.ndim:
        raise DialError(f"degrees must be one number, not {format_value(degrees)}")
    turn = math.radians(max(-180.0, min(180.0, float(angle))))
    return _hook(Rotate(unit_of(direction).float(), turn), layer, pos, site)


Directions = Sequence[HasUnit | Tensor] | Float[Tensor, "k d_model"]
"""Several directions of one model, as a list or as the rows of a tensor."""


def axes(directions: Directions) -> list[Float[Tensor, " d_model"]]:
    """Orthonormal axes of what the directions span, in float32: fewer than the directions where
    some lie in the span of others. One direction is its own axis.

    Raises `DialError` for no list, an empty one, vectors that are no unit vectors, and unequal
    widths.
    """
    if not isinstance(directions, Tensor | Sequence):
        raise DialError(
            f"expected a list of directions, not {format_value(directions)}: give [direction]"
        )
    units = [unit_of(one) for one in directions]
    widths = sorted({tuple(one.shape) for one in units})
    if len(widths) != 1 or len(widths[0]) != 1:
        raise DialError(
            f"expected directions of one width, at least one: {len(units)} of shapes "
            f"{', '.join(map(str, widths)) or 'none'}"
        )
    if len(units) == 1:
        return [units[0].float()]
    return list(basis(torch.stack([one.double().cpu() for one in units])).T.float())


def ablate_subspace(
    directions: Directions, *, layer: SupportsIndex, pos: Pos = ALL, site: str = "resid_pre"
) -> list[Hook]:
    """`h <- h - R R'h`, R an orthonormal basis of what the directions span: nothing is left along
    any of them. One `ablate` for each axis: projections along orthogonal axes do not see each
    other, so their order does not matter. Idempotent; of one direction it is `ablate`."""
    return [ablate(axis, layer=layer, pos=pos, site=site) for axis in axes(directions)]


def affine(
    directions: Directions,
    mean: Float[Tensor, " d_model"],
    *,
    layer: SupportsIndex,
    pos: Pos = ALL,
    site: str = "resid_pre",
) -> list[Hook]:
    """`h <- h - R R'h + R R'mean`: the part of h in the directions' span becomes the part of
    `mean`, the mean activation there of prompts that show no such behaviour (Marshall et al. 2024,
    arXiv 2411.09003: affine concept editing; `+ [steer(...)]` adds their alpha).

    Ablation sets that part to 0, a value that no prompt may have; this sets it to a usual one. One
    `clamp` for each axis; of one direction it is `clamp(r, mean·r)`. Raises `DialError` for a mean
    that is no finite vector of the directions' width.
    """
    found = axes(directions)
    at = vectors(mean, "a mean").double().cpu()
    if at.shape != found[0].shape or not bool(torch.isfinite(at).all()):
        raise DialError(
            f"mean must be a finite vector of width {len(found[0])}, not of shape {tuple(at.shape)}"
            f"{'' if bool(torch.isfinite(at).all()) else ' with NaN or infinite values'}"
        )
    values = [float(axis.double().cpu() @ at) for axis in found]
    return [
        clamp(axis, value, layer=layer, pos=pos, site=site)
        for axis, value in zip(found, values, strict=True)
    ]


def patch(
    value: Float[Tensor, "*batch width"],
    *,
    layer: SupportsIndex,
    pos: Pos = ALL,
    site: str = "resid_pre",
    head: int | None = None,
    neuron: int | None = None,
) -> Hook:
    """`h <- value`, an activation recorded in another run (interchange intervention).

    `value` has the site's width and is one vector, one a batch row (`batch width`), or one a batch
    row and selected position (`batch pos width`). Patching a run with itself changes nothing.
    """
    return _hook(Set(vectors(value, "a patched value")), layer, pos, site, head, neuron)


# --------------------------------------------------------------------------------------------------
# Conditional steering: add a direction only where a detector fires.
#
#     h <- h + 1[h·d > threshold] alpha r
#
# d is the detector's unit direction, r the one that steers. The condition is read from the very
# activation that is edited, so it is decided row by row and token by token: at the last prompt
# token, at each generated token, or at both, as `pos` says. A decision at the prompt that holds for
# the whole reply, or one read at another layer, is `steer` with an alpha a row: `steer(r, alpha *
# detector.fires(h).float(), ...)`.
#
# The threshold is calibrated on prompts that the detector should pass by, for a stated rate of
# false positives. How many of those it should catch it does catch is not known here: that takes a
# sweep.


@dataclass(frozen=True, eq=False)
class AddIf(Rowwise):
    """`h <- h + 1[h·d > threshold] v`. Rows that do not fire are bit-equal. The projection is
    computed in float32 at least, so that half precision does not decide."""

    vector: Float[Tensor, "*batch width"]
    unit: Float[Tensor, "*watched width"]
    threshold: float

    def __call__(self, rows: Activations) -> Activations:
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
