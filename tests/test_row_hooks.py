"""Hooks of a batch of many cells: each row is edited as its own cell says, and no other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_dial.common import hook_name
from refusal_dial.generate.decode import (
    RowHook,
    at_the_last_token,
    leaves_the_rest_alone,
    row_hooks,
)
from refusal_dial.hooks import Add, ablate, clamp, patch, steer

UNIT = torch.nn.functional.normalize(torch.arange(1.0, 9.0), dim=0)
NAME = hook_name("resid_pre", 1)


def double(activation: torch.Tensor, hook: object) -> torch.Tensor:
    return 2 * activation


GRID = [
    [],
    [steer(UNIT, 2.0, layer=1, pos=-1)],
    [steer(UNIT, torch.tensor([1.0, -3.0, 5.0]), layer=1, pos=-1)],
    [ablate(UNIT, layer=1), steer(UNIT, 1.0, layer=1, pos="generated")],
    [clamp(UNIT, 2.0, layer=1, pos=(-1, -2)), patch(UNIT, layer=2, pos=-1)],
    [steer(UNIT, 1.0, layer=1, pos=torch.tensor([-1, -2, -3]))],
    [(NAME, double)],
]


def applied(hooks, h, name):
    for at, function in hooks:
        if at == name:
            h = function(h, None)
    return h


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, len(GRID) - 2), st.integers(0, 2)), min_size=1, max_size=9),
    st.integers(1, 4),
)
def test_a_row_is_edited_as_its_cell_edits_its_prompt(rows, length):
    cells, prompts = (torch.tensor(column) for column in zip(*rows, strict=True))
    length = max(length, 3) if length > 1 else 1
    h = torch.randn(len(rows), length, 8)
    mixed = row_hooks(GRID, cells, prompts)
    for name in (NAME, hook_name("resid_pre", 2)):
        found = applied(mixed, h, name)
        for i, (cell, prompt) in enumerate(rows):
            three = torch.zeros(3, length, 8)
            three[prompt] = h[i]
            torch.testing.assert_close(found[i], applied(GRID[cell], three, name)[prompt])


def test_a_cell_without_hooks_is_left_bit_equal():
    cells, prompts = torch.tensor([0, 1, 0, 4, 6]), torch.tensor([0, 0, 2, 1, 1])
    h = torch.randn(5, 3, 8)
    found = applied(row_hooks(GRID, cells, prompts), h, NAME)
    assert torch.equal(found[[0, 2]], h[[0, 2]])
    assert torch.equal(found[4], 2 * h[4])


def test_additions_at_one_place_are_one_addition():
    grid = [[steer(UNIT, a, layer=1, pos=-1)] for a in (1.0, 2.0, 3.0)]
    (only,) = row_hooks(grid, torch.tensor([2, 0, 1]), torch.zeros(3, dtype=torch.long))
    assert isinstance(only[1].operation, Add)
    torch.testing.assert_close(only[1].operation.vector, torch.tensor([[3.0], [1], [2]]) * UNIT)
    ((_, mixed),) = row_hooks(GRID[1:2] + GRID[3:4], torch.tensor([0, 1]), torch.tensor([0, 0]))[:1]
    assert isinstance(mixed, RowHook)


@pytest.mark.parametrize(
    ("pos", "alone"),
    [(-1, True), ("last_prompt", True), ("generated", True), ("all", False), ("prompt", False),
     (-2, False), ((-1, -2), False), (slice(None), False), (torch.tensor([-1, -1]), False)],
)  # fmt: skip
def test_what_touches_the_prompt_before_its_last_token(pos, alone):
    assert leaves_the_rest_alone([[], [steer(UNIT, 1.0, layer=1, pos=pos)]]) == alone
    assert not leaves_the_rest_alone([[(NAME, double)]])


def test_a_pass_that_sees_the_last_prompt_token_alone():
    grid = [[steer(UNIT, 1.0, layer=1, pos=p)] for p in (-1, "last_prompt", "generated")]
    h = torch.zeros(1, 1, 8)
    last = [applied(cell, h, NAME) for cell in at_the_last_token(grid)]
    assert [bool(x.any()) for x in last] == [True, True, False]
