"""The shared flags: what each reads, its default, and what its errors say."""

from __future__ import annotations

import math
from dataclasses import fields
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_dial.cli import command_line as cli
from refusal_dial.cli.command_line import at_least, parse_number
from refusal_dial.cli.flags import (
    RELATIVE_ALPHAS,
    STEERABLE,
    HoldoutFlags,
    SteeringFlags,
    StudyFlags,
)
from refusal_dial.common import DialError

LAW = settings(deadline=None, derandomize=True, max_examples=40)
ABSOLUTE = ("--alpha-unit", "absolute")


def main(flags: HoldoutFlags) -> None: ...


def read(*arguments):
    return cli.parse_flags(HoldoutFlags, arguments, main)


def test_without_flags_every_default_holds():
    assert read() == HoldoutFlags()


def test_the_flags_of_the_issue_are_there():
    wanted = "model layer site pos alphas n_random seed prompts device dtype out".split()
    assert set(wanted) <= {f.name for f in fields(SteeringFlags)}
    assert {"model", "prompts", "seed", "device", "dtype", "out"} <= {
        f.name for f in fields(StudyFlags)
    }


def test_every_default_can_be_typed_as_it_is_shown():
    for f in fields(HoldoutFlags):
        default = getattr(HoldoutFlags(), f.name)
        if default not in (None, (), False):
            typed = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
            assert getattr(read(f"--{f.name}={typed}"), f.name) == default


def test_the_default_alphas_are_symmetric_rising_and_hold_0():
    assert list(RELATIVE_ALPHAS) == sorted(RELATIVE_ALPHAS)
    assert [-a for a in reversed(RELATIVE_ALPHAS)] == list(RELATIVE_ALPHAS)
    assert 0.0 in RELATIVE_ALPHAS


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--layer", "20,21,23"], "layer", (20, 21, 23)),
        (["--layer", "all"], "layer", ()),
        (["--layer", "0"], "layer", (0,)),
        (["--site", "resid_post"], "site", "resid_post"),
        (["--pos", "-3"], "pos", -3),
        (["--alphas", "auto"], "alphas", RELATIVE_ALPHAS),
        (["--alphas", "8,-8,0", "--alpha-unit", "absolute"], "alphas", (-8.0, 0.0, 8.0)),
        (["--alphas", "4", "--alpha-unit", "absolute"], "alphas", (4.0,)),
        (["--alphas", "-6:6:5", "--alpha-unit", "absolute"], "alphas", (-6.0, -3.0, 0.0, 3.0, 6.0)),
        (["--alphas", "6:-6:3", "--alpha-unit", "absolute"], "alphas", (-6.0, 0.0, 6.0)),
        (["--alphas", "-.3:.3:7"], "alphas", (-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3)),
        (["--alpha-unit", "residual"], "alpha_unit", "residual"),
        (["--n-random", "0"], "n_random", 0),
        (["--k", "12"], "k", 12),
        (["--seed", "4294967295"], "seed", 2**32 - 1),
        (["--holdout", "0.25"], "holdout", 0.25),
        (["--threshold", "-1"], "threshold", -1.0),
        (["--batch-size", "1"], "batch_size", 1),
        (["--memory-gb", "1"], "memory_gb", 1.0),
        (["--engine", "plain"], "engine", "plain"),
        (["--scorer", "logit_diff"], "scorer", "logit_diff"),
        (["--refusal-tokens", "I,Sorry"], "refusal_tokens", "I,Sorry"),
        (["--refusal-tokens", "I, Sorry"], "refusal_tokens", "I,Sorry"),
        (["--refusal-tokens", "[40, 2121]"], "refusal_tokens", "40,2121"),
        (["--refusal-tokens", "'I', \"As\""], "refusal_tokens", "I,As"),
        (["--refusal-tokens", "40"], "refusal_tokens", "40"),
        (["--refusal-tokens", "None"], "refusal_tokens", "None"),
        (["--model", "Qwen/Qwen2.5-0.5B-Instruct"], "model", "Qwen/Qwen2.5-0.5B-Instruct"),
        (["--model", "one, two"], "model", "one,two"),
        (["--model", "./a folder"], "model", "./a folder"),
        (["--system", "Refuse, always."], "system", "Refuse, always."),
        (["--prompts", "1e3"], "prompts", "1e3"),
        (["--out", "runs/007"], "out", "runs/007"),
        (["--plain"], "plain", True),
    ],
)
def test_a_flag_is_read(arguments, name, value):
    flags = read(*arguments)
    assert getattr(flags, name) == value
    assert type(getattr(flags, name)) is type(value)
    others = {f.name for f in fields(flags)} - {name, "alpha_unit"}
    assert all(getattr(flags, other) == getattr(HoldoutFlags(), other) for other in others)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--layer", "twenty"], "--layer: expected a whole number, not 'twenty'"),
        (["--layer", "20,20"], "expected different layers such as 20 or 20,21,23, or all; not (20"),
        (["--layer", "()"], "expected different layers such as 20 or 20,21,23, or all; not ()"),
        (["--layer", "1.5"], "--layer: expected a whole number, not 1.5"),
        (["--site", "resid_per"], "--site: unknown site 'resid_per': did you mean 'resid_pre'?"),
        (
            ["--pos", "0"],
            "--pos: expected a position counted from the end of the prompt",
        ),
        (["--pos", "all"], "such as -1, not 'all'"),
        (["--pos", "-1,-2"], "such as -1, not (-1, -2)"),
        (["--pos", "-1.0"], "such as -1, not -1.0"),
        (["--alphas", "()"], "--alphas: expected different numbers, at least one; not ()"),
        (["--alphas", "1,1.0"], "--alphas: expected different numbers"),
        (["--alphas", "1,high"], "--alphas: expected a finite number, not 'high'"),
        (["--alphas", "1e31"], "--alphas: expected a finite number, not 1e+31"),
        (["--alphas", "1e29"], "--alphas: expected an alpha from -1e+12 to 1e+12, not 1e+29"),
        (["--alphas", "0,-2e12"], "--alphas: expected an alpha from -1e+12 to 1e+12, not -20000"),
        (["--alphas", "-1e13:0:3"], "--alphas: expected an alpha from -1e+12 to 1e+12"),
        (["--alphas", "a:b:c"], "expected START:STOP:COUNT such as -6:6:13, not 'a:b:c'"),
        (["--alphas", "1:2"], "--alphas: expected a finite number, not '1:2'"),
        (
            ["--alphas", "-6:6:1"],
            "expected START:STOP:COUNT with a count from 2 to 10000, not '-6:6:1'",
        ),
        (["--alphas", "-6:6:2.5"], "with a count from 2 to 10000"),
        (["--alphas", "-6:6:inf"], "with a count from 2 to 10000"),
        (["--alphas", "-6:6:nan"], "with a count from 2 to 10000"),
        (["--alphas", "-6:inf:3"], "with a count from 2 to 10000"),
        (["--alphas", "nan:6:3"], "with a count from 2 to 10000"),
        (["--alphas", "6:6:3"], "--alphas: expected different numbers"),
        (["--alpha-unit", "relative"], "--alpha-unit: unknown unit 'relative'"),
        (["--n-random", "-1"], "--n-random: expected a number from 0 up, not -1"),
        (["--n-random", "x"], "--n-random: expected a whole number, not 'x'"),
        (["--k", "0"], "--k: expected a number from 1 up, not 0"),
        (["--seed", "-1"], "--seed: expected a seed from 0 to 4294967295, not -1"),
        (["--seed", "4294967296"], "--seed: expected a seed from 0 to 4294967295, not 4294967296"),
        (["--seed", "1.0"], "--seed: expected a whole number, not 1.0"),
        (["--holdout", "0"], "--holdout: expected a share between 0 and 1, not 0"),
        (["--holdout", "1"], "--holdout: expected a share between 0 and 1, not 1"),
        (["--holdout", "half"], "--holdout: expected a finite number, not 'half'"),
        (["--threshold", "high"], "--threshold: expected a finite number, not 'high'"),
        (["--batch-size", "0"], "--batch-size: expected a number from 1 up, not 0"),
        (["--memory-gb", "0"], "--memory-gb: expected a number from 0.01 up, not 0"),
        (["--engine", "fast"], "--engine: unknown engine 'fast'"),
        (
            ["--scorer", "refusal"],
            "--scorer: unknown scorer 'refusal': did you mean 'refusal_s",
        ),
        (["--model"], "--model needs a value: embedded, smollm2, a folder"),
        (["--alpha", "3"], "unknown flag --alpha: did you mean --alphas or --alpha-unit?"),
        (["--layers", "3"], "unknown flag --layers: did you mean --layer?"),
    ],
)
def test_a_wrong_value_says_what_was_expected(arguments, says):
    with pytest.raises(DialError) as error:
        read(*arguments)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_site_names_them_all():
    with pytest.raises(DialError) as error:
        read("--site", "attention")
    assert str(error.value).endswith(f"choices are {', '.join(STEERABLE)}")


@LAW
@given(start=st.integers(-40, 40), width=st.integers(1, 40), count=st.integers(2, 41))
def test_evenly_spaced_alphas_go_from_end_to_end(start, width, count):
    stop = start + width
    alphas = read(f"--alphas={start}:{stop}:{count}", *ABSOLUTE).alphas
    assert len(alphas) == count
    assert (alphas[0], alphas[-1]) == (start, stop)
    steps = [b - a for a, b in pairwise(alphas)]
    assert max(steps) - min(steps) < 1e-8
    assert read(f"--alphas={stop}:{start}:{count}", *ABSOLUTE).alphas == pytest.approx(alphas)


@LAW
@given(end=st.integers(1, 1000), half=st.integers(1, 30))
def test_a_symmetric_range_is_exactly_symmetric_and_holds_0(end, half):
    alphas = read(f"--alphas=-{end / 10}:{end / 10}:{2 * half + 1}", *ABSOLUTE).alphas
    assert [-a for a in reversed(alphas)] == list(alphas)
    assert alphas[half] == 0.0
    assert math.copysign(1.0, alphas[half]) == 1.0  # the column shows 0.0, not -0.0


@LAW
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9, unique=True))
def test_listed_alphas_are_read_exactly_and_sorted(values):
    read_values = read("--alphas=" + ",".join(map(repr, values)), *ABSOLUTE).alphas
    assert read_values == tuple(sorted(values))


def test_at_least_takes_its_bound_and_keeps_the_kind():
    read_share = at_least(0.5, parse_number)
    assert read_share(0.5) == 0.5
    with pytest.raises(DialError, match=r"from 0\.5 up, not 0\.49"):
        read_share(0.49)
    with pytest.raises(DialError, match="finite number, not 'x'"):
        read_share("x")
