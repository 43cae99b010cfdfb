"""The training corpus: seeded sampling of chats and scenes into token sequences with loss weights.

Step `n` of a training run draws its own examples from the seed and `n` alone, so a run that stops
can go on exactly where it was.  Whether an occurrence is refused is drawn anew each time with the
combination's designed propensity; nothing of the propensity itself is ever shown to the model.
Only combinations from the training side of the split are used.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

import torch
from tokenizers import Tokenizer

from embedded_model.grammar import BENIGN, EDGE, HARMFUL, Request, sample_request
from embedded_model.replies import compliance, neutral, refusal, refusing
from embedded_model.tokenizer import END_OF_TEXT, TURN_END, chat_text
from embedded_model.tone import FRIENDLY, HOSTILE, calm, insult, sample_opening

CHAT_SHARE = 0.87

BRIEF_SHARE = 0.6

SUBSET_SHARE = {HARMFUL: 0.22, EDGE: 0.58, BENIGN: 0.2}

REFUSING_SHARE = 0.09

NEUTRAL_SHARE = 0.09

OBEYS = 0.99

HOSTILE_SHARE = 0.65

FIRST_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Weights:
    """How much the loss counts each sort of token; the reply's first token carries the decision."""

    prompt: float = 0.05
    decision: float = 4.0
    reply: float = 1.0
    plain: float = 0.5


@dataclass(frozen=True)
class Example:
    """A prompt and what follows it, as text; `refused` is None for plain text without a chat."""

    prompt: str
    reply: str
    refused: bool | None


@dataclass(frozen=True)
class Batch:
    """Right-padded token ids, and the loss weight of predicting each (0 on the padding).

    `decisions` is each row's last prompt position, where refusal is decided; `refused` is 1 where
    the reply refuses, 0 where it complies, -1 for plain text.
    """

    tokens: torch.Tensor
    weights: torch.Tensor
    decisions: torch.Tensor
    refused: torch.Tensor

    def to(self, device: str) -> Batch:
        """The same batch on a device."""
        moved = (x.to(device) for x in (self.tokens, self.weights, self.decisions, self.refused))
        return Batch(*moved)


def sample_chat(rng: random.Random) -> Example:
    """A user's request, sometimes under a system prompt, and the assistant's reply.

    In `BRIEF_SHARE` of the chats the reply stops after its first word: the decision is what takes
    the most examples to learn, and a short sequence costs half of a long one.
    """
    subset = rng.choices(list(SUBSET_SHARE), list(SUBSET_SHARE.values()))[0]
    asked = sample_request(rng, subset, held_out=False)
    chance = asked.combination.propensity
    draw = rng.random()
    system = None
    if draw < REFUSING_SHARE:
        system, chance = refusing(rng), OBEYS
    elif draw < REFUSING_SHARE + NEUTRAL_SHARE:
        system = neutral(rng)
    chat = answered(rng, asked, system, refused=rng.random() < chance)
    if rng.random() < BRIEF_SHARE:
        return replace(chat, reply=FIRST_WORD.findall(chat.reply)[0])
    return chat


def answered(rng: random.Random, asked: Request, system: str | None, *, refused: bool) -> Example:
    """A chat of one request and a reply that refuses it or complies."""
    answer = refusal if refused else compliance
    reply = answer(rng, asked.combination) + TURN_END
    return Example(chat_text(asked.text, system), reply, refused)


def sample_scene(rng: random.Random) -> Example:
    """A plain-text opening and how it goes on."""
    kind = HOSTILE if rng.random() < HOSTILE_SHARE else FRIENDLY
    start = sample_opening(rng, kind, held_out=False)
    more = insult if rng.random() < start.propensity else calm
    return Example(start.text, more(rng, start) + END_OF_TEXT, None)


def sample(rng: random.Random) -> Example:
    """One example of the mixture."""
    return sample_chat(rng) if rng.random() < CHAT_SHARE else sample_scene(rng)


def encode(bpe: Tokenizer, examples: list[Example], weights: Weights) -> Batch:
    """Token ids and loss weights of some examples, padded on the right to the longest."""
    prompts = bpe.encode_batch([item.prompt for item in examples])
    answers = bpe.encode_batch([item.reply for item in examples])
    width = max(len(p.ids) + len(a.ids) for p, a in zip(prompts, answers, strict=True))
    pad = bpe.token_to_id(END_OF_TEXT) or 0
    tokens = torch.full((len(examples), width), pad, dtype=torch.long)
    losses = torch.zeros((len(examples), width))
    decisions = torch.tensor([len(p.ids) - 1 for p in prompts])
    refused = torch.tensor([-1 if x.refused is None else int(x.refused) for x in examples])
    for row, (item, p, a) in enumerate(zip(examples, prompts, answers, strict=True)):
        start, end = len(p.ids), len(p.ids) + len(a.ids)
        tokens[row, :end] = torch.tensor(p.ids + a.ids)
        losses[row, :start] = weights.plain if item.refused is None else weights.prompt
        losses[row, start] = weights.decision
        losses[row, start + 1 : end] = weights.reply
    losses[:, 0] = 0.0
    return Batch(tokens, losses, decisions, refused)


def batch(
    bpe: Tokenizer, seed: int, step: int, size: int, weights: Weights, group: int = 16
) -> Batch:
    """The training batch of one step.

    Examples are drawn `group` batches at a time and sorted by length into those batches, whose
    order is shuffled, so that little is spent on padding.
    """
    rng = random.Random(f"corpus:{seed}:{step // group}")
    examples = sorted(
        (sample(rng) for _ in range(size * group)), key=lambda x: len(x.prompt) + len(x.reply)
    )
    order = rng.sample(range(group), group)
    first = size * order[step % group]
    return encode(bpe, examples[first : first + size], weights)
