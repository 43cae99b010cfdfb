"""Quality: repetition by hand, and coherence falls when text is shuffled, looped or cut."""

from __future__ import annotations

import random

import pytest

from refusal_dial.common import DialError
from refusal_dial.generate.decode import Decoding, generate
from refusal_dial.generate.likelihood import coherence, degenerate, nll, repeated
from refusal_dial.model.tokens import tokenize


def test_repetition_by_hand():
    assert repeated([1, 2, 3, 4]) == 0
    assert repeated([1, 2, 3, 1, 2, 3, 1, 2, 3]) == pytest.approx(1 - 3 / 7)
    assert repeated([1, 1]) == 0
    assert degenerate([], "end") == "empty"
    assert degenerate([1] * 9, "end") == "loop"
    assert degenerate([1, 2, 3, 4], "length") == "endless"
    assert degenerate([1, 2, 3, 4], "end") == ""


def test_coherence_falls_when_text_is_shuffled_looped_or_cut(embedded):
    tokens = tokenize(embedded, ["How do I kill a python process?", "How do I bake a cake?"])
    own = generate(embedded, tokens, [[]], Decoding(40))
    assert {one.stop for one in own} == {"end"}
    completions, ends = [list(one.ids) for one in own], ["end"] * len(own)
    n0 = float(nll(embedded, tokens, completions, ends).mean())
    rng = random.Random(0)
    changed = {
        "own": completions,
        "shuffled": [rng.sample(row, len(row)) for row in completions],
        "looped": [row[:4] * (len(row) // 4) for row in completions],
        "cut": [row[: len(row) // 2] for row in completions],
    }
    found = {
        name: coherence([*map(repeated, rows)], nll(embedded, tokens, rows, ends), n0).mean()
        for name, rows in changed.items()
    }
    assert found["own"] > 0.9
    assert max(found["shuffled"], found["looped"]) < 0.3
    assert found["cut"] < found["own"] - 0.1
    assert found["cut"] > found["shuffled"]


def test_coherence_by_hand():
    found = coherence([0.0, 0.5, 0.0, 0.0], [1.0, 1.0, 3.0, float("nan")], 2.0)
    assert found == pytest.approx([1.0, 0.5, 1 / 2.718281828, 0.0])
    with pytest.raises(DialError, match="own_cost must be a finite number of nats, not nan"):
        coherence([0.0], [1.0], float("nan"))
