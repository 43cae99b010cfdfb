"""A run: one folder that holds what was asked, every row as it came, and the result.

    config.json            what the rows depend on, and the circumstances: command line, versions
    scores.csv             a row per prompt and cell, appended batch by batch, never aggregated
    summary.csv, .json     written last; a folder with summary.json is finished
    log.txt, *.safetensors

Settings name the folder. Rows are appended in a fixed order, so an interrupted run goes on after
its last whole batch and ends with the same bytes as one that was never interrupted. The same holds
of a finished run whose files were damaged since. In this file: which folder, which settings make
two runs the same, the log that is also the lock, cells that a spreadsheet must not run as formulas,
writing, and reading back.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from refusal_dial.common import DialError, located, log, read_json, sync_folder, write_whole
from refusal_dial.run.schema import (
    TEXT_COLUMN_NAMES,
    WHOLE,
    check_config,
    check_header,
    check_table,
    check_verdict,
)

# --------------------------------------------------------------------------------------------------
# A run's folder: which one it is, and whether a run can be there.
#
# Two runs of the same settings have the same rows, so settings name the folder.


ROOT = Path("runs")

APPENDED = ("scores.csv", "journal.txt", "log.txt")

LOCK = ".lock"

FILES = ("config.json", *APPENDED, "summary.csv", "summary.json", LOCK)


DEEPEST = 200
"""Folders above a run, at most; Python makes them one inside the other."""


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
        check_out(out, written=False)
        folder = located(out)
        if _begun(folder):
            settings = _comparable(folder, settings)
            check_same_settings(folder, experiment, settings)
        return Run(folder, settings, experiment)
    _check_place(root / experiment)
    for old in sorted((root / experiment).glob(f"*-{key[:8]}"), reverse=True):
        if (old / "config.json").is_file() and not (old / "summary.json").is_file():
            _check_files(old)
            check_same_settings(old, experiment, settings)
            return Run(old, settings, experiment)
    folder = root / experiment / f"{datetime.now():%Y%m%d-%H%M%S}-{key[:8]}"
    while folder.exists():
        folder = folder.with_name(f"{datetime.now():%Y%m%d-%H%M%S.%f}-{key[:8]}")
    return Run(folder, settings, experiment)


def check_out(out: str | None, written: bool, root: Path = ROOT) -> None:
    """What can be known of `--out` (of `root`, if it is None) before a model is read. Raises
    `DialError` where no run can be, and, where one is to be `written`, no new folder."""
    folder = root if out is None else located(out)
    _check_place(folder, out)
    if out is not None:
        _check_files(folder)
        if _begun(folder):
            read_config(folder)
            return
    place = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    if written and not os.access(place, os.W_OK | os.X_OK):
        name = "runs/" if out is None else f"--out {out!r}"
        raise DialError(f"{name}: {place} cannot be written to: give --out a folder that can")


def _begun(folder: Path) -> bool:
    """Whether anything is in the folder. What a process leaves that ends before its config is
    written, an empty log, a lock and a draft, is nothing."""
    return folder.is_dir() and any(
        path.name != "log.txt" or path.stat().st_size
        for path in folder.iterdir()
        if path.name != LOCK
        and not (path.name.startswith(".config.json.") and path.suffix == ".part")
    )


def _check_place(folder: Path, out: str | None = None) -> None:
    """Raises `DialError` where no folder can be, for something else is there or above."""
    if len(folder.parts) > DEEPEST:
        raise DialError(f"--out is {len(folder.parts)} folders deep: expected at most {DEEPEST}")
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
    for path in (folder / name for name in (*APPENDED, LOCK)):
        if path.is_symlink():
            raise DialError(
                f"{path} is a symbolic link, and a run writes into its own folder only: "
                "put a copy of the file in its place, or choose another --out"
            )


# --------------------------------------------------------------------------------------------------
# What a run's rows depend on: which settings make two runs the same, and where two differ.


TOKENS = "tokens"
"""The setting that is a hash of the token ids that the model reads: a chat template that prints the
date makes others of the same prompts every day."""

LONGEST_SETTING = 60
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


def check_same_settings(folder: Path, experiment: str, settings: Mapping[str, Any]) -> None:
    """Raises `DialError` where the folder holds a run of another experiment or of other settings,
    with the first that differs."""
    config = read_config(folder)
    asked = {"experiment": experiment, **content(settings)}
    recorded = {"experiment": config.get("experiment"), **content(config["settings"])}
    for name in {**asked, **recorded}:
        if asked.get(name) != recorded.get(name):
            where, theirs, ours = first_difference(name, recorded.get(name), asked.get(name))
            if name == TOKENS:
                raise DialError(_other_tokens(folder, theirs, ours))
            raise DialError(
                f"{folder} holds a run with {where} = {theirs}, and this one has {ours}: choose "
                "another --out"
            )


def _other_tokens(folder: Path, theirs: str, ours: str) -> str:
    if theirs == "null":
        return (
            f"{folder} holds a run of an earlier version that is not whole and has no hash of its "
            "tokens, so that new rows may not fit those that are there: choose another --out"
        )
    return (
        f"{folder} holds a run whose prompts were other tokens (hash {theirs}, now {ours}): the "
        "tokenizer or the chat template changed since, or the template prints the date; choose "
        "another --out"
    )


def _comparable(folder: Path, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings without the hash of tokens where the folder holds a whole run of an earlier
    version, which has none: it is read as it stands."""
    recorded = read_config(folder)["settings"]
    if TOKENS in recorded or damage(Run(folder, recorded)):
        return settings
    finished = (folder / "summary.json").is_file()
    return {k: v for k, v in settings.items() if k != TOKENS} if finished else settings


def first_difference(name: str, one: Any, other: Any) -> tuple[str, str, str]:
    """Of two values that differ, the innermost setting that does, and both as text from just before
    the place where they part: `{"a": {"b": 1}}`, `{"a": {"b": 2}}` -> `a.b`, `1`, `2`."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            if one.get(key) != other.get(key):
                return first_difference(f"{name}.{key}", one.get(key), other.get(key))
    a, b = json.dumps(one), json.dumps(other)
    start = 0
    if max(len(a), len(b)) > LONGEST_SETTING:
        apart = (i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1])
        start = max(0, next(apart, min(len(a), len(b))) - BEFORE)
    return name, _window(a, start), _window(b, start)


def _window(text: str, start: int) -> str:
    rest = text[start:]
    end = rest if len(rest) <= LONGEST_SETTING else f"{rest[: LONGEST_SETTING - 1]}…"
    return f"…{end}" if start else end


# --------------------------------------------------------------------------------------------------
# A run's log.txt: what the package says while one run is written, and who may write it.
#
# Everything from INFO up goes to the file, whatever level a notebook or a script set for its
# console; the console goes on showing what it showed before. Whoever has the log open holds the
# run's lock, the file `.lock`; the operating system lets go when the process ends, however it ends.


class LogFile(logging.FileHandler):
    """The handler of the one open log.txt, and the run's lock. As a filter of the logger it keeps
    from the console what the console's own level (`console`) would have dropped."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.before, self.console, self.held = log.level, log.getEffectiveLevel(), lock

    def _open(self) -> Any:
        """The file itself: a symbolic link that came in its place is not followed."""
        return open(self.baseFilename, self.mode, encoding=self.encoding, opener=_not_followed)

    def shown(self, record: logging.LogRecord) -> bool:
        """Whether the console sees it. What it does not see is written here and goes no further."""
        if record.levelno >= self.console:
            return True
        self.handle(record)
        return False

    def close(self) -> None:
        if self in log.handlers:
            log.removeHandler(self)
            log.removeFilter(self.shown)
            if log.level == logging.INFO:  # nobody has chosen another since
                log.setLevel(self.before)
        super().close()
        self.held.release()


def open_log(folder: Path) -> None:
    """From here on the package's log goes to this run's log.txt too, and to no other run's.

    Raises `DialError` where another process has it open.
    """
    close_log()
    lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise DialError(
            f"{folder} is being written by another process: wait for it, or choose another --out"
        ) from error
    handler = LogFile(folder / "log.txt", lock)
    log.addHandler(handler)
    log.addFilter(handler.shown)
    log.setLevel(min(handler.console, logging.INFO))


def close_log() -> None:
    """The package's log goes to no run; its level is what it was."""
    for handler in [h for h in log.handlers if isinstance(h, LogFile)]:
        handler.close()


def _not_followed(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


# --------------------------------------------------------------------------------------------------
# Cells that a spreadsheet would run as formulas, written so that it shows them instead.
#
#     =1+1  ->  '=1+1        'tis  ->  'tis        '=1+1  ->  ''=1+1
#
# A spreadsheet runs a cell that begins with = + - @ (full width too), a tab or a return (OWASP, CSV
# injection); some drop blanks and invisible characters before they look. Text like that gets an
# apostrophe in front, on its way to a file, and loses it on its way back, so that what is read is
# what was written. Numbers stay numbers.


_UNSEEN = r"\s\x00-\x1f\x7f-\x9f\xad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff"

_RUN = re.compile(rf"'*(?:[\t\r]|[{_UNSEEN}]*[=+\-@＝＋－＠﹦﹢﹣﹫])")


def as_cell(text: str) -> str:
    """The text as a spreadsheet will show it, and not run it."""
    return f"'{text}" if _RUN.match(text) else text


def meant(cell: str) -> str:
    """The text that `as_cell` was given."""
    return cell[1:] if cell.startswith("'") and _RUN.match(cell) else cell


def to_show(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with every text as `as_cell`."""
    return _each(frame, as_cell)


def as_meant(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with every text as `meant`: `as_meant(to_show(frame))` is the frame."""
    return _each(frame, meant)


def _each(frame: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    changed = {}
    for name in frame.columns:
        column = frame[name]
        if column.dtype == object or isinstance(column.dtype, pd.StringDtype):
            texts = {v: change(v) for v in column.unique() if isinstance(v, str)}
            texts = {before: after for before, after in texts.items() if before != after}
            if texts:
                changed[name] = column.map(lambda v, t=texts: t.get(v, v)).astype(column.dtype)
    return frame.assign(**changed)


# --------------------------------------------------------------------------------------------------
# The journal of a run: for every batch of rows that is whole on the disk, where it stands and its
# hash.
#
#     start stop rows sha256(key, start, stop, rows, bytes start..stop of scores.csv)
#
# A batch's line is written after its rows are on the disk. So rows without a line are torn, and
# rows whose hash is another's were altered; neither is kept, whatever they look like. `key` stands
# for all that the rows depend on, so rows of another run do not fit. This section knows bytes. It
# does not know what the rows say, and it makes none.


@dataclass(frozen=True)
class Batch:
    """Rows that stand in the file from byte `start` up to byte `stop`."""

    start: int
    stop: int
    rows: int


@dataclass(frozen=True)
class Kept:
    """The batches that can be trusted, from the first on, and what is wrong with what follows them
    (empty where nothing follows)."""

    batches: tuple[Batch, ...]
    fault: str

    @property
    def stop(self) -> int:
        return self.batches[-1].stop if self.batches else 0


def record_batch(table: Path, key: str, data: bytes, rows: int) -> None:
    """Append `rows` rows to `table` and then their line to its journal, each on the disk before
    the next is begun."""
    with table.open("ab") as file:
        batch = Batch(file.tell(), file.tell() + len(data), rows)
        _to_disk(file, data)
    with _journal(table).open("ab") as file:
        _to_disk(file, _line(batch, key, data))
    if batch.start == 0:  # both files are new
        sync_folder(table.parent)


def trusted_batches(table: Path, key: str) -> Kept:
    """Read both files again from the start, up to the first batch whose line, place or hash is not
    what was written."""
    lines = _journal(table).read_bytes().split(b"\n") if _journal(table).is_file() else [b""]
    size = table.stat().st_size if table.is_file() else 0
    batches: list[Batch] = []
    fault = ""
    if not size and any(lines):
        fault = "its rows are gone"
    elif size:
        with table.open("rb") as file:
            for line in lines[:-1]:
                batch = _read(line)
                start = batches[-1].stop if batches else 0
                if batch is None or batch.start != start or batch.stop < start:
                    fault = f"line {len(batches) + 1} of its journal was altered"
                    break
                if batch.stop > size:
                    fault = "its last rows are torn"
                    break
                if line + b"\n" != _line(batch, key, file.read(batch.stop - start)):
                    fault = f"rows {_span(batches, batch)} were altered, or are of another run"
                    break
                batches.append(batch)
    if not fault and size > (batches[-1].stop if batches else 0):
        fault = "its last rows are torn" if len(lines) > 1 else "its journal is not there"
    return Kept(tuple(batches), fault)


def cut_after(table: Path, batches: tuple[Batch, ...]) -> None:
    """Cut off of both files what follows these batches."""
    if table.is_file():
        with table.open("rb+") as file:
            file.truncate(batches[-1].stop if batches else 0)
    journal = _journal(table)
    if journal.is_file():
        lines = journal.read_bytes().splitlines(keepends=True)
        with journal.open("rb+") as file:
            file.truncate(sum(map(len, lines[: len(batches)])))


def _journal(table: Path) -> Path:
    return table.with_name("journal.txt")


def _line(batch: Batch, key: str, data: bytes) -> bytes:
    head = f"{batch.start} {batch.stop} {batch.rows} "
    digest = hashlib.sha256(f"{key} {head}".encode() + data).hexdigest()
    return f"{head}{digest}\n".encode()


def _read(line: bytes) -> Batch | None:
    parts = line.split(b" ")
    if len(parts) != 4 or not all(part.isdigit() and len(part) < 20 for part in parts[:3]):
        return None
    return Batch(*map(int, parts[:3]))


def _span(before: list[Batch], batch: Batch) -> str:
    first = 1 + sum(one.rows for one in before)
    return f"{first} to {first + batch.rows - 1}"


def _to_disk(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


# --------------------------------------------------------------------------------------------------
# A run: one folder that holds what was asked, every row as it came, and what it came to.
#
#     config.json            what the rows depend on, and the circumstances: command line, versions
#     scores.csv             a row per prompt and cell, appended batch by batch, never aggregated
#     summary.csv, .json     written last; a folder with summary.json is finished
#     log.txt, *.safetensors
#
# Rows are appended in a fixed order, so an interrupted run goes on after its last whole batch and
# ends with the same bytes as one that was never interrupted. The same holds of a finished run whose
# files were damaged since: it is a half run again.


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
        check_same_settings(run.folder, experiment, run.settings)
        return _resumed(run)
    config = {
        "experiment": experiment,
        "settings": run.settings,
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "started": _now(),
        "versions": versions(),
    }
    _write_config(run.folder, config)
    return run


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    write_whole(folder / "config.json", json.dumps(config, indent=2) + "\n")


def _resumed(run: Run) -> Run:
    """The run that is there, without a summary that its rows do not bear out. Its log says that,
    and where packages have changed since it was begun; config.json records both versions then."""
    fault = damage(run)
    if fault:
        open_log(run.folder)  # nobody else writes to it from here on
        log.warning("this run was finished, and %s; it goes on from what is whole", fault)
        for name in ("summary.json", "summary.csv"):
            (run.folder / name).unlink(missing_ok=True)
    run = _logged(run)
    if run.finished:
        return run
    config, now = read_config(run.folder), versions()
    before, again = config.get("versions", {}), config.get("resumed", [])
    changed = [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if before.get(k) != v]
    if changed:
        log.warning("begun with other versions: %s", ", ".join(changed))
    if now != (again[-1] if again else config).get("versions", {}):
        record = {"started": _now(), "versions": now}
        _write_config(run.folder, {**config, "resumed": [*again, record]})
    return run


def damage(run: Run) -> str:
    """What is wrong with the files of a finished run: one is not what the run ended with, or the
    journal does not vouch for all rows. Empty where nothing is, or the run is not finished."""
    if not run.finished:
        return ""
    fault = changed(run.folder)
    if fault or not (HASHES in read_verdict(run.folder) or run.journal.is_file()):
        return fault  # a run from before there were journals has none
    found = trusted_batches(run.scores, run.key)
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
    found = trusted_batches(run.scores, run.key)
    kept = _usable(run, found, sizes)
    if found.fault:
        log.warning("%s: %s; what follows is computed again", run.scores, found.fault)
    cut_after(run.scores, found.batches[:kept])
    if kept:
        log.info("resumed after %d rows in %s", sum(sizes[:kept]), run.scores)
    return kept


def usable_batches(run: Run, sizes: Sequence[int]) -> int:
    """What `kept_batches` would keep. Nothing is cut off."""
    return _usable(run, trusted_batches(run.scores, run.key), sizes)


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
    record_batch(run.scores, run.key, text.encode(), len(rows))


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


# --------------------------------------------------------------------------------------------------
# What a run folder says, read back: config.json, the tables, summary.json.
#
# summary.json ends with the SHA-256 of what the run ended with:
#
#     "sha256": {"scores.csv": ..., "summary.csv": ..., "verdict": the other keys, sorted}
#
# What is read of a finished run is compared with it first, so that nothing is drawn or reported of
# a file that was altered since. Runs made before there were such hashes are read without. The
# journal is not asked: it says which rows of an unfinished run are whole, and a finished one's are
# in its hashes.


OLD_PANDAS = tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1)

ROUND_TRIP: dict[str, Any] = (
    {"float_precision": "round_trip"} if OLD_PANDAS else {}
)  # since: always

TABLES = ("scores.csv", "summary.csv")

HASHES = "sha256"

UNFINISHED = "run the experiment to its end first"


def hashes(folder: Path, verdict: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of a run's tables as they lie there, and of its verdict in any order."""
    found = {name: _sha256(folder / name) for name in TABLES if (folder / name).is_file()}
    plain = json.loads(json.dumps(verdict))
    text = json.dumps(plain, sort_keys=True, allow_nan=False)
    return {**found, "verdict": hashlib.sha256(text.encode()).hexdigest()}


def changed(folder: Path) -> str:
    """Which file of a finished run is not what the run ended with, and in what; empty where all
    are, and where the run is not finished."""
    if not (folder / "summary.json").is_file():
        return ""
    try:
        ended = _ended(folder)
        for name in TABLES:
            _check_unchanged(folder, name, ended)
    except DialError as error:
        return str(error)
    return "" if (folder / "summary.csv").is_file() else f"{folder} has no summary.csv"


def read_config(folder: str | Path, *needed: str) -> dict[str, Any]:
    """config.json of a run folder. Raises `DialError` if the folder holds no run, or its settings
    lack one that is `needed` (`model.n_layers` is the model's)."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise DialError(f"{folder} is not a run folder: it has no config.json")
    return check_config(path, read_json(path), needed)


def read_table(folder: str | Path, name: str, *needed: str) -> pd.DataFrame:
    """`scores` or `summary` of a run, as it was written: floats to the last digit, ids as text
    (`0001` is not 1, and `'=1` in the file is `=1`), whole numbers whole where some are missing.

    Raises `DialError` if it is not there yet, cannot be read, was altered since the run ended,
    lacks a column that is `needed`, or holds what no run writes.
    """
    folder = Path(folder)
    path = folder / f"{name}.csv"
    experiment = read_config(folder)["experiment"]
    if (folder / "summary.json").is_file():
        _mendable(folder, path.name)
    if not path.is_file() or path.stat().st_size == 0:
        raise DialError(f"{folder} has no {name}.csv: {UNFINISHED}")
    try:
        header = pd.read_csv(path, nrows=1, header=None, dtype=str, keep_default_na=False)
        columns = [str(cell) for cell in header.iloc[0]]
        frame = pd.read_csv(
            path,
            dtype={name: str for name in columns if name in TEXT_COLUMN_NAMES},
            keep_default_na=False,
            na_values={name: [""] for name in columns if name not in TEXT_COLUMN_NAMES},
            **ROUND_TRIP,
        )
        with np.errstate(invalid="raise"):  # infinity is no whole number
            frame = as_meant(frame.astype({name: "Int64" for name in columns if name in WHOLE}))
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:  # of pandas: torn lines
        if isinstance(error, pd.errors.ParserError) and "out of memory" in str(error):
            raise MemoryError(str(error)) from error
        raise DialError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    check_header(path, columns)
    check_table(path, experiment, frame, needed)
    return frame


def read_verdict(folder: str | Path, *needed: str) -> dict[str, Any]:
    """summary.json of a finished run. Raises `DialError` if it is not there yet, unreadable, was
    altered since, or lacks what is `needed`."""
    folder = Path(folder)
    if not (folder / "summary.json").is_file():
        raise DialError(f"{folder} has no summary.json: {UNFINISHED}")
    return check_verdict(folder / "summary.json", _mendable(folder), needed)


def versions_used(config: Mapping[str, Any]) -> dict[str, str]:
    """Each package of a run's config.json with its version, or with all that rows were computed
    under, `2.12.0, then 2.13.0`, where the run was resumed under another one."""
    used: dict[str, list[str]] = {}
    for some in (config, *config.get("resumed", [])):
        for name, version in some.get("versions", {}).items():
            known = used.setdefault(name, [])
            if not known or known[-1] != version:
                known.append(version)
    return {name: ", then ".join(map(str, known)) for name, known in used.items()}


def find_run(where: str | Path) -> Path:
    """A run folder, or the newest finished run in an experiment's folder."""
    folder = located(where)
    if (folder / "config.json").is_file():
        return folder
    runs = sorted(path.parent for path in folder.glob("*/summary.json"))
    if not runs:
        raise DialError(f"{str(where)!r} is neither a run folder nor holds a finished run")
    return sorted(runs, key=lambda run: str(read_config(run).get("started")))[-1]


def _mendable(folder: Path, name: str = "") -> dict[str, Any]:
    """The verdict, if it and this table are what the run ended with; else what mends them."""
    try:
        ended = _ended(folder)
        if name:
            _check_unchanged(folder, name, ended)
    except DialError as error:
        raise DialError(
            f"{error}; the run's files are damaged: the experiment's command with --out {folder} "
            "mends them"
        ) from error
    return ended


def _ended(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    verdict = check_verdict(path, read_json(path))
    others = {name: value for name, value in verdict.items() if name != HASHES}
    known = verdict.get(HASHES, {}).get("verdict")
    if known is not None and known != hashes(Path("no tables"), others)["verdict"]:
        raise DialError(f"{path} was altered since the run ended")
    return verdict


def _check_unchanged(folder: Path, name: str, ended: Mapping[str, Any]) -> None:
    known = ended.get(HASHES, {}).get(name)
    if known is None:
        return
    path = folder / name
    if not path.is_file():
        raise DialError(f"{folder} has no {name}, and had one when the run ended")
    if _sha256(path) != known:
        raise DialError(f"{path} was altered since the run ended")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
