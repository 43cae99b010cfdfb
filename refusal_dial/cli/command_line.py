"""Command lines: Fire, behind a guard that refuses a wrong flag before any work starts.

A script has `main(flags: Flags)`, where `Flags` is a frozen dataclass whose fields are made by
`flag`, and ends in `cli.run(main)`. Fire reads the values and lays out the help. Left alone it
would also run `main` before it rejects a misspelt flag, and read `Refuse, please` as a tuple, so
which flag was given what is settled first, by `command_line`. Imports nothing heavy: `--help` must
not wait for torch. It does not know what a script does.
"""

from __future__ import annotations

import _thread
import difflib
import inspect
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from refusal_dial.cli.values import BY_TYPE, parse_text
from refusal_dial.common import DialError, DryRun, format_value, log, one_of, printable

T = TypeVar("T")

USAGE, INTERRUPTED = 2, 130

LONGEST_MESSAGE = 800

_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")  # torch's own words


class _Printable(logging.Formatter):
    """Lines of the log as a terminal may show them."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")


_CONSOLE = logging.StreamHandler()
_CONSOLE.setFormatter(_Printable("%(message)s"))


def flag(default: T, help: str, parse: Callable[[Any], T] | None = None) -> T:
    """A flag: its default, one line of help, and how a typed value is read (by its type if None).

    `parse_flags` gets the text as it was typed where the field is `str`, elsewhere what Fire makes
    of it (a number, a tuple, a string), and raises `DialError`.
    """
    metadata = {"help": help, "parse": parse}
    return field(default=default, metadata=metadata)


CONFIG_FLAG: Any = flag(
    None, "a .yaml file of flags; those on the command line come before its own"
)
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


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C, and SIGTERM, which schedulers send before they kill, raise `KeyboardInterrupt` in
    here, also where a library that was being imported made another error of it. Where Python
    cannot pass an error on (in a destructor or a callback, such as the one that frees the lock of
    an import), it prints the error and goes on: then the signal comes once more. A signal that
    somebody else handles, or that the shell has set to be ignored, is left alone."""
    asked: list[int] = []
    again: list[threading.Timer] = []

    def stop(number: int, frame: object) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    printed = sys.unraisablehook

    def once_more(lost: sys.UnraisableHookArgs) -> None:
        if not (asked and issubclass(lost.exc_type, KeyboardInterrupt)):
            return printed(lost)
        # after a moment, for in here the next one would be lost too
        again.append(threading.Timer(0.05, _thread.interrupt_main, asked[-1:]))
        again[-1].start()

    ours: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }
    here = threading.current_thread() is threading.main_thread()
    taken = [one for one, usual in ours.items() if here and signal.getsignal(one) == usual]
    try:
        for one in taken:
            signal.signal(one, stop)
        sys.unraisablehook = once_more
        yield
    except Exception as error:
        if asked:
            raise KeyboardInterrupt from error
        raise
    finally:
        for timer in again:
            timer.cancel()
        sys.unraisablehook = printed
        for one in taken:
            signal.signal(one, ours[one])


def _guarded(main: Callable[[Any], object], argv: Sequence[str]) -> None:
    try:
        flags_type = get_type_hints(main)["flags"]
        flags = parse_flags(flags_type, argv, main)
        if flags is not None:
            if hasattr(flags, "model"):
                log.info("loading torch and transformers")  # takes seconds, before any other line
            with _stoppable():
                main(flags)
        sys.stdout.flush()
    except DryRun:  # the forecast is printed
        pass
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
    if len(line) > LONGEST_MESSAGE:  # a value may be a megabyte; the remedy stands at the end
        line = f"{line[: LONGEST_MESSAGE // 2]} ... {line[-LONGEST_MESSAGE // 2 :]}"
    print(line, file=sys.stderr)
    raise SystemExit(code)


def _quiet_libraries() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    log.setLevel(logging.INFO)
    log.addHandler(_CONSOLE)
    _CONSOLE.stream = sys.stderr


def parse_flags(flags_type: type[T], argv: Sequence[str], main: Callable[..., object]) -> T | None:
    """The flags of a command line, or None where help, or Fire's script for tab-completion
    (`-- --completion [bash|fish]`), was asked for and printed.

    Raises `DialError` for an unknown flag (naming the nearest), a missing or superfluous argument,
    or a value of the wrong type.
    """
    known = {f.name: f for f in fields(flags_type)}  # type: ignore[arg-type]
    if list(argv[:2]) == ["--", "--completion"]:
        print(completion({**known, "config": CONFIG_FLAG}, *argv[2:3]))
        return None
    if any(token in ("--help", "-h") for token in argv):
        print(help_screen(main, {**known, "config": CONFIG_FLAG}))
        return None
    typed, path = config_flag_of(argv)
    recipe = {} if path is None else recipe_of(path, known, main)
    given = given_of(typed, known, recipe)
    return flags_type(**{name: value_of(known[name], value) for name, value in given.items()})


# --------------------------------------------------------------------------------------------------
# A command line as it was typed: which flag was given what, and the value that its field holds.
#
#     --n-random=3, -n 3, and `n_random: 3` of a config file  ->  {"n_random": "3"}  ->  3
#
# The text is taken apart here, and nothing of it is taken for something else: a flag that is
# unknown, given twice, or left without a value is refused.


NEAREST = 3
"""Flags that an error offers in place of an unknown one, at most."""


def _flag_name(token: str) -> str | None:
    """`--n-random=3` -> `n_random`; None for what is a value (`-3`, `-1,0,1`, `RUN`)."""
    if token.startswith("--"):
        return token[2:].split("=")[0].replace("-", "_")
    if len(token) > 1 and token[0] == "-" and token[1].isalpha():
        return token[1:].split("=")[0].replace("-", "_")
    return None


def _in_full(token: str, known: list[str]) -> str:
    """`-l 20` -> `--layer 20`, where one flag alone begins with that letter."""
    name = _flag_name(token)
    if name is None or len(name) > 1 or token.startswith("--"):
        return token
    full = [other for other in known if other.startswith(name)]
    return "--" + full[0] + token[2:] if len(full) == 1 else token


def config_flag_of(argv: Sequence[str]) -> tuple[list[str], str | None]:
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
    from refusal_dial.cli.recipes import load_recipe

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
    rest = [_in_full(token, list(known)) for token in argv]
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
        raise DialError(
            f"unexpected argument {format_value(surplus)}: options are given as --name value"
        )
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
            parse_text(given)
        return (f.metadata["parse"] or BY_TYPE[kind])(value)
    except DialError as error:
        raise DialError(f"{_dashed(f.name)}: {error}") from error


# --------------------------------------------------------------------------------------------------
# What Fire says of a script's flags: its help screen, and a script for tab-completion.
#
# Both are written from the flags' dataclass fields (see `cli.flag`).


def completion(known: Mapping[str, Field[Any]], shell: str = "bash") -> str:
    """Fire's completion script for the script that runs, started by its name or path. Fire's own
    offers nothing after a path or a value, which it takes for commands that it does not know; here
    there is one command."""
    from fire.completion import Script

    if shell not in ("bash", "fish"):
        raise one_of(shell, ("bash", "fish"), "shell")
    name = Path(sys.argv[0]).name
    return str(Script(name, _shown(known), shell=shell)).replace(f"    {name})\n", "    *)\n")


def help_screen(main: Callable[..., object], known: Mapping[str, Field[Any]]) -> str:
    """Fire's help screen for the flags, written as errors and documents write them."""
    from fire.helptext import HelpText
    from fire.trace import FireTrace

    value = _shown(known)
    about = inspect.getdoc(main) or inspect.getdoc(sys.modules.get(main.__module__)) or ""
    lines = "\n".join(f"    {name}: {f.metadata['help']}" for name, f in known.items())
    about += "\n\n--debug, besides the flags below, shows the traceback of an error."
    value.__doc__ = f"{about}\n\nArgs:\n{lines}"
    screen = str(HelpText(value, trace=FireTrace(value, name=Path(sys.argv[0]).name)))
    screen = re.sub(r"\n *Type: Optional\[\]", "", screen)
    screen = re.sub(  # Fire cuts long defaults short
        r"^( +.*--(\w+)=\S+\n +)De?f?a?u?l?t?[.:].*$",
        lambda found: f"{found[1]}Default: {_typed(known[found[2]].default)}",
        screen,
        flags=re.MULTILINE,
    )
    screen = screen.replace("-h, --", "--")  # -h is help
    return re.sub(r"--[a-z]\w*", lambda name: name[0].replace("_", "-"), screen)


def _typed(default: Any) -> str:
    """A default as one would type it."""
    if default is None or default == ():
        return "not given"
    if isinstance(default, bool):
        return "on" if default else "off"
    return ",".join(map(_typed, default)) if isinstance(default, tuple) else f"{default}"


def _shown(known: Mapping[str, Field[Any]]) -> Callable[[], None]:
    """A function with these flags as its arguments, for Fire to describe."""

    def shown() -> None: ...

    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    shown.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, kinds[1])
            if f.default is MISSING
            else inspect.Parameter(name, kinds[0], default=f.default)
            for name, f in sorted(known.items(), key=lambda one: one[1].default is not MISSING)
        ]
    )
    return shown
