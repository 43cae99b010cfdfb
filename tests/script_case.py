"""The project's scripts as modules."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
SCRIPTS = [
    *sorted((ROOT / "experiments").glob("*.py")),
    *sorted((ROOT / "scripts").glob("*.py")),
]
_PATHS = {path.stem: path for path in SCRIPTS}


@cache
def load(name: str) -> ModuleType:
    """`experiments/NAME.py` or `scripts/NAME.py`, executed once."""
    return executed(f"script_{name}", _PATHS[name])


def executed(name: str, path: Path) -> ModuleType:
    """The file as a module of this name."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
