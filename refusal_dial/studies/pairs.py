"""Matched pairs of prompts as tokens, and the roles that their positions play."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import ArrayLike
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import DialError
from refusal_dial.data.prompts import Prompt, pairs
from refusal_dial.generate.thoughts import read_prompts
from refusal_dial.model.tokens import Tokens, think_block

# --------------------------------------------------------------------------------------------------
# Matched pairs: two prompts that differ in one phrase, aligned token by token.
#
# Finds the pairs among tokenized prompts, names their positions by role (`roles`), and leaves out
# those whose scores are too close to tell anything.


_PROBES = ("a", "Zebra 7", "?!", "7 up")


@dataclass(frozen=True)
class Pair:
    """A matched pair, and where each of its roles stands in either prompt."""

    id: str
    clean: Prompt
    corrupted: Prompt
    lengths: tuple[int, int]
    roles: Mapping[str, Positions]

    def where(self, role: str) -> Positions | None:
        """Where the role stands in either prompt, None if this pair lacks it.

        `end-k` is the k-th last token whether or not it belongs to the template.
        """
        found = self.roles.get(role)
        if found is None and role.startswith("end-") and int(role[4:]) <= min(self.lengths):
            return -int(role[4:]), -int(role[4:])
        return found


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs with the tokens of their two prompts, row by row."""

    items: tuple[Pair, ...]
    clean: Tokens
    corrupted: Tokens

    def __len__(self) -> int:
        return len(self.items)

    def on(self, model: TransformerBridge) -> Pairs:
        """The same where this model reads tokens."""
        return Pairs(self.items, self.clean.on(model), self.corrupted.on(model))

    def chosen(self, rows: Sequence[int]) -> Pairs:
        """These pairs alone, in this order."""
        items = tuple(self.items[row] for row in rows)
        return Pairs(items, pick(self.clean, rows), pick(self.corrupted, rows))

    def roles(self) -> tuple[str, ...]:
        """Every role of any pair, in the order of the prompt."""
        return tuple(sorted({role for pair in self.items for role in pair.roles}, key=role_order))


def template_lengths(
    model: TransformerBridge, system: str | None = None, chat: bool = True
) -> tuple[int, int]:
    """How many tokens of every prompt the template writes: (at its beginning, at its end, an empty
    think block included).

    Found by tokenizing texts that have nothing in common; a BOS counts as template.
    """
    return _shared_ends(unpadded(read_prompts(model, _PROBES, system=system, chat=chat)))


def _shared_ends(rows: Sequence[Sequence[int]]) -> tuple[int, int]:
    """How many tokens all rows have in common, at their beginning and at their end."""
    return (
        min(common_prefix(rows[0], row) for row in rows[1:]),
        min(common_prefix(rows[0][::-1], row[::-1]) for row in rows[1:]),
    )


def match(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    tokens: Tokens,
    *,
    system: str | None = None,
    chat: bool = True,
    thought: int = 0,
) -> Pairs:
    """The matched pairs among tokenized prompts, aligned; in the order of their first prompt.

    `system`, `chat` and `thought` are those that `tokens` were made with.
    Raises `DialError` where no prompt carries a `pair_id`.
    """
    probes = read_prompts(model, _PROBES, system=system, chat=chat, thought=thought)
    heads = [row[:stop] for row, (stop, _) in _with_blocks(model, probes, chat, thought)]
    opening, closing = _shared_ends(heads)
    rows = _with_blocks(model, tokens, chat, thought)
    place = {prompt.id: i for i, prompt in enumerate(prompts)}
    found, index = [], []
    for name, (clean, corrupted) in pairs(prompts).items():
        at = place[clean.id], place[corrupted.id]
        (first, block), (second, other) = rows[at[0]], rows[at[1]]
        found.append(
            Pair(
                id=name,
                clean=clean,
                corrupted=corrupted,
                lengths=(len(first), len(second)),
                roles=align_around((first, second), (block, other), opening, closing),
            )
        )
        index.append(at)
    if not found:
        raise DialError(
            "these prompts have no matched pairs, and patching needs them: give a HARMFUL prompt "
            "and its EDGE or BENIGN partner the same pair_id"
        )
    clean_rows, corrupted_rows = zip(*index, strict=True)
    return Pairs(tuple(found), pick(tokens, clean_rows), pick(tokens, corrupted_rows))


def _with_blocks(
    model: TransformerBridge, tokens: Tokens, chat: bool, thought: int
) -> list[tuple[list[int], tuple[int, int]]]:
    """The ids of every row, and where its think block stands: at its end and empty where there is
    none."""
    block = think_block(model.tokenizer, thought > 0) if chat else None
    found = []
    for row in unpadded(tokens):
        span = None if block is None else block.span(model.tokenizer, row)
        found.append((row, span or (len(row), len(row))))
    return found


def pick(tokens: Tokens, rows: Iterable[int]) -> Tokens:
    """These rows, with the padding that none of them needs cut away."""
    index = torch.tensor(list(rows), device=tokens.ids.device)
    return Tokens(tokens.ids[index], tokens.mask[index]).rows(0, len(index))


def unpadded(tokens: Tokens) -> list[list[int]]:
    """The token ids of every row, without padding."""
    real = tokens.mask.bool()
    return [ids[keep].tolist() for ids, keep in zip(tokens.ids.cpu(), real.cpu(), strict=True)]


def far_apart(
    clean: ArrayLike, corrupted: ArrayLike, gap: int | float, n: int | None = None, seed: int = 0
) -> list[int]:
    """Indices of the pairs with `|clean - corrupted| >= gap` (and not 0), in order.

    An effect is a share of that difference: where it is small, the share says nothing. Of those,
    `n` drawn by seed. Raises `DialError` where none is left, with the largest difference.
    """
    apart = np.abs(np.asarray(clean, dtype=float) - np.asarray(corrupted, dtype=float))
    kept = np.flatnonzero((apart >= gap) & (apart > 0))
    if not len(kept):
        raise DialError(
            f"none of {len(apart)} pairs differs in score by {gap:g} or more (the largest "
            f"difference is {apart.max(initial=0):.3g}): lower --gap, or use a model that tells "
            "the prompts of a pair apart"
        )
    if n is not None and n < len(kept):
        kept = np.sort(np.random.default_rng(seed).permutation(kept)[:n])
    return [int(i) for i in kept]


def token_labels(pairs: Pairs, roles: Iterable[str], tokenizer: Any) -> dict[str, str]:
    """The token's text for every role whose token is the same in all prompts of all pairs that have
    it, written on one line (a line end is \\n); "" for the others."""
    labels = {}
    for role in roles:
        ids = {i for side in (0, 1) for i in _ids_at(pairs, role, side)}
        text = str(tokenizer.decode([ids.pop()])) if len(ids) == 1 else ""
        labels[role] = json.dumps(text, ensure_ascii=False)[1:-1]
    return labels


def _ids_at(pairs: Pairs, role: str, side: int) -> list[int]:
    where = positions_of(pairs, role, side)
    ids = (pairs.clean, pairs.corrupted)[side].ids.cpu()
    return [int(row[at]) for row, at in zip(ids, where.tolist(), strict=True) if at < 0]


def positions_of(pairs: Pairs, role: str, side: int) -> Int[Tensor, " pair"]:
    """Where the role stands in each pair's clean (side 0) or corrupted (1) prompt; 0 = nowhere."""
    found = (pair.where(role) for pair in pairs.items)
    return torch.tensor([0 if at is None else at[side] for at in found])


# --------------------------------------------------------------------------------------------------
# Roles: which part a token plays in a pair of prompts that differ in one phrase.
#
# A clean prompt (HARMFUL) and a corrupted one (EDGE or BENIGN) share how they begin and how they
# end. Positions are named by their part, so that pairs of different lengths can be averaged:
#
#     start+1 ...      the template's opening tokens, counted from the first
#     ... before-1     shared words before the phrase, counted back from it
#     ... phrase-1     the differing phrase, counted from its end
#     after+1 ...      shared words after it, counted from it
#     ... turn-1       of a model that thinks, the template's tokens before the block, counted back
#     ... think-1      its think block, tags included, counted back from the closing tag
#     ... end-1        the template's closing tokens, counted back from the last
#
# Everything is read off two rows of token ids.


Positions = tuple[int, int]
"""(in the clean prompt, in the corrupted prompt), both counted from the end: -1 is the last."""

ROLE_PARTS = ("start", "before", "phrase", "after", "turn", "think", "end")

_ROLE = re.compile(rf"({'|'.join(ROLE_PARTS)})([+-]\d+)")


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


def align_around(
    rows: tuple[Sequence[int], Sequence[int]],
    blocks: tuple[tuple[int, int], tuple[int, int]],
    opening: int = 0,
    closing: int = 0,
) -> dict[str, Positions]:
    """`align` for rows with a think block at (start, stop): what stands before the block is aligned
    by itself, its last template tokens are `turn-k`, the block's tokens `think-k`, and `end-k` are
    those after it. Thoughts differ in length, and the first tokens of the longer have no role."""
    (a, b), ((start, stop), (other, end)) = rows, blocks
    if start == len(a) and other == len(b):
        return align(a, b, opening, closing)
    roles: dict[str, Positions] = {}
    for role, (first, second) in align(a[:start], b[:other], opening, closing).items():
        name = role.replace("end-", "turn-")
        roles[name] = first - (len(a) - start), second - (len(b) - other)
    tail = len(a) - stop, len(b) - end
    for k in range(min(stop - start, end - other), 0, -1):
        roles[f"think-{k}"] = -k - tail[0], -k - tail[1]
    for k in range(min(tail), 0, -1):
        roles[f"end-{k}"] = -k, -k
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
        raise DialError(
            f"no role {role!r}: expected start+1, before-1, phrase-1, after+1, turn-1, think-1 or "
            "end-1"
        )
    return ROLE_PARTS.index(found[1]), int(found[2])
