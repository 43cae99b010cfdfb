"""A whole grid by replay: prompts in recordings, cells in streams, scores in order.

Prompts are recorded in groups of alike length, as many at a time as memory allows. Every cell's
final residuals are collected for the whole batch, then unembedded and scored cell by cell, so that
a scorer always sees the batch it would see in a plain pass. This module knows the order of the work
and halves it on running out of memory. It does not know which cells can be replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.hooks import Edit
from refusal_dial.replay.bare import Bare, is_out_of_memory
from refusal_dial.replay.finals import Finals
from refusal_dial.replay.memory import Sizes
from refusal_dial.replay.plan import NOTHING, Touch, changes, places, touches
from refusal_dial.replay.recording import record
from refusal_dial.replay.rectangles import Rectangle, rectangles
from refusal_dial.replay.stream import Stream
from refusal_dial.tokens import Tokens


@runtime_checkable
class Reader(Protocol):
    """A scorer that says which tokens it reads:
    `scorer(logits) == scorer.read(logits[:, scorer.reads])`."""

    @property
    def reads(self) -> Sequence[int]: ...

    def read(self, columns: Float[Tensor, "batch read"]) -> Tensor: ...


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
        self.reads: list[int] | None = None

    @torch.no_grad()
    def scores(
        self, scorer: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[int, Float[Tensor, " batch"]]]:
        """(cell, its scores), for every cell, in order. Of a scorer that says what it reads, no
        other token is unembedded."""
        read = scorer
        if isinstance(scorer, Reader) and self.bare.narrow(scorer.reads):
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
            for cell, logits in enumerate(found.logits(self.bare.logits, self.rows)):
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
        recording = record(self.model, tokens, first, places(cells))
        logits = recording.logits
        found.keep_recorded(prompts, logits if self.reads is None else logits[:, self.reads])
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
