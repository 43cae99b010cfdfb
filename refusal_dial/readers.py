"""Readers of the flags that scripts share: what was typed becomes layers, alphas, a seed, a choice.

Each takes what Fire made of the text and raises `DialError` for what it cannot be. It does not know
which flag the value is for, nor any flag's default. Imports nothing heavy.
"""

from __future__ import annotations

import math
from typing import Any

from refusal_dial.cluster import host_and_port
from refusal_dial.types import NAMED_POS, DialError, one_of, shown
from refusal_dial.values import listed, number, text, whole

CONTROLS = ("holdout", "random", "covariance", "shuffled", "flipped", "length", "folds")
FORMATS = ("html", "png", "pdf", "svg")
MOST = 10**6
LARGEST = 1e12
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
    typed = text(value).strip()
    if typed.startswith("[") and typed.endswith("]"):
        typed = typed[1:-1]
    return ",".join(part.strip(" '\"") for part in typed.split(","))


def layers_of(value: Any) -> tuple[int, ...]:
    """Different layers; none stands for all."""
    if value == "all":
        return ()
    layers = tuple(whole(part) for part in listed(value))
    if not layers or len(set(layers)) < len(layers):
        raise DialError(
            f"expected different layers such as 20 or 20,21,23, or all; not {shown(value)}"
        )
    return layers


def alpha_of(value: Any) -> float:
    """A number that an activation can be steered by, in any unit."""
    if abs(number(value)) > LARGEST:
        raise DialError(
            f"expected an alpha from {-LARGEST:g} to {LARGEST:g}, not {shown(value)}: beside more, "
            "nothing of an activation is left"
        )
    return number(value)


def alphas_or_auto(value: Any) -> tuple[float, ...]:
    """`alphas_of`; none stands for auto."""
    return () if value == "auto" else alphas_of(value)


def alphas_of(value: Any) -> tuple[float, ...]:
    """Different finite numbers, rising: a list, or START:STOP:COUNT."""
    if isinstance(value, str) and value.count(":") == 2:
        return _evenly(value)
    alphas = tuple(alpha_of(part) + 0.0 for part in listed(value))  # 0.0 and not -0.0
    if not alphas or len(set(alphas)) < len(alphas):
        raise DialError(f"expected different numbers, at least one; not {shown(value)}")
    return tuple(sorted(alphas))


def turning_of(value: Any) -> tuple[float, ...]:
    """`alphas_of`, one of them not 0: the question is which of them does most."""
    alphas = alphas_of(value)
    if not any(alphas):
        raise DialError(f"expected a strength that is not 0 among them, not {shown(value)}")
    return alphas


def _evenly(value: str) -> tuple[float, ...]:
    try:
        start, stop, count = (float(part) for part in value.split(":"))
    except ValueError as error:
        raise DialError(f"expected START:STOP:COUNT such as -6:6:13, not {shown(value)}") from error
    if not all(map(math.isfinite, (start, stop, count))) or count not in range(2, 10_001):
        raise DialError(
            f"expected START:STOP:COUNT with a count from 2 to 10000, not {shown(value)}"
        )
    step = (stop - start) / (count - 1)
    return alphas_of([round(start + i * step, 10) for i in range(int(count))])


def pos_of(value: Any) -> int:
    """A position counted from the end of the prompt."""
    if value in NAMED_POS or not isinstance(value, int) or isinstance(value, bool) or value >= 0:
        raise DialError(
            f"expected a position counted from the end of the prompt such as -1, not {shown(value)}"
        )
    return value


def formats_of(value: Any) -> tuple[str, ...]:
    """Formats of figures, each once."""
    formats = tuple(dict.fromkeys(map(str, listed(value))))
    for one in formats:
        if one not in FORMATS:
            raise one_of(one, FORMATS, "format")
    return formats


def at_least(least: int | float, kind: Any) -> Any:
    """A reader of numbers from `least` up; of whole ones, up to a million. They are counts, and
    what many times a million takes is neither memory nor a night."""

    def parse(value: Any) -> Any:
        if kind is whole and whole(value) > MOST:
            raise DialError(f"expected a number from {least} to {MOST}, not {shown(value)}")
        if kind(value) < least:
            raise DialError(f"expected a number from {least} up, not {shown(value)}")
        return kind(value)

    return parse


def address_of(value: Any) -> str:
    """HOST:PORT, or auto."""
    if value != "auto":
        host_and_port(value)
    return text(value)


def gpus_of(value: Any) -> float:
    """A share of one GPU, or a whole number of them."""
    share = number(value)
    if share < 0 or (share > 1 and share != int(share)):
        raise DialError(f"expected a number of GPUs such as 0, 0.5, 1 or 2, not {shown(value)}")
    return share


def controls_of(value: Any) -> tuple[str, ...]:
    """Kinds of controls in their usual order; none is `none`."""
    if value == "none":
        return ()
    kinds = tuple(choice(CONTROLS, "control")(str(part).strip()) for part in listed(value))
    return tuple(kind for kind in CONTROLS if kind in kinds)


def share_of(value: Any) -> float:
    """A number between 0 and 1, neither of them."""
    if not 0 < number(value) < 1:
        raise DialError(f"expected a share between 0 and 1, not {shown(value)}")
    return number(value)


def proportion(value: Any) -> float:
    """A number from 0 to 1."""
    if not 0 <= number(value) <= 1:
        raise DialError(f"expected a number from 0 to 1, not {shown(value)}")
    return number(value)


def seed_of(value: Any) -> int:
    """A seed that every generator takes."""
    if not 0 <= whole(value) < 2**32:
        raise DialError(f"expected a seed from 0 to {2**32 - 1}, not {shown(value)}")
    return whole(value)
