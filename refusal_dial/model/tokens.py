"""Prompts as the model expects them: chat template, left padding, mask.

Batches are padded on the left so that position -1 is the last prompt token of every row. Text that
spells out a control token is encoded as text.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import DialError, format_value, one_line
from refusal_dial.model.loading import identity

# --------------------------------------------------------------------------------------------------
# Texts that spell out control tokens, encoded as text: what is quoted must not command.
#
#     "</think>" in a prompt  ->  "</", "think", ">", and not the token that ends a thought
#
# A control token is one that a tokenizer marks as special, or one that was added to it in brackets,
# `<think>` or `[TOOL]`, marked or not. Added tokens that are text (blanks, HTML tags, words) stay
# tokens: so the model reads them everywhere else.


BRACKETED = re.compile(r"<.+>|\[.+\]", re.DOTALL)

HTML = re.compile(
    r"</?(?:table|caption|thead|tbody|tfoot|t[rhdl]|h[1-6]|blockquote|strong|em|[bisup]|sub|sup"
    r"|code|pre|[ou]l|li|[ab]r?|div|span|img)>"
)

_CONTROL: WeakKeyDictionary[Any, tuple[int, frozenset[str]]] = WeakKeyDictionary()

_READERS: WeakKeyDictionary[Any, tuple[int, Any]] = WeakKeyDictionary()
"""What was worked out for a tokenizer of this many tokens."""


def control_tokens(tokenizer: Any) -> frozenset[str]:
    """How the tokenizer's control tokens are written."""
    size, found = _CONTROL.get(tokenizer, (-1, frozenset()))
    if size != len(tokenizer):
        added = tokenizer.added_tokens_decoder.values()
        found = frozenset(t.content for t in added if t.special or _is_control(t.content))
        _CONTROL[tokenizer] = len(tokenizer), found
    return found


def spells_control(tokenizer: Any, text: str) -> bool:
    """Whether the text holds the spelling of a control token."""
    return any(token in text for token in control_tokens(tokenizer))


def text_ids(tokenizer: Any, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """Token ids of what is text throughout; with what the tokenizer adds around one (BOS), if asked
    for."""
    found = spells_control(tokenizer, text)
    reader = reader_of_text(tokenizer) if found else tokenizer
    return list(
        reader.encode(text, add_special_tokens=add_special_tokens, split_special_tokens=found)
    )


def reader_of_text(tokenizer: Any) -> Any:
    """The tokenizer to give texts to, with `split_special_tokens=True`: a copy that has every
    control token marked as special. Ids are the same. A tokenizer written in Python is not copied:
    there only tokens that it marks itself are text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer
    size, reader = _READERS.get(tokenizer, (-1, None))
    if size != len(tokenizer):
        about = json.loads(backend.to_str())
        for token in about["added_tokens"]:
            token["special"] = token["special"] or _is_control(token["content"])
        reader = copy.copy(tokenizer)
        reader._tokenizer = type(backend).from_str(json.dumps(about))
        _READERS[tokenizer] = len(tokenizer), reader
    return reader


def _is_control(spelling: str) -> bool:
    return bool(BRACKETED.fullmatch(spelling)) and not HTML.fullmatch(spelling)


# --------------------------------------------------------------------------------------------------
# Prompts as the model expects them: chat template, left padding, mask.
#
# Batches are padded on the left so that position -1 is the last prompt token of every row.


@dataclass(frozen=True, eq=False)
class Tokens:
    """Left-padded token ids and their mask (1 = token, 0 = padding)."""

    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]

    def rows(self, start: int, stop: int) -> Tokens:
        """Rows start..stop, with the padding that none of them needs cut away."""
        ids, mask = self.ids[start:stop], self.mask[start:stop]
        spare = int((mask.sum(0) == 0).long().cumprod(0).sum())
        return Tokens(ids[:, spare:], mask[:, spare:])

    def chosen(self, rows: Sequence[int]) -> Tokens:
        """These rows, in this order, with the padding that none of them needs cut away."""
        index = torch.tensor(list(rows), dtype=torch.long, device=self.ids.device)
        return Tokens(self.ids[index], self.mask[index]).rows(0, len(index))

    def on(self, model: TransformerBridge) -> Tokens:
        """The same where this model reads tokens."""
        return Tokens(self.ids.to(model.cfg.device), self.mask.to(model.cfg.device))

    def __reduce__(self) -> tuple[type[Tokens], tuple[Tensor, Tensor]]:
        """Sent to another machine, tokens are on the CPU: its devices are not those of this one."""
        return Tokens, (self.ids.cpu(), self.mask.cpu())

    def __len__(self) -> int:
        return self.ids.shape[0]


def tokenize(
    model: TransformerBridge,
    prompts: Sequence[str],
    *,
    system: str | None = None,
    chat: bool = True,
    thinking: bool = False,
) -> Tokens:
    """Token ids of the prompts as the model expects them, padded on the left.

    With `chat`, each prompt is one user turn in the model's chat template, after an optional system
    message, followed by the template's opening of the reply. A template that can think is asked to
    where `thinking`, and else asked not to; one that opens a thought all the same has it closed
    again, so that the last token stands after the block (`think_block`). The template writes the
    BOS if the model has one, so none is added. Without `chat` a prompt is plain text, encoded as
    the tokenizer encodes text by itself. Control tokens written out in a prompt's text or in the
    system message are encoded as text (see `control_tokens`).

    Raises `DialError` for no prompts, one text for a list, an empty prompt (in a chat too, where a
    template would render one: it is far more often a slip than a question), a prompt longer than
    the model's context, a model without a tokenizer or chat template, or a template that refuses a
    system message or leaves it, or the prompt's text, out, or that does not end or writes without
    end; for `thinking` with a template that knows no thinking, or without one.
    """
    tokenizer = model.tokenizer
    if tokenizer is None or len(tokenizer) < 2:
        raise DialError(f"model {model.cfg.model_name!r} has no tokenizer beside its weights")
    if isinstance(prompts, str):
        raise DialError(f"expected a list of prompts, not one text: [{prompts[:40]!r}]")
    if not prompts:
        raise DialError("no prompts to tokenize: the list is empty")
    if chat and not tokenizer.chat_template:
        raise DialError(
            f"model {identity(model).name!r} has no chat template: use a chat model, or read the "
            "prompts as plain text with --plain (chat=False)"
        )
    for i, text in enumerate(prompts):
        if not isinstance(text, str) or not text:
            raise DialError(
                f"prompt {i + 1} of {len(prompts)} is no text, or empty: {format_value(text, 40)}"
            )
    n_ctx = int(model.cfg.n_ctx)
    for i, text in enumerate(prompts):
        if len(text) > CHARACTERS_A_TOKEN * n_ctx:  # tokenizing megabytes takes minutes
            raise DialError(
                f"prompt {i + 1} of {len(prompts)} has {len(text)} characters and the model reads "
                f"at most {n_ctx} tokens: shorten it ({text[:40]!r}...)"
            )
    if thinking and not chat:
        raise DialError("--thinking on needs the chat template, and --plain reads prompts without")
    after = ""
    if chat:
        _check_template(tokenizer, system, thinking)
        block = think_block(tokenizer, thinking)
        if thinking and block is None:
            raise DialError(
                f"the chat template of {identity(model).name!r} knows no thinking: leave "
                "--thinking at off, or take a model whose template opens a think block"
            )
        after = block.closed if block is not None and not thinking else ""
    rows = [_encode(tokenizer, text, system, chat, thinking, after) for text in prompts]
    for i, row in enumerate(rows):
        if not row:
            raise DialError(
                f"prompt {i + 1} of {len(rows)} has no tokens: {format_value(prompts[i], 40)}"
            )
        if len(row) > n_ctx:
            raise DialError(
                f"prompt {i + 1} of {len(rows)} has {len(row)} tokens and the model reads at most "
                f"{n_ctx}: shorten it ({prompts[i][:40]!r}...)"
            )
    return padded(model, rows)


def tokens_hash(*some: Tokens) -> str:
    """SHA-256, 16 hex digits, of the ids of every row without its padding.

    Prompts of the same texts have other ids under another tokenizer or chat template, and under a
    template that prints the date on another day.
    """
    rows = [t.ids[i][t.mask[i].bool()].tolist() for t in some for i in range(len(t))]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def with_replies(model: TransformerBridge, tokens: Tokens, replies: Sequence[str]) -> Tokens:
    """Each prompt followed by the tokens of a reply to it (none, where it is empty), padded on the
    left again.

    Raises `DialError` for unequal numbers, or a reply that does not fit the model's context.
    """
    if len(replies) != len(tokens):
        raise DialError(f"{len(tokens)} prompts need as many replies, not {len(replies)}")
    return followed(model, tokens, [text_ids(model.tokenizer, reply) for reply in replies])


def followed(model: TransformerBridge, tokens: Tokens, new: Sequence[Sequence[int]]) -> Tokens:
    """Each prompt followed by these token ids, padded on the left again. Raises `DialError` for
    what does not fit the model's context."""
    rows = []
    for i, ids in enumerate(new):
        rows.append([*tokens.ids[i][tokens.mask[i].bool()].tolist(), *ids])
        if len(rows[-1]) > int(model.cfg.n_ctx):
            raise DialError(
                f"reply {i + 1} has {len(ids)} tokens after {len(rows[-1]) - len(ids)}, and the "
                f"model reads at most {int(model.cfg.n_ctx)}: shorten it"
            )
    return padded(model, rows)


def padded(model: TransformerBridge, rows: Sequence[Sequence[int]]) -> Tokens:
    """Rows of token ids, padded on the left, where this model reads tokens."""
    width, pad = max(map(len, rows)), model.tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (width - len(row)) + [*row] for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return Tokens(ids, mask).on(model)


def _encode(
    tokenizer: Any, text: str, system: str | None, chat: bool, thinking: bool, after: str
) -> list[int]:
    if not chat:
        text = text if system is None else f"{system}\n\n{text}"
        return text_ids(tokenizer, text, add_special_tokens=True)
    found = {_mark(): t for t in (text, system) if t is not None and spells_control(tokenizer, t)}
    marks = {t: mark for mark, t in found.items()}
    above = None if system is None else marks.get(system, system)
    written = _render(tokenizer, marks.get(text, text), above, thinking) + after
    return _ids_around(tokenizer, written, found)


def _ids_around(tokenizer: Any, written: str, found: Mapping[str, str]) -> list[int]:
    """The ids of what was written, each mark of `found` read as the text that it stands for."""
    ids: list[int] = []
    for part in re.split(f"({'|'.join(found)})", written) if found else [written]:
        if part in found:
            ids += text_ids(tokenizer, found[part])
        else:
            ids += tokenizer.encode(part, add_special_tokens=False)
    return ids


def form_ids(tokenizer: Any, form: str, texts: Mapping[str, str], bos: bool) -> list[int]:
    """The ids of a form with texts in its `{name}`s: control tokens are tokens where the form has
    them, and text in a text. `bos`: after what the tokenizer puts before a text."""
    found = {_mark(): text for text in texts.values() if spells_control(tokenizer, text)}
    marks = {text: mark for mark, text in found.items()}
    written = form.format(**{name: marks.get(text, text) for name, text in texts.items()})
    if not found:
        return list(tokenizer.encode(written, add_special_tokens=bos))
    before = tokenizer.encode("", add_special_tokens=True) if bos else []
    return [*before, *_ids_around(tokenizer, written, found)]


def dialogue_ids(tokenizer: Any, turns: Sequence[tuple[str, str]]) -> list[int]:
    """The ids of (role, text) turns in the chat template, up to the next reply; control tokens in
    their texts are text. Raises `DialError` for a template that fails, or leaves a text out."""
    marks = {_mark(): text for _, text in turns}
    found = dict(zip(marks, turns, strict=True))
    asked = [{"role": role, "content": mark} for mark, (role, _) in found.items()]
    written = _fill(tokenizer, asked, False)
    for mark, (role, text) in found.items():
        if mark not in written:
            raise DialError(f"the model's chat template leaves the {role}'s turn out")
        if not spells_control(tokenizer, text):
            written = written.replace(mark, text)
            del marks[mark]
    return _ids_around(tokenizer, written, marks)


CHARACTERS_A_TOKEN = 100
"""More than tokens have on average in any text: what has more of them is not tokenized at all."""

TEMPLATE_SECONDS = 5.0
"""What a chat template is given for one prompt; a thousandth of it is usual."""

TEMPLATE_BYTES = 2**30
"""What it is given of memory, Python and Jinja included."""

TEMPLATE_CHARACTERS = 100_000
"""What a chat template may write around a prompt and a system message; released ones write a few
thousand."""


def _mark() -> str:
    """Stands for a text while a template is filled in, and is in no other."""
    return f"\u2e28{uuid4().int}\u2e29"


@cache
def _check_ends(
    template: str, special: str, with_system: bool, thinking: bool, seconds: int
) -> None:
    """Raises `DialError` where one step of the template takes more time or memory than a process of
    its own is given (see `render_alone`): in this one nothing could stop it."""
    turns = [{"role": role, "content": "text"} for role in ("system", "user")][not with_system :]
    values = {"messages": turns, "add_generation_prompt": True, "enable_thinking": thinking}
    values |= json.loads(special)
    script = Path(__file__).with_name("render_alone.py")
    done = subprocess.run(
        [sys.executable, "-I", str(script), str(seconds), str(TEMPLATE_BYTES)],
        input=json.dumps({"template": template, "values": values}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise DialError(
            f"the model's chat template takes more than {seconds} s or {TEMPLATE_BYTES >> 20} MiB: "
            "use a model whose template ends, or read the prompts as plain text with --plain "
            "(chat=False)"
        )


def _check_template(tokenizer: Any, system: str | None, thinking: bool) -> None:
    """Raises `DialError` where the template leaves the prompt's text or the system message out, or
    could not be stopped."""
    if isinstance(tokenizer.chat_template, str):
        special = json.dumps({k: str(v) for k, v in tokenizer.special_tokens_map.items()})
        seconds = ceil(TEMPLATE_SECONDS)
        _check_ends(tokenizer.chat_template, special, system is not None, thinking, seconds)
    text, above = _mark(), None if system is None else _mark()
    written = _render(tokenizer, text, above, thinking)
    for mark, what in ((text, "prompt's text"), (above, "system message")):
        if mark is not None and mark not in written:
            raise DialError(
                f"the model's chat template leaves the {what} out: use a model whose template "
                "writes it as it is, or read the prompts as plain text with --plain (chat=False)"
            )


def _render(tokenizer: Any, text: str, system: str | None, thinking: bool) -> str:
    turns = [{"role": "user", "content": text}]
    if system is not None:
        turns.insert(0, {"role": "system", "content": system})
    written = _fill(tokenizer, turns, thinking)
    around = len(written) - len(text) - len(system or "")
    if around > TEMPLATE_CHARACTERS:
        raise DialError(
            f"the model's chat template writes {around} characters around a prompt: expected at "
            f"most {TEMPLATE_CHARACTERS}; use another model, or read the prompts as plain text "
            "with --plain (chat=False)"
        )
    return written


def _fill(tokenizer: Any, turns: Sequence[Mapping[str, str]], thinking: bool) -> str:
    """The turns as the template writes them, within its time."""
    system = turns[0]["role"] == "system"
    try:
        with _template_ends_within(TEMPLATE_SECONDS):
            written = str(
                tokenizer.apply_chat_template(
                    list(turns),
                    tokenize=False,
                    add_generation_prompt=True,
                    enable_thinking=thinking,
                )
            )
    except TimeoutError as error:
        raise DialError(
            f"the model's chat template ran for more than {TEMPLATE_SECONDS:g} s on one prompt: "
            "use a model whose template ends, or read the prompts as plain text with --plain "
            "(chat=False)"
        ) from error
    except Exception as error:
        if not system:
            raise DialError(f"the model's chat template failed: {one_line(error)}") from error
        raise DialError(
            f"the model's chat template takes no system message: {one_line(error)}"
        ) from error
    if any("\ud800" <= character <= "\udfff" for character in written):
        raise DialError(
            "the model's chat template writes half a surrogate, which is no text: use another "
            "model, or read the prompts as plain text with --plain (chat=False)"
        )
    return written


@contextmanager
def _template_ends_within(seconds: float) -> Iterator[None]:
    """A chat template that runs inside raises `TimeoutError` once the seconds are over.

    It is a program that came with the model, and its loops may be nested. So the clock is read at
    every line of the template and at every call that it makes (`sys.settrace`; what was set before
    is set again), in whatever thread it runs.
    """
    end = monotonic() + seconds

    def look(frame: FrameType, event: str, arg: Any) -> Any:
        if monotonic() > end:
            raise TimeoutError
        return look if frame.f_code.co_filename == "<template>" else None

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


# --------------------------------------------------------------------------------------------------
# The think block: what a model writes between its tags before it answers.
#
#     off: ... assistant\n<think>\n\n</think>\n\n     asked not to think: the block is empty
#     on:  ... assistant\n                      the model opens the block, or the template does
#
# A template knows thinking that renders `enable_thinking` differently, or opens a block at the end
# of every prompt.


THINK_TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"))
"""As Qwen3, DeepSeek-R1 and SmolLM3, Magistral, and Seed-OSS write them."""


@dataclass(frozen=True)
class ThinkBlock:
    """How a chat template writes a thought: its tags, whether the prompt already opens one, what
    closes one that the prompt should not have opened (`closed`; "" where it did not), and what
    stands between the block and the answer."""

    opening: str
    closing: str
    opened: bool
    closed: str
    separator: str

    def opens(self, tokenizer: Any, ids: Sequence[int]) -> bool:
        """Whether these ids begin in a block, or with one."""
        if self.opened:
            return True
        return _text(tokenizer, ids).lstrip().startswith(self.opening)

    def end(self, tokenizer: Any, ids: Sequence[int]) -> int | None:
        """How many ids there are up to the first closing tag, itself counted; None without one."""
        return _first(tokenizer, list(ids), self.closing)

    def span(self, tokenizer: Any, ids: Sequence[int]) -> tuple[int, int] | None:
        """Where the last block of a prompt's ids stands, its tags included: (start, stop). None
        without one; stop is the end where it was not closed."""
        ids = list(ids)
        tag = _only_id(tokenizer, self.opening)
        if tag is not None:
            start = max((i for i, one in enumerate(ids) if one == tag), default=None)
        elif self.opening in _text(tokenizer, ids):
            start = _bisect(len(ids), lambda n: self.opening in _text(tokenizer, ids[-n:]))
            start = len(ids) - start
        else:
            start = None
        if start is None:
            return None
        length = self.end(tokenizer, ids[start:])
        return start, len(ids) if length is None else start + length


def think_block(tokenizer: Any, thinking: bool) -> ThinkBlock | None:
    """The block of this tokenizer's chat template, as it stands after a prompt; None for a template
    that knows no thinking."""
    template = tokenizer.chat_template
    if not isinstance(template, str):
        return None
    tags = next((pair for pair in THINK_TAGS if pair[1] in template or pair[0] in template), None)
    if tags is None:
        return None
    opening, closing = tags
    mark = _mark()
    on, off = (_render(tokenizer, mark, None, asked) for asked in (True, False))
    ends = {asked: one.rpartition(mark)[2] for asked, one in ((True, on), (False, off))}
    opened = {
        asked: opening in end and closing not in end.rpartition(opening)[2]
        for asked, end in ends.items()
    }
    if on == off and not opened[True]:
        return None
    separator = ends[False].rpartition(closing)[2] if closing in ends[False] else "\n\n"
    closed = f"\n{closing}{separator}" if opened[False] else ""
    return ThinkBlock(opening, closing, thinking and opened[True], closed, separator)


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))


def _only_id(tokenizer: Any, tag: str) -> int | None:
    """The tag's id, where it is one token."""
    ids = tokenizer.encode(tag, add_special_tokens=False)
    return int(ids[0]) if len(ids) == 1 else None


def _first(tokenizer: Any, ids: list[int], tag: str) -> int | None:
    """How many ids there are up to the tag, itself counted."""
    one = _only_id(tokenizer, tag)
    if one is not None:
        return ids.index(one) + 1 if one in ids else None
    if tag not in _text(tokenizer, ids):
        return None
    return _bisect(len(ids), lambda n: tag in _text(tokenizer, ids[:n]))


def _bisect(most: int, holds: Callable[[int], bool]) -> int:
    """The least n from 1 to `most` for which it holds, as it does for all from there on."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


@torch.no_grad()
def last_logits(
    model: TransformerBridge, tokens: Tokens, hooks: Sequence[tuple[str, Any]] = ()
) -> Float[Tensor, "batch d_vocab"]:
    """Logits at the last prompt token under `hooks`: one plain forward pass.

    Only the last position is unembedded. Position ids follow the mask, so padding shifts nothing.
    """
    with model.hooks(fwd_hooks=list(hooks)):
        logits = model(tokens.ids, attention_mask=tokens.mask, logits_to_keep=1, use_cache=False)
    return logits[:, -1]


def log_total(
    logits: Float[Tensor, "*row d_vocab"],
    without: Sequence[int] = (),
    temperature: float = 1.0,
) -> Float64[Tensor, "*row"]:
    """`log sum_v exp(logits_v / temperature)` over all tokens v but those `without`.

    Exponentials are float32 and their sum float64, an eighth of the memory that a float64 softmax
    moves; within 1e-6 of it. On a CPU some rows at a time, so that they stay in its cache. Where
    all of them lie over 87 below the largest logit their sum counts as 1e-300 of it. NaN where a
    logit is NaN, or infinite.
    """
    rows = logits.flatten(0, -2) if logits.ndim > 1 else logits[None]
    size = max(1, IN_CACHE // logits.shape[-1]) if logits.is_cpu else max(1, len(rows))
    parts = [_log_total(some, without, temperature) for some in torch.split(rows, size)]
    return torch.cat(parts).reshape(logits.shape[:-1])


IN_CACHE = 2**19
"""Numbers in float32 and float64 that a core keeps at hand."""


def _log_total(
    logits: Float[Tensor, "row d_vocab"], without: Sequence[int], temperature: float
) -> Float64[Tensor, " row"]:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    top = wide.detach().amax(-1, keepdim=True)
    below = wide - top if wide is logits else wide.sub_(top)
    if without:
        below[..., list(without)] = -torch.inf
    if temperature != 1:
        below.div_(temperature)
    total = below.exp_().double().sum(-1)
    return total.clamp_min(1e-300).log() + top[..., 0].double() / temperature
