"""An environment of its own for tools that our own must not hold: they pin other versions.

It sees our packages and adds the tool's. Where a tool cannot be installed its test is skipped, with
the reason.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def tool_python(
    cache: pytest.Cache,
    alone: Sequence[str] = (),
    whole: Sequence[str] = (),
    pinned: bool = True,
) -> Path:
    """A Python that imports our packages, those `alone` (without what they require) and those
    `whole` (with it, at our versions where `pinned`). Made once, and kept in pytest's cache."""
    key = hashlib.sha256(repr((sys.version, alone, whole)).encode()).hexdigest()[:12]
    folder = Path(cache.mkdir(f"tools_{key}"))
    python = folder / "bin" / "python"
    if (folder / "complete").is_file():
        return python
    venv.create(folder, with_pip=True, clear=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "ours.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = [str(python), "-m", "pip", "install", "-q"]
    pins = ["-c", str(ROOT / "constraints.txt")] if pinned else []
    for options in (
        [*pip, "--no-deps", "--only-binary", ":all:", *alone] if alone else [],
        [*pip, *pins, *whole] if whole else [],
    ):
        made = subprocess.run(options or ["true"], capture_output=True, text=True, timeout=1500)
        if made.returncode:
            pytest.skip(f"{', '.join([*alone, *whole])} cannot be installed: {made.stderr[-300:]}")
    (folder / "complete").touch()
    return python
