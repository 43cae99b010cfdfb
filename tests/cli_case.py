"""Flags of every kind, for the tests of the command line; light enough to start a script with."""

from __future__ import annotations

from dataclasses import dataclass

from refusal_dial.cli.command_line import argument, flag, parse_list, parse_number, parse_whole
from refusal_dial.common import one_of


def layers(value):
    return tuple(parse_whole(part) for part in parse_list(value))


def colour(value):
    if value not in ("red", "blue"):
        raise one_of(value, ("red", "blue"), "colour")
    return value


def span(value):
    if isinstance(value, str) and value.count(":") == 2:
        return tuple(float(part) for part in value.split(":"))
    return tuple(parse_number(part) for part in parse_list(value))


@dataclass(frozen=True)
class Flags:
    run: str = argument("a run folder")
    layer: tuple[int, ...] = flag((20,), "one layer or several", layers)
    alphas: tuple[float, ...] = flag((), "numbers or A:B:N", span)
    n_random: int = flag(20, "how many random directions")
    threshold: float = flag(0.0, "what counts as a refusal")
    colour: str = flag("red", "red or blue", colour)
    system: str | None = flag(None, "a system message")
    memory_gb: float | None = flag(None, "how much memory")
    k: int | None = flag(None, "how many prompts")
    near: bool = flag(False, "another flag that begins with n")
    plain: bool = flag(False, "without a template")
