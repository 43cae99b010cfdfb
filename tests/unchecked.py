"""Our modules as users run them: without the type checks of the tests, which would speak first."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parents[1] / "refusal_dial"


@cache
def unchecked(name: str) -> ModuleType:
    """`refusal_dial/NAME.py` under another name, which the type checks do not look for."""
    spec = importlib.util.spec_from_file_location(f"unchecked_{name}", PACKAGE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
