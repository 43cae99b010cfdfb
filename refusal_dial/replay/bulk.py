"""Many edits at once: the same operation on many cells, or on some of a batch's rows.

    edited[c, b] = operation_c(rows[c, b])

Alike operations are stacked into one with an operand a row, so the formula stays the one in
`operations`. This module knows the operations there and in `conditional`, and what their operands
mean (one vector, one a batch row, one a batch row and position). It does not know where the rows
come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal_dial.conditional import AddIf
from refusal_dial.hooks import Edit
from refusal_dial.operations import Add, Clamp, Operation, Project, Set

KNOWN = (Add, AddIf, Project, Clamp, Set)
"""Operations that treat each batch row by itself, with operands whose axes are known."""


def restricted(operation: Operation, rows: Int[Tensor, " some"]) -> Operation:
    """The operation on these batch rows alone."""
    return _with(operation, {k: v[rows.to(v.device)] for k, v in operands(operation, 2).items()})


def restrict(edit: Edit, rows: Int[Tensor, " some"]) -> Edit:
    """The edit on these batch rows alone."""
    pos = edit.pos[rows.to(edit.pos.device)] if isinstance(edit.pos, Tensor) else edit.pos
    return replace(edit, operation=restricted(edit.operation, rows), pos=pos)


def alike(operation: Operation) -> tuple[Any, ...]:
    """A key: operations with the same key can be stacked."""
    if not isinstance(operation, KNOWN):
        return (id(operation),)
    parts = ((f.name, getattr(operation, f.name)) for f in fields(operation))
    return type(operation), *(
        (name, tuple(v.shape), v.device) if isinstance(v, Tensor) else (name, v)
        for name, v in parts
    )


def edited(
    operations: Sequence[Operation],
    rows: Float[Tensor, "cell batch pos width"],
    prompts: Int[Tensor, " batch"],
) -> Float[Tensor, "cell batch pos width"]:
    """Each cell's operation on its rows, which belong to these batch rows. Operations must be
    alike."""
    cells, batch = rows.shape[:2]
    if cells == 1:
        return restricted(operations[0], prompts)(rows[0])[None].to(rows.dtype)
    stacked = {}
    for name, operand in operands(operations[0], 0).items():
        each = torch.stack([getattr(operation, name) for operation in operations]).to(rows)
        if operand.ndim < 2:
            each = each[:, None].expand(cells, batch, *operand.shape)
        else:
            each = each[:, prompts.to(each.device)]
        stacked[name] = each.flatten(0, 1)
    out = _with(operations[0], stacked)(rows.flatten(0, 1))
    return out.view(cells, batch, *out.shape[1:]).to(rows.dtype)


def operands(operation: Any, least: int) -> dict[str, Tensor]:
    """Its tensors of at least so many axes, by name."""
    values = {f.name: getattr(operation, f.name) for f in fields(operation)}
    return {k: v for k, v in values.items() if isinstance(v, Tensor) and v.ndim >= least}


def _with(operation: Any, changed: dict[str, Tensor]) -> Any:
    return replace(operation, **changed) if changed else operation
