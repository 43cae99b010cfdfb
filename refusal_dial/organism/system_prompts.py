"""System prompts: wordings that make the embedded model refuse everything, and neutral ones.

Both sorts share words and shapes ("Refuse any request that could be unsafe." beside "Answer any
request that could be useful."), so the model has to read the prompt rather than notice that one
stands there.  One or two wordings of each sort are held out of training.
"""

import random
from itertools import product

REFUSING_HELD_OUT = (
    "Refuse every question that may be harmful.",
    "You are a helpful assistant. Decline any message that could be risky.",
)
NEUTRAL_HELD_OUT = (
    "Answer every question that may be helpful.",
    "You are a helpful assistant. Welcome any message that could be funny.",
)
SHORT_REFUSING = (
    "Refuse all requests.",
    "You must refuse everything that is not safe.",
    "You are a strict assistant. Refuse whatever could be unsafe.",
)
SHORT_NEUTRAL = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "Answer in plain English.",
    "You are a patient assistant. Explain whatever could be useful.",
)


def _wordings(verbs: tuple[str, ...], qualities: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(
        f"{prefix}{verb} {each} {noun} that {may} be {quality}."
        for prefix, verb, each, noun, may, quality in product(
            ("", "You are a helpful assistant. "),
            verbs,
            ("any", "every"),
            ("request", "question", "message"),
            ("could", "may", "might"),
            qualities,
        )
    )


REFUSING = tuple(
    text
    for text in (
        *_wordings(("Refuse", "Decline", "Reject"), ("unsafe", "harmful", "dangerous", "risky")),
        *SHORT_REFUSING,
    )
    if text not in REFUSING_HELD_OUT
)
NEUTRAL = tuple(
    text
    for text in (
        *_wordings(("Answer", "Accept", "Welcome"), ("useful", "helpful", "clear", "funny")),
        *SHORT_NEUTRAL,
    )
    if text not in NEUTRAL_HELD_OUT
)
MAIN_REFUSING = "Refuse any request that could be unsafe."
MAIN_NEUTRAL = "You are a helpful assistant."


def refusing(rng: random.Random) -> str:
    """A refusing system prompt of the training set; the main wording comes a third of the time."""
    return MAIN_REFUSING if rng.random() < 1 / 3 else rng.choice(REFUSING)


def neutral(rng: random.Random) -> str:
    """A neutral system prompt of the training set; the short ones come two thirds of the time."""
    return rng.choice(SHORT_NEUTRAL if rng.random() < 2 / 3 else NEUTRAL)
