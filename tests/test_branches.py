"""Attention of branches against brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_dial.engine.replay import Branches, KeysOnly, KeysTakenError

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
