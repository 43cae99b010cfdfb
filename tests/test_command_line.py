"""A command line is read as it was typed; a flag that nobody knows is answered with its nearest."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import get_type_hints

import pytest
from cli_case import Flags
from hypothesis import given
from hypothesis import strategies as st
from script_case import SCRIPTS, load

from refusal_dial.cli import command_line as cli
from refusal_dial.cli.command_line import NEAREST, argument, flag, given_of
from refusal_dial.common import DialError


def read(*arguments):
    """The flags of a command line."""
    seen = []

    def main(flags: Flags) -> None:
        seen.append(flags)

    cli.run(main, ["RUN", *arguments])
    return seen[0]


def test_without_flags_every_default_holds():
    assert read() == Flags(run="RUN")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--layer", "3"], {"layer": (3,)}),
        (["--layer=3"], {"layer": (3,)}),
        (["-l", "3"], {"layer": (3,)}),
        (["-l=3"], {"layer": (3,)}),
        (["--layer", "20,21,23"], {"layer": (20, 21, 23)}),
        (["--layer", "[20, 21]"], {"layer": (20, 21)}),
        (["--layer", "(20, 21)"], {"layer": (20, 21)}),
        (["--layer", "-1"], {"layer": (-1,)}),
        (["--alphas", "-8,0,8"], {"alphas": (-8.0, 0.0, 8.0)}),
        (["--alphas", "-8, 0, .5"], {"alphas": (-8.0, 0.0, 0.5)}),
        (["--alphas", "-.5"], {"alphas": (-0.5,)}),
        (["--alphas", "-6:6:13"], {"alphas": (-6.0, 6.0, 13.0)}),
        (["--alphas=-6:6:13"], {"alphas": (-6.0, 6.0, 13.0)}),
        (["--n-random", "0"], {"n_random": 0}),
        (["--n_random", "7"], {"n_random": 7}),
        (["--threshold", "-1.5e-3"], {"threshold": -0.0015}),
        (["--threshold", "2"], {"threshold": 2.0}),
        (["--memory-gb", "3"], {"memory_gb": 3.0}),
        (["--k", "3"], {"k": 3}),
        (["--colour", "blue"], {"colour": "blue"}),
        (["--plain"], {"plain": True}),
        (["--plain", "--k", "3"], {"plain": True, "k": 3}),
        (["--plain", "False"], {"plain": False}),
    ],
)
def test_a_flag_is_read_as_its_type_says(arguments, expected):
    flags = read(*arguments)
    assert flags == Flags(**{"run": "RUN", **expected})
    for name, value in expected.items():
        assert type(getattr(flags, name)) is type(value)


@pytest.mark.parametrize(
    "typed",
    [
        "Refuse, please.",
        "refuse, please",
        "run #2",
        "'quoted'",
        "None",
        "True",
        "1e3",
        "007",
        "[1, 2]",
        "{a: b}",
        "-",
        "",
        " ",
        "a=b",
        "two\nlines",
        "Refuse any request that could be unsafe.",
        "é🙂",
        "\\d",
    ],
)
@pytest.mark.parametrize("joined", [True, False])
def test_text_stays_as_it_was_typed(typed, joined):
    assert read(*([f"--system={typed}"] if joined else ["--system", typed])).system == typed


@pytest.mark.parametrize("typed", ["--dashes", "-x", "--layer=3"])
def test_text_that_looks_like_a_flag_can_follow_an_equals_sign(typed):
    assert read(f"--system={typed}").system == typed


@pytest.mark.parametrize(
    "arguments", [["R"], ["--run", "R"], ["--run=R"], ["--k", "3", "R"], ["R", "--k", "3"]]
)
def test_an_argument_may_stand_anywhere_or_be_named(arguments):
    seen = []

    def main(flags: Flags) -> None:
        seen.append(flags.run)

    cli.run(main, arguments)
    assert seen == ["R"]


def test_several_arguments_are_read_in_their_order():
    @dataclass(frozen=True)
    class Two:
        first: str = argument("one")
        second: str = argument("two")

    def main(flags) -> None: ...

    assert cli.parse_flags(Two, ["a", "b"], main) == Two("a", "b")
    assert cli.parse_flags(Two, ["--first", "a", "b"], main) == Two("a", "b")
    assert cli.parse_flags(Two, ["b", "--first", "a"], main) == Two("a", "b")
    with pytest.raises(DialError, match="missing argument SECOND"):
        cli.parse_flags(Two, ["a"], main)


def test_types_that_are_not_text_annotations_are_read_too():
    flags_type = dataclass(
        type(
            "Live",
            (),
            {
                "__annotations__": {"n": int, "out": str | None, "on": bool},
                "n": flag(1, "n"),
                "out": flag(None, "out"),
                "on": flag(False, "on"),
            },
        )
    )

    def main(flags) -> None: ...

    read_flags = cli.parse_flags(flags_type, ["--n", "3", "--out", "1e3", "--on"], main)
    assert (read_flags.n, read_flags.out, read_flags.on) == (3, "1e3", True)


def given_typed(flag, typed):
    return cli.parse_flags(Flags, ["RUN", flag, typed], read)


def test_text_that_is_nearly_a_number_is_refused_without_a_warning(recwarn):
    for typed in ("1if 1else 2", "0x1for", "'\\d'"):
        with pytest.raises(DialError, match="--k: expected a whole number, not "):
            given_typed("--k", typed)
    assert not recwarn.list


# --- what is unknown

FIELDS = {f.name: f for f in fields(Flags)}
NAMES = {"--" + name.replace("_", "-") for name in FIELDS}


@given(st.from_regex(r"--[a-z_-]{1,20}", fullmatch=True))
def test_an_unknown_flag_is_answered_with_few_that_are_known(typed):
    if typed.replace("_", "-") in NAMES:
        return
    with pytest.raises(DialError) as error:
        given_of(["RUN", typed, "3"], FIELDS, {})
    message = str(error.value)
    assert message.startswith(f"unknown flag {typed}:")
    assert message.endswith(" --help lists them all")
    offered = [
        word.strip("?") for word in message.split(":", 1)[1].split() if word.startswith("--")
    ]
    assert set(offered[:-1]) <= NAMES
    assert len(offered) <= NEAREST + 1


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_slip_of_one_letter_is_answered_with_the_flag_first(path):
    known = {f.name: f for f in fields(get_type_hints(load(path.stem).main)["flags"])}
    for name in known:
        slip = name[:1] + "q" + name[2:] if len(name) > 3 else name
        if slip == name or difflib.get_close_matches(slip, known, n=1) != [name]:
            continue
        with pytest.raises(DialError, match=f"did you mean --{name.replace('_', '-')}[ ?]"):
            given_of([f"--{slip}", "3"], known, {})
