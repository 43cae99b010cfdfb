"""Command lines: Fire, behind a guard that refuses a wrong flag before any work starts.

A script has `main(flags: Flags)`, where `Flags` is a frozen dataclass whose fields are made by
`flag`, and ends in `cli.run(main)`. Fire parses and prints the help. Left alone it would also run
`main` before it rejects a misspelt flag, so every flag and every value is checked first. Imports
nothing heavy: `--help` must not wait for torch. It does not know what a script does.
"""

from __future__ import annotations

import difflib
import errno
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, field, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from refusal_dial.types import DialError

T = TypeVar("T")
USAGE, INTERRUPTED = 2, 130
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def flag(default: T, help: str, parse: Callable[[Any], T] | None = None) -> T:
    """A flag: its default, one line of help, and how a typed value is read (by its type if None).

    `parse` gets what Fire made of the text (a number, a tuple, a string) and raises `DialError`.
    """
    metadata = {"help": help, "parse": parse}
    return field(default=default, metadata=metadata)


def argument(help: str) -> str:
    """A required positional argument."""
    return field(metadata={"help": help, "parse": None})


def run(main: Callable[[Any], object], argv: Sequence[str] | None = None) -> None:
    """Check the command line, call `main(flags)`, and turn what goes wrong into one line.

    Exit codes: 0 done, 2 unusable input, 130 interrupted. Anything else is a fault of ours and
    keeps its traceback.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    _quiet_libraries()
    try:
        flags_type = get_type_hints(main)["flags"]
        flags = parse(flags_type, argv, main)
        if flags is not None:
            main(flags)
    except DialError as error:
        _stop(f"error: {error}", USAGE)
    except KeyboardInterrupt:
        _stop("interrupted: run the same command again to resume where it stopped", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in _DISK:
            raise
        _stop(f"error: cannot write {error.filename or ''}: {error.strerror}", USAGE)


def _stop(line: str, code: int) -> None:
    print(line, file=sys.stderr)
    raise SystemExit(code)


def _quiet_libraries() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    log = logging.getLogger("refusal_dial")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


def parse(flags_type: type[T], argv: Sequence[str], main: Callable[..., object]) -> T | None:
    """The flags of a command line, or None where help was asked for and printed.

    Raises `DialError` for an unknown flag (naming the nearest), a missing or superfluous argument,
    or a value of the wrong type.
    """
    import fire

    known = {f.name: f for f in fields(flags_type)}  # type: ignore[arg-type]
    positional = [name for name, f in known.items() if f.default is MISSING]
    asks_help = any(token in ("--help", "-h") for token in argv) or "--" in argv
    argv = [_spelt_out(token, list(known)) for token in argv]
    if not asks_help:
        _check_names(argv, list(known), positional)
    given: dict[str, Any] = {}

    def collect(**values: Any) -> None:
        given.update(values)

    collect.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD
                if name in positional
                else inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if name in positional else f.default,
            )
            for name, f in known.items()
        ]
    )
    collect.__doc__ = _help(main, known.values())
    name = Path(sys.argv[0]).name
    if asks_help and "--" not in argv:
        argv = ["--", "--help"]
        os.environ.setdefault("PAGER", "cat")
    try:
        fire.Fire(_by_position(collect, positional), command=list(argv), name=name)
    except SystemExit as done:  # Fire leaves this way after printing help
        if asks_help:
            raise SystemExit(0) from done
        raise
    if asks_help:
        return None
    typed = {n: _typed(known[n], value) for n, value in given.items() if _was_given(n, argv, known)}
    return flags_type(**typed)


def _by_position(collect: Callable[..., None], positional: list[str]) -> Callable[..., None]:
    def component(*args: Any, **values: Any) -> None:
        collect(**dict(zip(positional, args, strict=False)), **values)

    component.__signature__ = inspect.signature(collect)  # type: ignore[attr-defined]
    component.__doc__ = collect.__doc__
    return component


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


def _check_names(argv: Sequence[str], known: list[str], positional: list[str]) -> None:
    arguments: list[str] = []
    named: set[str] = set()
    skip = False
    for token, following in zip_longest(argv, argv[1:], fillvalue=""):
        if skip:
            skip = False
            continue
        name = _flag_name(token)
        if name is None:
            arguments.append(token)
            continue
        if name not in known or not token.startswith("--"):
            _unknown_flag(token.split("=")[0], name, known)
        if name in named:
            raise DialError(f"--{name.replace('_', '-')} is given twice")
        named.add(name)
        skip = "=" not in token and following != "" and _flag_name(following) is None
    missing = [name for name in positional if name not in named][len(arguments) :]
    if missing:
        raise DialError(f"missing argument {missing[0].upper()}: see --help")
    if len(arguments) > len([name for name in positional if name not in named]):
        surplus = arguments[-1]
        raise DialError(f"unexpected argument {surplus!r}: options are given as --name value")


def _unknown_flag(written: str, name: str, known: list[str]) -> None:
    choices = ["--" + other.replace("_", "-") for other in known]
    near = difflib.get_close_matches("--" + name.replace("_", "-"), choices, n=1, cutoff=0.4)
    hint = f" did you mean {near[0]}?" if near else ""
    raise DialError(f"unknown flag {written}:{hint} choices are {', '.join(choices)}")


def _was_given(name: str, argv: Sequence[str], known: dict[str, Field[Any]]) -> bool:
    return known[name].default is MISSING or any(_flag_name(token) == name for token in argv)


def _typed(f: Field[Any], value: Any) -> Any:
    name = "--" + f.name.replace("_", "-")
    try:
        if f.metadata.get("parse"):
            return f.metadata["parse"](value)
        return _BY_TYPE[str(f.type)](value)
    except DialError as error:
        raise DialError(f"{name}: {error}") from error


def whole(value: Any) -> int:
    """A whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise DialError(f"expected a whole number, not {value!r}")


def number(value: Any) -> float:
    """A finite number."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30:
        return float(value)
    raise DialError(f"expected a finite number, not {value!r}")


def text(value: Any) -> str:
    """Text as it was typed; numbers are what a folder may well be called."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DialError(f"expected text, not {value!r}")
    return str(value)


def yes(value: Any) -> bool:
    """A switch: given or not."""
    if isinstance(value, bool):
        return value
    raise DialError(f"is a switch and takes no value, not {value!r}")


def listed(value: Any) -> tuple[Any, ...]:
    """One value or several: `20`, `20,21,23`, `[20, 21]`."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


_BY_TYPE: dict[str, Callable[[Any], Any]] = {
    "int": whole,
    "float": number,
    "str": text,
    "bool": yes,
    "int | None": whole,
    "float | None": number,
    "str | None": text,
}


def _help(main: Callable[..., object], known: Iterable[Field[Any]]) -> str:
    module = sys.modules.get(main.__module__)
    about = inspect.getdoc(main) or inspect.getdoc(module) or ""
    lines = "\n".join(f"    {f.name}: {f.metadata.get('help', '')}" for f in known)
    return f"{about}\n\nArgs:\n{lines}"
