"""What every other module uses: sites, positions, hook names, errors, safe text and whole files.

Imports nothing of ours. A site and a layer become a TransformerLens hook name here; which positions
a `Pos` means is `positions`. `DialError` is the one error that a person reads.
"""

from __future__ import annotations

import difflib
import errno
import json
import logging
import math
import os
import re
import secrets
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, TypeAlias, TypeVar, get_args

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

# --------------------------------------------------------------------------------------------------
# Sites, positions, hook names, errors, and text that is safe to print.


Site = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "mlp_post"]
"""Where in a block: the residual stream (pre, mid, post), what attention or the MLP adds to it,
one head's output before W_O (z), or the MLP's neurons after the nonlinearity (mlp_post)."""

NamedPos = Literal["all", "prompt", "last_prompt", "generated"]

Pos: TypeAlias = Any
"""Which positions: an int, a tuple of ints, a slice, a `NamedPos`, or an integer tensor with one
position a row. Count from the end (-1 is the last prompt token): batches are padded on the left,
so only negative positions mean the same token in every row. See `positions`."""

Hook: TypeAlias = tuple[str, Callable[..., Any]]
"""What TransformerLens calls a forward hook: `(hook name, function of (activation, hook))`."""

log = logging.getLogger("refusal_dial")
"""The one log: on the terminal, and in a run's log.txt."""

SITES: tuple[str, ...] = get_args(Site)

NAMED_POS: tuple[str, ...] = get_args(NamedPos)

ALL: NamedPos = "all"

EVERY = 10.0
"""Seconds between two lines of progress, where no terminal shows a bar."""


def progress(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, one by one: on a terminal under a bar, elsewhere with a line in the log now and
    then. What is over in a second shows none."""
    from tqdm import tqdm

    bar = tqdm(items, desc=what, disable=None, delay=1, leave=False, file=sys.stderr)
    last = monotonic()
    for number, item in enumerate(bar, 1):
        yield item
        if bar.disable and monotonic() - last > EVERY:
            log.info("%s: %d of %d", what, number, len(items))
            last = monotonic()


def free_memory() -> int:
    """Bytes of the machine's memory that are free."""
    import psutil

    return int(psutil.virtual_memory().available)


UNITS = ("residual", "norm", "absolute")
"""What alpha = 1 is as long as (see `cells`)."""

UNIT_NAMES = {
    "residual": "mean residual norms",
    "norm": "norms of the raw direction",
    "absolute": "residual-stream units",
    "distance": "distances of the class means",  # of runs before 0.2
}
"""A unit of alpha, as tables, axes and summaries name it."""

FAR = 1.5
"""Mean residual norms beyond which an alpha is warned of, or, in no stated unit, refused."""

FURTHEST = 1e18
"""What may be added to an activation, or be set in it: of more, the squares that a norm takes are
infinite in float32 (and bfloat16), and a model that divides by it reads zeros without a NaN."""

_DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

_HOOK_NAMES = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "mlp_post": "mlp.hook_post",
}


class DialError(ValueError):
    """Input that cannot be used. Its message is one line for the person who gave the input:
    the value, what was expected, and the choices or the remedy."""


class DryRun(Exception):  # noqa: N818 - nothing went wrong
    """Ends a dry run where rows would begin. `forecast` says what would be computed."""

    def __init__(self, forecast: Any) -> None:
        super().__init__("a dry run ends where rows would begin")
        self.forecast = forecast


def one_of(value: object, choices: Iterable[object], what: str) -> DialError:
    """The error for a value outside its choices, naming the nearest one."""
    names = [str(choice) for choice in choices]
    given = value if isinstance(value, str) else format_value(value)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f" did you mean {near[0]!r}?" if near else ""
    given = given if len(given) <= 60 else given[:60] + "..."
    return DialError(f"unknown {what} {given!r}:{hint} choices are {', '.join(names)}")


def printable(text: str, keep: str = "") -> str:
    """The text with its control characters written out (`\\x1b`), but for those to `keep`: what a
    prompt or a file name holds must not move the cursor, nor turn the reading direction."""
    return "".join(c if c in keep or not _is_control(c) else _escape(c) for c in text)


def one_line(error: BaseException, limit: int = 240) -> str:
    """What an error says, on one line of at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def format_value(value: object, longest: int = 200) -> str:
    """Any value as an error shows it: its repr, cut after `longest` characters, and no more of it
    built than that. Python writes out no integer of more than 4300 digits: of a value that holds
    one only the type is shown."""
    text = ""
    try:
        for piece in _pieces(value, longest):
            text += piece
            if len(text) > longest:
                return f"{text[:longest]}..."
    except (ValueError, RecursionError):
        return f"a value of type {type(value).__name__} too long to be written out"
    return text


def _pieces(value: object, longest: int) -> Iterator[str]:
    """The repr of a value, piece by piece: lists and mappings that share their parts, as YAML's
    anchors make them, may be far longer written out than they are in memory."""
    if isinstance(value, str | bytes) and len(value) > longest:
        yield repr(value[:longest])
    elif type(value) in (list, tuple):
        yield "[" if isinstance(value, list) else "("
        for i, part in enumerate(value):  # type: ignore[arg-type, var-annotated]
            yield ", " if i else ""
            yield from _pieces(part, longest)
        yield "]" if isinstance(value, list) else ",)" if len(value) == 1 else ")"  # type: ignore[arg-type]
    elif type(value) is dict:
        yield "{"
        for i, (key, part) in enumerate(value.items()):
            yield ", " if i else ""
            yield from _pieces(key, longest)
            yield ": "
            yield from _pieces(part, longest)
        yield "}"
    else:
        yield repr(value)


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can write the text: half a surrogate pair is no character, and neither
    tokenizers nor files take it."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def _is_control(c: str) -> bool:
    return unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _DIRECTIONS


def _escape(c: str) -> str:
    return c.encode("unicode_escape").decode()


def hook_name(site: str, layer: SupportsIndex) -> str:
    """`("resid_pre", 20)` -> `"blocks.20.hook_resid_pre"`, TransformerLens's classic name.

    Raises `DialError` for an unknown site or a layer that is not a whole number from 0 up.
    """
    if site not in _HOOK_NAMES:
        raise one_of(site, SITES, "site")
    if isinstance(layer, bool) or not isinstance(layer, Integral) or layer < 0:
        raise DialError(f"layer must be a whole number from 0 up, not {format_value(layer)}")
    return f"blocks.{layer}.{_HOOK_NAMES[site]}"


def check_pos(pos: Pos) -> None:
    """Raises `DialError` if `pos` is not a position of any kind."""
    if isinstance(pos, bool):
        raise DialError(
            f"pos must be a position, not {format_value(pos)}: an int, or {', '.join(NAMED_POS)}"
        )
    if isinstance(pos, str):
        if pos not in NAMED_POS:
            raise one_of(pos, NAMED_POS, "pos")
    elif isinstance(pos, tuple | list):
        if not pos or not all(isinstance(p, Integral) and not isinstance(p, bool) for p in pos):
            raise DialError(f"pos must hold whole numbers, at least one: {format_value(pos)}")
        if len(set(pos)) < len(pos):
            raise DialError(f"pos names a position twice: {format_value(pos)}")
    elif isinstance(pos, Integral | slice):
        return
    elif not str(getattr(pos, "dtype", "")).startswith(("torch.int", "torch.uint8")):
        raise DialError(
            f"pos must be an int, a tuple of ints, a slice, an integer tensor with one position a "
            f"row, or one of {', '.join(NAMED_POS)}; not {format_value(pos)}"
        )
    elif pos.ndim != 1:
        raise DialError(
            f"pos must hold one position a row, not a tensor of shape {tuple(pos.shape)}: for one "
            "position in every row give an int"
        )


def positions(pos: Pos, length: int) -> list[int]:
    """The indices, from 0, that `pos` means in an activation of `length` positions.

    In a plain forward pass the activation is the whole (left-padded) prompt. Under cached decoding
    the first call sees the prompt and every later call sees one new token, so a length of 1 is read
    as a decoding step:

    ============== =================== =================================
    pos            prompt              decoding step
    ============== =================== =================================
    "all"          every token         the new token
    "prompt"       every token         nothing
    "last_prompt"  the last token      nothing
    "generated"    nothing             the new token
    -1             the last token      the new token (the newest so far)
    other ints     that token          nothing
    a slice        those tokens        nothing, unless it is `slice(None)`
    ============== =================== =================================

    A prompt of a single token cannot be distinguished from a decoding step and is read as one.
    Raises `DialError` for a position outside a prompt.
    """
    decoding = length == 1
    match pos:
        case "all":
            return list(range(length))
        case "prompt":
            return [] if decoding else list(range(length))
        case "last_prompt":
            return [] if decoding else [length - 1]
        case "generated":
            return [0] if decoding else []
        case slice():
            return [] if decoding and pos != slice(None) else list(range(length))[pos]
        case Integral():
            return positions((int(pos),), length)
        case tuple() | list():
            if decoding:
                return [0] if -1 in pos else []
            outside = [p for p in pos if not -length <= p < length]
            if outside:
                raise DialError(
                    f"position {outside[0]} is outside a prompt of {length} tokens: "
                    f"valid are {-length} to {length - 1}"
                )
            return [int(p) % length for p in pos]
    raise DialError(f"pos {format_value(pos)} has no fixed indices")


# --------------------------------------------------------------------------------------------------
# Files that are there whole or not at all.


def located(path: str | Path) -> Path:
    """The path with `~` and `~user` filled in. Raises `DialError` for a user who has no home, and
    for what can name no file: nothing, a zero byte, half a surrogate pair."""
    name = str(path)
    if not name or "\0" in name or not is_utf8(name):
        raise DialError(
            f"{format_value(name)} names no file: expected the path of a file or folder"
        )
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DialError(f"{str(path)!r}: there is no such user's home folder here") from error


def named(path: str | Path, suffix: str) -> Path:
    """The path of a file to write, which must end in `suffix`: so that a page or a set of prompts
    never takes the place of a run's own files. Raises `DialError` for another one."""
    path = located(path)
    if path.suffix != suffix:
        raise DialError(f"--out {str(path)!r} is no {suffix} file: give one that ends in {suffix}")
    return path


def read_json(path: str | Path) -> Any:
    """What a JSON file holds. Raises `DialError` where it cannot be read: not there, not UTF-8, not
    JSON, nested too deep, or a number of thousands of digits."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise DialError(f"{path} cannot be read: {reason}") from error


def write_whole(path: str | Path, content: bytes | str) -> Path:
    """Replace `path` by `content` in one step: a reader, or a crash, sees the old or the new.

    Raises `DialError` for a path that names no file.
    """
    path = located(path)
    if not path.name:
        raise DialError(f"{str(path)!r} is a folder: expected the path of a file to write")
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")  # no link waits there
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)
    return path


def sync_folder(folder: Path) -> None:
    """The names in a folder, on the disk when this returns: without it, a file that was written or
    renamed may be gone after a loss of power. Windows and some network file systems have no such
    call, and nothing is done there."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


DIGITS = 18  # as many as every 64-bit integer has room for


def parse_int(digits: str) -> int | None:
    """The whole number that a text spells out, `-12`; None for any other text, and for one of more
    digits than a place or a token could have."""
    return int(digits) if re.fullmatch(rf"-?[0-9]{{1,{DIGITS}}}", digits) else None


ENGINES = ("auto", "plain")


def terminal(width: int = 118) -> Console:
    """Where tables are printed: as wide as the terminal, else `width`. Texts are data: in them
    `[nan, nan]` is an interval and no style, and `:x:` no picture."""
    from rich.console import Console

    return Console(width=None if Console().is_terminal else width, markup=False, emoji=False)


def without_nan(value: Any) -> Any:
    """The value with None for every number that JSON does not have, and plain numbers."""
    if isinstance(value, Mapping):
        return {str(name): without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
