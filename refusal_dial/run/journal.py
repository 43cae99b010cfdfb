"""The journal of a run: for every batch of rows that is whole on the disk, where it stands and its
hash.

    start stop rows sha256(key, start, stop, rows, bytes start..stop of scores.csv)

A batch's line is written after its rows are on the disk. So rows without a line are torn, and rows
whose hash is another's were altered; neither is kept, whatever they look like. `key` stands for all
that the rows depend on, so rows of another run do not fit. This module knows bytes. It does not
know what the rows say, and it makes none.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from refusal_dial.common import sync_folder


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


def record(table: Path, key: str, data: bytes, rows: int) -> None:
    """Append `rows` rows to `table` and then their line to its journal, each on the disk before
    the next is begun."""
    with table.open("ab") as file:
        batch = Batch(file.tell(), file.tell() + len(data), rows)
        _to_disk(file, data)
    with _journal(table).open("ab") as file:
        _to_disk(file, _line(batch, key, data))
    if batch.start == 0:  # both files are new
        sync_folder(table.parent)


def trusted(table: Path, key: str) -> Kept:
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


def cut(table: Path, batches: tuple[Batch, ...]) -> None:
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
