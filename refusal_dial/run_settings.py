"""What a run's rows depend on: which settings make two runs the same, and where two differ.

Knows plain data, and where a run's config lies. It does not know what any setting means, but for
`data` and `model`, whose hashes stand for what lay in their files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refusal_dial.run_reading import read_config
from refusal_dial.types import DialError

SHOWN = 60
"""Characters of a value that an error shows."""
BEFORE = 20
"""Of them, how many before the first that differs."""


def key_of(settings: Mapping[str, Any]) -> str:
    """SHA-256 of the content that the rows depend on, wherever it lies."""
    text = json.dumps(content(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def content(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without what only says where files lay, if a hash says what was in them: on
    another machine the same prompts and weights may lie elsewhere."""
    out = dict(settings)
    data, model = out.get("data"), out.get("model")
    if isinstance(data, dict) and set(data) - {"source"}:
        out["data"] = {name: value for name, value in data.items() if name != "source"}
        out = {k: v for k, v in out.items() if k not in ("prompts", "openings")}
    if isinstance(model, dict) and model.get("revision"):
        out["model"] = {name: value for name, value in model.items() if name != "name"}
    return out


def check_same(folder: Path, experiment: str, settings: Mapping[str, Any]) -> None:
    """Raises `DialError` where the folder holds a run of another experiment or of other settings,
    with the first that differs."""
    config = read_config(folder)
    asked = {"experiment": experiment, **content(settings)}
    recorded = {"experiment": config.get("experiment"), **content(config["settings"])}
    for name in {**asked, **recorded}:
        if asked.get(name) != recorded.get(name):
            where, theirs, ours = difference(name, recorded.get(name), asked.get(name))
            raise DialError(
                f"{folder} holds a run with {where} = {theirs}, and this one has {ours}: choose "
                "another --out"
            )


def difference(name: str, one: Any, other: Any) -> tuple[str, str, str]:
    """Of two values that differ, the innermost setting that does, and both as text from just before
    the place where they part: `{"a": {"b": 1}}`, `{"a": {"b": 2}}` -> `a.b`, `1`, `2`."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            if one.get(key) != other.get(key):
                return difference(f"{name}.{key}", one.get(key), other.get(key))
    a, b = json.dumps(one), json.dumps(other)
    start = 0
    if max(len(a), len(b)) > SHOWN:
        apart = (i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1])
        start = max(0, next(apart, min(len(a), len(b))) - BEFORE)
    return name, _window(a, start), _window(b, start)


def _window(text: str, start: int) -> str:
    rest = text[start:]
    end = rest if len(rest) <= SHOWN else f"{rest[: SHOWN - 1]}…"
    return f"…{end}" if start else end
