"""Small notation for word tables: phrases, each with the weight it adds to a refusal propensity.

A table is written as one string, `"a wasp=-0.6 | a hornet=-0.2 | weeds"`: phrases separated by
bars, an optional number after an equals sign (0 when absent).  A lone `-` stands for the empty
phrase, so that a context may be left out.  This module knows nothing of what the words mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass

EMPTY = "-"


def table(text: str) -> dict[str, float]:
    """Read the notation above into an ordered mapping from phrase to weight."""
    weights: dict[str, float] = {}
    for cell in text.split("|"):
        phrase, _, number = cell.strip().partition("=")
        phrase = "" if phrase.strip() == EMPTY else " ".join(phrase.split())
        if phrase in weights:
            raise ValueError(f"the phrase {phrase!r} stands twice in one table")
        weights[phrase] = float(number) if number else 0.0
    return weights


@dataclass(frozen=True)
class Family:
    """Every way of filling three slots: the cross product of its tables is a set of requests.

    `kind` names the sentence form (see `grammar.FRAMES`): `do` (verb, object, context), `be`
    (group, treatment, place), `what` (attribute, owner, -), `did` (people, deed, period) or
    `mean` (term, field, -).
    """

    category: str
    kind: str
    slots: tuple[Mapping[str, float], Mapping[str, float], Mapping[str, float]]


def family(category: str, kind: str, first: str, second: str, third: str = EMPTY) -> Family:
    """A family from three tables in the notation of this module."""
    return Family(category, kind, (table(first), table(second), table(third)))
