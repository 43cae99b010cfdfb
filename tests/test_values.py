"""Values of flags: each reader takes what it says it takes, and says what it was given."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from script_case import SCRIPTS, load

from refusal_dial.types import DialError, shown
from refusal_dial.values import BY_TYPE, listed, number, spelt, text, whole, yes

ANY = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())
)


def taken(read, value):
    """What a reader makes of a value, or its error."""
    try:
        return read(value)
    except DialError as error:
        return error


@given(ANY)
def test_what_a_reader_takes_has_its_type_and_anything_else_is_named(value):
    for read, kind in ((whole, int), (number, float), (text, str), (yes, bool)):
        found = taken(read, value)
        if isinstance(found, DialError):
            assert shown(value) in str(found)
        else:
            assert type(found) is kind
            assert found == value


@given(st.integers(-(10**18) + 1, 10**18 - 1))
def test_a_whole_number_is_a_number_too(value):
    assert number(value) == pytest.approx(whole(value))


@pytest.mark.parametrize("value", [True, False])
def test_a_switch_is_no_number(value):
    for read in (whole, number, text):
        with pytest.raises(DialError, match=f"not {value}"):
            read(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, 10**400])
def test_numbers_are_finite(value):
    with pytest.raises(DialError, match="expected a finite number"):
        number(value)


@given(ANY)
def test_one_value_is_a_list_of_one(value):
    assert listed(value) == (tuple(value) if isinstance(value, list) else (value,))
    assert listed(listed(value)) == listed(value)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_flag_of_every_script_has_a_reader(path):
    for one in fields(get_type_hints(load(path.stem).main)["flags"]):
        assert one.metadata["parse"] is not None or one.type in BY_TYPE, one.name


@given(st.integers())
def test_a_number_is_spelt_out_or_too_long(number):
    assert spelt(str(number)) == (number if abs(number) < 10**18 else None)
    assert spelt(f"{number}x") is None
    assert spelt("9" * 5000) is None
    assert isinstance(taken(whole, 16**5000), DialError)
    assert isinstance(taken(text, "a\udcff"), DialError)


@pytest.mark.parametrize(
    ("reader", "good", "bad"),
    [
        (whole, [(3, 3), (-1, -1)], [True, 2.0, "3", None, (1,)]),
        (number, [(3, 3.0), (-0.5, -0.5)], [True, float("nan"), float("inf"), 10**400, "3", None]),
        (text, [("a", "a"), ("", "")], [True, 3, None, ("a", "b")]),
        (yes, [(True, True), (False, False)], [1, 0, "yes", None]),
    ],
)
def test_a_reader_takes_its_own_kind_and_names_what_it_got(reader, good, bad):
    for value, expected in good:
        assert reader(value) == expected
        assert type(reader(value)) is type(expected)
    for value in bad:
        with pytest.raises(DialError) as error:
            reader(value)
        assert str(error.value).endswith(f"not {shown(value)}")


def test_one_value_or_several_are_a_tuple():
    assert listed(3) == (3,)
    assert listed("a") == ("a",)
    assert listed([1, 2]) == listed((1, 2)) == (1, 2)
    assert listed(()) == ()
