"""Contrast vectors for a study: which pairs, which vectors, and which prompts are left to measure.

What a vector was learned from is never measured on. This module knows a study and flags. It does
not steer.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from refusal_dial.activations import collect
from refusal_dial.contrast import ContrastPair, contrast_tokens, from_matched, load_contrast
from refusal_dial.directions import Direction, Provenance, caa
from refusal_dial.model import identity
from refusal_dial.prompts import Prompt, holdout_split, of_subset, some_of_each
from refusal_dial.replies.flags import ContrastFlags
from refusal_dial.replies.layers import CHOOSE, HARMFUL, REPORT
from refusal_dial.study import Study
from refusal_dial.types import DialError


def contrast_pairs(study: Study, flags: ContrastFlags) -> tuple[list[ContrastPair], list[Prompt]]:
    """(at most `n_pairs` pairs to learn from, prompts left to measure on).

    `embedded` pairs are matched prompts of the study. No prompt that stands in a pair is measured.
    """
    embedded = flags.pairs == "embedded"
    found = from_matched(study.prompts) if embedded else load_contrast(flags.pairs)
    order = np.random.default_rng(flags.seed).permutation(len(found))
    pairs = [found[i] for i in sorted(order[: flags.n_pairs])]
    asked = {request for pair in pairs for request, _ in (pair.positive, pair.negative)}
    return pairs, [prompt for prompt in study.prompts if prompt.text not in asked]


def contrast_vectors(
    study: Study, flags: ContrastFlags, pairs: Sequence[ContrastPair]
) -> list[Direction]:
    """For each layer, the mean difference over pairs at the last token."""
    chat = not flags.plain
    both = [
        collect(study.model, tokens, study.layers, site=flags.site, batch_size=flags.batch_size)[0]
        for tokens in contrast_tokens(study.model, pairs, system=flags.system, chat=chat)
    ]
    who = identity(study.model)
    text = json.dumps([asdict(pair) for pair in pairs], sort_keys=True)
    return [
        caa(
            both[0][i],
            both[1][i],
            Provenance(
                layer=layer,
                site=flags.site,
                pos=flags.pos,
                model=who.name,
                revision=who.revision,
                seed=flags.seed,
                data_hash=hashlib.sha256(text.encode()).hexdigest()[:16],
            ),
        )
        for i, layer in enumerate(study.layers)
    ]


def halves(prompts: Sequence[Prompt], n: int, seed: int) -> tuple[list[Prompt], dict[str, str]]:
    """(at most n prompts of each subset, the half that each is in, by id).

    Raises `DialError` where a half would be without HARMFUL prompts, or without others.
    """
    chosen = some_of_each(prompts, n, seed)
    report = set()
    for subset in dict.fromkeys(prompt.subset for prompt in chosen):
        report |= {p.id for p in holdout_split(of_subset(chosen, subset), seed)[1]}
    half = {p.id: REPORT if p.id in report else CHOOSE for p in chosen}
    for name in (CHOOSE, REPORT):
        harmful = Counter(p.subset == HARMFUL for p in chosen if half[p.id] == name)
        if not (harmful[True] and harmful[False]):
            raise DialError(
                f"of {len(prompts)} prompts that no pair has, the half to {name} on has "
                f"{harmful[True]} HARMFUL and {harmful[False]} others, and both are needed: give "
                "fewer --n-pairs or more --prompts"
            )
    return chosen, half
