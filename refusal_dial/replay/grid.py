"""A whole grid by replay: prompts in recordings, cells in streams, scores in order.

Prompts are recorded in groups of alike length, as many at a time as memory allows. Every cell's
final residuals are collected for the whole batch, then unembedded and scored cell by cell, so that
a scorer always sees the batch it would see in a plain pass. This module knows the order of the work
and halves it on running out of memory. It does not know which cells can be replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.hooks import Edit
from refusal_dial.replay.bare import Bare, is_out_of_memory
from refusal_dial.replay.memory import Sizes
from refusal_dial.replay.plan import NOTHING, Touch, changes, places, touches
from refusal_dial.replay.recording import record
from refusal_dial.replay.rectangles import Rectangle, rectangles
from refusal_dial.replay.stream import Stream
from refusal_dial.tokens import Tokens


class Replay:
    """One grid on one batch of prompts. Its cells are edits with operations that `bulk` knows."""

    def __init__(
        self,
        model: TransformerBridge,
        tokens: Tokens,
        cells: Sequence[Sequence[Edit]],
        room: int,
    ) -> None:
        """`room` is the memory to use, in bytes."""
        batch, length = tokens.ids.shape
        self.model, self.tokens, self.room = model, tokens, room
        self.cells = [touches(cell, batch, length, int(model.cfg.d_head)) for cell in cells]
        self.sizes = Sizes.of(model)
        self.bare = Bare(model, places(self.cells))
        self.pads = tokens.mask.long().argmax(-1).cpu()
        everywhere = (int(one.where.min()) for cell in self.cells for one in cell)
        self.first = min(everywhere, default=length - 1)
        self.stream_tokens = self.sizes.tokens(room // 2, length)
        self.rows = self.sizes.rows(room // 4)

    @torch.no_grad()
    def scores(
        self, scorer: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[int, Float[Tensor, " batch"]]]:
        """(cell, its scores), for every cell, in order."""
        unsteered: Tensor | None = None
        each = len(self.tokens) * self.sizes.d_model * self.sizes.item
        size = max(1, self.room // 4 // each)
        for start in range(0, len(self.cells), size):
            found = _Finals(self, self.cells[start : start + size])
            for prompts in self._groups():
                self._record(prompts, found)
            for cell, logits in enumerate(found.logits()):
                if logits is not None:
                    score = scorer(logits).cpu()
                elif unsteered is None:
                    score = unsteered = scorer(found.recorded).cpu()
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

    def _record(self, prompts: Int[Tensor, " some"], found: _Finals) -> None:
        """A group of prompts, in halves where memory does not hold it."""
        try:
            self._run(prompts, found)
            return
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(prompts) == 1:
                raise
        middle = len(prompts) // 2
        self._record(prompts[:middle], found)
        self._record(prompts[middle:], found)

    def _run(self, prompts: Int[Tensor, " some"], found: _Finals) -> None:
        index = prompts.to(self.tokens.ids.device)
        cut = int(self.pads[prompts].min())
        tokens = Tokens(self.tokens.ids[index, cut:], self.tokens.mask[index, cut:])
        cells = [[one.of(prompts, cut) for one in cell] for cell in found.cells]
        first = max(0, self.first - cut)
        recording = record(self.model, tokens, first, places(cells))
        found.keep_recorded(prompts, recording.logits)
        length, n_layers = recording.length, self.sizes.n_layers
        start, leave = changes(recording, cells, prompts, self.pads[prompts] - cut)
        found.changed[:, prompts.numpy()] = start != NOTHING

        def run(area: Rectangle) -> Tensor:
            return Stream(self.bare, recording, area, cells, prompts).run()

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


class _Finals:
    """Final residuals at the last position of some cells, for the whole batch."""

    def __init__(self, replay: Replay, cells: Sequence[Sequence[Touch]]) -> None:
        weight = next(replay.model.original_model.parameters())
        shape = len(cells), len(replay.tokens)
        self.replay, self.cells = replay, cells
        self.residual = weight.new_empty(*shape, replay.sizes.d_model)
        self.changed = np.zeros(shape, dtype=bool)
        self.recorded = weight.new_empty(0)

    def keep_recorded(
        self, prompts: Int[Tensor, " some"], logits: Float[Tensor, "some d_vocab"]
    ) -> None:
        if not len(self.recorded):
            self.recorded = logits.new_empty(len(self.replay.tokens), logits.shape[-1])
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

    def logits(self) -> Iterator[Float[Tensor, "batch d_vocab"] | None]:
        """Each cell's logits, the recorded ones in the rows it does not change; None for a cell
        that changes none. Several cells are unembedded at once."""
        counts, cell = self.changed.sum(1), 0
        while cell < len(counts):
            stop = cell + 1
            while stop < len(counts) and counts[cell : stop + 1].sum() <= self.replay.rows:
                stop += 1
            changed = torch.from_numpy(self.changed[cell:stop]).to(self.residual.device)
            try:
                rows = self._unembedded(self.residual[cell:stop][changed])
            except RuntimeError as error:
                if not is_out_of_memory(error) or stop == cell + 1:
                    raise
                self.replay.rows = max(1, self.replay.rows // 2)
                continue
            begin = 0
            for mine, count in zip(changed, counts[cell:stop].tolist(), strict=True):
                own = rows[begin : begin + count]
                begin += count
                if 0 < count < len(mine):
                    full = self.recorded.clone()
                    full[mine] = own
                    own = full
                yield own if count else None
            cell = stop

    def _unembedded(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        if not len(rows):
            return rows[:, :0]
        size = self.replay.rows
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        return torch.cat([self.replay.bare.logits(part) for part in parts])
