"""Runs what an intervention can change, and nothing else.

A rectangle of prompts and cells starts as recorded residuals and goes through the blocks as one
batch: prompts along the batch axis, and along the positions axis one branch a cell, each the
positions p..T-1. Cells join the stream at the block they first touch. Edits are applied where
TransformerLens would have fired the hook: between blocks on the residual stream itself, inside a
block at its taps. The last block runs for the last position alone.

This module knows how to run a rectangle. It does not know how one is chosen, or what is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from refusal_dial.replay.bare import Bare, UnfitError
from refusal_dial.replay.branches import Branches, KeysOnly, KeysTakenError, Pair
from refusal_dial.replay.bulk import edited, operands, restricted
from refusal_dial.replay.plan import RESIDUAL, Touch
from refusal_dial.replay.recording import Recording, stream_of
from refusal_dial.replay.rectangles import Rectangle

Entry = tuple[int, Touch]
"""A branch's number in its rectangle, and one edit of its cell."""

Hidden = Float[Tensor, "prompt branch pos width"]


class Stream:
    """One rectangle on its way through the blocks."""

    def __init__(
        self,
        bare: Bare,
        recording: Recording,
        rectangle: Rectangle,
        cells: Sequence[Sequence[Touch]],
        rows: Int[Tensor, " batch"],
    ) -> None:
        """`cells` are all cells of the grid, resolved on the recording's prompts. `rows` says which
        rows of the whole batch those prompts are, for operands that differ from row to row."""
        self.bare, self.recording, self.rectangle = bare, recording, rectangle
        self.n_layers, self.end = len(bare.blocks), recording.length
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
        block, n, before = self.bare.blocks[layer], hidden.shape[1], None
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
                tap = self.bare.taps[rounds[0][0][1].place]
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


def _keys_of(block: nn.Module, hidden: Tensor, keywords: dict[str, Any]) -> Pair:
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
