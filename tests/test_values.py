"""Values of flags: each reader takes what it says it takes, and says what it was given."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from script_case import SCRIPTS, load

from refusal_dial.cli.command_line import (
    BY_TYPE,
    parse_list,
    parse_number,
    parse_switch,
    parse_text,
    parse_whole,
)
from refusal_dial.common import DialError, format_value, parse_int

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
    for read, kind in (
        (parse_whole, int),
        (parse_number, float),
        (parse_text, str),
        (parse_switch, bool),
    ):
        found = taken(read, value)
        if isinstance(found, DialError):
            assert format_value(value) in str(found)
        else:
            assert type(found) is kind
            assert found == value


@given(st.integers(-(10**18) + 1, 10**18 - 1))
def test_a_whole_number_is_a_number_too(value):
    assert parse_number(value) == pytest.approx(parse_whole(value))


@pytest.mark.parametrize("value", [True, False])
def test_a_switch_is_no_number(value):
    for read in (parse_whole, parse_number, parse_text):
        with pytest.raises(DialError, match=f"not {value}"):
            read(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, 10**400])
def test_numbers_are_finite(value):
    with pytest.raises(DialError, match="expected a finite number"):
        parse_number(value)


@given(ANY)
def test_one_value_is_a_list_of_one(value):
    assert parse_list(value) == (tuple(value) if isinstance(value, list) else (value,))
    assert parse_list(parse_list(value)) == parse_list(value)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_flag_of_every_script_has_a_reader(path):
    for one in fields(get_type_hints(load(path.stem).main)["flags"]):
        assert one.metadata["parse"] is not None or one.type in BY_TYPE, one.name


@given(st.integers())
def test_a_number_is_spelt_out_or_too_long(number):
    assert parse_int(str(number)) == (number if abs(number) < 10**18 else None)
    assert parse_int(f"{number}x") is None
    assert parse_int("9" * 5000) is None
    assert isinstance(taken(parse_whole, 16**5000), DialError)
    assert isinstance(taken(parse_text, "a\udcff"), DialError)


@pytest.mark.parametrize(
    ("reader", "good", "bad"),
    [
        (parse_whole, [(3, 3), (-1, -1)], [True, 2.0, "3", None, (1,)]),
        (
            parse_number,
            [(3, 3.0), (-0.5, -0.5)],
            [True, float("nan"), float("inf"), 10**400, "3", None],
        ),
        (parse_text, [("a", "a"), ("", "")], [True, 3, None, ("a", "b")]),
        (parse_switch, [(True, True), (False, False)], [1, 0, "yes", None]),
    ],
)
def test_a_reader_takes_its_own_kind_and_names_what_it_got(reader, good, bad):
    for value, expected in good:
        assert reader(value) == expected
        assert type(reader(value)) is type(expected)
    for value in bad:
        with pytest.raises(DialError) as error:
            reader(value)
        assert str(error.value).endswith(f"not {format_value(value)}")


def test_one_value_or_several_are_a_tuple():
    assert parse_list(3) == (3,)
    assert parse_list("a") == ("a",)
    assert parse_list([1, 2]) == parse_list((1, 2)) == (1, 2)
    assert parse_list(()) == ()
