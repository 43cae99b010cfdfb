"""The texts of a run's prompts, found again where the run says they came from.

A run records where its prompts came from and a hash of everything in them, not the prompts. They
are read again, and used only if the hash is the same: another version of a file has other texts
under the same ids. This module does not guess; where it finds nothing, it says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from refusal_dial.openings import load_openings
from refusal_dial.prompts import Prompt, data_hash, load_prompts
from refusal_dial.types import DialError


@dataclass(frozen=True)
class Texts:
    """The prompts by id, and where some are missing, why."""

    by_id: Mapping[str, Prompt] = field(default_factory=dict)
    why_not: str = ""


def texts_of(settings: Mapping[str, Any], wanted: Sequence[str]) -> Texts:
    """The prompts that a run's settings name, if they are still what they were."""
    data = settings.get("data") or {}
    source = str(data.get("source", ""))
    try:
        if "measure" in data:
            sizes = (int(settings["n"]), int(settings["n_pairs"]), int(settings["seed"]))
            openings = load_openings(source, *sizes)
            return _same(openings.measure, str(data["measure"]), source, wanted)
        return _same(load_prompts(source), str(data.get("hash")), source, wanted)
    except (DialError, KeyError, TypeError, ValueError, OverflowError, OSError) as error:
        said = str(error) if isinstance(error, DialError) else f"{type(error).__name__}: {error}"
        return Texts({}, f"the prompts of {source or 'this run'} cannot be read here ({said})")


def _same(found: Iterable[Prompt], known: str, source: str, wanted: Sequence[str]) -> Texts:
    prompts = list(found)
    now = data_hash(prompts)
    if now != known:
        return Texts({}, f"{source} has changed since the run: its hash is {now}, not {known}")
    by_id = {prompt.id: prompt for prompt in prompts}
    missing = [one for one in wanted if one not in by_id]
    why = f"{len(missing)} prompts of the run are not in {source}" if missing else ""
    return Texts(by_id, why)
