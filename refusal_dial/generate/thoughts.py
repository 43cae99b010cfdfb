"""Thoughts: what a model writes between its think tags before it answers, and the reply after them.

    <think>\n ... \n</think>\n\n reply

A refusal is read after the block: judges get the reply alone, and the score of first tokens stands
at the last token of the block. There a prompt is followed by the unsteered model's own greedy
thought; one that does not end within its budget is closed for it, so that there is an answer to
read. A thought `ends` in one of four ways:

    none      there is no block: the model answered at once
    closed    the closing tag came
    loop      over half of its trigrams of tokens are repeats, whether or not it closed
    endless   no closing tag within the budget

Not known here: whether a thought is true to the reply.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import DialError, log, progress
from refusal_dial.generate.decode import Completion, Decoding, generate
from refusal_dial.generate.likelihood import LOOPS, repeated
from refusal_dial.model.tokens import ThinkBlock, Tokens, followed, think_block, tokenize

THOUGHT_ENDS = ("none", "closed", "loop", "endless")

LOST = ("loop", "endless")
"""Thoughts that got stuck."""

THOUGHTS_A_BATCH = 32


@dataclass(frozen=True)
class Thought:
    """The tokens of a block, its tags among them, their text without the tags, and how it ended
    (`THOUGHT_ENDS`). `closed` is whether a reply follows."""

    ids: tuple[int, ...]
    text: str
    end: str
    closed: bool


NO_THOUGHT = Thought((), "", "none", False)


def divide(
    tokenizer: Any, ids: Sequence[int], block: ThinkBlock | None, budget: int
) -> tuple[Thought, tuple[int, ...]]:
    """(the thought, the tokens after it) of a completion whose thought may have `budget` tokens.

    Without a block everything is reply; without its closing tag nothing is.
    """
    if block is None or not block.opens(tokenizer, ids):
        return NO_THOUGHT, tuple(ids)
    length = block.end(tokenizer, ids)
    closed = length is not None and length <= budget
    mine = tuple(ids[: length if closed else budget])
    stuck = repeated(mine) > LOOPS
    end = "loop" if stuck else "closed" if closed else "endless"
    text = str(tokenizer.decode(list(mine), skip_special_tokens=False)).lstrip()
    text = text.removeprefix(block.opening).partition(block.closing)[0].strip()
    return Thought(mine, text, end, closed), tuple(ids[len(mine) :]) if closed else ()


def after_thought(
    tokenizer: Any, one: Completion, block: ThinkBlock | None, decoding: Decoding
) -> tuple[Completion, Thought]:
    """(the reply after the thought, the thought). A reply has at most `max_new_tokens` of its own;
    where the thought never closed it is empty. A model that thinks unasked does so in its reply's
    tokens."""
    budget = decoding.max_thought_tokens or decoding.max_new_tokens
    thought, ids = divide(tokenizer, one.ids, block, budget)
    cut = ids[: decoding.max_new_tokens]
    if not thought.ids and len(cut) == len(one.ids):
        return one, thought
    text = str(tokenizer.decode(list(cut), skip_special_tokens=True)).lstrip()
    stop = "length" if len(cut) < len(ids) else one.stop
    return replace(one, ids=cut, text=text, stop=stop), thought


def read_prompts(
    model: TransformerBridge,
    prompts: Sequence[str],
    *,
    system: str | None = None,
    chat: bool = True,
    thought: int = 0,
) -> Tokens:
    """`tokenize`, and with `thought` tokens to think in, each prompt followed by the unsteered
    model's own thought: the last token is the last before the answer.

    Raises `DialError` as `tokenize` does, or for a prompt and thought longer than the context.
    """
    tokens = tokenize(model, prompts, system=system, chat=chat, thinking=thought > 0)
    block = think_block(model.tokenizer, True) if thought else None
    if block is None:
        return tokens
    tokenizer = model.tokenizer
    closing = tokenizer.encode(block.closing, add_special_tokens=False)
    separator = tokenizer.encode(block.separator, add_special_tokens=False)
    forced = tokenizer.encode(f"\n{block.closing}", add_special_tokens=False)
    room = int(model.cfg.n_ctx) - tokens.ids.shape[1] - len(forced) - len(separator)
    if thought > room:
        raise DialError(
            f"a thought of {thought} tokens does not fit: the longest of these prompts has "
            f"{tokens.ids.shape[1]}, and the model reads at most {int(model.cfg.n_ctx)}; give "
            f"--thought-tokens up to {max(0, room)}"
        )
    until = tuple(closing) if len(closing) == 1 else ()
    decoding = Decoding(max_new_tokens=thought, rows=THOUGHTS_A_BATCH, until=until)
    rows: list[list[int]] = []
    ends = Counter[str]()
    for start in progress(range(0, len(tokens), THOUGHTS_A_BATCH), "thinking"):
        for one in generate(model, tokens.rows(start, start + THOUGHTS_A_BATCH), [()], decoding):
            found, _ = divide(tokenizer, one.ids, block, thought)
            ends[found.end] += 1
            after = [] if found.end == "none" else [*([] if found.closed else forced), *separator]
            rows.append([*found.ids, *after])
    stuck = sum(ends[end] for end in LOST)
    log.log(
        logging.WARNING if stuck else logging.INFO,
        "thoughts of %d prompts: %s%s",
        len(tokens),
        ", ".join(f"{ends[end]} {end}" for end in THOUGHT_ENDS if ends[end]),
        "; those that never closed were closed, and the answer is read after them" if stuck else "",
    )
    return followed(model, tokens, rows)
