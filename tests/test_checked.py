"""The tests check the types of every call into the package, and the shapes where arrays are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from refusal_dial.forecast import Grid, duration
from refusal_dial.run import Run
from refusal_dial.scorers import refusal_score

checked = jaxtyping.jaxtyped(typechecker=beartype)
Row = Float[Tensor, "d"]


@checked
def halves(n: int) -> float:
    return "half" if n == 7 else n / 2


@checked
def product(a: Row, b: Row | None = None) -> Float[Tensor, ""]:
    return a.sum() if b is None else a @ b


@checked
@dataclass(frozen=True)
class Plain:
    names: tuple[str, ...] = ()
    more: list[int] = field(default_factory=list)

    @checked
    @property
    def first(self) -> str:
        return self.names[0] if self.names else None

    @checked
    @classmethod
    def of(cls, name: str) -> Plain:
        return cls((name,))

    @checked
    @staticmethod
    def doubled(n: int) -> int:
        return 2 * n


@checked
@dataclass(frozen=True)
class Shaped:
    a: Row
    b: Row


@checked
@contextmanager
def open_(n: int) -> Iterator[int]:
    yield n


def test_what_is_right_goes_through():
    assert halves(3) == 1.5
    assert float(product(torch.ones(3), torch.ones(3))) == 3
    assert Plain.of("a").first == "a"
    assert Plain.doubled(2) == 4
    assert Shaped(torch.ones(2), torch.ones(2)).a.shape == (2,)
    with open_(2) as n:
        assert n == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda: halves("three"),
        lambda: halves(7),  # what it gives back
        lambda: Plain("names"),
        lambda: Plain.of(3),
        lambda: Plain.doubled("two"),
        lambda: Plain().first,
        lambda: product([1.0]),
        lambda: product(torch.ones(2, 2)),
        lambda: product(torch.ones(3), torch.ones(2)),  # `d` is one number in a call
        lambda: Shaped(torch.ones(3), torch.ones(2)),
        lambda: open_("two").__enter__(),
    ],
)
def test_what_is_wrong_is_refused(call):
    with pytest.raises(TypeCheckError):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: duration("long"),
        lambda: Grid({"EDGE": "two"}, 1, {}),
        lambda: Run("folder", {}),
        lambda: refusal_score(torch.ones(4), (1,)),
    ],
)
def test_calls_into_the_package_are_checked(call):
    with pytest.raises(TypeCheckError):
        call()
