"""The flags of direction selection, with their defaults and their help.

This module reads text into values. It does not know what they do, and imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from refusal_dial.cli import flag
from refusal_dial.flags import STEERABLE, StudyFlags
from refusal_dial.readers import at_least, choice
from refusal_dial.selection.limits import LIMITS, RULES, Limits
from refusal_dial.types import DialError, shown
from refusal_dial.values import listed, number, whole

METHODS = ("mean_diff", "probe")
LAYOUTS = ("run", "refusal_direction")


def _positions(value: Any) -> tuple[int, ...]:
    if value == "template":
        return ()
    pos = tuple(sorted(whole(part) for part in listed(value)))
    if not pos or pos[-1] >= 0 or len(set(pos)) < len(pos):
        raise DialError(f"expected positions from the end such as -5,-4,-1; not {shown(value)}")
    return pos


@dataclass(frozen=True)
class SelectionFlags(StudyFlags):
    """Which candidates, how they are measured, and by which rule one of them is chosen."""

    rule: str = flag(
        "refusal",
        "refusal (Arditi et al.), cosmic (no output is scored), or effect (any scorer)",
        choice(RULES, "rule"),
    )
    method: str = flag("mean_diff", "mean_diff or probe", choice(METHODS, "method"))
    positions: tuple[int, ...] = flag(
        (),
        "positions such as -5,-4,-1; default: what the template adds after the prompt",
        _positions,
    )
    site: str = flag("resid_pre", f"one of {', '.join(STEERABLE)}", choice(STEERABLE, "site"))
    n_train: int = flag(128, "prompts a group to learn from", at_least(2, whole))
    n_val: int = flag(32, "prompts a group to choose on", at_least(2, whole))
    n_test: int = flag(32, "prompts a group to report on", at_least(2, whole))
    max_kl: float | None = flag(
        None, "drop candidates over this KL; default: the rule's own", at_least(0, number)
    )
    min_induce: float | None = flag(
        None, "drop candidates that induce less; default: the rule's own", number
    )
    layout: str = flag(
        "run", "run, or refusal_direction: that project's files too", choice(LAYOUTS, "layout")
    )
    published: str | None = flag(
        None, "a refusal_direction folder: apply the rule to its evaluations, without a model"
    )

    @property
    def limits(self) -> Limits:
        """The rule's limits, with what was asked for in their place."""
        own = LIMITS[self.rule]
        own = own if self.max_kl is None else replace(own, kl=self.max_kl)
        return own if self.min_induce is None else replace(own, induce=self.min_induce)
