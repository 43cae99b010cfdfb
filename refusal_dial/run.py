"""A run: one folder that holds what was asked, every row as it came, and what it came to.

    config.json            what the rows depend on, and the circumstances: command line, versions
    scores.csv             a row per prompt and cell, appended batch by batch, never aggregated
    summary.csv, .json     written last; a folder with summary.json is finished
    log.txt, *.safetensors

Rows are appended in a fixed order, so an interrupted run goes on after its last whole batch and
ends with the same bytes as one that was never interrupted. The same holds of a finished run whose
files were damaged since: it is a half run again. This module writes, and `run_reading` reads. It
never computes, and knows no models.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from refusal_dial.files import located, write_whole
from refusal_dial.journal import Kept, cut, record, trusted
from refusal_dial.run_log import close_log, open_log
from refusal_dial.run_reading import (
    HASHES,
    changed,
    find_run,
    hashes,
    read_config,
    read_table,
    read_verdict,
)
from refusal_dial.spreadsheets import to_show
from refusal_dial.types import DialError

__all__ = [
    "Run",
    "append",
    "damage",
    "find_run",
    "finish",
    "kept_batches",
    "open_run",
    "planned_run",
    "read_config",
    "read_table",
    "read_verdict",
    "usable_batches",
    "versions",
]
log = logging.getLogger("refusal_dial")
ROOT = Path("runs")
FILES = ("config.json", "scores.csv", "journal.txt", "summary.csv", "summary.json", "log.txt")
PACKAGES = ("refusal-dial", "torch", "transformers", "transformer-lens", "numpy", "pandas", "scipy")


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
        text = json.dumps(_content(self.settings), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def finished(self) -> bool:
        return (self.folder / "summary.json").is_file()


def open_run(
    experiment: str,
    settings: Mapping[str, Any],
    out: str | None = None,
    root: Path = ROOT,
) -> Run:
    """The folder for these settings: an interrupted run of the same settings, else a new one.

    `settings` is everything the rows depend on; two runs with equal settings have equal rows.
    `out` names the folder itself, `root/experiment/<time>-<hash>` is used otherwise. A finished run
    is returned as it is when `out` names it, and is never written to again, unless its files are
    damaged: then the log says so, its summary is dropped, and what is missing is computed again.

    Raises `DialError` if `out` holds a run of another experiment or of other settings (naming the
    first that differs), something that is not a run, or a run that cannot be read.
    """
    run = planned_run(experiment, settings, out, root)
    if (run.folder / "config.json").is_file():
        return _resumed(run)
    config = {
        "experiment": experiment,
        "settings": run.settings,
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": versions(),
    }
    write_whole(run.folder / "config.json", json.dumps(config, indent=2) + "\n")
    return _logged(run)


def planned_run(
    experiment: str,
    settings: Mapping[str, Any],
    out: str | None = None,
    root: Path = ROOT,
) -> Run:
    """The run that `open_run` would open, and nothing is written. Raises what it raises."""
    settings = json.loads(json.dumps(settings))
    key = Run(Path(), settings).key
    if out is not None:
        folder = located(out)
        _check_files(folder)
        if folder.is_dir() and any(folder.iterdir()):
            _check_same(folder, experiment, settings)
        if folder.exists() and not folder.is_dir():
            raise DialError(f"--out {out!r} is a file: give a folder for the run")
        return Run(folder, settings, experiment)
    for old in sorted((root / experiment).glob(f"*-{key[:8]}"), reverse=True):
        if (old / "config.json").is_file() and not (old / "summary.json").is_file():
            _check_files(old)
            _check_same(old, experiment, settings)
            return Run(old, settings, experiment)
    folder = root / experiment / f"{datetime.now():%Y%m%d-%H%M%S}-{key[:8]}"
    while folder.exists():
        folder = folder.with_name(f"{datetime.now():%Y%m%d-%H%M%S.%f}-{key[:8]}")
    return Run(folder, settings, experiment)


def _resumed(run: Run) -> Run:
    """The run that is there, without a summary that its rows do not bear out. Its log says that,
    and where packages have changed since it was begun."""
    fault = damage(run)
    if fault:
        open_log(run.folder)  # nobody else writes to it from here on
        log.warning("this run was finished, and %s; it goes on from what is whole", fault)
        for name in ("summary.json", "summary.csv"):
            (run.folder / name).unlink(missing_ok=True)
    run = _logged(run)
    before, now = read_config(run.folder).get("versions", {}), versions()
    changed = [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if before.get(k) != v]
    if changed and not run.finished:
        log.warning("begun with other versions: %s", ", ".join(changed))
    return run


def damage(run: Run) -> str:
    """What is wrong with the files of a finished run: one is not what the run ended with, or the
    journal does not vouch for all rows. Empty where nothing is, or the run is not finished."""
    if not run.finished:
        return ""
    fault = changed(run.folder)
    if fault or not (HASHES in read_verdict(run.folder) or run.journal.is_file()):
        return fault  # a run from before there were journals has none
    found = trusted(run.scores, run.key)
    return f"{run.scores}: {found.fault}" if found.fault else ""


def _check_files(folder: Path) -> None:
    for path in (folder / name for name in FILES):
        if (path.exists() or path.is_symlink()) and not path.is_file():
            raise DialError(f"{path} is no file (a folder, a pipe, a broken link): move it away")


def _check_same(folder: Path, experiment: str, settings: Mapping[str, Any]) -> None:
    config = read_config(folder)
    settings = {"experiment": experiment, **_content(settings)}
    recorded = {"experiment": config.get("experiment"), **_content(config["settings"])}
    for name in {**settings, **recorded}:
        if settings.get(name) != recorded.get(name):
            raise DialError(
                f"{folder} holds a run with {name} = {_short(recorded.get(name))}, and this one "
                f"has {_short(settings.get(name))}: choose another --out"
            )


def _content(settings: Mapping[str, Any]) -> dict[str, Any]:
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


def _short(value: Any, limit: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def versions() -> dict[str, str]:
    """Of Python and of the packages that rows may depend on."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _logged(run: Run) -> Run:
    """From here on the package's log goes to the run's log.txt too; a finished run's is closed."""
    if run.finished:
        close_log()
    else:
        open_log(run.folder)
    return run


def kept_batches(run: Run, sizes: Sequence[int]) -> int:
    """How many whole batches are on disk already; what follows them is cut off, and the log says
    why: torn rows, altered ones, or rows that no journal vouches for are computed again.

    `sizes` are the rows of every batch in order. Raises `DialError` if there are more rows than all
    batches hold together: then the file is of some other run.
    """
    found = trusted(run.scores, run.key)
    kept = _usable(run, found, sizes)
    if found.fault:
        log.warning("%s: %s; what follows is computed again", run.scores, found.fault)
    cut(run.scores, found.batches[:kept])
    if kept:
        log.info("resumed after %d rows in %s", sum(sizes[:kept]), run.scores)
    return kept


def usable_batches(run: Run, sizes: Sequence[int]) -> int:
    """What `kept_batches` would keep. Nothing is cut off."""
    return _usable(run, trusted(run.scores, run.key), sizes)


def _usable(run: Run, found: Kept, sizes: Sequence[int]) -> int:
    rows = [batch.rows for batch in found.batches]
    if sum(rows) > sum(sizes):
        raise DialError(f"{run.scores} has {sum(rows)} rows where this run has {sum(sizes)}")
    same = [mine == theirs for mine, theirs in zip(rows, sizes, strict=False)]
    return same.index(False) if False in same else len(same)


def append(run: Run, rows: pd.DataFrame) -> None:
    """Add a batch of rows to scores.csv, on disk when this returns. Floats keep every digit."""
    new = not run.scores.is_file() or run.scores.stat().st_size == 0
    text = to_show(rows).to_csv(index=False, header=new, lineterminator="\n")
    record(run.scores, run.key, text.encode(), len(rows))


def finish(run: Run, summary: pd.DataFrame, verdict: Mapping[str, Any]) -> None:
    """Write summary.csv and, last of all, summary.json, which marks the run finished and says by
    SHA-256 what it ended with."""
    json.dumps(verdict, allow_nan=False)  # before anything is written
    table = to_show(summary).to_csv(index=False, lineterminator="\n")
    write_whole(run.folder / "summary.csv", table)
    ended = {**verdict, HASHES: hashes(run.folder, verdict)}
    record = json.dumps(ended, indent=2, allow_nan=False)
    write_whole(run.folder / "summary.json", record + "\n")
    close_log()
