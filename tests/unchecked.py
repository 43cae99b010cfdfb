"""Our modules as users run them: without the type checks of the tests, which would speak first."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType

from script_case import executed

PACKAGE = Path(__file__).parents[1] / "refusal_dial"


@cache
def unchecked(name: str) -> ModuleType:
    """`refusal_dial/NAME.py` under another name, which the type checks do not look for."""
    return executed(f"unchecked_{name}", PACKAGE / f"{name}.py")
