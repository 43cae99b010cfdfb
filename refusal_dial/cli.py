"""Command lines: Fire, behind a guard that refuses a wrong flag before any work starts.

A script has `main(flags: Flags)`, where `Flags` is a frozen dataclass whose fields are made by
`flag`, and ends in `cli.run(main)`. Fire reads the values and lays out the help. Left alone it
would also run `main` before it rejects a misspelt flag, and read `Refuse, please` as a tuple, so
which flag was given what is settled first, by `command_line`. Imports nothing heavy: `--help` must
not wait for torch. It does not know what a script does.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import field, fields
from typing import Any, NoReturn, TypeVar, get_type_hints

from refusal_dial.command_line import config_of, given_of, recipe_of, value_of
from refusal_dial.forecast import shown_forecast
from refusal_dial.help_text import completion, help_screen
from refusal_dial.types import DialError, printable

T = TypeVar("T")
USAGE, INTERRUPTED = 2, 130
LONGEST = 800
_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")  # torch's own words


class _Printable(logging.Formatter):
    """Lines of the log as a terminal may show them."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")


_CONSOLE = logging.StreamHandler()
_CONSOLE.setFormatter(_Printable("%(message)s"))


def flag(default: T, help: str, parse: Callable[[Any], T] | None = None) -> T:
    """A flag: its default, one line of help, and how a typed value is read (by its type if None).

    `parse` gets the text as it was typed where the field is `str`, elsewhere what Fire makes of it
    (a number, a tuple, a string), and raises `DialError`.
    """
    metadata = {"help": help, "parse": parse}
    return field(default=default, metadata=metadata)


CONFIG: Any = flag(None, "a .yaml file of flags; those on the command line come before its own")
"""Every script takes it. A script that has to know the file has it among its flags."""


def argument(help: str, many: bool = False) -> Any:
    """A required positional argument; with `many`, one or more, as text with commas between."""
    return field(metadata={"help": help, "parse": None, "many": many})


def run(main: Callable[[Any], object], argv: Sequence[str] | None = None) -> None:
    """Check the command line, call `main(flags)`, and turn what goes wrong into one line.

    Exit codes: 0 done, 2 unusable input or machine (every `OSError` is the machine's), 130
    interrupted. Anything else is a fault of ours and keeps its traceback. `--debug`, which every
    script takes, shows the others' too.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [typed for typed in argv if typed != "--debug"]
    _quiet_libraries()
    try:
        _guarded(main, argv)
    except SystemExit as stop:
        if debug and isinstance(stop.__context__, Exception):
            traceback.print_exception(stop.__context__)
        raise


def _guarded(main: Callable[[Any], object], argv: Sequence[str]) -> None:
    try:
        flags_type = get_type_hints(main)["flags"]
        flags = parse(flags_type, argv, main)
        if flags is not None:
            with shown_forecast():
                main(flags)
        sys.stdout.flush()
    except DialError as error:
        _stop(f"error: {error}", USAGE)
    except KeyboardInterrupt:
        _stop("interrupted: run the same command again to resume where it stopped", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = "to the disk" if error.filename is None else error.filename
        why = error.strerror or str(error) or type(error).__name__
        _stop(f"error: cannot read or write {where}: {why}", USAGE)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(some in str(error) for some in _MEMORY):
            raise
        _stop("error: out of memory: lower --batch-size, or take a smaller --dtype", USAGE)


def _stop(line: str, code: int) -> NoReturn:
    line = printable(" ".join(line.splitlines()))
    if len(line) > LONGEST:  # a value may be a megabyte; the remedy stands at the end
        line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
    print(line, file=sys.stderr)
    raise SystemExit(code)


def _quiet_libraries() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    log = logging.getLogger("refusal_dial")
    log.setLevel(logging.INFO)
    log.addHandler(_CONSOLE)
    _CONSOLE.stream = sys.stderr


def parse(flags_type: type[T], argv: Sequence[str], main: Callable[..., object]) -> T | None:
    """The flags of a command line, or None where help, or Fire's script for tab-completion
    (`-- --completion [bash|fish]`), was asked for and printed.

    Raises `DialError` for an unknown flag (naming the nearest), a missing or superfluous argument,
    or a value of the wrong type.
    """
    known = {f.name: f for f in fields(flags_type)}  # type: ignore[arg-type]
    if list(argv[:2]) == ["--", "--completion"]:
        print(completion({**known, "config": CONFIG}, *argv[2:3]))
        return None
    if any(token in ("--help", "-h") for token in argv):
        print(help_screen(main, {**known, "config": CONFIG}))
        return None
    typed, path = config_of(argv)
    recipe = {} if path is None else recipe_of(path, known, main)
    given = given_of(typed, known, recipe)
    return flags_type(**{name: value_of(known[name], value) for name, value in given.items()})
