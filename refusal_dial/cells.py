"""A cell of a sweep: what is done (hooks), and the columns that name it (labels)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from refusal_dial.common import Hook


@dataclass(frozen=True, eq=False)
class Cell:
    """One intervention: the columns that name it, and its hooks (none = the model as it is)."""

    labels: Mapping[str, Any]
    hooks: Sequence[Hook] = field(default_factory=tuple)
