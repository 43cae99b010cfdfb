"""Subspaces: laws of their overlap."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refusal_dial.common import DialError
from refusal_dial.directions.learning import basis, overlap


@given(st.integers(0, 999))
def test_overlap_is_symmetric_bounded_and_blind_to_the_basis(seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(k, 12, generator=generator) for k in (2, 3))
    assert overlap(a, b) == pytest.approx(overlap(b, a))
    assert -1e-9 <= overlap(a, b) <= 1 + 1e-9
    mixed = torch.randn(2, 2, generator=generator) @ a
    assert overlap(mixed, b) == pytest.approx(overlap(a, b), abs=1e-4)
    assert overlap(a[:1], a) == pytest.approx(1, abs=1e-6)


def test_two_directions_overlap_by_their_squared_cosine():
    a, b = torch.tensor([[1.0, 0, 0]]), torch.tensor([[3.0, 4.0, 0]])
    assert overlap(a, b) == pytest.approx(0.36)
    assert overlap(a, torch.tensor([[0.0, 1, 0]])) == 0
    assert basis(torch.stack([a[0], 2 * a[0]])).shape == (3, 1)


def test_random_directions_overlap_by_one_in_d():
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(4000, 2, 16, generator=generator)
    mean = sum(overlap(x[None], y[None]) for x, y in pairs) / len(pairs)
    assert mean == pytest.approx(1 / 16, rel=0.06)


@pytest.mark.parametrize(
    "bad", [torch.zeros(0, 3), torch.zeros(2, 3), torch.full((1, 3), torch.nan)]
)
def test_what_spans_nothing(bad):
    with pytest.raises(DialError, match="directions span nothing"):
        basis(bad)
