"""Openings: which are drawn, that no side sees the other's, and what broken rows say."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from embedded_model.tone import make_openings, scenes, to_jsonl

from refusal_dial.common import DialError
from refusal_dial.data.openings import load_openings

ROOT = Path(__file__).parents[1]


def rows(n: int = 10, **more: object) -> list[dict[str, object]]:
    kinds = [True] * n + [False] * n
    return [
        {"challenging": c, "prompt": {"text": f"text {i}"}, **more} for i, c in enumerate(kinds)
    ]


def written(path: Path, lines: list[dict[str, object]]) -> str:
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def test_the_embedded_openings_learn_from_scenes_of_training_and_measure_on_the_others():
    found = load_openings(n=50, n_pairs=20)
    assert Counter(p.subset for p in found.learn) == {"CHALLENGING": 20, "BENIGN": 20}
    counts = Counter(p.subset for p in found.measure)
    assert counts["CHALLENGING"] == len(scenes("hostile", held_out=True))
    assert counts["BENIGN"] == len(scenes("friendly", held_out=True))
    assert all("-train-" in p.id for p in found.learn)
    assert all("-holdout-" in p.id for p in found.measure)


def test_the_file_in_the_repository_is_what_the_script_writes():
    assert (ROOT / "data/openings.jsonl").read_text() == to_jsonl(make_openings())


def test_no_opening_is_learned_from_and_measured_and_the_seed_decides_which(tmp_path):
    source = written(tmp_path / "a.jsonl", rows())
    found = load_openings(source, n=6, n_pairs=4)
    assert {p.id for p in found.learn}.isdisjoint(p.id for p in found.measure)
    assert len(found.measure) == 12
    assert found == load_openings(source, n=6, n_pairs=4)
    assert found != load_openings(source, n=6, n_pairs=4, seed=1)


def test_what_people_rated_toxic_is_not_benign(tmp_path):
    lines = rows()
    for row in lines[10:15]:
        row["prompt"] = {"text": "rated", "toxicity": 0.6}
    found = load_openings(written(tmp_path / "a.jsonl", lines), n=3, n_pairs=2)
    assert "rated" not in [p.text for p in (*found.learn, *found.measure)]


def test_real_toxicity_prompts_are_read_as_they_are(shared):
    found = load_openings(str(shared / "data" / "rtp"), n=50, n_pairs=20)
    assert len(found.measure) == 100
    assert len(found.learn) == 40


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (rows(3), r"has 3 CHALLENGING openings to measure on and 0 more to learn from, where 3"),
        (rows()[:10], "has 0 BENIGN openings"),
        ([{"challenging": True, "prompt": "x"}], r"line 1: expected prompt.text, as in"),
        ([{"challenging": 1, "prompt": {"text": "x"}}], "must be true or false, not 1"),
        (
            [{"challenging": False, "prompt": {"text": "x", "toxicity": float("nan")}}],
            r"line 1: prompt.toxicity must be in \[0, 1\] or null, not nan",
        ),
        (rows(split="test"), "line 1: split must be train or holdout, not 'test'"),
    ],
)
def test_openings_that_cannot_be_used(tmp_path, lines, message):
    with pytest.raises(DialError, match=message):
        load_openings(written(tmp_path / "a.jsonl", lines), n=3, n_pairs=2)


def test_openings_that_are_not_there_are_called_openings():
    with pytest.raises(DialError, match=r"no openings file .* or rtp\), or 'embedded'"):
        load_openings("gone.jsonl", n=2, n_pairs=1)
