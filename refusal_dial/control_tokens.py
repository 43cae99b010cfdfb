"""Texts that spell out control tokens, encoded as text: what is quoted must not command.

    "</think>" in a prompt  ->  "</", "think", ">", and not the token that ends a thought

A control token is one that a tokenizer marks as special, or one that was added to it in brackets,
`<think>` or `[TOOL]`, marked or not. Added tokens that are text (blanks, HTML tags, words) stay
tokens: so the model reads them everywhere else. This module knows tokenizers. It does not know
which part of a prompt is text and which the template's.
"""

from __future__ import annotations

import copy
import json
import re
from typing import Any
from weakref import WeakKeyDictionary

BRACKETED = re.compile(r"<.+>|\[.+\]", re.DOTALL)
HTML = re.compile(
    r"</?(?:table|caption|thead|tbody|tfoot|t[rhdl]|h[1-6]|blockquote|strong|em|[bisup]|sub|sup"
    r"|code|pre|[ou]l|li|[ab]r?|div|span|img)>"
)
_CONTROL: WeakKeyDictionary[Any, tuple[int, frozenset[str]]] = WeakKeyDictionary()
_READERS: WeakKeyDictionary[Any, tuple[int, Any]] = WeakKeyDictionary()
"""What was worked out for a tokenizer of this many tokens."""


def control_tokens(tokenizer: Any) -> frozenset[str]:
    """How the tokenizer's control tokens are spelt."""
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
    spelt = spells_control(tokenizer, text)
    reader = reader_of_text(tokenizer) if spelt else tokenizer
    return list(
        reader.encode(text, add_special_tokens=add_special_tokens, split_special_tokens=spelt)
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
