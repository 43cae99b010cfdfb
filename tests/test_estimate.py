"""What is estimated of a plan whose cost is known, and which parts of plans are timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal_dial.cells import Cell
from refusal_dial.generate.decode import Decoding
from refusal_dial.model.tokens import tokenize
from refusal_dial.run.forecast import LIMIT, REPEATS, estimate_time, weights
from refusal_dial.run.plan import (
    Budget,
    Grid,
    Known,
    Parts,
    SweepPlan,
    Task,
    compute_all,
    generation_memory,
    spread_over,
    tasks_over,
)


class Clock:
    """A clock that goes on by what is computed."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, eq=False)
class CostlyPlan:
    """So many seconds a batch, a prompt, and a prompt and cell."""

    clock: Clock
    prompt: float
    cell: float
    prompts: int
    cells: int
    batch: float = 0.0
    size: int = 10**9

    @property
    def tasks(self):
        starts = range(0, self.prompts, self.size)
        some = [range(start, min(start + self.size, self.prompts)) for start in starts]
        return [Task(len(one) * self.cells, one, range(self.cells)) for one in some]

    @property
    def grid(self):
        return Grid({"EDGE": self.prompts}, self.cells, {})

    def compute(self, model, task):
        self.clock.now += self.batch + len(task.prompts) * (self.prompt + self.cell * self.cells)
        return pd.DataFrame({"score": [0.0] * task.rows})

    def shrink(self, prompts, cells):
        return replace(self, prompts=min(prompts, self.prompts), cells=min(cells, self.cells))

    def memory(self, model):
        return 0.0


@given(
    prompt=st.floats(1e-4, 0.5),
    cell=st.floats(0, 0.1),
    prompts=st.integers(1, 500),
    cells=st.integers(1, 500),
)
def test_a_plan_that_costs_what_it_says_is_estimated_exactly(qwen, prompt, cell, prompts, cells):
    clock = Clock()
    plan = CostlyPlan(clock, prompt, cell, prompts, cells)
    found = estimate_time(qwen, plan, clock, clock)
    assert clock.now <= LIMIT + 1e-6
    if cells > 1:  # of one cell nobody can tell what is its own
        assert found.seconds == pytest.approx(prompts * (prompt + cell * cells), rel=1e-6)
        assert found.least <= found.seconds <= found.most
    assert 1 <= found.rows <= prompts * cells


@given(
    batch=st.floats(0, 2.0),
    prompt=st.floats(1e-4, 0.5),
    batches=st.integers(1, 50),
    size=st.sampled_from([2, 4, 8, 16, 32, 64]),
)
def test_what_a_batch_costs_once_is_not_taken_for_the_cost_of_its_prompts(
    qwen, batch, prompt, batches, size
):
    """A part of few prompts fills no batch, and its cost times all prompts is far too long."""
    clock = Clock()
    plan = CostlyPlan(clock, prompt, 0.0, batches * size, 1, batch, size)
    found = estimate_time(qwen, plan, clock, clock)
    assert found.seconds == pytest.approx(batches * (batch + size * prompt), rel=1e-6)


def test_timing_stops_growing_where_it_can_be_told_from_noise(qwen):
    clock = Clock()
    found = estimate_time(qwen, CostlyPlan(clock, 0.01, 0.01, 1000, 1000), clock, clock)
    assert clock.now < found.seconds / 500


@dataclass(frozen=True, eq=False, kw_only=True)
class InterruptedPlan(CostlyPlan):
    """The same on a machine that does other things too: the clock of the wall goes faster than the
    processor's (`clock`), by another factor every time."""

    wall: Clock
    factors: Iterator[float]

    def compute(self, model, task):
        before = self.clock.now
        frame = super().compute(model, task)
        self.wall.now += next(self.factors) * (self.clock.now - before)
        return frame


def test_what_else_the_machine_does_makes_a_run_long_and_no_cell_dear(qwen):
    """What a cell adds is told from the processor's time: on the wall's it would be noise, times
    all cells that were not timed."""
    work, wall, factors = Clock(), Clock(), cycle([3.0, 5.0, 8.0, 4.0, 6.0])
    plan = InterruptedPlan(work, 0.1, 0.01, 100, 1000, wall=wall, factors=factors)
    found, true = estimate_time(qwen, plan, wall, work), 100 * (0.1 + 0.01 * 1000)
    assert wall.now <= LIMIT + 3
    assert 3 * true <= found.least <= found.seconds <= found.most <= 8 * true


class NoisyClock(Clock):
    """Every other reading is late by a little more."""

    def __init__(self) -> None:
        super().__init__()
        self.readings = 0

    def __call__(self) -> float:
        self.readings += 1
        self.now += 0.02 * (self.readings % 3)
        return self.now


def test_noise_is_seen_in_the_range(qwen):
    clock = NoisyClock()
    found = estimate_time(qwen, CostlyPlan(clock, 0.2, 0.0, 4, 4), clock, clock)
    assert found.least < found.most
    assert found.least <= found.seconds <= found.most
    assert REPEATS > 1


@given(n=st.integers(1, 400), k=st.integers(1, 400))
def test_a_spread_has_different_numbers_and_both_ends(n, k):
    some = spread_over(n, k)
    assert len(some) == len(set(some)) == min(n, k)
    assert some[0] == 0
    assert set(some) <= set(range(n))
    assert k == 1 or some[-1] == n - 1


@given(
    prompts=st.integers(1, 40),
    cells=st.integers(1, 40),
    size=st.integers(1, 16),
    each=st.integers(1, 3),
    most=st.one_of(st.none(), st.integers(1, 200)),
)
def test_tasks_hold_every_prompt_under_every_cell_once(prompts, cells, size, each, most):
    tasks = tasks_over(prompts, cells, size, each, most)
    pairs = [(p, c) for task in tasks for p in task.prompts for c in task.cells]
    assert len(pairs) == len(set(pairs)) == prompts * cells
    for task in tasks:
        assert task.rows == each * len(task.prompts) * len(task.cells)
        assert most is None or task.rows <= most or len(task.cells) == 1


def sweep(qwen, **changes) -> SweepPlan:
    texts = ["one", "a second one", "the third"]
    plan = SweepPlan(
        tokens=tokenize(qwen, texts),
        rows=pd.DataFrame({"prompt_id": list("abc"), "subset": "EDGE", "split": "holdout"}),
        cells=[Cell({"cell": i}) for i in range(5)],
        scorer=lambda logits: logits.double()[:, 3],
        budget=Budget(2),
    )
    return replace(plan, **changes)


def test_a_shrunk_plan_is_the_same_on_fewer_prompts_and_cells(qwen):
    plan = sweep(qwen)
    whole, part = compute_all(qwen, plan), compute_all(qwen, plan.shrink(2, 3))
    assert list(part["cell"]) == [0, 0, 2, 2, 4, 4]
    mine = part.merge(whole, on=["cell", "prompt_id"])
    assert mine["score_x"].tolist() == pytest.approx(mine["score_y"].tolist(), abs=1e-5)


def test_parts_come_one_after_the_other_and_shrink_by_the_same_share(qwen):
    known = pd.DataFrame({"cell": [9], "score": [0.5]})
    one, two = sweep(qwen), sweep(qwen, cells=[Cell({"cell": 7})])
    plan = Parts((Known((known,)), one, two), Grid({"EDGE": 6}, 5, {}))
    assert [task.part for task in plan.tasks] == [0, 1, 1, 2, 2]
    table = compute_all(qwen, plan)
    assert len(table) == sum(task.rows for task in plan.tasks) == 1 + 15 + 3
    assert list(table["cell"].drop_duplicates()) == [9, 0, 1, 2, 3, 4, 7]
    small = plan.shrink(2, 2)
    assert [len(part.tasks) for part in small.parts] == [0, 1, 1]
    assert [task.rows for task in small.tasks] == [1 * 2, 1 * 1]


def test_memory_is_the_weights_and_what_is_allowed_or_held(qwen):
    numbers = sum(p.numel() for p in {p.data_ptr(): p for p in qwen.parameters()}.values())
    assert weights(qwen) == pytest.approx(4 * numbers / 2**30, rel=0.02)
    assert sweep(qwen, budget=Budget(memory_gb=0.25)).memory(qwen) == 0.25 * 2**30
    decoding = Decoding(max_new_tokens=8, rows=100)
    few, many = (generation_memory(qwen, decoding, 5, rows) for rows in (10, 1000))
    assert many == pytest.approx(10 * few)
