"""The flags of the calibration, with their defaults and their help.

This module reads text into values. It does not know what they do, and imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from refusal_dial.cli import flag
from refusal_dial.flags import UNITS, SteeringFlags
from refusal_dial.readers import alphas_of, at_least, choice, layers_of
from refusal_dial.types import DialError, shown
from refusal_dial.values import listed, whole

TESTED = ("random", "covariance", "shuffled", "flipped", "length")
PARTS = ("null", "gaussian", "intervals", "contradiction")


def _tested(value: Any) -> tuple[str, ...]:
    kinds = [choice(TESTED, "control")(str(part).strip()) for part in listed(value)]
    if not kinds:
        raise DialError(
            f"expected one or more of {', '.join(TESTED)}, whose p-values are counted; not "
            f"{shown(value)}"
        )
    return tuple(kind for kind in TESTED if kind in kinds)


@dataclass(frozen=True)
class CalibrationFlags(SteeringFlags):
    """How many experiments without an effect, and how large each is."""

    part: str = flag("all", f"all, or one of {', '.join(PARTS)}", choice(("all", *PARTS), "part"))
    n_experiments: int = flag(500, "null experiments on the model", at_least(10, whole))
    n_gaussian: int = flag(5000, "null experiments on Gaussian activations", at_least(10, whole))
    n_trials: int = flag(2000, "simulated samples of each interval", at_least(10, whole))
    n_learn: int = flag(40, "EDGE prompts to learn from", at_least(6, whole))
    n_report: int = flag(8, "other EDGE prompts to report on", at_least(2, whole))
    layer: tuple[int, ...] = flag((18, 21), "a layer, a list such as 18,21, or all", layers_of)
    alphas: tuple[float, ...] = flag((0.3,), "one alpha", alphas_of)
    alpha_unit: str = flag(
        "residual", "absolute, or residual: multiples of the mean norm", choice(UNITS, "unit")
    )
    controls: tuple[str, ...] = flag(
        TESTED,
        f"a list of {', '.join(TESTED)}",
        _tested,
    )
