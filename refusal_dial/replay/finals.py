"""What is left of every cell when its stream has run: a residual at the last position of each
prompt, and from it the logits that a scorer is given.

Knows which rows a cell changed, and unembeds those alone. It does not know how they were computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal_dial.replay.bare import is_out_of_memory
from refusal_dial.replay.rectangles import Rectangle


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
