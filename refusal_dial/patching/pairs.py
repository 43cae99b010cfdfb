"""Matched pairs: two prompts that differ in one phrase, aligned token by token.

Finds the pairs among tokenized prompts, names their positions by role (`roles`), and leaves out
those whose scores are too close to tell anything. This module knows tokenizers and templates. It
does not know activations.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import ArrayLike
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.patching.roles import Positions, align, common_prefix, role_order
from refusal_dial.prompts import Prompt, pairs
from refusal_dial.tokens import Tokens, tokenize
from refusal_dial.types import DialError

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
    """How many tokens of every prompt the template writes: (at its beginning, at its end).

    Found by tokenizing texts that have nothing in common; a BOS counts as template.
    """
    rows = unpadded(tokenize(model, _PROBES, system=system, chat=chat))
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
) -> Pairs:
    """The matched pairs among tokenized prompts, aligned; in the order of their first prompt.

    `system` and `chat` are those that `tokens` were made with.
    Raises `DialError` where no prompt carries a `pair_id`.
    """
    opening, closing = template_lengths(model, system, chat)
    rows, place = unpadded(tokens), {prompt.id: i for i, prompt in enumerate(prompts)}
    found, index = [], []
    for name, (clean, corrupted) in pairs(prompts).items():
        at = place[clean.id], place[corrupted.id]
        first, second = rows[at[0]], rows[at[1]]
        found.append(
            Pair(
                id=name,
                clean=clean,
                corrupted=corrupted,
                lengths=(len(first), len(second)),
                roles=align(first, second, opening, closing),
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
    it, spelt on one line (a line end is \\n); "" for the others."""
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
