"""What a probe foretells of a sweep whose cost is known, and which parts of a sweep it computes."""

from __future__ import annotations

from functools import partial

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal_dial.cells import Cell
from refusal_dial.generate.decode import Decoding
from refusal_dial.model.tokens import tokenize
from refusal_dial.run.plan import (
    Budget,
    estimate_time,
    part_of,
    spread_over,
    sweep_batches,
    weights,
    working,
)


class Machine:
    """A clock that goes on by what is computed: so much a prompt, and so much a prompt and cell."""

    def __init__(self, prompt: float, cell: float) -> None:
        self.now, self.prompt, self.cell = 0.0, prompt, cell

    def batches(self, model, *, skip, rows, cells):
        self.now += len(rows) * (self.prompt + self.cell * len(cells))
        yield pd.DataFrame({"score": [0.0] * (len(rows) * len(cells))})

    def clock(self) -> float:
        return self.now


@given(
    prompt=st.floats(1e-4, 10),
    cell=st.floats(0, 10),
    prompts=st.integers(1, 500),
    cells=st.integers(1, 500),
)
def test_a_sweep_that_costs_what_it_says_is_foretold_exactly(qwen, prompt, cell, prompts, cells):
    machine = Machine(prompt, cell)
    sweep = partial(
        machine.batches,
        rows=pd.DataFrame({"prompt_id": range(prompts)}),
        cells=[Cell({"i": i}) for i in range(cells)],
    )
    seconds, timed = estimate_time(qwen, sweep, prompts, cells, machine.clock)
    if cells > 1:  # of one cell nobody can tell what is its own
        assert seconds == pytest.approx(prompts * (prompt + cell * cells), rel=1e-6)
    assert 1 <= timed <= prompts * cells


def test_the_probe_stops_growing_where_it_can_be_told_from_noise(qwen):
    machine = Machine(0.01, 0.01)
    rows, cells = pd.DataFrame({"prompt_id": range(1000)}), [Cell({"i": i}) for i in range(1000)]
    sweep = partial(machine.batches, rows=rows, cells=cells)
    whole, _ = estimate_time(qwen, sweep, 1000, 1000, machine.clock)
    assert machine.now < whole / 1000


@given(n=st.integers(1, 400), k=st.integers(1, 400))
def test_a_spread_has_different_numbers_and_both_ends(n, k):
    some = spread_over(n, k)
    assert len(some) == len(set(some)) == min(n, k)
    assert some[0] == 0
    assert set(some) <= set(range(n))
    assert k == 1 or some[-1] == n - 1


def test_a_part_is_the_same_sweep_on_fewer_prompts_and_cells(qwen):
    tokens = tokenize(qwen, ["one", "a second one", "the third"])
    rows = pd.DataFrame({"prompt_id": list("abc")})
    cells = [Cell({"cell": i}) for i in range(5)]
    sweep = partial(
        sweep_batches,
        tokens=tokens,
        rows=rows,
        cells=cells,
        scorer=lambda logits: logits.double()[:, 3],
        budget=Budget(2),
    )
    whole = pd.concat(sweep(qwen, skip=0))
    part = pd.concat(part_of(sweep, 2, 3)(qwen, skip=0))
    assert list(part["cell"]) == [0, 0, 2, 2, 4, 4]
    mine = part.merge(whole, on=["cell", "prompt_id"])
    assert mine["score_x"].tolist() == pytest.approx(mine["score_y"].tolist(), abs=1e-5)


def test_memory_is_the_weights_and_what_is_allowed_or_held(qwen):
    numbers = sum(p.numel() for p in {p.data_ptr(): p for p in qwen.parameters()}.values())
    assert weights(qwen) == pytest.approx(4 * numbers / 2**30, rel=0.02)
    tokens = tokenize(qwen, ["one"])
    bounded = partial(sweep_batches, tokens=tokens, budget=Budget(memory_gb=0.25))
    assert working(qwen, bounded, 100) == 0.25
    say = partial(sweep_batches, tokens=tokens, decoding=Decoding(max_new_tokens=8, rows=100))
    few, many = working(qwen, say, 10), working(qwen, say, 1000)
    assert many == pytest.approx(10 * few)
