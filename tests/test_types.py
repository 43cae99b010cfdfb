"""Sites, positions and hook names: what each means, and what each error says."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_dial.common import (
    NAMED_POS,
    SITES,
    DialError,
    check_pos,
    format_value,
    hook_name,
    is_utf8,
    one_of,
    positions,
)

LAW = settings(deadline=None, derandomize=True, max_examples=30)


@pytest.mark.parametrize(
    ("site", "name"),
    [
        ("resid_pre", "blocks.20.hook_resid_pre"),
        ("resid_mid", "blocks.20.hook_resid_mid"),
        ("resid_post", "blocks.20.hook_resid_post"),
        ("attn_out", "blocks.20.hook_attn_out"),
        ("mlp_out", "blocks.20.hook_mlp_out"),
        ("z", "blocks.20.attn.hook_z"),
        ("mlp_post", "blocks.20.mlp.hook_post"),
    ],
)
def test_a_site_and_a_layer_name_a_classic_hook(site, name):
    assert hook_name(site, 20) == name


def test_every_site_has_its_own_hook():
    assert len({hook_name(site, 0) for site in SITES}) == len(SITES)


def test_an_unknown_site_names_the_nearest_and_all():
    with pytest.raises(DialError, match="unknown site 'resid_per': did you mean 'resid_pre'") as e:
        hook_name("resid_per", 0)
    assert ", ".join(SITES) in str(e.value)


def test_a_value_too_long_to_be_written_out_is_refused_by_its_type():
    with pytest.raises(DialError, match="too long to be written out"):
        hook_name("resid_pre", -(16**5000))
    with pytest.raises(DialError, match="too long to be written out"):
        check_pos([16**5000, 0.5])


@pytest.mark.parametrize("layer", [-1, -20, True])
def test_a_layer_is_a_whole_number_from_0_up(layer):
    with pytest.raises(DialError, match=f"layer must be a whole number .* not {layer!r}"):
        hook_name("resid_pre", layer)


def test_an_error_is_a_value_error_so_that_notebooks_can_catch_it():
    assert issubclass(DialError, ValueError)


def test_a_far_off_choice_gets_no_guess():
    assert str(one_of("xyzzy", ["cat", "dog"], "animal")) == (
        "unknown animal 'xyzzy': choices are cat, dog"
    )


def test_a_huge_or_broken_choice_stays_one_short_line():
    message = str(one_of("line\nline" * 10_000, ["cat"], "animal"))
    assert "\n" not in message
    assert len(message) < 200


# what the table in `positions` says, for a prompt of 4 tokens and for a decoding step
TABLE = [
    ("all", [0, 1, 2, 3], [0]),
    ("prompt", [0, 1, 2, 3], []),
    ("last_prompt", [3], []),
    ("generated", [], [0]),
    (-1, [3], [0]),
    (-2, [2], []),
    (0, [0], []),
    ((-1, -3), [3, 1], [0]),
    ([-2, -3], [2, 1], []),
    (slice(None), [0, 1, 2, 3], [0]),
    (slice(-2, None), [2, 3], []),
    (slice(1, 3), [1, 2], []),
]


@pytest.mark.parametrize(("pos", "prompt", "decoding"), TABLE)
def test_a_position_means_these_indices(pos, prompt, decoding):
    assert positions(pos, 4) == prompt
    assert positions(pos, 1) == decoding


def test_every_named_position_is_in_the_table():
    assert set(NAMED_POS) <= {row[0] for row in TABLE if isinstance(row[0], str)}


@LAW
@given(length=st.integers(2, 50), data=st.data())
def test_positions_index_like_python(length, data):
    inside = st.integers(-length, length - 1)
    wanted = tuple(data.draw(st.lists(inside, min_size=1, unique=True)))
    assert positions(wanted, length) == [list(range(length))[p] for p in wanted]


@LAW
@given(length=st.integers(2, 50), data=st.data())
def test_a_position_outside_names_the_valid_range(length, data):
    beyond = data.draw(st.one_of(st.integers(max_value=-length - 1), st.integers(length)))
    expected = re.escape(f"position {beyond} is outside a prompt of {length} tokens")
    with pytest.raises(DialError, match=expected + f".*{-length} to {length - 1}"):
        positions((-1, beyond), length)


@LAW
@given(length=st.integers(1, 30), pos=st.sampled_from([row[0] for row in TABLE]))
def test_prompt_and_generated_share_all_between_them(length, pos):
    whole = positions("all", length)
    assert sorted([*positions("prompt", length), *positions("generated", length)]) == whole
    if length >= 4:
        assert set(positions(pos, length)) <= set(whole)


@pytest.mark.parametrize("pos", [row[0] for row in TABLE] + [torch.tensor([-1, -2])])
def test_every_kind_of_position_passes_the_check(pos):
    check_pos(pos)


@pytest.mark.parametrize(
    ("pos", "message"),
    [
        (True, "pos must be a position, not True"),
        ("lst_prompt", "unknown pos 'lst_prompt': did you mean 'last_prompt'"),
        ((), "at least one: ()"),
        ((1, "a"), "pos must hold whole numbers"),
        ((1, True), "pos must hold whole numbers"),
        ((-1, -1), "pos names a position twice: (-1, -1)"),
        (1.5, "not 1.5"),
        (None, "not None"),
    ],
)
def test_no_position_says_what_one_is(pos, message):
    with pytest.raises(DialError, match=re.escape(message)):
        check_pos(pos)


def test_a_tensor_of_positions_has_no_fixed_indices():
    with pytest.raises(DialError, match="no fixed indices"):
        positions(torch.tensor([-1, -2]), 4)


@pytest.mark.parametrize("held", [int, tuple, list])
def test_an_integer_that_python_does_not_write_out_is_shown_by_its_type(held):
    long = 16**5000 if held is int else held([1, 16**5000])
    with pytest.raises(ValueError, match="digits"):
        repr(long)
    assert format_value(long) == f"a value of type {type(long).__name__} too long to be written out"
    assert "too long to be written out" in str(one_of(long, ["a"], "letter"))


@given(st.text())
def test_a_value_is_shown_as_it_is_up_to_a_length(text):
    assert format_value(text, 10**6) == repr(text)
    assert len(format_value(text, 20)) <= 23
    assert is_utf8(text)
    assert not is_utf8(text + "\ud800")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    ),
    st.integers(1, 300),
)
def test_a_value_is_its_repr_cut(value, longest):
    text = repr(value)
    shown = format_value(value, longest)
    assert shown == text if len(text) <= longest else shown.endswith("...")
    if not isinstance(value, str | bytes):
        assert len(shown) <= longest + 3


def test_no_more_is_built_of_a_value_than_is_shown():
    """2^200 parts, were they written out."""
    value: list[object] = ["x"]
    for _ in range(200):
        value = [value, value]
    assert format_value(value, 50) == "[" * 50 + "..."
    mapping: dict[str, object] = {}
    mapping["me"] = mapping
    assert len(format_value(mapping, 50)) == 53
    assert format_value((1,)) == "(1,)"
