"""Rows of a .jsonl or .csv file, a folder of them, or a data set of the Hugging Face hub.

Each comes with what an error about it should say: the file and line it begins on. It does not know
what a row should hold.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from refusal_dial.files import located
from refusal_dial.types import DialError, one_of

HUB_NAMES = {"xstest": "Paul/XSTest"}


def read_rows(
    source: str, what: str = "prompts", names: Mapping[str, str] = HUB_NAMES
) -> list[tuple[str, dict[str, Any]]]:
    """(where, row) for every row of a .jsonl or .csv file, a folder of them, or a hub data set, as
    it is: unchecked, `where` being what an error about the row should say.

    Raises `DialError` for a source that does not exist or cannot be read or reached.
    """
    path = located(source)
    if path.is_dir():
        files = sorted([*path.glob("*.jsonl"), *path.glob("*.csv")])
        if not files:
            raise DialError(f"folder {source!r} holds no {what}: expected .jsonl or .csv files")
        return [row for file in files for row in _rows(file)]
    if path.is_file():
        return _rows(path)
    if path.suffix in (".jsonl", ".csv") or source.startswith((".", "/", "~")):
        raise DialError(
            f"no {what} file {source!r}: give a .jsonl or .csv file, a folder, a hub data set "
            f"(owner/name, or {' or '.join(names)}), or 'embedded'"
        )
    return _hub_rows(source, what, names)


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(where, row) for every row of a file; `where` is what an error will say."""
    readers = {".jsonl": _jsonl, ".csv": _csv}
    if path.suffix not in readers:
        raise DialError(f"{path} is no prompts file: expected .jsonl or .csv")
    if not path.is_file():
        raise DialError(f"{path} is no file (a folder, a pipe, a broken link): move it away")
    try:
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DialError(f"{path}, line {line}: not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise DialError(f"{path} cannot be read: {error.strerror}") from error
    return list(readers[path.suffix](path, lines))


def _jsonl(path: Path, lines: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DialError(f"{where}: not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise DialError(f"{where}: expected an object with id, text, subset, category")
        yield where, row


def _csv(path: Path, lines: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader((line + "\n" for line in lines), strict=True)
    header: list[str] = []
    number = 1  # the line a row begins on; quoted text may run over several
    try:
        for cells in reader:
            where, number = f"{path}, line {number}", reader.line_num + 1
            if not cells:
                continue
            if not header:
                header = cells
                twice = sorted({name for name in cells if cells.count(name) > 1})
                if twice:
                    raise DialError(f"{where}: the header names {twice[0]!r} twice")
                continue
            if len(cells) != len(header):
                raise DialError(f"{where}: {len(cells)} columns where the header has {len(header)}")
            yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DialError(f"{path}, line {number}: not valid CSV ({error})") from error
    if not header:
        raise DialError(f"{path} is empty: expected a header line and rows")


def _hub_rows(name: str, what: str, names: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
    from refusal_dial.hub import hub_reachable  # only this source needs the network

    hub_id = names.get(name, name)
    remedy = f"download it and give the .csv or .jsonl file, or use --{what} embedded"
    if "/" not in hub_id:
        raise one_of(name, ["embedded", *names, "owner/name", "FILE", "FOLDER"], what)
    try:
        import datasets
        from huggingface_hub import constants

        if not hub_reachable():  # then only the local cache is asked, and nothing is retried
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        splits = datasets.load_dataset(hub_id)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise DialError(f"data set {hub_id!r} cannot be reached ({reason}): {remedy}") from error
    rows = [(split, i, row) for split in splits for i, row in enumerate(splits[split], 1)]
    return [(f"{hub_id} [{split}], row {i}", dict(row)) for split, i, row in rows]


def is_rating(value: object) -> bool:
    """Is it a number from 0 to 1, as people's ratings of toxicity are?"""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
