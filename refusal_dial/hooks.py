"""Hooks as values: `steer`, `ablate`, `clamp` and `patch` each return one `(name, function)` pair.

The function is an `Edit`: frozen data that says where (layer, site, positions, head or neuron) and
what (an operation on the selected rows), and that is itself callable as a TransformerLens hook. So
the same value runs in `model.run_with_hooks`, in `with model.hooks(...)`, and in the replay engine,
which reads the data instead of calling the function. Several hooks are a list, composed by `+`.

An edit is pure: it returns a new tensor, in the activation's own dtype and on its device, and
leaves unselected positions bit-equal. It does not know whether the model has its layer or site.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_dial.types import ALL, DialError, Hook, Pos, check_pos, hook_name, positions

Rows = Float[Tensor, "batch pos width"]
Operation = Callable[[Tensor], Tensor]
WRITTEN: tuple[str, ...] = ("resid_pre", "attn_out", "mlp_out")


@runtime_checkable
class HasUnit(Protocol):
    """Anything with a unit vector, such as `directions.Direction`."""

    @property
    def unit(self) -> Float[Tensor, " d_model"]: ...


def _spread(value: Tensor, rows: Tensor) -> Tensor:
    """One vector, or one vector a batch row, ready to broadcast over positions."""
    value = value.to(rows)
    return value[:, None] if value.ndim == 2 else value


@dataclass(frozen=True, eq=False)
class Add:
    """`h <- h + v`. `vector` is one vector, or one a batch row."""

    vector: Float[Tensor, "*batch width"]

    def __call__(self, rows: Rows) -> Rows:
        return rows + _spread(self.vector, rows)


@dataclass(frozen=True, eq=False)
class Project:
    """`h <- h - (h·r) r`: what is left has no component along the unit vector r."""

    unit: Float[Tensor, "*batch width"]

    def __call__(self, rows: Rows) -> Rows:
        r = _spread(self.unit, rows)
        return rows - (rows * r).sum(-1, keepdim=True) * r


@dataclass(frozen=True, eq=False)
class Clamp:
    """`h <- h + (value - h·r) r`: the component along the unit vector r becomes `value`."""

    unit: Float[Tensor, "*batch width"]
    value: int | float

    def __call__(self, rows: Rows) -> Rows:
        r = _spread(self.unit, rows)
        return rows + (self.value - (rows * r).sum(-1, keepdim=True)) * r


@dataclass(frozen=True, eq=False)
class Set:
    """`h <- value`: one vector, one a batch row, or one a batch row and position."""

    value: Float[Tensor, "*batch width"]

    def __call__(self, rows: Rows) -> Rows:
        return _spread(self.value, rows).expand_as(rows)


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
    pos = tuple(pos) if isinstance(pos, list) else pos
    return name, Edit(layer, site, pos, operation, head, neuron)


def unit_of(
    direction: HasUnit | Float[Tensor, "*batch d_model"],
) -> Float[Tensor, "*batch d_model"]:
    """The unit vector of a direction, or a tensor of unit vectors as it is.

    Raises `DialError` for a vector that is not finite or whose norm is not 1 within 1e-3.
    """
    unit = direction if isinstance(direction, Tensor) else direction.unit
    norms = unit.float().norm(dim=-1)
    if not bool(torch.isfinite(norms).all()):
        raise DialError("the direction holds NaN or infinite values")
    if bool((norms - 1).abs().max() > 1e-3):
        raise DialError(
            f"a direction is a unit vector and this one has norm {norms.max().item():.4g}: "
            "divide it by its norm (and multiply alpha by it for the same addition)"
        )
    return unit


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
    `alpha = s * direction.norm`.

    Raises `DialError` for an alpha that is not finite, a vector that is not a unit vector, an
    unknown site, or a bad position.
    """
    scale = torch.as_tensor(alpha, dtype=torch.float32)
    if not bool(torch.isfinite(scale).all()):
        raise DialError(f"alpha must be finite, not {alpha}")
    unit = unit_of(direction)
    return _hook(Add(scale.to(unit.device)[..., None] * unit.float()), layer, pos, site)


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
    if not torch.isfinite(torch.tensor(value)):
        raise DialError(f"value must be finite, not {value}")
    return _hook(Clamp(unit_of(direction).float(), float(value)), layer, pos, site)


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
    return _hook(Set(value), layer, pos, site, head, neuron)
