"""The flags of the live dial, with their defaults and their help. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from refusal_dial.cli import CONFIG, flag
from refusal_dial.flags import STEERABLE, OpenFlags
from refusal_dial.readers import at_least, choice
from refusal_dial.types import DialError, shown
from refusal_dial.values import whole


def _port(value: Any) -> int:
    if not 0 <= whole(value) < 2**16:
        raise DialError(f"expected a port from 0 (any that is free) to 65535, not {shown(value)}")
    return whole(value)


@dataclass(frozen=True)
class LiveFlags(OpenFlags):
    """Where the dial stands at first, and how much it reads and says."""

    direction: str | None = flag(None, "a .safetensors file; default: learned from EDGE")
    layer: int = flag(20, "the layer at first", at_least(0, whole))
    site: str = flag("resid_pre", f"one of {', '.join(STEERABLE)}", choice(STEERABLE, "site"))
    k: int | None = flag(
        None, "top and bottom prompts to learn from; default a third each", at_least(1, whole)
    )
    max_chars: int = flag(4000, "characters of a prompt, at most", at_least(1, whole))
    max_new_tokens: int = flag(48, "tokens of a reply, at most", at_least(1, whole))
    port: int = flag(7860, "port on 127.0.0.1; 0 takes any that is free", _port)
    config: str | None = CONFIG
