"""Files that are there whole or not at all.

Knows bytes and folders, and JSON. Does not know what is said in them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from refusal_dial.types import DialError, is_utf8, shown


def located(path: str | Path) -> Path:
    """The path with `~` and `~user` filled in. Raises `DialError` for a user who has no home, and
    for what can name no file: nothing, a zero byte, half a surrogate pair."""
    name = str(path)
    if not name or "\0" in name or not is_utf8(name):
        raise DialError(f"{shown(name)} names no file: expected the path of a file or folder")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DialError(f"{str(path)!r}: there is no such user's home folder here") from error


def named(path: str | Path, suffix: str) -> Path:
    """The path of a file to write, which must end in `suffix`: so that a page or a set of prompts
    never takes the place of a run's own files. Raises `DialError` for another one."""
    path = located(path)
    if path.suffix != suffix:
        raise DialError(f"--out {str(path)!r} is no {suffix} file: give one that ends in {suffix}")
    return path


def read_json(path: str | Path) -> Any:
    """What a JSON file holds. Raises `DialError` where it cannot be read: not there, not UTF-8, not
    JSON, nested too deep, or a number of thousands of digits."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise DialError(f"{path} cannot be read: {reason}") from error


def write_whole(path: str | Path, content: bytes | str) -> Path:
    """Replace `path` by `content` in one step: a reader, or a crash, sees the old or the new.

    Raises `DialError` for a path that names no file.
    """
    path = located(path)
    if not path.name:
        raise DialError(f"{str(path)!r} is a folder: expected the path of a file to write")
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path
