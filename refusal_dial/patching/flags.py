"""The flags of the patching experiments, with their defaults and their help.

This module reads text into values. It does not know what they do, and imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass

from refusal_dial.cli import flag
from refusal_dial.flags import StudyFlags
from refusal_dial.readers import at_least, choice, layers_of
from refusal_dial.values import number, whole

WAYS: dict[str, tuple[str, ...]] = {
    "denoise": ("denoise",),
    "noise": ("noise",),
    "both": ("denoise", "noise"),
}


@dataclass(frozen=True)
class PatchingFlags(StudyFlags):
    """Which layers and pairs to patch, and which way round."""

    layer: tuple[int, ...] = flag((), "a layer, a list such as 20,21,23, or all", layers_of)
    way: str = flag(
        "denoise",
        "denoise (clean into corrupted), noise (corrupted into clean), or both",
        choice(tuple(WAYS), "way"),
    )
    gap: float = flag(
        1.0, "leave out pairs whose scores differ by less than this", at_least(0, number)
    )
    n_pairs: int | None = flag(
        None, "matched pairs to use, drawn by seed; default all", at_least(1, whole)
    )

    @property
    def ways(self) -> tuple[str, ...]:
        return WAYS[self.way]
