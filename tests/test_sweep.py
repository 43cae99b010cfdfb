"""A sweep is tidy: one row per prompt and cell, the same whatever the batches."""

from __future__ import annotations

import pandas as pd
import pytest
import tiny
import torch

from refusal_dial.cells import Cell
from refusal_dial.hooks import steer
from refusal_dial.model.tokens import last_logits, tokenize
from refusal_dial.run.plan import Budget, SweepPlan, compute_all

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


def plan(qwen, n: int, budget: Budget) -> SweepPlan:
    return SweepPlan(tokenize(qwen, tiny.sentences(n)), rows(n), cells(), scorer, budget)


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_every_score_is_that_of_its_prompt_alone_under_its_hooks(qwen, engine):
    prompts = tiny.sentences(5)
    budget = Budget(batch_size=2, engine=engine)
    table = compute_all(qwen, plan(qwen, 5, budget))
    assert len(table) == 4 * 5
    assert not table.duplicated(["direction", "seed", "alpha", "prompt_id"]).any()
    for cell in cells():
        for i, prompt in enumerate(prompts):
            want = scorer(last_logits(qwen, tokenize(qwen, [prompt]), cell.hooks)).item()
            mine = table[(table["direction"] == cell.labels["direction"])]
            mine = mine[(mine["alpha"] == cell.labels["alpha"]) & (mine["prompt_id"] == f"p{i}")]
            assert mine["score"].item() == pytest.approx(want, abs=1e-4)


def test_tasks_say_how_many_rows_they_make_and_do_not_depend_on_one_another(qwen):
    sweep = plan(qwen, 5, Budget(batch_size=2))
    frames = [sweep.compute(qwen, task) for task in sweep.tasks]
    assert [len(frame) for frame in frames] == [task.rows for task in sweep.tasks] == [8, 8, 4]
    for task, frame in reversed(list(zip(sweep.tasks, frames, strict=True))):
        pd.testing.assert_frame_equal(sweep.compute(qwen, task), frame)


@pytest.mark.parametrize("most", [1, 2, 5, 6, 8])
def test_rows_come_in_the_same_order_however_many_a_batch_may_have(qwen, most):
    whole = compute_all(qwen, plan(qwen, 5, Budget(2)))
    divided = plan(qwen, 5, Budget(2, rows=most))
    parts = [divided.compute(qwen, task) for task in divided.tasks]
    assert [len(part) for part in parts] == [task.rows for task in divided.tasks]
    assert max(map(len, parts)) <= max(most, 2)  # one cell of two prompts is the least
    table = pd.concat(parts, ignore_index=True)
    pd.testing.assert_frame_equal(table, whole, check_exact=False, atol=1e-6, rtol=0)


def test_scores_do_not_depend_on_the_batch_size(qwen):
    tables = []
    for size in (1, 3, 64):
        table = compute_all(qwen, plan(qwen, 5, Budget(batch_size=size)))
        tables.append(table.sort_values(["prompt_id", "direction", "seed", "alpha"]))
    for table in tables[1:]:
        assert abs(table["score"].to_numpy() - tables[0]["score"].to_numpy()).max() < 1e-5


def test_whole_numbers_stay_whole_beside_missing_ones(qwen):
    table = compute_all(qwen, plan(qwen, 2, Budget()))
    text = table.to_csv(index=False)
    assert "baseline,,0.0,p0,EDGE," in text
    assert "learned,3,-2.0,p0,EDGE," in text
