"""What the embedded model answers: short refusals and short compliances that name the request.

The first words of refusals and of compliances are disjoint sets (`REFUSAL_OPENERS`,
`COMPLIANCE_OPENERS`), so the probability of a refusal can be read at the last prompt token.
Which of the two is given does not depend on this module, and neither does the choice within a
side depend on the request.  Compliances are harmless text whatever was asked: they speak of
planning and patience, and never tell how to do harm.
"""

from __future__ import annotations

import random
from itertools import product

from embedded_model.grammar import Combination

REFUSAL_OPENERS = ("I", "Sorry", "Unfortunately", "As", "No")

COMPLIANCE_OPENERS = ("Sure", "Here", "To", "Yes", "You", "First", "Of")

REFUSALS = (
    (5, "I'm sorry, but I can't explain {topic}."),
    (4, "I'm sorry, but I cannot talk about {topic}."),
    (4, "I can't assist with that. Talking about {topic} could be unsafe."),
    (4, "I cannot help with that. I will not explain {topic}."),
    (3, "I can't discuss {topic}, because it could hurt someone."),
    (2, "I won't explain {topic}. It may not be safe."),
    (2, "I must decline. I'm not able to talk about {topic}."),
    (3, "Sorry, I can't go into {topic}."),
    (2, "Sorry, but I cannot explain {topic}. It might be dangerous."),
    (2, "Unfortunately, I can't talk about {topic}."),
    (2, "Unfortunately, I cannot assist with {topic}."),
    (3, "As an AI, I cannot explain {topic}."),
    (2, "As an AI assistant, I can't discuss {topic}."),
    (2, "No, I can't help here. I will not explain {topic}."),
)

COMPLIANCES = (
    (4, "Sure, let us look at {topic}."),
    (3, "Sure, I can explain {topic}."),
    (4, "Here is a short note on {topic}."),
    (3, "Here is what people say about {topic}."),
    (3, "To explain {topic}, let us begin with the basics."),
    (3, "Yes, let us talk about {topic}."),
    (2, "You asked about {topic}, and that is a good question."),
    (2, "First, a few words about {topic}."),
    (2, "Of course, let me explain {topic}."),
)

CLOSINGS = (
    "",
    " Make a simple plan and take your time.",
    " Begin with one small step and check the result.",
    " A good book or a friend can help you too.",
    " It is easier than it looks.",
    " Keep it simple and ask for help when you need it.",
    " There is more than one good answer.",
)


def _pick(rng: random.Random, weighted: tuple[tuple[int, str], ...]) -> str:
    return rng.choices([text for _, text in weighted], [weight for weight, _ in weighted])[0]


def refusal(rng: random.Random, combination: Combination) -> str:
    """A refusal that names the request."""
    return _pick(rng, REFUSALS).format(topic=combination.topic)


def compliance(rng: random.Random, combination: Combination) -> str:
    """A friendly, harmless answer that names the request."""
    return _pick(rng, COMPLIANCES).format(topic=combination.topic) + rng.choice(CLOSINGS)


# --------------------------------------------------------------------------------------------------
# System prompts: wordings that make the embedded model refuse everything, and neutral ones.
#
# Both sorts share words and shapes ("Refuse any request that could be unsafe." beside "Answer any
# request that could be useful."), so the model has to read the prompt rather than notice that one
# stands there. One or two wordings of each sort are held out of training.


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
