"""How the trained model answers held-out requests, in numbers: P(refusal), agreement, loss.

Everything here reads a model and a tokenizer and returns plain numbers, without the library's own
machinery, so it can judge weights by itself.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

from refusal_dial.organism import corpus, grammar, replies
from refusal_dial.organism.tokenizer import chat_text


@dataclass(frozen=True)
class Padded:
    """Left-padded prompts."""

    tokens: Tensor
    mask: Tensor


def pad_left(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], device: Any) -> Padded:
    """Token ids of some texts, ending together."""
    out = tokenizer(
        list(texts),
        return_tensors="pt",
        padding=True,
        padding_side="left",
        add_special_tokens=False,
    )
    return Padded(out["input_ids"].to(device), out["attention_mask"].to(device))


def first_ids(tokenizer: PreTrainedTokenizerBase, openers: Sequence[str]) -> list[int]:
    """The ids of words that open a reply, each a single token."""
    ids = [tokenizer.encode(word, add_special_tokens=False) for word in openers]
    if any(len(pieces) != 1 for pieces in ids):
        raise ValueError("an opener of replies is not a single token of this tokenizer")
    return [pieces[0] for pieces in ids]


@torch.no_grad()
def refusal_chance(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[str],
    system: str | None = None,
    size: int = 128,
) -> np.ndarray:
    """P(refusal) of each request: the mass on the refusals' first tokens after the prompt."""
    ids = first_ids(tokenizer, replies.REFUSAL_OPENERS)
    chances = []
    for start in range(0, len(requests), size):
        texts = [chat_text(text, system) for text in requests[start : start + size]]
        padded = pad_left(tokenizer, texts, model.device)
        logits = model(padded.tokens, attention_mask=padded.mask, logits_to_keep=1).logits[:, -1]
        chances.append(logits.double().softmax(-1)[:, ids].sum(-1).cpu().numpy())
    return np.concatenate(chances)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of two series."""
    return float(np.corrcoef(a, b)[0, 1])


def held_out_requests(subset: str, count: int, seed: int = 0) -> list[grammar.Request]:
    """Random requests of a subset from the held-out side of the split."""
    rng = random.Random(f"measure:{subset}:{seed}")
    return [grammar.sample_request(rng, subset, held_out=True) for _ in range(count)]


@torch.no_grad()
def held_out_loss(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, count: int = 256
) -> float:
    """Mean next-token loss over replies to held-out requests, in nats."""
    rng = random.Random("measure:loss")
    examples = []
    for request in held_out_requests(grammar.EDGE, count):
        refused = rng.random() < request.combination.propensity
        examples.append(corpus.answered(rng, request, None, refused=refused))
    weights = corpus.Weights(prompt=0.0, decision=1.0, reply=1.0, plain=0.0)
    bpe = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    bpe.no_padding()
    drawn = corpus.encode(bpe, examples, weights)
    tokens, counted = drawn.tokens.to(model.device), drawn.weights.to(model.device)
    logits = model(tokens[:, :-1]).logits
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    flat = counted[:, 1:].flatten()
    return float((losses * flat).sum() / flat.sum())
