"""Contrast pairs (CAA): two texts of which the first shows the behaviour, alike in everything else.

    v = mean over pairs of h(positive) - h(negative)

h is read at the last token. A text is a request in the chat template, with or without a reply after
it: one request with two replies (answers A/B, or whole replies), or two matched requests of which
the model refuses one. This module reads pairs and turns them into tokens. It does not know what the
behaviour is. (Rimsky et al. 2024.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refusal_dial.common import DialError, format_value, is_utf8, located
from refusal_dial.data.prompts import Prompt, read_rows
from refusal_dial.data.prompts import pairs as matched

ANSWER_KEYS = ("answer_matching_behavior", "answer_not_matching_behavior")

REPLY_KEYS = (("positive", "negative"), ("refusal", "compliance"), ANSWER_KEYS)

TWO_REQUESTS = ("positive_prompt", "negative_prompt")

REQUESTS = ("prompt", "question", "text", "instruction")


@dataclass(frozen=True)
class ContrastPair:
    """Two texts, each a request and what follows it: `positive` shows the behaviour."""

    positive: tuple[str, str]
    negative: tuple[str, str]


def load_contrast(source: str) -> list[ContrastPair]:
    """Pairs from a .json list, .jsonl or .csv. A row has a request (`prompt` or `question`) and two
    replies (`positive` and `negative`, `refusal` and `compliance`, or CAA's
    `answer_matching_behavior` and `answer_not_matching_behavior`), or two requests
    (`positive_prompt` and `negative_prompt`).

    Answers such as `(A)` lose their closing bracket, so that the last token is the letter.
    Raises `DialError` naming the row that cannot be used.
    """
    path = located(source)
    rows = _json(path) if path.suffix == ".json" and path.is_file() else read_rows(source)
    pairs = [_pair(where, row) for where, row in rows]
    if not pairs:
        raise DialError(f"{source} holds no contrast pairs")
    return pairs


def _json(path: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DialError(f"{path} is not a JSON file in UTF-8: {error}") from error
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise DialError(f"{path}: expected a list of objects, each a request and two replies")
    return [(f"{path}, pair {i}", row) for i, row in enumerate(found, 1)]


def _pair(where: str, row: dict[str, Any]) -> ContrastPair:
    if all(name in row for name in TWO_REQUESTS):
        first, second = (_text(where, row, name) for name in TWO_REQUESTS)
        pair = ContrastPair((first, ""), (second, ""))
    else:
        request = next((name for name in REQUESTS if name in row), None)
        replies = next((names for names in REPLY_KEYS if all(name in row for name in names)), None)
        if request is None or replies is None:
            choices = "; ".join(" and ".join(names) for names in REPLY_KEYS)
            raise DialError(
                f"{where}: expected {' and '.join(TWO_REQUESTS)}, or a prompt or question and two "
                f"replies: {choices}"
            )
        asked = _text(where, row, request)
        lines = [_text(where, row, name) for name in replies]
        if replies == ANSWER_KEYS:
            lines = [text.strip().removesuffix(")") for text in lines]
        pair = ContrastPair((asked, lines[0]), (asked, lines[1]))
    if pair.positive == pair.negative:
        raise DialError(f"{where}: the two texts are the same: {pair.positive!r:.60}")
    return pair


def _text(where: str, row: dict[str, Any], name: str) -> str:
    text = row[name]
    if not isinstance(text, str) or not text.strip():
        raise DialError(
            f"{where}: {name} must be text that is not empty, not {format_value(text, 60)}"
        )
    if not is_utf8(text):
        raise DialError(f"{where}: {name} holds half a surrogate pair: {format_value(text, 60)}")
    return text


def from_matched(prompts: Iterable[Prompt]) -> list[ContrastPair]:
    """Matched pairs of prompts: a HARMFUL request, and the EDGE or BENIGN one that differs from it
    in one phrase. Raises `DialError` where there are none."""
    found = [
        ContrastPair((harmful.text, ""), (other.text, ""))
        for harmful, other in matched(prompts).values()
    ]
    if not found:
        raise DialError("no matched pairs among these prompts (pair_id): give --pairs FILE")
    return found
