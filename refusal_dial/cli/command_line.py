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
import ipaddress
import logging
import math
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
from typing import Any, NoReturn, get_type_hints

from refusal_dial.common import (
    DIGITS,
    NAMED_POS,
    DialError,
    DryRun,
    T,
    format_value,
    is_utf8,
    log,
    one_of,
    parse_int,
    printable,
)

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
    me = threading.get_ident()

    def send(number: int) -> None:
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(me, number)  # a sleep or a wait ends at once
        else:
            _thread.interrupt_main(signal.Signals(number))

    def stop(number: int, frame: object) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    printed = sys.unraisablehook

    def once_more(lost: sys.UnraisableHookArgs) -> None:
        if not (asked and issubclass(lost.exc_type, KeyboardInterrupt)):
            return printed(lost)
        # after a moment, for in here the next one would be lost too
        again.append(threading.Timer(0.05, send, asked[-1:]))
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
# One value: a number, a switch, a text, a list.


def parse_whole(value: Any) -> int:
    """A whole number of at most 18 digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) < 10**DIGITS:
            return value
        raise DialError(
            f"expected a whole number of at most {DIGITS} digits, not {format_value(value)}"
        )
    raise DialError(f"expected a whole number, not {format_value(value)}")


def parse_number(value: Any) -> float:
    """A finite number."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30:
        return float(value)
    raise DialError(f"expected a finite number, not {format_value(value)}")


def parse_text(value: Any) -> str:
    """Text as it was typed."""
    if not isinstance(value, str) or not is_utf8(value):
        raise DialError(f"expected text in UTF-8, not {format_value(value)}")
    return value


def parse_switch(value: Any) -> bool:
    """A switch: given or not."""
    if isinstance(value, bool):
        return value
    raise DialError(f"is a switch and takes no value, not {format_value(value)}")


def parse_list(value: Any) -> tuple[Any, ...]:
    """One value or several: `20`, `20,21,23`, `[20, 21]`."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


BY_TYPE: dict[str, Callable[[Any], Any]] = {
    "int": parse_whole,
    "float": parse_number,
    "str": parse_text,
    "bool": parse_switch,
    "int | None": parse_whole,
    "float | None": parse_number,
    "str | None": parse_text,
}


# --------------------------------------------------------------------------------------------------
# Values that scripts share: layers, alphas, positions, seeds, choices, addresses.


CONTROL_KINDS = ("holdout", "random", "covariance", "shuffled", "flipped", "length", "folds")

FORMATS = ("html", "png", "pdf", "svg")

MOST_VALUES = 10**6

LARGEST_ALPHA = 1e12
"""float32 keeps 7 digits: of an activation of norm 100, nothing is left beside 1e9."""


def choice(choices: tuple[str, ...], what: str) -> Any:
    """A reader of one of these names."""

    def parse(value: Any) -> str:
        if value not in choices:
            raise one_of(value, choices, what)
        return str(value)

    return parse


def joined(value: Any) -> str:
    """`I, Sorry`, `[I, Sorry]` -> `I,Sorry`."""
    typed = parse_text(value).strip()
    if typed.startswith("[") and typed.endswith("]"):
        typed = typed[1:-1]
    return ",".join(part.strip(" '\"") for part in typed.split(","))


def layers_of(value: Any) -> tuple[int, ...]:
    """Different layers; none stands for all."""
    if value == "all":
        return ()
    layers = tuple(parse_whole(part) for part in parse_list(value))
    if not layers or len(set(layers)) < len(layers):
        raise DialError(
            f"expected different layers such as 20 or 20,21,23, or all; not {format_value(value)}"
        )
    return layers


def own_layers_of(value: Any) -> tuple[int, ...]:
    """Different layers that a direction is used at."""
    if value == "all":
        raise DialError("expected different layers such as 20 or 20,21,23; not 'all'")
    return layers_of(value)


def alpha_of(value: Any) -> float:
    """A number that an activation can be steered by, in any unit."""
    if abs(parse_number(value)) > LARGEST_ALPHA:
        raise DialError(
            f"expected an alpha from {-LARGEST_ALPHA:g} to {LARGEST_ALPHA:g}, not "
            f"{format_value(value)}: beside more, "
            "nothing of an activation is left"
        )
    return parse_number(value)


def alphas_of(value: Any) -> tuple[float, ...]:
    """Different finite numbers, rising: a list, or START:STOP:COUNT."""
    if isinstance(value, str) and value.count(":") == 2:
        return _evenly(value)
    alphas = tuple(alpha_of(part) + 0.0 for part in parse_list(value))  # 0.0 and not -0.0
    if not alphas or len(set(alphas)) < len(alphas):
        raise DialError(f"expected different numbers, at least one; not {format_value(value)}")
    return tuple(sorted(alphas))


def turning_of(value: Any) -> tuple[float, ...]:
    """`alphas_of`, one of them not 0: the question is which of them does most."""
    alphas = alphas_of(value)
    if not any(alphas):
        raise DialError(f"expected a strength that is not 0 among them, not {format_value(value)}")
    return alphas


def _evenly(value: str) -> tuple[float, ...]:
    try:
        start, stop, count = (float(part) for part in value.split(":"))
    except ValueError as error:
        raise DialError(
            f"expected START:STOP:COUNT such as -6:6:13, not {format_value(value)}"
        ) from error
    if not all(map(math.isfinite, (start, stop, count))) or count not in range(2, 10_001):
        raise DialError(
            f"expected START:STOP:COUNT with a count from 2 to 10000, not {format_value(value)}"
        )
    step = (stop - start) / (count - 1)
    return alphas_of([round(start + i * step, 10) for i in range(int(count))])


def pos_of(value: Any) -> int:
    """A position counted from the end of the prompt."""
    if value in NAMED_POS or not isinstance(value, int) or isinstance(value, bool) or value >= 0:
        raise DialError(
            f"expected a position counted from the end of the prompt such as -1, not "
            f"{format_value(value)}"
        )
    return value


def formats_of(value: Any) -> tuple[str, ...]:
    """Formats of figures, each once."""
    formats = tuple(dict.fromkeys(map(str, parse_list(value))))
    for one in formats:
        if one not in FORMATS:
            raise one_of(one, FORMATS, "format")
    return formats


def at_least(least: int | float, kind: Any) -> Any:
    """A reader of numbers from `least` up; of whole ones, up to a million. They are counts, and
    what many times a million takes is neither memory nor a night."""

    def parse(value: Any) -> Any:
        if kind is parse_whole and parse_whole(value) > MOST_VALUES:
            raise DialError(
                f"expected a number from {least} to {MOST_VALUES}, not {format_value(value)}"
            )
        if kind(value) < least:
            raise DialError(f"expected a number from {least} up, not {format_value(value)}")
        return kind(value)

    return parse


def address_of(value: Any) -> str:
    """HOST:PORT, or auto."""
    if value != "auto":
        host_and_port(value)
    return parse_text(value)


def gpus_of(value: Any) -> float:
    """A share of one GPU, or a whole number of them."""
    share = parse_number(value)
    if share < 0 or (share > 1 and share != int(share)):
        raise DialError(
            f"expected a number of GPUs such as 0, 0.5, 1 or 2, not {format_value(value)}"
        )
    return share


def controls_of(value: Any) -> tuple[str, ...]:
    """Kinds of controls in their usual order; none is `none`."""
    if value == "none":
        return ()
    kinds = tuple(choice(CONTROL_KINDS, "control")(str(part).strip()) for part in parse_list(value))
    return tuple(kind for kind in CONTROL_KINDS if kind in kinds)


def share_of(value: Any) -> float:
    """A number between 0 and 1, neither of them."""
    if not 0 < parse_number(value) < 1:
        raise DialError(f"expected a share between 0 and 1, not {format_value(value)}")
    return parse_number(value)


def proportion(value: Any) -> float:
    """A number from 0 to 1."""
    if not 0 <= parse_number(value) <= 1:
        raise DialError(f"expected a number from 0 to 1, not {format_value(value)}")
    return parse_number(value)


def seed_of(value: Any) -> int:
    """A seed that every generator takes."""
    if not 0 <= parse_whole(value) < 2**32:
        raise DialError(f"expected a seed from 0 to {2**32 - 1}, not {format_value(value)}")
    return parse_whole(value)


# --------------------------------------------------------------------------------------------------
# The address of a Ray head.


def host_and_port(address: Any) -> tuple[str, int]:
    """`10.0.0.1:6379`, `[::1]:6379` or `head:6379` in two. Raises `DialError` for anything else."""
    host, _, port = parse_text(address).rpartition(":")
    number = parse_int(port) or 0
    if not (_is_host(host) and 0 < number < 2**16):
        raise DialError(
            f"expected HOST:PORT of a Ray head such as 10.0.0.1:6379, not {format_value(address)}"
        )
    return host.strip("[]"), number


def _is_host(name: str) -> bool:
    """Whether a network could be asked for this name: no empty label, none over 63 letters."""
    try:
        if name.startswith("["):
            return name.endswith("]") and bool(ipaddress.IPv6Address(name[1:-1]))
        odd = any(c in "/:[]@?#" or c.isspace() or not c.isprintable() for c in name)
        return bool(name.encode("idna")) and not odd
    except ValueError:  # UnicodeError is one
        return False


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
