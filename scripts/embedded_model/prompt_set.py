"""The prompts of the experiments: held-out requests, balanced, with matched pairs among them.

A matched pair is a HARMFUL request and an EDGE or BENIGN one in the same sentence frame that
differ in exactly one slot, whose two phrases have as many tokens as each other.  EDGE partners
are chosen among combinations of low designed propensity, so that the pair differs in what the
model does as well as in what is asked.

Everything is decided by a hash of the words, so the set is the same on every machine; the trained
tokenizer is needed only to compare lengths.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import cycle, islice

from tokenizers import Tokenizer

from embedded_model.grammar import (
    BENIGN,
    EDGE,
    HARMFUL,
    SUBSETS,
    Combination,
    combinations,
    request,
)
from embedded_model.tokenizer import train_tokenizer

COUNTS = {HARMFUL: 140, EDGE: 260, BENIGN: 140}

PAIRS = {EDGE: 60, BENIGN: 60}

LOW_PROPENSITY = 0.45


@dataclass(frozen=True)
class PromptRow:
    """One line of data/prompts.jsonl."""

    id: str
    text: str
    subset: str
    category: str
    pair_id: str | None


@dataclass(frozen=True)
class Pair:
    """A HARMFUL combination and its partner, equal but for one slot."""

    harmful: Combination
    partner: Combination


def _rank(text: str) -> bytes:
    """A fixed arbitrary order."""
    return hashlib.sha256(f"prompts:{text}".encode()).digest()


def _held_out(subset: str) -> dict[str, list[Combination]]:
    """The held-out combinations of a subset by category, each list in the fixed order."""
    return {
        category: sorted(found, key=lambda item: _rank(item.key))
        for category, found in sorted(combinations(subset, held_out=True).items())
    }


def same_length(bpe: Tokenizer, first: str, second: str) -> bool:
    """Whether two sentences have equally many tokens."""
    return len(bpe.encode(first).ids) == len(bpe.encode(second).ids)


def candidate_pairs(bpe: Tokenizer, subset: str) -> Iterator[Pair]:
    """Every HARMFUL combination with the held-out partners that differ from it in one slot."""
    index: defaultdict[tuple[str, ...], list[Combination]] = defaultdict(list)
    for found in _held_out(subset).values():
        for item in found:
            if item.propensity <= LOW_PROPENSITY:
                for slot in range(3):
                    index[_without(item, slot)].append(item)
    for found in _held_out(HARMFUL).values():
        for item in found:
            for slot in range(3):
                for other in index[_without(item, slot)]:
                    phrases = item.slots[slot], other.slots[slot]
                    if all(phrases) and same_length(bpe, f" {phrases[0]}", f" {phrases[1]}"):
                        yield Pair(item, other)


def _without(item: Combination, slot: int) -> tuple[str, ...]:
    rest = [phrase for number, phrase in enumerate(item.slots) if number != slot]
    return (item.kind, str(slot), *rest)


def choose_pairs(bpe: Tokenizer, subset: str, count: int, taken: set[str]) -> list[Pair]:
    """Pairs spread over the categories of both sides, no combination twice.

    `taken` holds the keys already used and grows.  Each choice is the candidate whose categories
    and differing phrases have been used least so far.
    """
    left = sorted(
        candidate_pairs(bpe, subset), key=lambda pair: _rank(pair.harmful.key + pair.partner.key)
    )
    used: Counter[str] = Counter()

    def cost(pair: Pair) -> float:
        words = {*pair.harmful.slots, *pair.partner.slots}
        sides = (pair.partner.category, f"harmful {pair.harmful.category}")
        return sum(used[word] for word in words) / len(words) + 1.5 * sum(used[s] for s in sides)

    chosen: list[Pair] = []
    while len(chosen) < count:
        left = [p for p in left if p.harmful.key not in taken and p.partner.key not in taken]
        pair = min(left, key=cost)
        chosen.append(pair)
        taken.update((pair.harmful.key, pair.partner.key))
        used.update({*pair.harmful.slots, *pair.partner.slots})
        used.update((pair.partner.category, f"harmful {pair.harmful.category}"))
    return chosen


def _fill(subset: str, chosen: list[Combination], taken: set[str]) -> list[Combination]:
    """Add combinations until every category of the subset has its even share."""
    pools = _held_out(subset)
    total = COUNTS[subset]
    quota = Counter(islice(cycle(sorted(pools)), total))
    have = Counter(item.category for item in chosen)
    added: list[Combination] = []
    for category in sorted(pools):
        free = [item for item in pools[category] if item.key not in taken]
        added += _spread(free, max(0, quota[category] - have[category]))
    return [*chosen, *added][: max(total, len(chosen))]


def _spread(pool: list[Combination], count: int) -> list[Combination]:
    """Evenly over the range of propensities, in the pool's order where all have the same."""
    if not count:
        return []
    ranked = sorted(pool, key=lambda item: item.propensity)
    return [ranked[(2 * number + 1) * len(ranked) // (2 * count)] for number in range(count)]


def _rows(chosen: dict[str, list[tuple[str, Combination, str | None]]]) -> Iterator[PromptRow]:
    for subset in SUBSETS:
        ordered = sorted(chosen[subset], key=lambda item: (item[1].category, _rank(item[0])))
        for number, (text, combination, pair) in enumerate(ordered, start=1):
            name = f"{subset.lower()}-{number:03d}"
            yield PromptRow(name, text, subset, combination.category, pair)


def make_prompts(bpe: Tokenizer | None = None) -> list[PromptRow]:
    """The whole set, in the order of the file."""
    bpe = bpe or train_tokenizer()
    taken: set[str] = set()
    chosen: dict[str, list[tuple[str, Combination, str | None]]] = {s: [] for s in SUBSETS}
    number = 0
    for subset, count in PAIRS.items():
        for pair in choose_pairs(bpe, subset, count, taken):
            number += 1
            first = request(pair.harmful, number)
            second = request(pair.partner, number)
            if not same_length(bpe, first.text, second.text):
                raise ValueError(f"unequal lengths: {first.text!r} and {second.text!r}")
            name = f"pair-{number:03d}"
            chosen[HARMFUL].append((first.text, pair.harmful, name))
            chosen[subset].append((second.text, pair.partner, name))
    for subset in SUBSETS:
        paired = [item for _, item, _ in chosen[subset]]
        for position, item in enumerate(_fill(subset, paired, taken)[len(paired) :]):
            chosen[subset].append((request(item, position).text, item, None))
            taken.add(item.key)
    return list(_rows(chosen))


def to_jsonl(rows: Iterable[PromptRow]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
