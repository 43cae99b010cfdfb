"""A sweep is tidy: one row per prompt and cell, the same whatever the batches."""

from __future__ import annotations

import pandas as pd
import pytest
import tiny
import torch

from refusal_dial.cells import Cell
from refusal_dial.hooks import steer
from refusal_dial.model.tokens import last_logits, tokenize
from refusal_dial.run.plan import Budget, batch_sizes, sweep_batches

UNIT = torch.nn.functional.normalize(
    torch.randn(32, generator=torch.Generator().manual_seed(0)), dim=0
)


def scorer(logits):
    return logits.double()[:, 40] - logits.double()[:, 50]


def cells() -> list[Cell]:
    hooked = [
        Cell({"direction": "learned", "seed": seed, "alpha": alpha}, [steer(UNIT, alpha, layer=1)])
        for seed, alpha in ((None, 0.0), (3, -2.0), (4, 5.0))
    ]
    return [Cell({"direction": "baseline", "seed": None, "alpha": 0.0}), *hooked]


def rows(n: int) -> pd.DataFrame:
    return pd.DataFrame({"prompt_id": [f"p{i}" for i in range(n)], "subset": ["EDGE"] * n})


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_every_score_is_that_of_its_prompt_alone_under_its_hooks(qwen, engine):
    prompts = tiny.sentences(5)
    budget = Budget(batch_size=2, engine=engine)
    frames = list(sweep_batches(qwen, tokenize(qwen, prompts), rows(5), cells(), scorer, budget))
    table = pd.concat(frames)
    assert len(table) == 4 * 5
    assert not table.duplicated(["direction", "seed", "alpha", "prompt_id"]).any()
    for cell in cells():
        for i, prompt in enumerate(prompts):
            want = scorer(last_logits(qwen, tokenize(qwen, [prompt]), cell.hooks)).item()
            mine = table[(table["direction"] == cell.labels["direction"])]
            mine = mine[(mine["alpha"] == cell.labels["alpha"]) & (mine["prompt_id"] == f"p{i}")]
            assert mine["score"].item() == pytest.approx(want, abs=1e-4)


def test_batches_can_be_skipped_and_their_sizes_are_known_beforehand(qwen):
    tokens, budget = tokenize(qwen, tiny.sentences(5)), Budget(batch_size=2)
    all_of_them = list(sweep_batches(qwen, tokens, rows(5), cells(), scorer, budget))
    assert [len(frame) for frame in all_of_them] == batch_sizes(5, 4, budget) == [8, 8, 4]
    rest = list(sweep_batches(qwen, tokens, rows(5), cells(), scorer, budget, skip=1))
    for mine, theirs in zip(rest, all_of_them[1:], strict=True):
        pd.testing.assert_frame_equal(mine, theirs)


@pytest.mark.parametrize("most", [1, 2, 5, 6, 8])
def test_rows_come_in_the_same_order_however_many_a_batch_may_have(qwen, most):
    tokens = tokenize(qwen, tiny.sentences(5))
    undivided = sweep_batches(qwen, tokens, rows(5), cells(), scorer, Budget(2))
    whole = pd.concat(undivided, ignore_index=True)
    budget = Budget(2, rows=most)
    parts = list(sweep_batches(qwen, tokens, rows(5), cells(), scorer, budget))
    assert [len(part) for part in parts] == batch_sizes(5, 4, budget)
    assert max(map(len, parts)) <= max(most, 2)  # one cell of two prompts is the least
    table = pd.concat(parts, ignore_index=True)
    pd.testing.assert_frame_equal(table, whole, check_exact=False, atol=1e-6, rtol=0)
    rest = sweep_batches(qwen, tokens, rows(5), cells(), scorer, budget, skip=2)
    pd.testing.assert_frame_equal(next(rest), parts[2])


def test_scores_do_not_depend_on_the_batch_size(qwen):
    tokens = tokenize(qwen, tiny.sentences(5))
    tables = []
    for size in (1, 3, 64):
        budget = Budget(batch_size=size)
        table = pd.concat(sweep_batches(qwen, tokens, rows(5), cells(), scorer, budget))
        tables.append(table.sort_values(["prompt_id", "direction", "seed", "alpha"]))
    for table in tables[1:]:
        assert abs(table["score"].to_numpy() - tables[0]["score"].to_numpy()).max() < 1e-5


def test_whole_numbers_stay_whole_beside_missing_ones(qwen):
    tokens = tokenize(qwen, tiny.sentences(2))
    table = next(sweep_batches(qwen, tokens, rows(2), cells(), scorer, Budget()))
    text = table.to_csv(index=False)
    assert "baseline,,0.0,p0,EDGE," in text
    assert "learned,3,-2.0,p0,EDGE," in text
