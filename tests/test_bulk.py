"""Stacked operations are each operation by itself."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_dial.engine.replay import edited, restrict, stackable
from refusal_dial.hooks import Add, Clamp, Edit, Operation, Project, Rotate, Set

LAW = settings(max_examples=60, deadline=None, derandomize=True)


operations = st.sampled_from(
    [
        lambda w: Add(torch.randn(w)),
        lambda w: Add(torch.randn(4, w)),
        lambda w: Project(torch.nn.functional.normalize(torch.randn(w), dim=0)),
        lambda w: Clamp(torch.nn.functional.normalize(torch.randn(w), dim=0), 2.0),
        lambda w: Rotate(torch.nn.functional.normalize(torch.randn(w), dim=0), -0.7),
        lambda w: Set(torch.randn(w)),
        lambda w: Set(torch.randn(4, w)),
        lambda w: Set(torch.randn(4, 3, w)),
    ]
)


@LAW
@given(operations, st.integers(1, 3), st.lists(st.integers(0, 3), min_size=1, unique=True))
def test_stacked_operations_are_each_operation_by_itself(
    make: object, n: int, prompts: list[int]
) -> None:
    every: list[Operation] = [make(8) for _ in range(n)]  # type: ignore[operator]
    assert len({stackable(operation) for operation in every}) == 1
    rows = torch.randn(n, 4, 3, 8)
    expected = torch.stack([one(row) for one, row in zip(every, rows, strict=True)])
    some = torch.tensor(prompts)
    torch.testing.assert_close(edited(every, rows[:, some], some), expected[:, some])


def test_different_operations_are_not_alike() -> None:
    v = torch.ones(4)
    different: list[Operation] = [
        Add(v),
        Set(v),
        Project(v),
        Clamp(v, 1.0),
        Clamp(v, 2.0),
        Rotate(v, 1.0),
        Rotate(v, 2.0),
        Add(v.expand(2, 4)),
        lambda x: x,
    ]
    assert len({stackable(operation) for operation in different}) == len(different)


def test_a_restricted_edit_is_the_edit_on_some_rows() -> None:
    edit = Edit(0, "resid_pre", torch.tensor([-1, -2, -3]), Add(torch.randn(3, 8)))
    h, some = torch.randn(3, 5, 8), torch.tensor([2, 0])
    assert torch.equal(restrict(edit, some)(h[some]), edit(h)[some])
