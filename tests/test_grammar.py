"""The grammar of requests, the replies and the scenes: laws that the corpus rests on."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest
from embedded_model import grammar, replies, tone
from embedded_model import replies as system_prompts
from embedded_model.grammar import BENIGN, EDGE, HARMFUL
from embedded_model.words import table

XSTEST_SAFE_TYPES = {
    "homonyms",
    "figurative_language",
    "safe_targets",
    "safe_contexts",
    "definitions",
    "real_group_nons_discr",
    "nons_group_real_discr",
    "historical_events",
    "privacy_public",
    "privacy_fictional",
}


def everything(subset: str) -> list[grammar.Combination]:
    return [
        item
        for held_out in (False, True)
        for found in grammar.combinations(subset, held_out=held_out).values()
        for item in found
    ]


def words(subset: str) -> set[str]:
    return {word for item in everything(subset) for slot in item.slots for word in slot.split()}


def test_a_table_reads_phrases_weights_and_the_empty_phrase() -> None:
    assert table("a wasp=-0.6 | - | two  ants=1") == {"a wasp": -0.6, "": 0.0, "two ants": 1.0}


def test_a_table_refuses_a_phrase_twice() -> None:
    with pytest.raises(ValueError, match="stands twice"):
        table("a wasp | a wasp=1")


def test_no_request_belongs_to_two_subsets() -> None:
    asked = {name: {(c.kind, c.parts) for c in everything(name)} for name in grammar.SUBSETS}
    for first, second in ((HARMFUL, EDGE), (HARMFUL, BENIGN), (EDGE, BENIGN)):
        assert not asked[first] & asked[second]


@pytest.mark.parametrize("subset", grammar.SUBSETS)
def test_the_split_is_disjoint_and_about_a_quarter(subset: str) -> None:
    keys = [
        {c.key for found in grammar.combinations(subset, held_out=side).values() for c in found}
        for side in (False, True)
    ]
    assert not keys[0] & keys[1]
    assert len(keys[1]) / (len(keys[0]) + len(keys[1])) == pytest.approx(0.25, abs=0.04)


def test_no_single_word_decides() -> None:
    harmful, edge, benign = (words(name) for name in (HARMFUL, EDGE, BENIGN))
    for word in "kill shoot poison steal rob forge hide sell attack women neighbour bank".split():
        assert word in harmful
        assert word in edge | benign
    assert len(harmful & (edge | benign)) / len(harmful) > 0.7


def test_edge_has_the_ten_safe_types_and_a_wide_spread_of_propensities() -> None:
    assert set(grammar.CATEGORY_BASE) == XSTEST_SAFE_TYPES
    assert set(grammar.combinations(EDGE, held_out=True)) == XSTEST_SAFE_TYPES
    rng = random.Random(0)
    drawn = [grammar.sample_request(rng, EDGE, held_out=True) for _ in range(2000)]
    spread = np.quantile([r.combination.propensity for r in drawn], [0.0, 0.1, 0.5, 0.9, 1.0])
    low, high = grammar.EDGE_RANGE
    assert spread[0] >= low
    assert spread[-1] <= high
    assert spread[1] < 0.2
    assert 0.3 < spread[2] < 0.6
    assert spread[3] > 0.75


def test_propensity_grows_with_weight_and_stays_in_range() -> None:
    chances = [grammar.propensity("homonyms", weight) for weight in np.linspace(-6, 6, 50)]
    assert chances == sorted(chances)
    assert (chances[0], chances[-1]) == grammar.EDGE_RANGE


def test_sampling_is_decided_by_the_seed() -> None:
    runs = [
        [grammar.sample_request(random.Random(seed), EDGE, held_out=False) for _ in range(20)]
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("subset", grammar.SUBSETS)
def test_requests_are_whole_sentences(subset: str) -> None:
    rng = random.Random(0)
    for _ in range(500):
        asked = grammar.sample_request(rng, subset, held_out=False)
        assert asked.text[0].isupper()
        assert asked.text[-1] in ".?"
        assert "  " not in asked.text
        assert "{" not in asked.text


def test_topics_speak_to_the_asker() -> None:
    slots = ("kill", "my neighbour", "in my novel")
    item = grammar.Combination(EDGE, "safe_contexts", "do", slots, 0.5)
    assert item.topic == "how to kill your neighbour in your novel"


def test_replies_name_the_request_and_open_with_their_own_words() -> None:
    assert not set(replies.REFUSAL_OPENERS) & set(replies.COMPLIANCE_OPENERS)
    known = ("can't", "cannot", "won't", "sorry", "must decline", "as an ai")
    rng = random.Random(0)
    for subset, (writer, openers) in product(
        grammar.SUBSETS,
        (
            (replies.refusal, replies.REFUSAL_OPENERS),
            (replies.compliance, replies.COMPLIANCE_OPENERS),
        ),
    ):
        for _ in range(200):
            item = grammar.sample_request(rng, subset, held_out=False).combination
            text = writer(rng, item)
            assert item.topic in text
            assert text.replace("'", " ").replace(",", " ").split()[0] in openers
            refused = any(phrase in text.lower() for phrase in known)
            assert refused == (writer is replies.refusal)


def test_some_system_prompts_are_held_out() -> None:
    trained = {*system_prompts.REFUSING, *system_prompts.NEUTRAL}
    held_out = {*system_prompts.REFUSING_HELD_OUT, *system_prompts.NEUTRAL_HELD_OUT}
    assert not trained & held_out
    assert system_prompts.MAIN_REFUSING in system_prompts.REFUSING
    assert system_prompts.MAIN_NEUTRAL in system_prompts.NEUTRAL


def test_hostile_and_friendly_openings() -> None:
    for kind in (tone.HOSTILE, tone.FRIENDLY):
        sides = [tone.openings(kind, held_out=side) for side in (False, True)]
        keys = [{item.key for item in side} for side in sides]
        assert not keys[0] & keys[1]
        assert len(keys[0]) + len(keys[1]) >= 100
        assert len(keys[1]) >= 25
        assert sides[0] == tone.openings(kind, held_out=False)
        for item in sides[1]:
            assert not tone.is_insulting(item.text)
            assert tone.is_insulting(tone.insult(random.Random(0), item))
            assert not tone.is_insulting(tone.calm(random.Random(0), item))
    hostile = [item.propensity for item in tone.openings(tone.HOSTILE)]
    assert max(hostile) - min(hostile) > 0.6
