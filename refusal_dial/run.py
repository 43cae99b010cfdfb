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

import json
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from refusal_dial.files import write_whole
from refusal_dial.journal import Kept, cut, record, trusted
from refusal_dial.run_folder import ROOT, Run, planned_run
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
from refusal_dial.run_settings import check_same
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
PACKAGES = ("refusal-dial", "torch", "transformers", "transformer-lens", "numpy", "pandas", "scipy")


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
    first that differs), something that is not a run, or a run that cannot be read, and where
    another process is writing there.
    """
    run = planned_run(experiment, settings, out, root)
    path = run.folder / "config.json"
    if path.is_file():
        return _resumed(run)
    run.folder.mkdir(parents=True, exist_ok=True)
    open_log(run.folder)  # of two processes that come at once, one goes on from here
    if path.is_file():
        check_same(run.folder, experiment, run.settings)
        return _resumed(run)
    config = {
        "experiment": experiment,
        "settings": run.settings,
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": versions(),
    }
    write_whole(path, json.dumps(config, indent=2) + "\n")
    return run


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
    if not run.finished:
        open_log(run.folder)
    if run.finished:  # by now
        close_log()
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
