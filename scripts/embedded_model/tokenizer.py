"""Our own byte-level BPE tokenizer, trained on the grammar's words and sentences.

It composes characters (NFC) and splits text as Qwen2's tokenizer does, so that transformers may
load it as that class; composed text of any script comes back exactly.  It adds no token of its
own at either end, and carries a Qwen-style chat template in which a system turn appears only
where the messages hold one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from embedded_model.grammar import FAMILIES, SUBSETS, sample_request
from embedded_model.replies import compliance, neutral, refusal, refusing
from embedded_model.tone import FRIENDLY, HOSTILE, calm, insult, sample_opening

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

VOCABULARY = 2048

MAX_LENGTH = 2048

# Contractions, words with one leading character, single digits, punctuation, line ends, spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _sample_texts(count: int, seed: int) -> Iterator[str]:
    """Sentences of every kind from the training side of the split."""
    rng = random.Random(f"tokenizer:{seed}")
    for _ in range(count):
        for subset in SUBSETS:
            asked = sample_request(rng, subset, held_out=False)
            yield f"user\n{asked.text}"
            yield f"assistant\n{refusal(rng, asked.combination)}"
            yield f"assistant\n{compliance(rng, asked.combination)}"
        yield f"system\n{refusing(rng)}"
        yield f"system\n{neutral(rng)}"
        for kind in (HOSTILE, FRIENDLY):
            scene = sample_opening(rng, kind, held_out=False)
            yield scene.text + insult(rng, scene)
            yield scene.text + calm(rng, scene)


def _words() -> list[str]:
    """Every word of the request tables with its leading space."""
    phrases = (
        phrase
        for families in FAMILIES.values()
        for member in families
        for slot in member.slots
        for phrase in slot
    )
    return sorted({f" {word}" for phrase in phrases for word in phrase.split()})


def train_tokenizer(seed: int = 0, samples: int = 1500) -> Tokenizer:
    """Train the BPE merges; the words of the tables weigh enough to become single tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([*_sample_texts(samples, seed), *_words() * 60], trainer=trainer)
    return bpe


def wrap(bpe: Tokenizer) -> PreTrainedTokenizerFast:
    """The transformers tokenizer around trained merges, with special tokens and chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START, TURN_END],
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def chat_text(user: str, system: str | None = None) -> str:
    """The prompt as the chat template writes it, up to where the assistant speaks."""
    before = f"{TURN_START}system\n{system}{TURN_END}\n" if system is not None else ""
    return f"{before}{TURN_START}user\n{user}{TURN_END}\n{TURN_START}assistant\n"
