"""What a run folder says, read back: config.json, the tables, summary.json.

summary.json ends with the SHA-256 of what the run ended with:

    "sha256": {"scores.csv": ..., "summary.csv": ..., "verdict": the other keys, sorted}

What is read of a finished run is compared with it first, so that nothing is drawn or reported of a
file that was altered since. Runs made before there were such hashes are read without. The journal
is not asked: it says which rows of an unfinished run are whole, and a finished one's are in its
hashes. This module reads. It writes and mends nothing (see `run.open_run`), and knows no models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refusal_dial.files import located, read_json
from refusal_dial.run_columns import TEXTS, WHOLE
from refusal_dial.run_schema import check_config, check_header, check_table, check_verdict
from refusal_dial.spreadsheets import as_meant
from refusal_dial.types import DialError

OLD_PANDAS = tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1)
EXACT: dict[str, Any] = {"float_precision": "round_trip"} if OLD_PANDAS else {}  # since: always
TABLES = ("scores.csv", "summary.csv")
HASHES = "sha256"
FIRST = "run the experiment to its end first"


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
        raise DialError(f"{folder} has no {name}.csv: {FIRST}")
    try:
        header = pd.read_csv(path, nrows=1, header=None, dtype=str, keep_default_na=False)
        columns = [str(cell) for cell in header.iloc[0]]
        frame = pd.read_csv(
            path,
            dtype={name: str for name in columns if name in TEXTS},
            keep_default_na=False,
            na_values={name: [""] for name in columns if name not in TEXTS},
            **EXACT,
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
        raise DialError(f"{folder} has no summary.json: {FIRST}")
    return check_verdict(folder / "summary.json", _mendable(folder), needed)


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
