"""Completions: paired over cells, alpha 0 is the baseline, and every row has its own cost."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from refusal_dial.cells import Cell
from refusal_dial.generate.completions import completion_rows, unsteered_nll
from refusal_dial.generate.decode import Completion, Decoding, generate
from refusal_dial.generate.likelihood import nll
from refusal_dial.hooks import steer
from refusal_dial.model.tokens import Tokens, tokenize

LABELS = {"direction": "learned", "seed": None, "layer": 1, "site": "resid_pre", "pos": -1}
ROWS = pd.DataFrame({"prompt_id": ["a", "b", "c"], "subset": "EDGE"})


@pytest.fixture(scope="module")
def completed(qwen):
    tokens = tokenize(qwen, ["one two", "three", "four five six"])
    unit = torch.nn.functional.normalize(torch.arange(1.0, 33.0), dim=0)
    cells = [Cell({**LABELS, "direction": "baseline", "layer": None, "alpha": 0.0})]
    cells += [
        Cell({**LABELS, "alpha": a}, [steer(unit, a, layer=1, pos=-1)] if a else ())
        for a in (0.0, 9.0)
    ]
    decoding = Decoding(6, 0.9, 0.95, samples=2)
    return tokens, cells, decoding, completion_rows(qwen, tokens, ROWS, cells, decoding)


def test_rows_stand_by_cell_prompt_and_sample(completed):
    frame = completed[-1]
    assert list(frame["prompt_id"]) == ["a", "a", "b", "b", "c", "c"] * 3
    assert list(frame["sample"]) == [0, 1] * 9
    assert list(frame["direction"]) == ["baseline"] * 6 + ["learned"] * 12
    assert [json.loads(one) for one in frame["completion"]] == list(frame["text"])


def test_alpha_0_is_the_baseline_and_its_text_is_that_of_generate(completed, qwen):
    tokens, cells, decoding, frame = completed
    columns = ["text", "nll", "repeated", "stop", "sample", "prompt_id"]
    parts = [part[columns].reset_index(drop=True) for _, part in frame.groupby(frame.index // 6)]
    pd.testing.assert_frame_equal(parts[0], parts[1])
    assert list(parts[2]["text"]) != list(parts[0]["text"])
    alone = generate(qwen, tokens, [cells[2].hooks], decoding, keys=["a", "b", "c"])
    assert [one.text for one in alone] == list(parts[2]["text"])


def test_a_cost_is_that_of_the_row_alone(qwen):
    tokens = tokenize(qwen, ["a b c", "d"])
    completed = [
        Completion(0, 1, 0, "xy", (90, 91), "end"),
        Completion(1, 0, 0, "xyz", (90, 91, 92), "length"),
        Completion(2, 1, 0, "xy", (90, 91), "end"),
        Completion(2, 0, 0, "", (), "nan"),
    ]
    found = unsteered_nll(qwen, tokens, completed)
    assert found[0] == found[2]
    for i in (0, 1):
        at = completed[i].prompt
        alone = Tokens(tokens.ids[at : at + 1], tokens.mask[at : at + 1])
        assert found[i] == pytest.approx(
            float(nll(qwen, alone, [completed[i].ids], [completed[i].stop]))
        )
    assert found[3] != found[3]
