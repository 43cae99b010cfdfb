"""A whole grid by replay: runs what an intervention can change, and nothing else.

A rectangle of prompts and cells starts as recorded residuals and goes through the blocks as one
batch (`Stream`). What is left is a residual at the last position of each prompt (`Finals`), which
is unembedded and scored cell by cell (`Replay`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.engine.branches import Branches, KeysOnly, KeysTakenError, KeyValue
from refusal_dial.engine.changes import (
    NOTHING,
    RESIDUAL,
    Rectangle,
    Touch,
    changes,
    edited,
    operands,
    places_of,
    rectangles,
    restricted,
    touches,
)
from refusal_dial.engine.recording import Recording, Sizes, record_run, stream_of
from refusal_dial.hooks import Edit, Set
from refusal_dial.model.tokens import Tokens
from refusal_dial.model.unhooked import UnfitError, Unhooked, is_out_of_memory

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
