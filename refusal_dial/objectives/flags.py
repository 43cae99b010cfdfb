"""The flags of the experiment on two objectives, with their defaults and their help.

This module reads text into values. It does not know what they do, and imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass

from refusal_dial.cli import flag
from refusal_dial.continuation.flags import ContinuationFlags
from refusal_dial.readers import alphas_of, at_least, joined, layers_of
from refusal_dial.values import number, whole


@dataclass(frozen=True)
class ObjectiveFlags(ContinuationFlags):
    """A direction away from toxicity and one of refusal, each with its own dial."""

    layer: tuple[int, ...] = flag((16,), "the layer of the toxicity direction", layers_of)
    alphas: tuple[float, ...] = flag(
        (0.0, 0.5, 1.0),
        "steps of the toxicity dial: a list such as 0,0.5,1, or START:STOP:COUNT",
        alphas_of,
    )
    prompts: str = flag("embedded", "'embedded', a .jsonl or .csv, a folder, xstest, or owner/name")
    refusal_tokens: str = flag(
        "auto", "auto, family, calibrated, or a list of ids or words such as I,Sorry", joined
    )
    threshold: float = flag(0.0, "a refusal score over this counts as a refusal", number)
    refusal_layer: int = flag(20, "the layer of the refusal direction", at_least(0, whole))
    refusal_alphas: tuple[float, ...] = flag(
        (-0.3, 0.0, 0.3),
        "steps of the refusal dial, multiples of the mean residual norm",
        alphas_of,
    )
    n_prompts: int = flag(40, "prompts of each subset to measure on, at most", at_least(2, whole))
    samples: int = flag(2, "completions of each opening", at_least(1, whole))
    n_random: int = flag(3, "random directions in place of toxicity's", at_least(0, whole))
