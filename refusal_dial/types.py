"""The words every other module speaks: sites, positions, hooks, and the error a person reads.

Imports nothing of ours. Knows how a site and a layer become a TransformerLens hook name, and which
positions a `Pos` means in an activation of a given length. Does not know any model: whether a layer
or a site exists is `model.check_sites`'s business.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Callable, Iterable
from numbers import Integral
from typing import Any, Literal, SupportsIndex, TypeAlias, get_args

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

SITES: tuple[str, ...] = get_args(Site)
NAMED_POS: tuple[str, ...] = get_args(NamedPos)
ALL: NamedPos = "all"

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
    given = value if isinstance(value, str) else shown(value)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f" did you mean {near[0]!r}?" if near else ""
    given = given if len(given) <= 60 else given[:60] + "..."
    return DialError(f"unknown {what} {given!r}:{hint} choices are {', '.join(names)}")


def printable(text: str, keep: str = "") -> str:
    """The text with its control characters spelt out (`\\x1b`), but for those to `keep`: what a
    prompt or a file name holds must not move the cursor, nor turn the reading direction."""
    return "".join(c if c in keep or not _commands(c) else _spelt(c) for c in text)


def one_line(error: BaseException, limit: int = 240) -> str:
    """What an error says, on one line of at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def shown(value: object, longest: int = 200) -> str:
    """Any value as an error shows it: its repr, cut after `longest` characters. Python writes out
    no integer of more than 4300 digits, and of a value that holds one only the type is told."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a value of type {type(value).__name__} too long to be written out"
    return text if len(text) <= longest else f"{text[:longest]}..."


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can write the text: half a surrogate pair is no character, and neither
    tokenizers nor files take it."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def _commands(c: str) -> bool:
    return unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _DIRECTIONS


def _spelt(c: str) -> str:
    return c.encode("unicode_escape").decode()


def hook_name(site: str, layer: SupportsIndex) -> str:
    """`("resid_pre", 20)` -> `"blocks.20.hook_resid_pre"`, TransformerLens's classic name.

    Raises `DialError` for an unknown site or a layer that is not a whole number from 0 up.
    """
    if site not in _HOOK_NAMES:
        raise one_of(site, SITES, "site")
    if isinstance(layer, bool) or not isinstance(layer, Integral) or layer < 0:
        raise DialError(f"layer must be a whole number from 0 up, not {shown(layer)}")
    return f"blocks.{layer}.{_HOOK_NAMES[site]}"


def check_pos(pos: Pos) -> None:
    """Raises `DialError` if `pos` is not a position of any kind."""
    if isinstance(pos, bool):
        raise DialError(
            f"pos must be a position, not {shown(pos)}: an int, or {', '.join(NAMED_POS)}"
        )
    if isinstance(pos, str):
        if pos not in NAMED_POS:
            raise one_of(pos, NAMED_POS, "pos")
    elif isinstance(pos, tuple | list):
        if not pos or not all(isinstance(p, Integral) and not isinstance(p, bool) for p in pos):
            raise DialError(f"pos must hold whole numbers, at least one: {shown(pos)}")
        if len(set(pos)) < len(pos):
            raise DialError(f"pos names a position twice: {shown(pos)}")
    elif isinstance(pos, Integral | slice):
        return
    elif not str(getattr(pos, "dtype", "")).startswith(("torch.int", "torch.uint8")):
        raise DialError(
            f"pos must be an int, a tuple of ints, a slice, an integer tensor with one position a "
            f"row, or one of {', '.join(NAMED_POS)}; not {shown(pos)}"
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

    A prompt of a single token cannot be told from a decoding step and is read as one.
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
    raise DialError(f"pos {shown(pos)} has no fixed indices")
