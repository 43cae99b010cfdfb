"""The tests check what the package is called with: at first every call, then some."""

from __future__ import annotations

from functools import partial

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float
from torch import Tensor
from type_checks import EVERY, FIRST, spared, sparing

from refusal_dial.common import hook_name

check = partial(jaxtyping._decorator.jaxtyped, typechecker=beartype)


def refused(function, *arguments) -> bool:
    try:
        function(*arguments)
    except jaxtyping.TypeCheckError:
        return True
    return False


def test_the_first_calls_are_checked_and_every_so_many_later():
    def same(one: Float[Tensor, " n"], other: Float[Tensor, " n"]) -> Tensor:
        return one

    call = spared(same, check)
    tries = [refused(call, torch.ones(2), torch.ones(3)) for _ in range(FIRST + 10 * EVERY)]
    assert all(tries[:FIRST])
    assert sum(tries[FIRST:]) == 10
    assert not refused(call, torch.ones(2), torch.ones(2))
    assert call.__name__ == "same"


def test_a_function_in_a_function_is_checked_the_first_times_that_it_is_made():
    decorate = sparing(jaxtyping._decorator.jaxtyped)(typechecker=beartype)

    def made():
        def inner(number: int) -> int:
            return number

        return decorate(inner)

    assert [refused(made(), "x") for _ in range(FIRST + 2)] == [*[True] * FIRST, False, False]


def test_the_package_is_checked():
    assert hook_name.__code__.co_name == "call"
    with pytest.raises(jaxtyping.TypeCheckError):
        spared(hook_name.__wrapped__, check)(3.5, 0)
