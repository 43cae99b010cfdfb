"""A run's folder: which one it is, and whether a run can be there. Nothing is written.

Two runs of the same settings have the same rows, so settings name the folder. This module knows
what lies in a run's folder, and not what the files say (see `run_reading`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from refusal_dial.files import located
from refusal_dial.run_settings import check_same, key_of
from refusal_dial.types import DialError

ROOT = Path("runs")
FILES = ("config.json", "scores.csv", "journal.txt", "summary.csv", "summary.json", "log.txt")


@dataclass(frozen=True)
class Run:
    """A run folder and the settings its rows depend on."""

    folder: Path
    settings: Mapping[str, Any]
    experiment: str = ""

    @property
    def scores(self) -> Path:
        return self.folder / "scores.csv"

    @property
    def journal(self) -> Path:
        return self.folder / "journal.txt"

    @property
    def key(self) -> str:
        """The hash of the content that the rows depend on, wherever it lies."""
        return key_of(self.settings)

    @property
    def finished(self) -> bool:
        return (self.folder / "summary.json").is_file()


def planned_run(
    experiment: str,
    settings: Mapping[str, Any],
    out: str | None = None,
    root: Path = ROOT,
) -> Run:
    """The run that `open_run` would open, and nothing is written. Raises what it raises, but for
    another process that is writing there."""
    settings = json.loads(json.dumps(settings))
    key = key_of(settings)
    if out is not None:
        folder = located(out)
        _check_place(folder, out)
        _check_files(folder)
        if _begun(folder):
            check_same(folder, experiment, settings)
        return Run(folder, settings, experiment)
    _check_place(root / experiment)
    for old in sorted((root / experiment).glob(f"*-{key[:8]}"), reverse=True):
        if (old / "config.json").is_file() and not (old / "summary.json").is_file():
            _check_files(old)
            check_same(old, experiment, settings)
            return Run(old, settings, experiment)
    folder = root / experiment / f"{datetime.now():%Y%m%d-%H%M%S}-{key[:8]}"
    while folder.exists():
        folder = folder.with_name(f"{datetime.now():%Y%m%d-%H%M%S.%f}-{key[:8]}")
    return Run(folder, settings, experiment)


def _begun(folder: Path) -> bool:
    """Whether anything is in the folder. What a process leaves that ends before its config is
    written, an empty log and a draft, is nothing."""
    return folder.is_dir() and any(
        path.name != "log.txt" or path.stat().st_size
        for path in folder.iterdir()
        if not (path.name.startswith(".config.json.") and path.suffix == ".part")
    )


def _check_place(folder: Path, out: str | None = None) -> None:
    """Raises `DialError` where no folder can be, for something else is there or above."""
    for place in (folder, *folder.parents):
        if place.is_dir():
            return
        if place.exists() or place.is_symlink():
            what = "a file" if place.exists() else "a link that leads nowhere"
            name = f"--out {out!r}" if out else str(folder)
            name = name if place == folder else f"{name}: {place}"
            raise DialError(f"{name} is {what}: give a folder for the run")


def _check_files(folder: Path) -> None:
    for path in (*(folder / name for name in FILES), *folder.glob("*.safetensors")):
        if (path.exists() or path.is_symlink()) and not path.is_file():
            raise DialError(f"{path} is no file (a folder, a pipe, a broken link): move it away")
