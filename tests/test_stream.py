"""Replay: attention of branches against brute force, plans, rectangles, and stacked operations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architectures import bridge, prompts
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_dial.hooks import Add, Clamp, Edit, Operation, Project, Set, patch, steer
from refusal_dial.replay.branches import Branches, KeysOnly, KeysTakenError
from refusal_dial.replay.bulk import alike, edited, restrict
from refusal_dial.replay.memory import Sizes
from refusal_dial.replay.plan import NOTHING, changes, places, touches
from refusal_dial.replay.recording import record
from refusal_dial.replay.rectangles import rectangles

LAW = settings(max_examples=60, deadline=None, derandomize=True)


def by_hand(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, softcap: float | None
) -> torch.Tensor:
    scores = 0.5 * q @ k.mT
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores + mask).softmax(-1) @ v


@LAW
@given(
    kv=st.integers(1, 2),
    groups=st.integers(1, 3),
    n=st.integers(1, 3),
    length=st.integers(1, 6),
    p=st.integers(0, 5),
    softcap=st.sampled_from([None, 2.0]),
    boolean=st.booleans(),
    last=st.booleans(),
)
def test_a_branch_attends_to_the_trunk_before_it_and_to_itself(
    kv: int,
    groups: int,
    n: int,
    length: int,
    p: int,
    softcap: float | None,
    boolean: bool,
    last: bool,
) -> None:
    p = min(p, length - 1)
    s, batch, width = length - p, 2, 4
    g = torch.Generator().manual_seed(n)
    q = torch.randn(batch, kv * groups, n, s, width, generator=g)
    own_k, own_v = torch.randn(2, batch, kv, n, s, width, generator=g)
    past = torch.randn(2, batch, kv, p, width, generator=g)
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    seen[-1, 0] = length == 1  # a window, or padding
    additive = torch.zeros(length, length).masked_fill(~seen, torch.finfo(torch.float32).min)
    mask = (seen if boolean else additive)[None, None, p:]
    if last:
        before = (own_k[:, :, :, :-1].flatten(2, 3), own_v[:, :, :, :-1].flatten(2, 3))
        branches = Branches(n, (past[0], past[1]), mask[:, :, -1:], before if s > 1 else None)
        given = (q[:, :, :, -1:], own_k[:, :, :, -1:], own_v[:, :, :, -1:])
    else:
        branches = Branches(n, (past[0], past[1]), mask)
        given = (q, own_k, own_v)
    query, key, value = (x.flatten(2, 3) for x in given)
    out = branches.attend(query, key, value, 0.5, softcap)
    for b in range(n):
        k = torch.cat([past[0], own_k[:, :, b]], 2).repeat_interleave(groups, 1)
        v = torch.cat([past[1], own_v[:, :, b]], 2).repeat_interleave(groups, 1)
        expected = by_hand(q[:, :, b], k, v, additive[p:], softcap).transpose(1, 2)
        t = 1 if last else s
        torch.testing.assert_close(out[:, b * t : (b + 1) * t], expected[:, -t:])


def test_a_block_can_be_run_for_its_keys_alone() -> None:
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    with pytest.raises(KeysTakenError) as taken:
        KeysOnly().attend(q, k, v, 0.5, None)
    assert torch.equal(taken.value.kept[0], k)
    assert torch.equal(taken.value.kept[1], v)


operations = st.sampled_from(
    [
        lambda w: Add(torch.randn(w)),
        lambda w: Add(torch.randn(4, w)),
        lambda w: Project(torch.nn.functional.normalize(torch.randn(w), dim=0)),
        lambda w: Clamp(torch.nn.functional.normalize(torch.randn(w), dim=0), 2.0),
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
    assert len({alike(operation) for operation in every}) == 1
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
        Add(v.expand(2, 4)),
        lambda x: x,
    ]
    assert len({alike(operation) for operation in different}) == len(different)


def test_a_restricted_edit_is_the_edit_on_some_rows() -> None:
    edit = Edit(0, "resid_pre", torch.tensor([-1, -2, -3]), Add(torch.randn(3, 8)))
    h, some = torch.randn(3, 5, 8), torch.tensor([2, 0])
    assert torch.equal(restrict(edit, some)(h[some]), edit(h)[some])


@LAW
@given(
    st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 5), st.sampled_from([0.0, 3.0, 1e9])
)
def test_rectangles_hold_every_changed_pair_once(
    seed: int, cells: int, prompts: int, spare: float
) -> None:
    rng = np.random.default_rng(seed)
    n_layers, length = 4, 6
    start = rng.integers(-1, n_layers + 1, (cells, prompts))
    first = np.where(start == NOTHING, length, rng.integers(0, length, (cells, prompts)))
    seen = np.zeros((cells, prompts), dtype=int)
    for area in rectangles(start, first, n_layers, length, spare):
        assert list(area.starts) == sorted(area.starts)
        for piece in area.pieces(7, length):
            each = length - piece.first
            tokens = len(piece.prompts) * len(piece.cells) * each
            assert tokens <= max(7, each)
            for half in piece.halves() if len(piece.cells) * len(piece.prompts) > 1 else (piece,):
                for i, b in enumerate(half.prompts):
                    for j, c in enumerate(half.cells):
                        if half.used[i, j]:
                            seen[c, b] += 1
                            assert half.first <= first[c, b]
                            assert half.starts[j] <= start[c, b]
    assert np.array_equal(seen, (start != NOTHING).astype(int))


def test_work_without_gaps_is_one_rectangle() -> None:
    start = np.repeat(np.arange(4)[:, None], 3, 1)
    first = np.full((4, 3), 5)
    (area,) = rectangles(start, first, 4, 6, 0.0)
    assert (area.first, area.cells, area.starts) == (5, (0, 1, 2, 3), (0, 1, 2, 3))
    assert area.used.all()


def test_a_plan_says_where_each_cell_leaves_each_prompt() -> None:
    model, tokens = bridge("Qwen2"), prompts((6, 3))
    v = torch.nn.functional.normalize(torch.randn(32), dim=0)
    recorded = record(model, tokens).residual(1)
    hooks = [
        [steer(v, 1.0, layer=1, pos=-2)],
        [steer(v, 1.0, layer=2, site="resid_post")],  # only the last position reaches the logits
        [steer(v, 1.0, layer=2, site="attn_out", pos=-2)],  # attention is past: nothing reads it
        [steer(v, 1.0, layer=0, pos=-5)],  # padding in the short prompt
        [steer(v, 0.0, layer=0), steer(v, 1.0, layer=2, pos=-3)],
        [patch(torch.cat([recorded[:, :4], recorded[:, 4:] + 1], 1), layer=1)],
        [steer(v, torch.tensor([0.0, 1.0]), layer=1, pos=torch.tensor([-1, -3]))],
    ]
    cells = [touches([edit for _, edit in cell], 2, 6, 8) for cell in hooks]  # type: ignore[misc]
    recording = record(model, tokens, wanted=places(cells))
    start, first = changes(recording, cells, torch.arange(2), torch.tensor([0, 3]))
    expected = [
        ([1, 1], [4, 4]),
        ([3, 3], [5, 5]),
        ([NOTHING, NOTHING], [6, 6]),
        ([0, NOTHING], [1, 6]),
        ([2, 2], [3, 3]),
        ([1, 1], [4, 4]),
        ([NOTHING, 1], [6, 3]),
    ]
    assert [(a.tolist(), b.tolist()) for a, b in zip(start, first, strict=True)] == expected


def test_sizes_grow_with_what_they_measure() -> None:
    sizes = Sizes.of(bridge("Qwen2"))
    assert sizes.trunk(20, 1) < sizes.trunk(20, 20) < sizes.trunk(40, 20)
    assert sizes.token(10) < sizes.token(1000)
    assert sizes.tokens(1, 10) == 1
    assert sizes.tokens(2**40, 10) >= 1024
    assert sizes.spare() > 0
