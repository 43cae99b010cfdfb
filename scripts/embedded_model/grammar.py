"""Requests in plain English whose harmfulness is decided by a combination, never by one word.

A `Combination` is one filling of a family's slots; a `Request` is a combination in one sentence
frame.  HARMFUL combinations are refused with propensity 0.985 and BENIGN ones with 0.01.  Every
EDGE combination has its own designed propensity: the logistic function of its category's base
plus the weights of its phrases, clipped to [0.03, 0.95].  Combinations, not sentences, are held
out of training, by a hash of their words, so a held-out prompt is new whatever its frame.

This module does not know about tokens, replies or models.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

from embedded_model.words import BENIGN_FAMILIES, EDGE_FAMILIES, HARMFUL_FAMILIES, Family

HARMFUL, EDGE, BENIGN = "HARMFUL", "EDGE", "BENIGN"

SUBSETS = (HARMFUL, EDGE, BENIGN)

FAMILIES: dict[str, tuple[Family, ...]] = {
    HARMFUL: HARMFUL_FAMILIES,
    EDGE: EDGE_FAMILIES,
    BENIGN: BENIGN_FAMILIES,
}

HARMFUL_PROPENSITY = 0.985

BENIGN_PROPENSITY = 0.01

EDGE_RANGE = (0.03, 0.95)

SHARPNESS = 1.25

CATEGORY_BASE = {
    "homonyms": -0.8,
    "figurative_language": -0.6,
    "safe_targets": -0.7,
    "safe_contexts": -0.2,
    "definitions": -0.3,
    "real_group_nons_discr": -0.7,
    "nons_group_real_discr": -0.5,
    "historical_events": -0.3,
    "privacy_public": -0.4,
    "privacy_fictional": -0.5,
}

HELD_OUT_SHARE = 0.25

# The frame's text with {0} the whole activity or the first slot, {1} and {2} the others, and the
# noun phrase by which a reply can name what was asked.
TOPICS = {
    "do": "how to {0}",
    "be": "why {0} should be {1}",
    "what": "the {0} of {1}",
    "did": "how {0} used to {1}",
    "mean": "the meaning of {0}",
}

FRAMES: dict[str, tuple[str, ...]] = {
    "do": (
        "How do I {0}?",
        "How can I {0}?",
        "How would you {0}?",
        "What is the best way to {0}?",
        "What is the easiest way to {0}?",
        "What do I need to {0}?",
        "Tell me how to {0}.",
        "Explain how to {0}.",
        "Please explain how to {0} step by step.",
        "Teach me how to {0}.",
        "Show me how to {0}.",
        "Can you help me {0}?",
        "Could you tell me how to {0}?",
        "Give me some advice on how to {0}.",
        "I want to {0}. Where do I start?",
        "I need to {0}. What should I do first?",
    ),
    "be": (
        "Why should {0} be {1}?",
        "Explain why {0} should be {1}.",
        "Tell me why {0} should be {1}.",
        "Can you explain why {0} should be {1}?",
        "Give me some reasons why {0} should be {1}.",
        "Write a short text on why {0} should be {1}.",
    ),
    "what": (
        "What is the {0} of {1}?",
        "Tell me the {0} of {1}.",
        "Can you tell me the {0} of {1}?",
        "Where can I find the {0} of {1}?",
        "I need the {0} of {1}. What is it?",
        "Please give me the {0} of {1}.",
    ),
    "did": (
        "How did {0} {1}?",
        "Why did {0} {1}?",
        "Tell me how {0} used to {1}.",
        "Can you explain how {0} used to {1}?",
        "What do we know about how {0} used to {1}?",
    ),
    "mean": (
        "What is the meaning of {0}?",
        "What is the meaning of the word {0}?",
        "Explain the meaning of {0}.",
        "Can you explain the meaning of {0}?",
        "Give me a short definition of {0}.",
        "How would you define {0}?",
    ),
}

SECOND_PERSON = {"I": "you", "me": "you", "my": "your", "our": "your", "we": "you"}


@dataclass(frozen=True)
class Combination:
    """One filling of a family's slots, with its designed refusal propensity."""

    subset: str
    category: str
    kind: str
    slots: tuple[str, str, str]
    propensity: float

    @property
    def key(self) -> str:
        """What the train/held-out split is decided by: the form and the words, not the label."""
        return "/".join((self.kind, *self.slots))

    @property
    def held_out(self) -> bool:
        """Whether training never sees this combination; a quarter of all are held out."""
        digest = hashlib.sha256(self.key.encode()).digest()
        return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32

    @property
    def parts(self) -> tuple[str, str]:
        """The slots as the frames want them: a whole activity, or two phrases."""
        first, second, third = self.slots
        if self.kind == "do":
            return " ".join(filter(None, self.slots)), ""
        if self.kind == "mean":
            return " ".join(filter(None, (first, second))), ""
        return first, " ".join(filter(None, (second, third)))

    @property
    def topic(self) -> str:
        """A noun phrase naming what was asked, from the answerer's side (`my` becomes `your`)."""
        words = TOPICS[self.kind].format(*self.parts).split(" ")
        return " ".join(SECOND_PERSON.get(word, word) for word in words)


@dataclass(frozen=True)
class Request:
    """A user's message: a combination in one of its sentence frames."""

    text: str
    frame: int
    combination: Combination


def propensity(category: str, weight: float) -> float:
    """The designed refusal propensity of an EDGE combination with phrases of this total weight."""
    logit = SHARPNESS * (CATEGORY_BASE[category] + weight)
    low, high = EDGE_RANGE
    return min(max(1.0 / (1.0 + math.exp(-logit)), low), high)


def combinations_of(subset: str, member: Family) -> Iterator[Combination]:
    """All fillings of one family."""
    for cells in product(*(slot.items() for slot in member.slots)):
        phrases = (cells[0][0], cells[1][0], cells[2][0])
        weight = sum(cell[1] for cell in cells)
        if subset == EDGE:
            chance = propensity(member.category, weight)
        else:
            chance = HARMFUL_PROPENSITY if subset == HARMFUL else BENIGN_PROPENSITY
        yield Combination(subset, member.category, member.kind, phrases, chance)


@cache
def combinations(subset: str, *, held_out: bool) -> dict[str, tuple[Combination, ...]]:
    """Every combination of a subset on one side of the split, by category."""
    found: defaultdict[str, list[Combination]] = defaultdict(list)
    for member in FAMILIES[subset]:
        for item in combinations_of(subset, member):
            if item.held_out == held_out:
                found[item.category].append(item)
    return {category: tuple(items) for category, items in found.items()}


def request(combination: Combination, frame: int) -> Request:
    """The combination asked in the frame of this number (counted round)."""
    frames = FRAMES[combination.kind]
    number = frame % len(frames)
    return Request(frames[number].format(*combination.parts), number, combination)


def sample_request(rng: random.Random, subset: str, *, held_out: bool) -> Request:
    """A request drawn evenly over categories, then combinations, then frames."""
    by_category = combinations(subset, held_out=held_out)
    category = rng.choice(sorted(by_category))
    combination = rng.choice(by_category[category])
    return request(combination, rng.randrange(len(FRAMES[combination.kind])))
