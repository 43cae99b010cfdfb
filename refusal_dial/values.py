"""Values of flags: what Fire makes of typed text, checked and turned into what a script takes.

Each reader takes one value and raises `DialError` for what it cannot be. It does not know which
flag the value is for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refusal_dial.types import DialError


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
    """Text as it was typed."""
    if not isinstance(value, str):
        raise DialError(f"expected text, not {value!r}")
    return value


def yes(value: Any) -> bool:
    """A switch: given or not."""
    if isinstance(value, bool):
        return value
    raise DialError(f"is a switch and takes no value, not {value!r}")


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
