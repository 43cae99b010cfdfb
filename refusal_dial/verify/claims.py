"""Claims: evidence becomes pass, fail or not shown, each with its reason.

    p_corrected = Holm's adjustment over all claims of the verdict

A claim passes where its figure is as claimed and its corrected p is at most the level. It is not
shown where this study could not have shown it: too few draws or prompts, or a p that does not
survive the correction. Else it fails. The verdict passes where every claim does, and fails where
one does. Numbers and sentences only: nothing here knows a model or where the evidence comes from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from refusal_dial.stats import holm

PASS, FAIL, NOT_SHOWN = "pass", "fail", "not shown"
STATUSES = (PASS, FAIL, NOT_SHOWN)


@dataclass(frozen=True)
class Evidence:
    """What was found for one claim. `holds` says whether the figure itself is as claimed, and `p`
    how likely that would be by chance. `because` is the reason where it does not hold or p is not
    small; `unable` why this study could not have shown it, or empty. `smallest` is the smallest
    effect that it could have shown."""

    name: str
    says: str
    unit: str
    n: int
    estimate: float
    interval: tuple[float, float]
    p: float
    holds: bool
    found: str
    because: str
    unable: str = ""
    smallest: float | None = None
    details: tuple[Mapping[str, Any], ...] = field(default=())


@dataclass(frozen=True)
class Claim:
    """A piece of evidence, judged among all of them."""

    evidence: Evidence
    p_corrected: float
    status: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """All claims, and what they come to."""

    claims: tuple[Claim, ...]
    status: str
    reason: str


def judge(evidence: Sequence[Evidence], level: float) -> Verdict:
    """Each claim's status and reason, and the verdict's."""
    corrected = holm([one.p for one in evidence])
    m = int(np.isfinite([one.p for one in evidence]).sum())
    claims = tuple(
        Claim(one, float(p), *_judged(one, float(p), level, m))
        for one, p in zip(evidence, corrected, strict=True)
    )
    failed = [claim for claim in claims if claim.status == FAIL]
    unknown = [claim for claim in claims if claim.status == NOT_SHOWN]
    if failed:
        return Verdict(claims, FAIL, _together(failed))
    if unknown:
        return Verdict(claims, NOT_SHOWN, _together(unknown))
    return Verdict(claims, PASS, f"all {len(claims)} claims hold")


def _judged(one: Evidence, corrected: float, level: float, m: int) -> tuple[str, str]:
    if one.unable:
        return NOT_SHOWN, one.unable
    if not np.isfinite(one.p):
        return NOT_SHOWN, "there is nothing to test it with"
    if one.holds and corrected <= level:
        return PASS, one.found
    if one.holds and one.p <= level:
        return NOT_SHOWN, (
            f"p = {one.p:.3g} is {corrected:.3g} once corrected for {m} claims, over {level:g}"
        )
    return FAIL, one.because


def _together(claims: Sequence[Claim]) -> str:
    return "; ".join(f"{one.evidence.name}: {one.reason}" for one in claims)


def plain(verdict: Verdict) -> dict[str, Any]:
    """The verdict as JSON has it: no NaN, no infinity."""
    return {
        "status": verdict.status,
        "reason": verdict.reason,
        "claims": [
            {
                "name": one.evidence.name,
                "status": one.status,
                "reason": one.reason,
                "p_corrected": one.p_corrected,
                **{k: v for k, v in asdict(one.evidence).items() if k != "name"},
            }
            for one in verdict.claims
        ],
    }


def without_nan(value: Any) -> Any:
    """The same with None for every number that JSON does not have, and plain numbers."""
    if isinstance(value, Mapping):
        return {str(name): without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not np.isfinite(value) else value
