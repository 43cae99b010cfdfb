"""A study of few prompts at layer 20, the four directions with a known answer, and small flags."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial

from refusal_dial.cli.flags import VerifyFlags
from refusal_dial.data.prompts import (
    data_hash,
    holdout_split,
    load_prompts,
    of_subset,
    some_of_each,
)
from refusal_dial.directions.learning import (
    Direction,
    Learn,
    Provenance,
    random_directions,
    shuffled_directions,
    top_bottom,
    unrelated_direction,
)
from refusal_dial.model.loading import identity
from refusal_dial.studies.base import Study, study_of

LAYER = 20


def few_prompts(path, edge=100):
    """Some of the embedded prompts."""
    prompts = load_prompts()
    sizes = {"EDGE": edge, "HARMFUL": 12, "BENIGN": 36}
    chosen = [p for name, n in sizes.items() for p in some_of_each(of_subset(prompts, name), n, 0)]
    free = [asdict(p) | {"pair_id": None} for p in chosen]
    path.write_text("".join(json.dumps(row) + "\n" for row in free))
    return path


def tiny_prompts(folder):
    """As many of each subset as a verdict takes, of a few bytes."""
    rows = [
        {"text": f"{subset.lower()} {i} {'x' * (3 * i % 7)}", "subset": subset}
        for subset in ("HARMFUL", "EDGE", "BENIGN")
        for i in range(16)
    ]
    path = folder / "tiny.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags_for(prompts, direction, **changes) -> VerifyFlags:
    small = {
        "device": "cpu",
        "prompts": str(prompts),
        "n_random": 49,
        "n_permutations": 99,
        "n_replies": 3,
        "max_new_tokens": 2,
        "max_benign": 0.25,
        "max_kl": 0.5,
        "max_cost": 0.5,
    }
    return VerifyFlags(direction=str(direction), **{**small, **changes})


def study_at(model, prompts) -> Study:
    return study_of(model, flags_for(prompts, ""), (LAYER,), "resid_pre", -1)


def known_answers(study: Study) -> dict[str, Direction]:
    """A learned direction, and three that should not pass, all from the same half of EDGE."""
    train, _ = holdout_split(of_subset(study.prompts, "EDGE"), 0)
    rows = study.rows(train)
    scores = [float(score) for score in study.scores[rows]]
    who = identity(study.model)
    about = Provenance(
        LAYER,
        "resid_pre",
        -1,
        model=who.name,
        revision=who.revision,
        seed=0,
        prompt_ids=tuple(prompt.id for prompt in train),
        data_hash=data_hash(train),
    )
    learn: Learn = partial(top_bottom, study.activations[0][rows], provenance=about)
    learned = learn(scores)
    lengths = [float(n) for n in study.tokens.mask.sum(1)[rows]]
    return {
        "refusal": learned,
        "random": random_directions(learned, 1, 777)[0],
        "shuffled": shuffled_directions(learned, learn, scores, 2, 777)[1],
        "length": unrelated_direction(learned, learn, lengths, "length"),
    }
