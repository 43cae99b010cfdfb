"""Hooks as values: `steer`, `ablate`, `clamp` and `patch` each return one `(name, function)` pair.

The function is an `Edit`: frozen data that says where (layer, site, positions, head or neuron) and
what (an operation on the selected rows), and that is itself callable as a TransformerLens hook. So
the same value runs in `model.run_with_hooks`, in `with model.hooks(...)`, and in the replay engine,
which reads the data instead of calling the function. Several hooks are a list, composed by `+`.

An edit is pure: it returns a new tensor, in the activation's own dtype and on its device, and
leaves unselected positions bit-equal. It knows which activations it fits and not the model: whether
that has its layer and site is asked once a grid (`fits.check_grid`).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_dial.operations import (
    Add,
    Clamp,
    HasUnit,
    Operation,
    Project,
    Rowwise,
    Set,
    numbers_of,
    scaled,
    unit_of,
    vectors,
)
from refusal_dial.types import ALL, DialError, Hook, Pos, check_pos, hook_name, positions, shown

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
    raise DialError(f"{what} must be a whole number from 0 up, not {shown(number)}")


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
        raise DialError(f"value must be one number, not {shown(value)}")
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
    return _hook(Set(vectors(value, "a patched value")), layer, pos, site, head, neuron)
