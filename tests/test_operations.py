"""Laws of what operations take: numbers, vectors, and rows that these fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from unchecked import unchecked

from refusal_dial.common import FURTHEST, DialError
from refusal_dial.hooks import (
    Add,
    AddIf,
    Clamp,
    Project,
    Rotate,
    Rowwise,
    Set,
    numbers_of,
    scaled,
    steer,
    unit_of,
)
from refusal_dial.model.tokens import last_logits, tokenize

SIZES = st.integers(1, 4)


@given(st.lists(SIZES, min_size=1, max_size=3), SIZES, SIZES, SIZES)
def test_a_value_fits_where_it_becomes_the_rows_without_being_stretched(shape, batch, k, width):
    """`expand_as` also stretches axes of length 1: those fit only rows that have length 1 there."""
    value = torch.randn(shape)
    why = Set(value).misfit(batch, width, lambda: k)
    axes = {1: [width], 2: [batch, width], 3: [batch, k, width]}[len(shape)]
    assert (why == "") == (shape == axes)
    if not why:
        assert Set(value)(torch.randn(batch, k, width)).shape == (batch, k, width)


@pytest.mark.parametrize(
    "operation",
    [
        Add(torch.ones(1)),
        Set(torch.ones(1)),
        Project(torch.ones(1)),
        Clamp(torch.ones(1), 2.0),
        Rotate(torch.ones(1), 0.5),
        AddIf(torch.ones(1), torch.ones(1), 0.0),
    ],
)
def test_every_operation_says_that_a_vector_of_one_number_is_none_of_four(operation: Rowwise):
    assert "expected a vector of width 4, not 1" in operation.misfit(2, 4, lambda: 1)


def test_a_decoding_step_that_edits_nothing_needs_no_vectors_a_position():
    assert Set(torch.ones(2, 5, 4)).misfit(2, 4, lambda: 0) == ""
    assert "each of the 1 positions" in Set(torch.ones(2, 5, 4)).misfit(2, 4, lambda: 1)


@given(st.floats(-1e6, 1e6))
def test_a_number_is_itself_however_it_is_written(number):
    for written in (number, np.float64(number), torch.tensor(number)):
        assert numbers_of(written, "alpha") == torch.tensor(number, dtype=torch.float32)


@pytest.mark.parametrize("value", ["3", None, True, 1j, [[1.0], [2.0]], ["a"], object()])
def test_what_is_no_number_is_named(value):
    with pytest.raises(DialError, match=r"alpha must be a number, or one a prompt, not"):
        numbers_of(value, "alpha")


@pytest.mark.parametrize("value", [1.01e18, -1e19, 1e29, 10**36, [0.0, 2e18]])
def test_nothing_is_added_whose_square_no_norm_can_take(value):
    with pytest.raises(DialError, match=r"must be from -1e\+18 to 1e\+18, not "):
        numbers_of(value, "alpha")
    assert float(numbers_of(1e18, "alpha")) == pytest.approx(1e18)


def test_beyond_it_a_model_reads_zeros_and_up_to_it_what_is_added(qwen):
    """Why there is a furthest: further out logits are finite, and the same whatever is added."""
    tokens = tokenize(qwen, ["Hello there"])
    for sign in (1, -1):
        unit = sign * torch.nn.functional.normalize(torch.arange(1.0, 33.0), dim=0)
        edge = last_logits(qwen, tokens, [steer(unit, FURTHEST, layer=1, pos=-1)])
        near = last_logits(qwen, tokens, [steer(unit, 1e9, layer=1, pos=-1)])
        torch.testing.assert_close(edge, near, rtol=1e-3, atol=1e-4)
        name, _ = steer(unit, 1.0, layer=1, pos=-1)

        def beyond(rows, hook=None, unit=unit):
            return rows + 1e20 * unit

        lost = last_logits(qwen, tokens, [(name, beyond)])
        assert bool((lost == 0).all())


def test_alphas_and_directions_are_as_many():
    units = torch.eye(4)[:3]
    assert torch.equal(
        scaled(torch.tensor([1.0, 2.0, 3.0]), units).diagonal(), torch.arange(1.0, 4)
    )
    assert scaled(torch.tensor([1.0, 2.0]), units[0]).shape == (2, 4)
    for n in (1, 2, 4):
        with pytest.raises(DialError, match=f"{n} alphas for 3 directions: expected as many"):
            scaled(torch.ones(n), units)


@pytest.mark.parametrize(
    ("direction", "message"),
    [
        (np.array([1.0, 0.0]), "must be a torch tensor, not ndarray: torch.as_tensor"),
        ([1.0, 0.0], "must be a torch tensor, not list"),
        (None, "must be a torch tensor, not NoneType"),
        (torch.tensor(1.0), r"a vector or several, not shape \(\)"),
    ],
)
def test_what_is_no_direction_is_named(direction, message):
    with pytest.raises(DialError, match=message):
        unchecked("hooks").unit_of(direction)
    assert torch.equal(unit_of(torch.tensor([1.0, 0.0])), torch.tensor([1.0, 0.0]))
