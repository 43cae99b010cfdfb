"""Which part of the forward pass each cell of a grid changes, prompt by prompt.

An edit at block l whose first changed position is p changes nothing below l and nothing before p.
So cell c leaves the trunk of prompt b at (start[c, b], first[c, b]), or not at all where every
edited row comes out equal, bit for bit, to the recorded one. Edits of padding, and edits of the
last block that attention never carries to the last position, change nothing either.

This module knows edits and positions. It runs no block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal_dial.hooks import Edit
from refusal_dial.replay.bulk import alike, edited
from refusal_dial.replay.recording import Place, Recording
from refusal_dial.types import positions

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
    def place(self) -> Place:
        return self.edit.site, self.layer

    def alike(self) -> tuple[Any, ...]:
        """A key: touches with the same key edit the same rows by operations that stack."""
        where = id(self.where) if self.run is None else self.run
        columns = (self.columns.start, self.columns.stop)
        return self.layer, self.stage, where, columns, alike(self.edit.operation)

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


def places(cells: Sequence[Sequence[Touch]]) -> dict[Place, list[int]]:
    """The positions that the cells edit at each place inside a block."""
    found: dict[Place, set[int]] = {}
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
