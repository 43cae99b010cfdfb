"""What an edit does to the rows it selects (add, project away, clamp, set), and what it takes.

    new rows = operation(rows),  rows `batch pos width`

A `Rowwise` operation is frozen data that treats each row by itself. Its tensors are one vector, one
a batch row, or one a batch row and position, so it can say which rows it fits. It does not know
where the rows stand in a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_dial.types import FURTHEST, DialError, shown

Rows = Float[Tensor, "batch pos width"]
Operation = Callable[[Tensor], Tensor]
TOLERANCE = 1e-3
"""How far from 1 the norm of a unit vector may be."""


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

    def __call__(self, rows: Rows) -> Rows:
        return rows + _spread(self.vector, rows)


@dataclass(frozen=True, eq=False)
class Project(Rowwise):
    """`h <- h - (h·r) r`: what is left has no component along the unit vector r."""

    unit: Float[Tensor, "*batch width"]

    def __call__(self, rows: Rows) -> Rows:
        r = _spread(self.unit, rows)
        return rows - (rows * r).sum(-1, keepdim=True) * r


@dataclass(frozen=True, eq=False)
class Clamp(Rowwise):
    """`h <- h + (value - h·r) r`: the component along the unit vector r becomes `value`."""

    unit: Float[Tensor, "*batch width"]
    value: int | float

    def __call__(self, rows: Rows) -> Rows:
        r = _spread(self.unit, rows)
        return rows + (self.value - (rows * r).sum(-1, keepdim=True)) * r


@dataclass(frozen=True, eq=False)
class Set(Rowwise):
    """`h <- value`: one vector, one a batch row, or one a batch row and position."""

    value: Float[Tensor, "*batch width"]

    def __call__(self, rows: Rows) -> Rows:
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
        raise DialError(f"{what} must be a number, or one a prompt, not {shown(value)}") from None
    if not bool(torch.isfinite(found).all()):
        raise DialError(f"{what} must be finite, not {shown(value)}")
    if found.numel() and float(found.abs().max()) > FURTHEST:
        raise DialError(
            f"{what} must be from {-FURTHEST:g} to {FURTHEST:g}, not {shown(value)}: no model can "
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
