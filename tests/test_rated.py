"""Rated texts: what is read from each format, and figures where they are known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal_dial.common import DialError
from refusal_dial.scoring.ratings import Rated, correlation, figures, load_rated, toxic_auc

numbers = st.lists(st.floats(-5, 5), min_size=4, max_size=30)


@given(numbers)
def test_a_scorer_that_says_what_people_say_is_perfect(values):
    ratings = np.arange(len(values)) / (len(values) - 1)
    assert toxic_auc(ratings, ratings) == 1
    assert toxic_auc(-ratings, ratings) == 0
    assert correlation(ratings, ratings) == pytest.approx(1)


@given(numbers)
def test_auc_counts_pairs_and_ties_half(values):
    scores = np.round(np.array(values))
    ratings = np.arange(len(values)) % 2 * 1.0
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[1::2] for b in scores[::2]]
    assert toxic_auc(scores, ratings) == pytest.approx(np.mean(pairs))


def test_figures_without_two_sides_or_without_spread_are_unknown():
    scores = np.array([0.1, 0.9, 0.4])
    assert np.isnan(toxic_auc(scores, np.ones(3)))
    assert np.isnan(correlation(np.ones(3), scores))


def test_intervals_hold_the_figure_and_what_is_unscored_is_left_out():
    rng = np.random.default_rng(0)
    ratings = rng.random(200)
    scores = ratings + rng.normal(0, 0.3, 200)
    rated = Rated("made", ("",) * 200, tuple(ratings))
    table = figures(scores, rated)
    assert (table["low"] < table["value"]).all()
    assert (table["value"] < table["high"]).all()
    scores[:50] = np.nan
    rest = Rated("made", ("",) * 150, tuple(ratings[50:]))
    assert figures(scores, rated).equals(figures(scores[50:], rest))


@given(st.lists(st.tuples(st.floats(0, 1) | st.just(np.nan), st.floats(0, 1)), max_size=8))
def test_every_figure_has_a_number_with_its_interval_or_says_what_is_missing(pairs):
    scores = np.array([score for score, _ in pairs])
    table = figures(scores, Rated("m", ("",) * len(pairs), tuple(r for _, r in pairs)), n=20)
    assert list(table["figure"]) == ["AUC", "correlation"]
    for row in table.itertuples():
        numbers = np.isfinite([row.value, row.low, row.high])
        assert numbers.all() if row.reason == "" else not numbers.any()
        assert row.reason == "" or row.reason.startswith("needs ")


@pytest.mark.parametrize(
    ("ratings", "reasons"),
    [
        ([], ["2 texts rated toxic and 2 others, and has 0 and 0", "3 scored texts or more"]),
        ([1.0], ["2 texts rated toxic and 2 others, and has 1 and 0", "3 scored texts or more"]),
        ([1.0] * 5, ["2 texts rated toxic and 2 others, and has 5 and 0", "ratings that differ"]),
        ([0.0, 1.0, 1.0], ["2 texts rated toxic and 2 others, and has 2 and 1", ""]),
        ([0.0, 0.0, 1.0, 1.0], ["", ""]),
    ],
)
def test_too_few_texts_are_said(ratings, reasons):
    scores = np.linspace(0.1, 0.7, len(ratings))
    table = figures(scores, Rated("m", ("",) * len(ratings), tuple(ratings)))
    for found, reason in zip(table["reason"], reasons, strict=True):
        assert reason in found
        assert bool(found) is bool(reason)


def written(path, lines):
    path.write_text("\n".join(lines))
    return path


def test_prompts_and_continuations_are_two_sets(tmp_path):
    rows = [
        {"prompt": {"text": "a", "toxicity": 0.9}, "continuation": {"text": "b", "toxicity": None}},
        {"prompt": {"text": "c", "toxicity": 0.1}, "continuation": {"text": "d", "toxicity": 0.2}},
    ]
    path = written(tmp_path / "rtp.jsonl", map(json.dumps, rows))
    prompts, continuations = load_rated(path)
    assert prompts == Rated("rtp prompts", ("a", "c"), (0.9, 0.1))
    assert continuations == Rated("rtp continuations", ("d",), (0.2,))


def test_a_csv_of_yes_and_no(tmp_path):
    path = written(tmp_path / "mine.csv", ["comment,toxic", '"a, b",True', "c,0"])
    assert load_rated(path) == [Rated("mine", ("a, b", "c"), (1.0, 0.0))]


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("a.csv", ["comment,toxic", "x,maybe"], "line 2: expected true or false, not 'maybe'"),
        ("a.csv", ["words,toxic", "x,1"], "a column comment or comment_text or text"),
        (
            "a.jsonl",
            ['{"prompt": {"text": "a", "toxicity": 0.5}}'],
            r"line 1: expected continuation.text",
        ),
        *(
            (
                "a.jsonl",
                [f'{{"prompt": {{"text": "a", "toxicity": {rating}}}, "continuation": {{}}}}'],
                r"line 1: prompt.toxicity must be in \[0, 1\], not ",
            )
            for rating in ("NaN", "1" + "0" * 400, "-0.1", "true", '"high"')
        ),
        (
            "a.jsonl",
            ['{"comment": "\\ud800", "toxic": 1}'],
            "line 1: comment holds half a surrogate",
        ),
        (
            "a.jsonl",
            ['{"prompt": {"text": "\\udfff", "toxicity": 0.1}}'],
            "line 1: prompt.text holds half a surrogate",
        ),
        ("a.jsonl", ['{"comment": "x", "toxic": [1]}'], r"expected true or false, not \[1\]"),
        (
            "a.jsonl",
            [f'{{"comment": "x", "toxic": {"9" * 4000}}}'],
            r"true or false, not 9{200}\.\.\.$",
        ),
        ("a.jsonl", ['{"comment": null, "toxic": 1}'], "line 1: comment must be text, not None"),
        ("b.csv", None, "no prompts file"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, lines, message):
    if lines is not None:
        written(tmp_path / name, lines)
    with pytest.raises(DialError, match=message):
        load_rated(tmp_path / name)
