"""How typed text becomes a value: numbers, switches, lists, then layers, alphas, positions, seeds.

Each function takes what Fire made of the text and raises `DialError` for what it cannot be: the
value, what was expected, the choices.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable
from typing import Any

from refusal_dial.common import (
    DIGITS,
    NAMED_POS,
    DialError,
    format_value,
    is_utf8,
    one_of,
    parse_int,
)

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
# What scripts share: layers, alphas, positions, seeds, choices, addresses.


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
