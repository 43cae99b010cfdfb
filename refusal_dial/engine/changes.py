"""Which part of the forward pass each cell of a grid changes, and which cells run together.

An edit at block l whose first changed position is p changes nothing below l and nothing before p.
So cell c leaves the trunk of prompt b at (start[c, b], first[c, b]), or not at all where every
edited row equals the recorded one, bit for bit. Pairs of cell and prompt that leave at the same
position are gathered into rectangles that run as one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal_dial.common import positions
from refusal_dial.engine.recording import Recording, SitePlace
from refusal_dial.hooks import Add, AddIf, Clamp, Edit, Operation, Project, Rotate, Set

# --------------------------------------------------------------------------------------------------
# Many edits at once: the same operation on many cells, or on some of a batch's rows.
#
#     edited[c, b] = operation_c(rows[c, b])
#
# Alike operations are stacked into one with an operand a row, so the formula stays the one in
# `operations`.


KNOWN = (Add, AddIf, Project, Clamp, Rotate, Set)
"""Operations that treat each batch row by itself, with operands whose axes are known."""


def restricted(operation: Operation, rows: Int[Tensor, " some"]) -> Operation:
    """The operation on these batch rows alone."""
    return _with(operation, {k: v[rows.to(v.device)] for k, v in operands(operation, 2).items()})


def restrict(edit: Edit, rows: Int[Tensor, " some"]) -> Edit:
    """The edit on these batch rows alone."""
    pos = edit.pos[rows.to(edit.pos.device)] if isinstance(edit.pos, Tensor) else edit.pos
    return replace(edit, operation=restricted(edit.operation, rows), pos=pos)


def stackable(operation: Operation) -> tuple[Any, ...]:
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


# --------------------------------------------------------------------------------------------------
# Which part of the forward pass each cell of a grid changes, prompt by prompt.
#
# An edit at block l whose first changed position is p changes nothing below l and nothing before p.
# So cell c leaves the trunk of prompt b at (start[c, b], first[c, b]), or not at all where every
# edited row comes out equal, bit for bit, to the recorded one. Edits of padding, and edits of the
# last block that attention never carries to the last position, change nothing either.
#
# It runs no block.


STAGES = {
    "resid_post": 0,
    "resid_pre": 1,
    "z": 2,
    "attn_out": 3,
    "resid_mid": 4,
    "mlp_post": 5,
    "mlp_out": 6,
}
"""The order of the sites in a block. What leaves block l at resid_post enters block l + 1."""

RESIDUAL = 1
"""The last stage at which the residual stream is edited between blocks, not inside one."""

NOTHING = -1

PerPrompt = Int[np.ndarray, " batch"]

PerPair = Int[np.ndarray, "cell batch"]


@dataclass(frozen=True, eq=False)
class Touch:
    """One edit with its place resolved: the block it enters, and its positions in every prompt."""

    edit: Edit
    layer: int
    stage: int
    columns: slice  # of the site's activation: one head's, one neuron's, or all
    where: Int[Tensor, "batch k"]
    run: tuple[int, int] | None  # start and stop, where all prompts share a run of positions

    @property
    def inside(self) -> bool:
        """Whether it edits a block's inside, at a tap, and not the residual stream between two."""
        return self.stage > RESIDUAL

    @property
    def place(self) -> SitePlace:
        return self.edit.site, self.layer

    def alike(self) -> tuple[Any, ...]:
        """A key: touches with the same key edit the same rows by operations that stack."""
        where = id(self.where) if self.run is None else self.run
        columns = (self.columns.start, self.columns.stop)
        return self.layer, self.stage, where, columns, stackable(self.edit.operation)

    def of(self, prompts: Int[Tensor, " some"], cut: int) -> Touch:
        """On these prompts with `cut` positions of common padding removed."""
        run = None if self.run is None else (self.run[0] - cut, self.run[1] - cut)
        return replace(self, where=self.where[prompts] - cut, run=run)


def touches(edits: Sequence[Edit], batch: int, length: int, d_head: int) -> list[Touch]:
    """Edits resolved on `batch` prompts of `length` positions, in the order in which a forward
    pass meets them. Edits that touch no position are left out."""
    found = (_touch(edit, batch, length, d_head) for edit in edits)
    return sorted((t for t in found if t is not None), key=lambda t: (t.layer, t.stage))


def _touch(edit: Edit, batch: int, length: int, d_head: int) -> Touch | None:
    columns, run = slice(None), None
    if edit.head is not None:
        columns = slice(edit.head * d_head, (edit.head + 1) * d_head)
    elif edit.neuron is not None:
        columns = slice(edit.neuron, edit.neuron + 1)
    if isinstance(edit.pos, Tensor):
        if length == 1:
            return None
        where = (edit.pos.cpu() % length)[:, None]
    else:
        listed = positions(edit.pos, length)
        if not listed:
            return None
        if listed == list(range(listed[0], listed[-1] + 1)):
            run = (listed[0], listed[-1] + 1)
        where = torch.tensor(listed)[None].expand(batch, -1)
    layer = edit.layer + 1 if edit.site == "resid_post" else edit.layer
    return Touch(edit, layer, STAGES[edit.site], columns, where, run)


def places_of(cells: Sequence[Sequence[Touch]]) -> dict[SitePlace, list[int]]:
    """The positions that the cells edit at each place inside a block."""
    found: dict[SitePlace, set[int]] = {}
    for one in (t for cell in cells for t in cell if t.inside):
        span = range(*one.run) if one.run is not None else one.where.flatten().tolist()
        found.setdefault(one.place, set()).update(p for p in span if p >= 0)
    return {place: sorted(positions) for place, positions in found.items()}


def changes(
    recording: Recording,
    cells: Sequence[Sequence[Touch]],
    prompts: Int[Tensor, " batch"],
    pads: Int[Tensor, " batch"],
) -> tuple[PerPair, PerPair]:
    """(start, first), each "cell batch": the block and the position at which each cell leaves the
    trunk of each prompt; start is `NOTHING` where the logits are the recording's own.

    `cells` are resolved on the recording's prompts, which are rows `prompts` of the batch and begin
    with `pads` positions of padding.
    """
    shape, length = (len(cells), len(prompts)), recording.length
    start, first = np.full(shape, NOTHING), np.full(shape, length)
    changed = dict(_changed(recording, cells, prompts, pads))
    for c, cell in enumerate(cells):
        beyond = np.full(len(prompts), length)  # the first position that later edits reach
        for e in reversed(range(len(cell))):
            if (c, e) in changed:
                found, reach = changed[c, e]
                hit = found < length
                start[c, hit] = cell[e].layer
                first[c, hit] = np.minimum(found, beyond)[hit]
                beyond = np.minimum(beyond, reach)
    return start, first


def _changed(
    recording: Recording,
    cells: Sequence[Sequence[Touch]],
    prompts: Int[Tensor, " batch"],
    pads: Int[Tensor, " batch"],
) -> Iterator[tuple[tuple[int, int], tuple[PerPrompt, PerPrompt]]]:
    """((cell, edit), (first position it changes, first it reaches)); the length where none."""
    groups: dict[Any, list[tuple[int, int]]] = {}
    for c, cell in enumerate(cells):
        for e, one in enumerate(cell):
            groups.setdefault(one.alike(), []).append((c, e))
    for members in groups.values():
        one = cells[members[0][0]][members[0][1]]
        matters = _matters(recording, one, pads)
        if not bool(matters.any()):
            continue
        reach = torch.where(matters, one.where, recording.length).amin(-1).numpy()
        rows = recorded_rows(recording, one)
        step = max(1, 2**22 // max(1, rows.numel()))
        for i in range(0, len(members), step):
            part = members[i : i + step]
            operations = [cells[c][e].edit.operation for c, e in part]
            new = edited(operations, rows[None].expand(len(part), *rows.shape), prompts)
            differs = (new != rows).any(-1).cpu() & matters
            found = torch.where(differs, one.where, recording.length).amin(-1).numpy()
            yield from zip(part, ((each, reach) for each in found), strict=True)


def _matters(
    recording: Recording, one: Touch, pads: Int[Tensor, " batch"]
) -> Bool[Tensor, "batch k"]:
    """Whether an edited position can reach the last position's logits at all."""
    real = one.where >= pads[:, None]
    if one.layer == len(recording.layers) - int(one.inside):
        return real & (one.where == recording.length - 1)
    return real


def recorded_rows(recording: Recording, one: Touch) -> Float[Tensor, "batch k width"]:
    """The recorded rows that an edit reads. What stands for padding cut away is not used."""
    if one.inside:
        held, kept = recording.rows[one.place]
        lookup = torch.zeros(recording.length, dtype=torch.long)
        lookup[torch.tensor(kept)] = torch.arange(len(kept))
        where = lookup[one.where.clamp(min=0)]
    else:
        held = recording.residual(one.layer)
        where = one.where - (recording.length - held.shape[1])
    index = where.clamp(min=0).to(held.device)
    batch = torch.arange(len(held), device=held.device)[:, None]
    return held[batch, index][..., one.columns]


# --------------------------------------------------------------------------------------------------
# Pairs of cell and prompt gathered into rectangles that run as one batch.
#
# Pairs that leave the trunk at the same position run together, prompts by cells, each cell from its
# own block on.


Starts = Int[np.ndarray, "cell batch"]

Within = Bool[np.ndarray, "cell batch"]


@dataclass(frozen=True, eq=False)
class Rectangle:
    """Prompts by cells (in order of the block they start at), all leaving the trunk at `first`."""

    first: int
    prompts: tuple[int, ...]
    cells: tuple[int, ...]
    starts: tuple[int, ...]
    used: Bool[np.ndarray, "prompt cell"]  # the other pairs are computed only to fill the rectangle

    def part(self, prompts: slice, cells: slice) -> Rectangle:
        return Rectangle(
            self.first,
            self.prompts[prompts],
            self.cells[cells],
            self.starts[cells],
            self.used[prompts, cells],
        )

    def pieces(self, tokens: int, length: int) -> Iterator[Rectangle]:
        """Parts of at most `tokens` tokens, or of one branch where that is already more."""
        each = length - self.first
        rows = max(1, min(len(self.prompts), tokens // each))
        wide = max(1, tokens // (each * rows))
        for i in range(0, len(self.prompts), rows):
            for j in range(0, len(self.cells), wide):
                yield self.part(slice(i, i + rows), slice(j, j + wide))

    def halves(self) -> tuple[Rectangle, Rectangle]:
        """The same work in two parts, by cells while there are several, then by prompts."""
        everything = slice(None)
        if len(self.cells) > 1:
            middle = len(self.cells) // 2
            low, high = slice(0, middle), slice(middle, None)
            return self.part(everything, low), self.part(everything, high)
        middle = len(self.prompts) // 2
        return (
            self.part(slice(0, middle), everything),
            self.part(slice(middle, None), everything),
        )


def rectangles(
    start: Starts, first: Starts, n_layers: int, length: int, spare: float
) -> Iterator[Rectangle]:
    """All pairs that change something, each in one rectangle.

    A pair may run from an earlier position than its own, and a rectangle may hold unused pairs,
    where that costs at most `spare` tokens' way through the model, about what starting another
    rectangle costs.
    """
    for p, within in _classes(start, first, spare):
        for group in _groups(start, within, n_layers, spare / (length - p)):
            used = within[:, group]
            begin = _begin(start, within, group, n_layers)
            cells = np.flatnonzero(used.any(1))
            cells = cells[np.argsort(begin[cells], kind="stable")]
            yield Rectangle(
                p, tuple(group), tuple(cells.tolist()), tuple(begin[cells].tolist()), used[cells].T
            )


def _classes(start: Starts, first: Starts, spare: float) -> Iterator[tuple[int, Within]]:
    """Pairs by first position, neighbours together where the earlier start costs little."""
    changed = start != NOTHING
    found, counts = np.unique(first[changed], return_counts=True)
    low, members = 0, list[int]()
    for p, count in zip(found.tolist(), counts.tolist(), strict=True):
        if members and count * (p - low) > spare:
            yield low, changed & np.isin(first, members)
            members = []
        low = low if members else p
        members.append(p)
    if members:
        yield low, changed & np.isin(first, members)


def _groups(start: Starts, within: Within, n_layers: int, spare: float) -> list[list[int]]:
    """Prompts with the same cells, and others with them where the gaps to fill cost little."""
    patterns: dict[bytes, list[int]] = {}
    for b in np.flatnonzero(within.any(0)).tolist():
        pattern = np.where(within[:, b], start[:, b], NOTHING)
        patterns.setdefault(pattern.tobytes(), []).append(b)
    groups: list[list[int]] = []
    for mine in sorted(patterns.values(), key=len, reverse=True):
        cost = _cost(start, within, mine, n_layers)
        for group in groups:
            apart = cost + _cost(start, within, group, n_layers)
            if _cost(start, within, group + mine, n_layers) - apart <= spare * n_layers:
                group.extend(mine)
                break
        else:
            groups.append(mine)
    return [sorted(group) for group in groups]


def _begin(
    start: Starts, within: Within, group: list[int], n_layers: int
) -> Int[np.ndarray, " cell"]:
    """The block at which each cell starts, to serve every prompt of the group."""
    return np.asarray(np.where(within[:, group], start[:, group], n_layers).min(1))


def _cost(start: Starts, within: Within, group: list[int], n_layers: int) -> int:
    return int((n_layers - _begin(start, within, group, n_layers)).sum()) * len(group)
