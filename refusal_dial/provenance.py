"""Where a direction was read and from what, as its file tells it.

    digest = H(metadata, bytes of the vector)    H = BLAKE2b

Metadata is one line of JSON with sorted keys, so that equal directions have equal files. The digest
is in it: a byte that changed since, in the vector or in what is told of it, is found. A file
without one, written by hand or before there were digests, is taken at its word. What is told is
checked to be of its kind; whether it is true is not known here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refusal_dial.types import SITES, DialError, shown

FORMAT = "refusal_dial direction 1"
LONGEST = 1e36


@dataclass(frozen=True)
class Provenance:
    """Where a direction was read, and from what. `pool` tokens ending at `pos` were averaged."""

    layer: int
    site: str
    pos: int
    method: str = ""
    model: str = ""
    revision: str = ""
    seed: int | None = None
    prompt_ids: tuple[str, ...] = ()
    data_hash: str = ""
    pool: int = 1


def as_text(norm: float, provenance: Provenance, vector: bytes) -> str:
    """The metadata of a direction whose unit vector has these bytes."""
    about = {"format": FORMAT, "norm": norm, **asdict(provenance)}
    return json.dumps(about | {"digest": _digest(about, vector)}, sort_keys=True)


def _digest(about: dict[str, Any], vector: bytes) -> str:
    told = json.dumps({k: v for k, v in about.items() if k != "digest"}, sort_keys=True)
    return hashlib.blake2b(told.encode() + b"\0" + vector, digest_size=16).hexdigest()


def from_told(path: str | Path, told: Any, vector: bytes | None) -> tuple[float, Provenance]:
    """What metadata says: norm and provenance. Without `vector`, its digest is not asked.

    Raises `DialError` for metadata of another version, a field that is missing, unknown or not of
    its kind, and a digest that does not fit.
    """
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise DialError(f"{path} has metadata of another version: expected {FORMAT!r}")
    about = {name: value for name, value in told.items() if name != "format"}
    for name, (holds, expected) in RECORDED.items():
        if name in NEEDED and name not in about:
            raise DialError(f"{path} has metadata of another version: {name!r} is missing")
        if name in about and not holds(about[name]):
            raise DialError(
                f"{path}: {name!r} of its metadata must be {expected}, not {shown(about[name], 60)}"
            )
    unknown = sorted(set(about) - set(RECORDED))
    if unknown:
        raise DialError(
            f"{path} has metadata of another version: unknown field {shown(unknown[0], 60)}"
        )
    known = about.pop("digest", None)
    if known is not None and vector is not None and known != _digest(told, vector):
        raise DialError(f"{path} was altered since it was written: learn the direction again")
    norm = float(about.pop("norm"))
    return norm, Provenance(**{**about, "prompt_ids": tuple(about["prompt_ids"])})


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_length(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < LONGEST


NEEDED = ("norm", "layer", "site", "pos", "prompt_ids")
RECORDED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "norm": (_is_length, "a finite number from 0 up"),
    "layer": (lambda value: _is_whole(value) and value >= 0, "a whole number from 0 up"),
    "site": (lambda value: value in SITES, f"one of {', '.join(SITES)}"),
    "pos": (_is_whole, "a whole number"),
    "method": (_is_text, "text"),
    "model": (_is_text, "text"),
    "revision": (_is_text, "text"),
    "seed": (lambda value: value is None or _is_whole(value), "a whole number or null"),
    "prompt_ids": (
        lambda value: isinstance(value, list) and all(map(_is_text, value)),
        "a list of texts",
    ),
    "data_hash": (_is_text, "text"),
    "digest": (_is_text, "text"),
    "pool": (lambda value: _is_whole(value) and value >= 1, "a whole number from 1 up"),
}
"""What the metadata of a direction holds: whether a value will do, and what is expected."""
