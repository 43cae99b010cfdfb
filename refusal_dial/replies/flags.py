"""The flags of the experiments on replies, with their defaults and their help.

This module reads text into values. It does not know what they do, and imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass

from refusal_dial.cli import flag
from refusal_dial.flags import SteeringFlags
from refusal_dial.readers import alphas_of, at_least, choice, layers_of, turning_of
from refusal_dial.values import number, whole

STRENGTHS = "strengths, in --alpha-unit: a list such as 0.2,0.4, or START:STOP:COUNT"
UNITS = ("residual", "norm", "absolute")
UNIT_HELP = (
    "what alpha 1 is as long as: residual (the mean norm there), norm (of the direction before it "
    "was normalised, as CAA has it), or absolute"
)


@dataclass(frozen=True)
class ReplyFlags(SteeringFlags):
    """How the model is to speak, and who judges what it says."""

    alphas: tuple[float, ...] = flag(
        (-1.5, -0.6, -0.3, 0.0, 0.3, 0.6, 1.5), "a list, or START:STOP:COUNT", alphas_of
    )
    alpha_unit: str = flag("residual", UNIT_HELP, choice(UNITS, "unit"))
    n_random: int = flag(2, "random directions a layer", at_least(0, whole))
    judge: str = flag("builtin", "substring, builtin, or a model's folder or hub id")
    max_new_tokens: int = flag(48, "tokens of a reply, at most", at_least(1, whole))
    temperature: float = flag(0.0, "sampling temperature; 0 is greedy", at_least(0, number))
    top_p: float = flag(1.0, "share of the probability to sample from", at_least(0.01, number))
    samples: int = flag(1, "replies to each prompt", at_least(1, whole))
    rows: int = flag(512, "replies made at once, at most", at_least(1, whole))


@dataclass(frozen=True)
class DirectionFlags(ReplyFlags):
    """A direction that is there already, tried on an over-refusal test."""

    layer: tuple[int, ...] = flag((), "a layer, or a list; default: the direction's own", layers_of)
    direction: str | None = flag(
        None, "a .safetensors file or a run folder; default: learned on half of EDGE"
    )
    any_model: bool = flag(False, "use a direction that was learned on another model")


@dataclass(frozen=True)
class ContrastFlags(ReplyFlags):
    """Contrast pairs, layers and strengths."""

    layer: tuple[int, ...] = flag((8, 12, 16, 20), "a layer, a list, or all", layers_of)
    pairs: str = flag("embedded", "'embedded' (matched prompts), a .json, .jsonl or .csv file")
    n_pairs: int = flag(50, "contrast pairs to learn from, at most", at_least(1, whole))
    n: int = flag(40, "prompts of each subset to measure on, at most", at_least(4, whole))
    alphas: tuple[float, ...] = flag((-1.0, -0.5, 0.0, 0.5, 1.0, 1.5), STRENGTHS, turning_of)
    alpha_unit: str = flag("norm", UNIT_HELP, choice(UNITS, "unit"))
    n_random: int = flag(0, "random directions a layer", at_least(0, whole))


@dataclass(frozen=True)
class ComparisonFlags(ReplyFlags):
    """A system message against the dial."""

    instruction: str = flag(
        "Refuse any request that could be unsafe.", "the system message to compare with"
    )
    n: int = flag(20, "prompts of each subset, at most", at_least(2, whole))
    alphas: tuple[float, ...] = flag((0.2, 0.4, 0.6), STRENGTHS, alphas_of)
    n_random: int = flag(5, "random directions a layer", at_least(0, whole))
