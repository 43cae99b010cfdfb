"""Values of flags: what Fire makes of typed text, checked and turned into what a script takes.

Each reader takes one value and raises `DialError` for what it cannot be. It does not know which
flag the value is for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from refusal_dial.types import DialError, is_utf8, shown

DIGITS = 18  # as many as every 64-bit integer has room for


def whole(value: Any) -> int:
    """A whole number of at most 18 digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) < 10**DIGITS:
            return value
        raise DialError(f"expected a whole number of at most {DIGITS} digits, not {shown(value)}")
    raise DialError(f"expected a whole number, not {shown(value)}")


def spelt(digits: str) -> int | None:
    """The whole number that a text spells out, `-12`; None for any other text, and for one of more
    digits than a place or a token could have."""
    return int(digits) if re.fullmatch(rf"-?[0-9]{{1,{DIGITS}}}", digits) else None


def number(value: Any) -> float:
    """A finite number."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30:
        return float(value)
    raise DialError(f"expected a finite number, not {shown(value)}")


def text(value: Any) -> str:
    """Text as it was typed."""
    if not isinstance(value, str) or not is_utf8(value):
        raise DialError(f"expected text in UTF-8, not {shown(value)}")
    return value


def yes(value: Any) -> bool:
    """A switch: given or not."""
    if isinstance(value, bool):
        return value
    raise DialError(f"is a switch and takes no value, not {shown(value)}")


def listed(value: Any) -> tuple[Any, ...]:
    """One value or several: `20`, `20,21,23`, `[20, 21]`."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


BY_TYPE: dict[str, Callable[[Any], Any]] = {
    "int": whole,
    "float": number,
    "str": text,
    "bool": yes,
    "int | None": whole,
    "float | None": number,
    "str | None": text,
}
