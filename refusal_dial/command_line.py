"""A command line as it was typed: which flag was given what, and the value that its field holds.

    --n-random=3, -n 3, and `n_random: 3` of a config file  ->  {"n_random": "3"}  ->  3

The text is taken apart here, and nothing of it is taken for something else: a flag that is unknown,
given twice, or left without a value is refused. It does not know what a script does with its flags.
"""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any, NoReturn

from refusal_dial.types import DialError, shown
from refusal_dial.values import BY_TYPE, text

NEAREST = 3
"""Flags that an error offers in place of an unknown one, at most."""


def _flag_name(token: str) -> str | None:
    """`--n-random=3` -> `n_random`; None for what is a value (`-3`, `-1,0,1`, `RUN`)."""
    if token.startswith("--"):
        return token[2:].split("=")[0].replace("-", "_")
    if len(token) > 1 and token[0] == "-" and token[1].isalpha():
        return token[1:].split("=")[0].replace("-", "_")
    return None


def _spelt_out(token: str, known: list[str]) -> str:
    """`-l 20` -> `--layer 20`, where one flag alone begins with that letter."""
    name = _flag_name(token)
    if name is None or len(name) > 1 or token.startswith("--"):
        return token
    full = [other for other in known if other.startswith(name)]
    return "--" + full[0] + token[2:] if len(full) == 1 else token


def config_of(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """The command line without `--config FILE`, which every script takes, and the file."""
    rest, path = [], None
    tokens = iter(argv)
    for token in tokens:
        if token.split("=")[0] != "--config":
            rest.append(token)
        elif path is not None:
            raise DialError("--config is given twice")
        else:
            path = token.partition("=")[2] or next(tokens, "")
            if not path or path.startswith("--"):
                raise DialError("--config needs a value: a .yaml file of flags")
    return rest, path


def recipe_of(
    path: str, known: Mapping[str, Field[Any]], main: Callable[..., object]
) -> dict[str, str | None]:
    """The flags of a config file; those on the command line come before them."""
    from refusal_dial.recipes import load_recipe

    recipe = load_recipe(path)
    script = Path(inspect.getfile(main)).stem
    if recipe.experiment not in (None, script):
        raise DialError(f"{path} is a config of {recipe.experiment}, and this is {script}")
    for name in recipe.flags:
        if name not in known or name == "config":
            try:
                _unknown_flag(name, name, list(known))
            except DialError as error:
                raise DialError(f"{path}: {error}") from None
    return {**recipe.flags, **({"config": path} if "config" in known else {})}


def given_of(
    argv: Sequence[str], known: dict[str, Field[Any]], recipe: Mapping[str, str | None]
) -> dict[str, str | None]:
    """The text given for each flag and argument; None for a switch that stands alone."""
    given: dict[str, str | None] = {}
    arguments: list[str] = []
    rest = [_spelt_out(token, list(known)) for token in argv]
    while rest:
        token = rest.pop(0)
        name = _flag_name(token)
        if name is None:
            arguments.append(token)
            continue
        if name not in known or not token.startswith("--"):
            _unknown_flag(token.split("=")[0], name, list(known))
        if name in given:
            raise DialError(f"{_dashed(name)} is given twice")
        if "=" in token:
            given[name] = token.split("=", 1)[1]
        elif rest and _flag_name(rest[0]) is None:
            given[name] = rest.pop(0)
        elif _kind(known[name]) == "bool":
            given[name] = None
        else:
            raise DialError(f"{_dashed(name)} needs a value: {known[name].metadata['help']}")
    free = [name for name, f in known.items() if f.default is MISSING and name not in given]
    needed = [name for name in free[len(arguments) :] if name not in recipe]
    if needed:
        raise DialError(f"missing argument {needed[0].upper()}: see --help")
    if free and known[free[-1]].metadata.get("many"):
        last = len(free) - 1
        arguments = [*arguments[:last], ",".join(arguments[last:])]
    if len(arguments) > len(free):
        surplus = arguments[len(free)]
        raise DialError(f"unexpected argument {shown(surplus)}: options are given as --name value")
    return {**recipe, **given, **dict(zip(free, arguments, strict=False))}


def _unknown_flag(written: str, name: str, known: list[str]) -> NoReturn:
    begun = [other for other in known if name and other.startswith(name)]
    near = (begun or difflib.get_close_matches(name, known, n=NEAREST))[:NEAREST]
    hint = f" did you mean {' or '.join(map(_dashed, near))}?" if near else ""
    raise DialError(f"unknown flag {written}:{hint} --help lists them all")


def _dashed(name: str) -> str:
    return "--" + name.replace("_", "-")


def _kind(f: Field[Any]) -> str:
    return f.type.__name__ if isinstance(f.type, type) else str(f.type)


def value_of(f: Field[Any], given: str | None) -> Any:
    """Text stays as it was typed; everything else is what Fire reads in it."""
    from fire.parser import DefaultParseValue

    kind = _kind(f)
    value = True if given is None else given
    if given is not None and not kind.startswith("str"):
        with warnings.catch_warnings():  # Python's, of text that is nearly a number
            warnings.simplefilter("ignore")
            value = DefaultParseValue(given)
        try:
            repr(value)
        except ValueError:  # it holds an integer of more digits than Python writes out
            value = given
    try:
        if given is not None:
            text(given)
        return (f.metadata["parse"] or BY_TYPE[kind])(value)
    except DialError as error:
        raise DialError(f"{_dashed(f.name)}: {error}") from error
