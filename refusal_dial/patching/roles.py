"""Roles: which part a token plays in a pair of prompts that differ in one phrase.

A clean prompt (HARMFUL) and a corrupted one (EDGE or BENIGN) share how they begin and how they end.
Positions are named by their part, so that pairs of different lengths can be averaged:

    start+1 ...      the template's opening tokens, counted from the first
    ... before-1     shared words before the phrase, counted back from it
    ... phrase-1     the differing phrase, counted from its end
    after+1 ...      shared words after it, counted from it
    ... end-1        the template's closing tokens, counted back from the last

Everything is read off two rows of token ids. This module knows no models and imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from refusal_dial.types import DialError

Positions = tuple[int, int]
"""(in the clean prompt, in the corrupted prompt), both counted from the end: -1 is the last."""
PARTS = ("start", "before", "phrase", "after", "end")
_ROLE = re.compile(rf"({'|'.join(PARTS)})([+-]\d+)")


def align(
    clean: Sequence[int], corrupted: Sequence[int], opening: int = 0, closing: int = 0
) -> dict[str, Positions]:
    """The roles of two rows of token ids, of which a template wrote the first `opening` and the
    last `closing` (fewer where the rows differ there).

    The differing phrase is what is left between the longest common beginning and the longest common
    end. Where it is longer in one prompt, its first tokens there have no partner and no role.
    """
    prefix, suffix, closing = _shared(clean, corrupted, closing)
    opening, lengths = min(opening, prefix), (len(clean), len(corrupted))
    roles: dict[str, Positions] = {}

    def name(role: str, first: int, second: int) -> None:
        roles[role] = first - lengths[0], second - lengths[1]

    for i in range(opening):
        name(f"start+{i + 1}", i, i)
    for i in range(opening, prefix):
        name(f"before-{prefix - i}", i, i)
    ends = lengths[0] - suffix, lengths[1] - suffix
    for k in range(min(ends) - prefix, 0, -1):
        name(f"phrase-{k}", ends[0] - k, ends[1] - k)
    for k in range(suffix, 0, -1):
        role = f"end-{k}" if k <= closing else f"after+{suffix - k + 1}"
        name(role, lengths[0] - k, lengths[1] - k)
    return roles


def _shared(a: Sequence[int], b: Sequence[int], closing: int) -> tuple[int, int, int]:
    """(common beginning, common end, of which template). They do not overlap, and the template's
    end comes first, so that identical prompts keep it."""
    closing = min(closing, common_prefix(a[::-1], b[::-1]))
    prefix = min(common_prefix(a, b), min(len(a), len(b)) - closing)
    return prefix, min(common_prefix(a[::-1], b[::-1]), min(len(a), len(b)) - prefix), closing


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading entries are equal."""
    unequal = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(unequal, min(len(a), len(b)))


def role_order(role: str) -> tuple[int, int]:
    """Sorts roles as they stand in a prompt. Raises `DialError` for what is no role."""
    found = _ROLE.fullmatch(role)
    if found is None:
        raise DialError(f"no role {role!r}: expected start+1, before-1, phrase-1, after+1 or end-1")
    return PARTS.index(found[1]), int(found[2])
