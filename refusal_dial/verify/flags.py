"""The flags of a verification, with their defaults and their help.

This module reads text into values. It does not know what they do, and imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from refusal_dial.cli import argument, flag
from refusal_dial.flags import STEERABLE, UNITS, StudyFlags
from refusal_dial.readers import alpha_of, at_least, choice, pos_of, proportion
from refusal_dial.types import DialError, shown
from refusal_dial.values import listed, number, whole

REFERENCES = ("auto", "scores", "contrast")
NULLS = ("random", "covariance", "shuffled")
LEAST_TESTED = 8
"""Among fewer prompts to test on, samples soon have no two that differ."""


def _nulls(value: Any) -> tuple[str, ...]:
    kinds = [choice(NULLS, "control")(str(part).strip()) for part in listed(value)]
    if not kinds:
        raise DialError(f"expected one or more of {', '.join(NULLS)}, not {shown(value)}")
    return tuple(kind for kind in NULLS if kind in kinds)


def _level(value: Any) -> float:
    if not 1e-6 <= number(value) <= 0.25:
        raise DialError(f"expected a level from 1e-06 to 0.25, not {shown(value)}")
    return number(value)


def _alpha(value: Any) -> float:
    if number(value) <= 0:
        raise DialError(f"expected a number over 0 (both signs are taken), not {shown(value)}")
    return alpha_of(value)


@dataclass(frozen=True, kw_only=True)
class VerifyFlags(StudyFlags):
    """Which direction, where and how hard it is turned, against which controls, within which
    limits."""

    direction: str = argument("a direction: .safetensors, .pt of plain tensors, or .gguf")
    layer: int | None = flag(None, "its layer; default: what the file records", at_least(0, whole))
    site: str | None = flag(
        None, f"one of {', '.join(STEERABLE)}; default: the file's", choice(STEERABLE, "site")
    )
    pos: int | None = flag(None, "its position from the end; default: the file's, or -1", pos_of)
    any_model: bool = flag(False, "use a direction that was learned on another model")
    alpha: float = flag(0.3, "how far it is turned, up and down, in --alpha-unit", _alpha)
    alpha_unit: str = flag(
        "residual", "residual: multiples of the mean norm, or absolute", choice(UNITS, "unit")
    )
    controls: tuple[str, ...] = flag(NULLS, f"a list of {', '.join(NULLS)}", _nulls)
    n_random: int = flag(199, "draws of each control", at_least(1, whole))
    reference: str = flag(
        "auto",
        "what it is learned again from: scores (top against bottom EDGE), contrast (HARMFUL "
        "against BENIGN), or auto (as the file says, else the closer)",
        choice(REFERENCES, "reference"),
    )
    n_permutations: int = flag(
        999, "times it is learned again from shuffled labels", at_least(19, whole)
    )
    n_test: int = flag(140, "prompts a subset to report on, at most", at_least(LEAST_TESTED, whole))
    n_replies: int = flag(32, "BENIGN prompts whose replies are read", at_least(3, whole))
    max_new_tokens: int = flag(32, "tokens a reply, at most", at_least(1, whole))
    max_benign: float = flag(0.1, "most BENIGN prompts it may newly refuse, a share", proportion)
    max_kl: float = flag(0.1, "most KL a token of harmless replies, nats", at_least(0, number))
    max_cost: float = flag(
        0.1, "most that harmless replies may become less likely, nats a token", at_least(0, number)
    )
    level: float = flag(0.05, "corrected p-values up to this count as shown", _level)
