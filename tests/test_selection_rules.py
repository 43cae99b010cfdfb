"""Published rules make the published choices, from the published numbers and from small ones."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from refusal_dial.cli.flags import RULE_LIMITS, Limits
from refusal_dial.common import DialError
from refusal_dial.studies.selection import (
    chosen,
    dropped,
    evaluations_json,
    needed_layers,
    rank,
    read_evaluations,
)

PUBLISHED = {"qwen-1_8b-chat": (24, (-2, 15)), "meta-llama-3-8b-instruct": (32, (-5, 12))}


def frame(rows):
    return pd.DataFrame(rows, columns=["pos", "layer", "bypass", "induce", "kl"])


def ruled(rule, rows, n_layers=10, limits=None):
    return rank(rule, frame(rows), n_layers, limits or RULE_LIMITS[rule])


# --- parity with what was published


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_evaluations_give_the_published_choice_and_the_published_files(name, shared):
    folder = shared / "data" / "refusal_direction" / name
    n_layers, choice = PUBLISHED[name]
    text = (folder / "select_direction/direction_evaluations.json").read_text()
    candidates = read_evaluations(folder / "select_direction/direction_evaluations.json")
    assert len(candidates) == 5 * n_layers
    ranked = rank("refusal", candidates, n_layers, RULE_LIMITS["refusal"])
    assert chosen(ranked) == choice
    about = json.loads((folder / "direction_metadata.json").read_text())
    assert chosen(ranked) == (about["pos"], about["layer"])
    assert evaluations_json(candidates) == text
    kept = (folder / "select_direction/direction_evaluations_filtered.json").read_text()
    assert evaluations_json(ranked[ranked["dropped"] == ""]) == kept


# --- each filter, by itself

GOOD = (-1, 3, -5.0, 1.0, 0.05)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ((-1, 8, -9.0, 1.0, 0.05), "layer from 8 on"),
        ((-1, 7, -4.0, 1.0, 0.05), ""),
        ((-1, 3, -9.0, 1.0, 0.101), "KL over 0.1: 0.101"),
        ((-1, 3, -4.0, 1.0, 0.1), ""),
        ((-1, 3, -9.0, -0.01, 0.05), "induces under 0: -0.01"),
        ((-1, 3, -4.0, 0.0, 0.05), ""),
        ((-1, 3, np.nan, 1.0, 0.05), "NaN in bypass"),
        ((-1, 3, -9.0, 1.0, np.nan), "NaN in kl"),
        ((-1, 3, np.nan, np.nan, 0.0), "NaN in bypass and induce"),
    ],
)
def test_a_candidate_is_dropped_for_its_own_reason_and_the_good_one_chosen(row, reason):
    ranked = ruled("refusal", [row, GOOD])
    assert ranked["dropped"].tolist() == ([reason, ""] if not reason else ["", reason])
    assert ranked.iloc[0]["bypass"] == -5.0
    assert dropped(ranked) == ({reason.split(":")[0]: 1} if reason else {})


def test_a_reason_of_ones_own_comes_before_every_rule():
    candidates = frame([(-1, 0, -9.0, 5.0, 0.0), GOOD]).assign(dropped=["no direction", ""])
    ranked = rank("refusal", candidates, 10, RULE_LIMITS["refusal"])
    assert ranked["dropped"].tolist() == ["", "no direction"]


def test_the_lowest_bypass_is_chosen_and_the_first_of_equals():
    rows = [(-2, 1, -3.0, 1.0, 0.0), (-2, 2, -7.0, 1.0, 0.0), (-1, 2, -7.0, 9.0, 0.0)]
    assert chosen(ruled("refusal", rows)) == (-2, 2)


def test_limits_can_be_loosened():
    rows = [(-1, 9, -9.0, -5.0, 3.0), GOOD]
    assert chosen(ruled("refusal", rows)) == (-1, 3)
    assert chosen(ruled("refusal", rows, limits=Limits(None, None, None))) == (-1, 9)


def test_layers_that_a_rule_discards_need_not_be_measured():
    assert list(needed_layers("refusal", 24, RULE_LIMITS["refusal"])) == list(range(19))
    assert list(needed_layers("cosmic", 24, RULE_LIMITS["cosmic"])) == list(range(24))
    assert list(needed_layers("effect", 24, RULE_LIMITS["effect"])) == list(range(24))


# --- the other rules


def test_cosmic_takes_the_highest_sum_of_both_similarities():
    rows = [(-2, 1, 0.9, 0.2, 0.0), (-2, 2, 0.7, 0.6, 0.0), (-2, 3, 0.2, 0.9, 0.0)]
    ranked = ruled("cosmic", rows)
    assert chosen(ranked) == (-2, 2)
    assert ranked["value"].tolist() == pytest.approx([1.3, 1.1, 1.1])


def test_cosmic_drops_late_layers_of_the_last_position_only():
    early = [
        (pos, layer, -abs(layer - 3.0), -abs(layer - 4.0), 0.0)
        for pos in (-3, -2)
        for layer in range(8)
    ]
    last = [(-1, layer, 5.0 + layer, 5.0 + layer, 0.0) for layer in range(8)]
    ranked = ruled("cosmic", early + last)
    late = ranked[ranked["dropped"] == "at -1 and past where other positions peak"]
    assert sorted(late["layer"]) == [5, 6, 7]
    assert set(late["pos"]) == {-1}
    assert chosen(ranked) == (-1, 4)
    assert chosen(ruled("cosmic", last)) == (-1, 7)  # nothing to compare with


def test_effect_asks_for_the_largest_change_of_any_score():
    rows = [(-1, 1, 100.0, 103.0, 9.0), (-1, 9, 90.0, 91.0, 9.0), (-1, 2, 90.0, 95.0, 9.0)]
    assert chosen(ruled("effect", rows)) == (-1, 2)
    assert dropped(ruled("effect", rows)) == {}


# --- errors


def test_where_all_are_dropped_the_reasons_are_counted():
    rows = [(-1, 9, -9.0, 1.0, 0.0), (-1, 1, -9.0, -2.0, 0.0), (-1, 2, -9.0, -3.0, 0.0)]
    says = r"all 3 candidates were dropped \(2 induces under 0, 1 layer from 8 on\): the model may"
    with pytest.raises(DialError, match=says):
        chosen(ruled("refusal", rows))
    with pytest.raises(DialError, match="there were none"):
        chosen(ruled("refusal", []))


def test_an_unknown_rule_names_the_choices():
    with pytest.raises(DialError, match="unknown rule 'cosmc': did you mean 'cosmic'"):
        rank("cosmc", frame([GOOD]), 10, Limits())


@pytest.mark.parametrize("content", ["{", "[1]", '[{"position": -1}]', '{"a": 1}', "null"])
def test_a_file_without_evaluations_says_what_was_expected(content, tmp_path):
    path = tmp_path / "direction_evaluations.json"
    path.write_text(content)
    with pytest.raises(DialError, match="holds no evaluations: expected a list of position, layer"):
        read_evaluations(path)
    with pytest.raises(DialError, match="no evaluations"):
        read_evaluations(tmp_path / "gone.json")
