"""How much memory a grid may use, and how much its parts need.

The estimates are rough and on the generous side; where they fail, the engine halves its batch. This
module knows sizes. It does not run anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.types import DialError

GIGABYTE = 2**30
UNTOLD = 4 * GIGABYTE
"""The budget where the machine does not say what is free, and the most taken unasked on a CPU."""
CACHED = 96 * 2**20
"""On a CPU a stream's activations in one block stay within this many bytes: more is no faster."""
ROWS = 128
"""So many rows of logits at once are worth reading the unembedding for."""
START = {"cpu": 4e7, "cuda": 4e10, "mps": 4e9}
"""Floating-point operations a device would do in the time that starting one block takes."""


def budget(device: torch.device, memory_gb: float | None) -> int:
    """Bytes a grid may use besides the model: what is asked for, or half of what is free.

    Raises `DialError` for a budget that is not a positive number.
    """
    if memory_gb is not None:
        if not memory_gb > 0:
            raise DialError(f"memory must be a positive number of gigabytes, not {memory_gb}")
        return max(1, int(memory_gb * GIGABYTE))
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return min(UNTOLD, _free() // 2) if device.type == "cpu" else UNTOLD


def _free() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 2 * UNTOLD
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    return kilobytes[0] * 1024 if kilobytes else 2 * UNTOLD


@dataclass(frozen=True)
class Sizes:
    """What a model's parts take, in bytes and operations."""

    item: int
    n_layers: int
    widths: int  # numbers that one token makes in one block
    d_model: int
    d_kept: int  # numbers that one token leaves in one layer's keys and values
    n_heads: int
    d_vocab: int
    flops: float  # of one token in one block
    device: torch.device

    @classmethod
    def of(cls, model: TransformerBridge) -> Sizes:
        cfg, some = model.cfg, next(model.original_model.parameters())
        weights = [p.shape for p in model.blocks[0].parameters() if p.ndim == 2]
        heads = int(cfg.n_heads)
        kv = int(getattr(cfg, "n_key_value_heads", None) or heads)
        return cls(
            item=some.element_size(),
            n_layers=len(model.blocks),
            widths=sum(max(shape) for shape in weights) + 6 * int(cfg.d_model),
            d_model=int(cfg.d_model),
            d_kept=2 * kv * int(cfg.d_head),
            n_heads=heads,
            d_vocab=int(cfg.d_vocab),
            flops=2.0 * sum(shape.numel() for shape in weights),
            device=some.device,
        )

    def trunk(self, length: int, kept: int) -> int:
        """Bytes that recording one prompt leaves behind, with `kept` positions of residuals."""
        each = length * self.d_kept + kept * self.d_model
        return self.item * (self.n_layers * each + length * self.widths)

    def token(self, length: int) -> int:
        """Bytes that one token of a stream takes in a block, its attention included."""
        return 2 * self.item * self.widths + 12 * self.n_heads * length

    def row(self) -> int:
        """Bytes of one row of logits on their way to a score in float64."""
        return self.d_vocab * (self.item + 24)

    def plain(self, length: int) -> int:
        """Bytes that one prompt takes in a plain forward pass."""
        return length * self.token(length) + self.row()

    def tokens(self, room: int, length: int) -> int:
        """The most tokens a stream should hold."""
        if self.device.type == "cpu":
            room = min(room, max(CACHED, 1024 * self.token(length)))
        return max(1, room // self.token(length))

    def rows(self, room: int) -> int:
        """The most rows of logits to make at once."""
        if self.device.type == "cpu":
            room = min(room, max(CACHED, ROWS * self.row()))
        return max(1, room // self.row())

    def spare(self) -> float:
        """Tokens that cost as much as starting a block."""
        return START.get(self.device.type, START["cpu"]) / max(1.0, self.flops)
