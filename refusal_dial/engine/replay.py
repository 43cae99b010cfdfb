"""A whole grid by replay: runs what an intervention can change, and nothing else.

An edit at block l whose first changed position is p changes nothing below l and nothing before p.
So cell c leaves the trunk of prompt b at (start[c, b], first[c, b]), or not at all where every
edited row equals the recorded one, bit for bit. Pairs of cell and prompt that leave at the same
position are gathered into rectangles. A rectangle starts as recorded residuals and goes through the
blocks as one batch (`Stream`), with attention over the trunk's keys and its own (`Branches`). What
is left is a residual at the last position of each prompt (`Finals`), which is unembedded and scored
cell by cell (`Replay`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import positions
from refusal_dial.engine.recording import (
    KeyValue,
    Recording,
    SitePlace,
    Sizes,
    record_run,
    stream_of,
)
from refusal_dial.hooks import Add, AddIf, Clamp, Edit, Operation, Project, Rotate, Set
from refusal_dial.model.tokens import Tokens
from refusal_dial.model.unhooked import UnfitError, Unhooked, is_out_of_memory

# --------------------------------------------------------------------------------------------------
# Many edits at once: the same operation on many cells, or on some of a batch's rows.
#
#     edited[c, b] = operation_c(rows[c, b])
#
# Alike operations are stacked into one with an operand a row, so the formula stays the one in
# `hooks`.


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


# --------------------------------------------------------------------------------------------------
# Attention of many branches on one trunk: exact, without copies of the trunk's keys and values.
#
# Each prompt is a trunk, run once. A branch is what one intervention makes of the prompt's
# positions p..T-1. Its queries see the trunk's keys before p and the branch's own keys from p on.
# Over each of the two attention is worked out by itself, with the logarithm of its denominator:
#
#     out(K, V) = softmax(q·K * scaling + mask) V         total(K) = logsumexp(q·K * scaling + mask)
#
# and over both it is `(1 - s) out(trunk) + s out(own)`, s = sigmoid(total(own) - total(trunk)).
#
# Branches of the same prompt do not see each other. With p = T-1 a branch is one extra token that
# sees the trunk and itself. Each class here stands in the place of an attention mask (`Mask`).


Queries = Float[Tensor, "batch head pos d_head"]

Keys = Float[Tensor, "batch kv_head pos d_head"]

BranchValues = Float[Tensor, "batch kv_head pos d_value"]


def masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores under an additive or boolean (true = seen) mask."""
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


class KeysTakenError(Exception):
    """Ends a block once its keys and values are known: nothing after them is wanted."""

    def __init__(self, kept: KeyValue) -> None:
        self.kept = kept


class KeysOnly:
    """Attention that never happens: the block is run for its keys and values."""

    def attend(
        self, query: Queries, key: Keys, value: BranchValues, scaling: float, softcap: float | None
    ) -> Tensor:
        raise KeysTakenError((key, value))


@dataclass(frozen=True)
class Branches:
    """Attention of `n` branches a prompt, laid out one after another along the positions.

    `past` is the trunk's keys and values before the branches leave it. `before` holds keys and
    values of a branch's earlier positions where the block runs on its last position alone.
    """

    n: int
    past: KeyValue
    mask: Tensor | None  # "batch 1 query trunk+branch", additive or boolean
    before: KeyValue | None = None

    def attend(
        self, query: Queries, key: Keys, value: BranchValues, scaling: float, softcap: float | None
    ) -> Float[Tensor, "batch pos head d_value"]:
        batch, n, groups = len(query), self.n, query.shape[1] // key.shape[1]
        mask = None if self.mask is None else self.mask.expand(batch, n, -1, -1)
        # 1. every branch by itself: its own keys, those of its earlier positions before them
        k, v = (apart(x, n, groups) for x in (key, value))
        if self.before is not None:
            before = (apart(x, n, groups) for x in self.before)
            k, v = (torch.cat(pair, 2) for pair in zip(before, (k, v), strict=True))
        p = self.past[0].shape[2]
        seen = None if mask is None else mask[..., p:].flatten(0, 1)[:, None]
        own = attended(apart(query, n), k, v, seen, scaling, softcap)
        parts = (x.view(batch, n, *x.shape[1:]) for x in own)
        out, own_total = (x.transpose(1, 2).flatten(2, 3) for x in parts)
        # 2. all branches at once: the trunk's keys, which are there once a prompt
        if p:
            past_k, past_v = (x.repeat_interleave(groups, 1) for x in self.past)
            seen = None if mask is None else mask[..., :p].flatten(1, 2)[:, None]
            trunk, total = attended(query, past_k, past_v, seen, scaling, softcap)
            # 3. a softmax over both is their average by the share of each
            share = (own_total - total).sigmoid()[..., None]
            out = torch.lerp(trunk, out, share.to(out.dtype))
        return out.transpose(1, 2)


def apart(
    value: Float[Tensor, "batch head branch_pos width"], n: int, times: int = 1
) -> Float[Tensor, "batch_branch head_times pos width"]:
    """Each of the `n` branches as a batch row of its own, every head so many times."""
    batch, heads, tokens, width = value.shape
    rows = value.view(batch, heads, n, tokens // n, width).transpose(1, 2).flatten(0, 1)
    return rows if times == 1 else rows.repeat_interleave(times, 1)


def attended(
    query: Float[Tensor, "batch head pos d_head"],
    key: Float[Tensor, "batch head seen d_head"],
    value: Float[Tensor, "batch head seen d_value"],
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
) -> tuple[Float[Tensor, "batch head pos d_value"], Float[Tensor, "batch head pos"]]:
    """(attention, log of the softmax's denominator) over these keys, as many heads as queries.

    On a CPU by the kernel behind `scaled_dot_product_attention`, which keeps no matrix of scores;
    elsewhere, or under a soft cap, by two products.
    """
    if key.shape[2] == 1:  # the softmax of one number is 1
        scores = capped((query * key).sum(-1, keepdim=True) * scaling, softcap)
        return value.expand(*query.shape[:3], -1), masked(scores, mask)[..., 0].float()
    if query.is_cpu and softcap is None and query.shape[-1] == value.shape[-1]:
        if mask is not None and mask.dtype == torch.bool:
            hidden = torch.finfo(query.dtype).min
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, hidden)
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=mask, scale=scaling
        )
        return out, total
    scores = masked(capped(query @ key.mT * scaling, softcap), mask).float()
    total = scores.logsumexp(-1)
    return (scores - total[..., None]).exp().to(value.dtype) @ value, total


# --------------------------------------------------------------------------------------------------
# Runs what an intervention can change, and nothing else.
#
# A rectangle of prompts and cells starts as recorded residuals and goes through the blocks as one
# batch: prompts along the batch axis, and along the positions axis one branch a cell, each the
# positions p..T-1. Cells join the stream at the block they first touch. Edits are applied where
# TransformerLens would have fired the hook: between blocks on the residual stream itself, inside a
# block at its taps. The last block runs for the last position alone.


Entry = tuple[int, Touch]
"""A branch's number in its rectangle, and one edit of its cell."""

Hidden = Float[Tensor, "prompt branch pos width"]


class Stream:
    """One rectangle on its way through the blocks."""

    def __init__(
        self,
        unhooked: Unhooked,
        recording: Recording,
        rectangle: Rectangle,
        cells: Sequence[Sequence[Touch]],
        rows: Int[Tensor, " batch"],
        n_layers: int,
    ) -> None:
        """`cells` are all cells of the grid, resolved on the recording's prompts. `rows` says which
        rows of the whole batch those prompts are, for operands that differ from row to row. It ends
        after `n_layers` blocks."""
        self.unhooked, self.recording, self.rectangle = unhooked, recording, rectangle
        self.n_layers, self.end = n_layers, recording.length
        self.rows = rows[list(rectangle.prompts)]
        self.local = torch.tensor(rectangle.prompts)
        self.prompts = self.local.to(recording.logits.device)
        self.edits = _rounds(rectangle, cells)

    @torch.no_grad()
    def run(self) -> Float[Tensor, "prompt branch d_model"]:
        """The final residual at the last position of every branch."""
        starts, first = self.rectangle.starts, self.rectangle.first
        hidden = self.recording.start(starts[0], self.prompts, first)[:, None][:, :0]
        for layer in range(starts[0], self.n_layers + 1):
            if joining := starts.count(layer):
                trunk = self.recording.start(layer, self.prompts, first)[:, None]
                trunk = trunk[:, :, -hidden.shape[2] :]  # one position, beyond the last block
                hidden = torch.cat([hidden, trunk.expand(-1, joining, -1, -1)], dim=1)
            for stage in range(RESIDUAL + 1):
                self._edit(hidden, self.edits.get((layer, stage), []))
            if layer < self.n_layers:
                hidden = self._block(hidden, layer)
        return hidden[:, :, -1]

    def _block(self, hidden: Hidden, layer: int) -> Float[Tensor, "prompt branch left width"]:
        recording, first, end = self.recording, self.rectangle.first, self.end
        block, n, before = self.unhooked.blocks[layer], hidden.shape[1], None
        if layer == self.n_layers - 1 and hidden.shape[2] > 1:
            words = recording.keywords(layer, self.prompts, first, end - 1, n)
            before = _keys_of(block, hidden[:, :, :-1].flatten(1, 2), words)
            hidden = hidden[:, :, -1:]
        begin = end - hidden.shape[2]
        words = recording.keywords(layer, self.prompts, begin, end, n)
        past = recording.past(layer, self.prompts, first)
        branches = Branches(n, past, recording.mask(layer, self.prompts, begin), before)
        with self._tapped(layer, n):
            out = block(hidden.flatten(1, 2), attention_mask=branches, **words)
        return stream_of(out).view(hidden.shape)

    @contextmanager
    def _tapped(self, layer: int, n: int) -> Iterator[None]:
        """Edits inside a block, at its taps."""

        def see(rounds: list[list[Entry]]) -> Callable[[Tensor], Tensor]:
            def edit(value: Tensor) -> Tensor:
                value = value.clone(memory_format=torch.contiguous_format)
                self._edit(value.view(len(value), n, -1, value.shape[-1]), rounds)
                return value

            return edit

        taps = []
        for (at, stage), rounds in self.edits.items():
            if at == layer and stage > RESIDUAL:
                tap = self.unhooked.taps[rounds[0][0][1].place]
                tap.see = see(rounds)
                taps.append(tap)
        try:
            yield
        finally:
            for tap in taps:
                tap.see = None

    def _edit(self, value: Hidden, rounds: list[list[Entry]]) -> None:
        """Applies edits in place."""
        begin = self.end - value.shape[2]
        for entries in rounds:
            together: dict[object, list[Entry]] = {}
            for branch, one in entries:
                if one.run is not None and (one.run[0] >= begin or self._clips(one, begin)):
                    together.setdefault(one.alike(), []).append((branch, one))
                else:
                    self._edit_scattered(value[:, branch, :, one.columns], one, begin)
            for group in together.values():
                self._edit_run(value, group, begin)

    @staticmethod
    def _clips(one: Touch, begin: int) -> bool:
        """Whether a run that begins before the stream may be edited from the stream's start on: it
        may where the operation has no operand of its own for each position."""
        return int(one.where[0, -1]) >= begin and not operands(one.edit.operation, 3)

    def _edit_run(self, value: Hidden, group: list[Entry], begin: int) -> None:
        """The same run of positions of every prompt, in several branches at once."""
        branches, one = [branch for branch, _ in group], group[0][1]
        run = slice(max(0, int(one.where[0, 0]) - begin), int(one.where[0, -1]) + 1 - begin)
        area = value[:, :, run, one.columns]
        low, high = branches[0], branches[-1] + 1
        which: slice | list[int] = slice(low, high) if high - low == len(branches) else branches
        operations = [touch.edit.operation for _, touch in group]
        new = edited(operations, area[:, which].transpose(0, 1), self.rows)
        area[:, which] = new.transpose(0, 1)

    def _edit_scattered(
        self, area: Float[Tensor, "prompt pos width"], one: Touch, begin: int
    ) -> None:
        """Positions that differ from prompt to prompt, or of which some are not in the stream."""
        where = one.where[self.local] - begin
        prompt, k = (where >= 0).nonzero(as_tuple=True)
        index = where.clamp(min=0).to(area.device)
        everyone = torch.arange(len(area), device=area.device)[:, None]
        new = restricted(one.edit.operation, self.rows)(area[everyone, index]).to(area.dtype)
        prompt, k = prompt.to(area.device), k.to(area.device)
        area[prompt, index[prompt, k]] = new[prompt, k]


def _keys_of(block: nn.Module, hidden: Tensor, keywords: dict[str, Any]) -> KeyValue:
    """A block's keys and values, without the rest of the block."""
    try:
        block(hidden, attention_mask=KeysOnly(), **keywords)
    except KeysTakenError as taken:
        return taken.kept
    raise UnfitError("its blocks do not use Hugging Face's attention interface")


def _rounds(
    rectangle: Rectangle, cells: Sequence[Sequence[Touch]]
) -> dict[tuple[int, int], list[list[Entry]]]:
    """By (layer, stage): every branch's first edit there, then every branch's second, and so on."""
    out: dict[tuple[int, int], list[list[Entry]]] = {}
    for branch, (cell, start) in enumerate(zip(rectangle.cells, rectangle.starts, strict=True)):
        turns: dict[tuple[int, int], int] = {}
        for one in cells[cell]:
            if one.layer >= start:
                at = (one.layer, one.stage)
                rounds, turn = out.setdefault(at, []), turns.get(at, 0)
                if turn == len(rounds):
                    rounds.append([])
                rounds[turn].append((branch, one))
                turns[at] = turn + 1
    return out


# --------------------------------------------------------------------------------------------------
# What is left of every cell when its stream has run: a residual at the last position of each
# prompt, and from it the logits that a scorer is given.


class Finals:
    """Final residuals at the last position of some cells, for the whole batch."""

    def __init__(self, like: Tensor, cells: int, batch: int, d_model: int) -> None:
        self.residual = like.new_empty(cells, batch, d_model)
        self.changed = np.zeros((cells, batch), dtype=bool)
        self.recorded = like.new_empty(0)

    def keep_recorded(
        self, prompts: Int[Tensor, " some"], logits: Float[Tensor, "some read"]
    ) -> None:
        if not len(self.recorded):
            self.recorded = logits.new_empty(self.residual.shape[1], logits.shape[-1])
        self.recorded[prompts.to(logits.device)] = logits

    def keep(
        self,
        prompts: Int[Tensor, " some"],
        area: Rectangle,
        residual: Float[Tensor, "prompt cell d_model"],
    ) -> None:
        device = residual.device
        p, c = torch.from_numpy(area.used).to(device).nonzero(as_tuple=True)
        cells = torch.tensor(area.cells, device=device)[c]
        rows = prompts[list(area.prompts)].to(device)[p]
        self.residual[cells, rows] = residual[p, c]

    def logits(
        self, unembed: Callable[[Tensor], Tensor], rows: int
    ) -> Iterator[Float[Tensor, "batch read"] | None]:
        """Each cell's logits, the recorded ones in the rows it does not change; None for a cell
        that changes none. About `rows` rows are unembedded at once, fewer where they do not fit."""
        counts, cell = self.changed.sum(1), 0
        while cell < len(counts):
            stop = cell + 1
            while stop < len(counts) and counts[cell : stop + 1].sum() <= rows:
                stop += 1
            changed = torch.from_numpy(self.changed[cell:stop]).to(self.residual.device)
            try:
                found = _in_parts(unembed, self.residual[cell:stop][changed], rows)
            except RuntimeError as error:
                if not is_out_of_memory(error) or rows == 1:
                    raise
                rows = rows // 2
                continue
            begin = 0
            for mine, count in zip(changed, counts[cell:stop].tolist(), strict=True):
                own = found[begin : begin + count]
                begin += count
                if 0 < count < len(mine):
                    full = self.recorded.clone()
                    full[mine] = own
                    own = full
                yield own if count else None
            cell = stop


def _in_parts(
    unembed: Callable[[Tensor], Tensor], residual: Float[Tensor, "row d_model"], rows: int
) -> Float[Tensor, "row read"]:
    if not len(residual):
        return residual[:, :0]
    parts = [unembed(residual[i : i + rows]) for i in range(0, len(residual), rows)]
    return torch.cat(parts)


# --------------------------------------------------------------------------------------------------
# A whole grid by replay: prompts in recordings, cells in streams, scores in order.
#
# Prompts are recorded in groups of alike length, as many at a time as memory allows. Every cell's
# final residuals are collected for the whole batch, then unembedded and scored cell by cell, so
# that a scorer always sees the batch it would see in a plain pass.


@runtime_checkable
class Reader(Protocol):
    """A scorer that says which tokens it reads:
    `scorer(logits) == scorer.read(logits[:, scorer.reads])`."""

    @property
    def reads(self) -> Sequence[int]: ...

    def read(self, columns: Float[Tensor, "batch read"]) -> Tensor: ...


def recorder(unhooked: Unhooked, cells: Sequence[Sequence[Edit]]) -> Unhooked | None:
    """What records these cells' trunk: the model without its hook points where that is faster
    (half precision); None, the bridge itself, elsewhere.

    A patch writes what was seen in a bridge, and where it writes what stands there already nothing
    changes: so its trunk is the bridge's, bit for bit.
    """
    patches = any(isinstance(edit.operation, Set) for cell in cells for edit in cell)
    return unhooked if unhooked.fast and not patches else None


class Replay:
    """One grid on one batch of prompts. Its cells are edits with operations that `bulk` knows."""

    def __init__(
        self,
        model: TransformerBridge,
        tokens: Tokens,
        cells: Sequence[Sequence[Edit]],
        room: int,
        until: int | None = None,
    ) -> None:
        """`room` is the memory to use, in bytes. With `until` cells run up to this layer alone, no
        edit lies beyond it, and the residual stream that enters it takes the place of logits."""
        batch, length = tokens.ids.shape
        self.model, self.tokens, self.room, self.until = model, tokens, room, until
        self.cells = [touches(cell, batch, length, int(model.cfg.d_head)) for cell in cells]
        self.sizes = Sizes.of(model)
        self.unhooked = Unhooked(model, places_of(self.cells))
        self.alone = recorder(self.unhooked, cells)
        self.n_layers = len(self.unhooked.blocks) if until is None else until
        self.pads = tokens.mask.long().argmax(-1).cpu()
        everywhere = (int(one.where.min()) for cell in self.cells for one in cell)
        self.first = min(everywhere, default=length - 1)
        self.stream_tokens = self.sizes.tokens(room // 2, length)
        self.rows = self.sizes.rows(room // 4)
        self.reads: list[int] | None = None

    @torch.no_grad()
    def scores(
        self, scorer: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[int, Float[Tensor, " batch"]]]:
        """(cell, its scores), for every cell, in order. Of a scorer that says what it reads, no
        other token is unembedded."""
        read = scorer
        unembed = self.unhooked.logits if self.until is None else torch.clone
        if self.until is None and isinstance(scorer, Reader) and self.unhooked.narrow(scorer.reads):
            read, self.reads = scorer.read, list(scorer.reads)
        unsteered: Tensor | None = None
        batch, d_model = len(self.tokens), self.sizes.d_model
        size = max(1, self.room // 4 // (batch * d_model * self.sizes.item))
        weight = next(self.model.original_model.parameters())
        for start in range(0, len(self.cells), size):
            cells = self.cells[start : start + size]
            found = Finals(weight, len(cells), batch, d_model)
            for prompts in self._groups():
                self._record(prompts, cells, found)
            for cell, logits in enumerate(found.logits(unembed, self.rows)):
                if logits is not None:
                    score = read(logits).cpu()
                elif unsteered is None:
                    score = unsteered = read(found.recorded).cpu()
                else:
                    score = unsteered
                yield start + cell, score

    def _groups(self) -> Iterator[Int[Tensor, " some"]]:
        """Prompts of alike length, as many as may be recorded at once."""
        length = self.tokens.ids.shape[1]
        size = max(1, self.room // 2 // self.sizes.trunk(length, length - self.first))
        order = self.pads.argsort(stable=True)
        whole = torch.arange(len(order))
        for start in range(0, len(order), size):
            yield whole if size >= len(order) else order[start : start + size]

    def _record(
        self, prompts: Int[Tensor, " some"], cells: Sequence[Sequence[Touch]], found: Finals
    ) -> None:
        """A group of prompts, in halves where memory does not hold it."""
        try:
            self._run(prompts, cells, found)
            return
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(prompts) == 1:
                raise
        middle = len(prompts) // 2
        self._record(prompts[:middle], cells, found)
        self._record(prompts[middle:], cells, found)

    def _run(
        self, prompts: Int[Tensor, " some"], all_cells: Sequence[Sequence[Touch]], found: Finals
    ) -> None:
        index = prompts.to(self.tokens.ids.device)
        cut = int(self.pads[prompts].min())
        tokens = Tokens(self.tokens.ids[index, cut:], self.tokens.mask[index, cut:])
        cells = [[one.of(prompts, cut) for one in cell] for cell in all_cells]
        first = max(0, self.first - cut)
        recording = record_run(self.model, tokens, first, places_of(cells), self.alone)
        logits = recording.logits if self.until is None else recording.residual(self.until)[:, -1]
        found.keep_recorded(prompts, logits if self.reads is None else logits[:, self.reads])
        length, n_layers = recording.length, self.n_layers
        start, leave = changes(recording, cells, prompts, self.pads[prompts] - cut)
        found.changed[:, prompts.numpy()] = start != NOTHING

        def run(area: Rectangle) -> Tensor:
            return Stream(self.unhooked, recording, area, cells, prompts, n_layers).run()

        for area in rectangles(start, leave, n_layers, length, self.sizes.spare()):
            for piece in area.pieces(self.stream_tokens, length):
                for done, residual in self._streamed(piece, run):
                    found.keep(prompts, done, residual)

    def _streamed(
        self, area: Rectangle, run: Callable[[Rectangle], Tensor]
    ) -> Iterator[tuple[Rectangle, Tensor]]:
        """A rectangle, in halves where memory does not hold it."""
        try:
            done = run(area)
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(area.cells) * len(area.prompts) == 1:
                raise
            self.stream_tokens = max(1, self.stream_tokens // 2)
        else:
            yield area, done
            return
        for half in area.halves():
            yield from self._streamed(half, run)
