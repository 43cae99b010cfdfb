"""Multiple-choice tasks from local files: what a model still can do, by its logits.

    {"id": ..., "question": "The capital of France is", "choices": ["Paris", "Rome"], "answer": 0}

A choice stands after the question and one blank. Three files are ours, written for this project and
small: `arithmetic` (sums and differences up to 21), `grammar` (pairs of endings, one of them bad
English) and `facts` (what children know). They say whether steering broke something, and nothing
about how able a model is. lm-eval reads the same files (docs/capability.md). This module knows no
model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refusal_dial.cli.flags import OUR_TASKS
from refusal_dial.common import DialError, format_value, one_of
from refusal_dial.data.prompts import read_rows

_TASK_FOLDERS = (
    Path(__file__).parents[1] / "embedded" / "tasks",  # in an installed wheel
    Path(__file__).parents[2] / "data" / "tasks",  # in a checkout
)


@dataclass(frozen=True)
class TaskItem:
    """One question; `answer` is the number of the right choice."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int


def load_task(source: str, n: int | None = None, seed: int = 0) -> tuple[str, list[TaskItem]]:
    """(the task's name, its items): one of `OUR_TASKS` or a .jsonl file of that format, `n` items
    drawn by seed where there are more.

    Raises `DialError` naming file and line for an item that cannot be used, for an id used twice,
    and for a source that is neither.
    """
    name, path = source, Path(source)
    if source in OUR_TASKS:
        found = next((one for one in _TASK_FOLDERS if one.is_dir()), None)
        if found is None:
            raise DialError("our task files are missing: reinstall, or give a .jsonl file")
        path = found / f"{source}.jsonl"
    elif path.suffix != ".jsonl" or not path.is_file():
        raise one_of(source, (*OUR_TASKS, "a .jsonl file"), "task")
    else:
        name = path.stem
    items: dict[str, TaskItem] = {}
    for number, (where, row) in enumerate(read_rows(str(path), "a task", {}), 1):
        item = _item(where, row, f"{name}-{number:04d}")
        if item.id in items:
            raise DialError(f"{where}: id {item.id!r} was used before")
        items[item.id] = item
    every = list(items.values())
    if n is not None and n < len(every):
        kept = np.sort(np.random.default_rng(seed).permutation(len(every))[:n])
        every = [every[int(i)] for i in kept]
    return name, every


def _item(where: str, row: dict[str, Any], default_id: str) -> TaskItem:
    question, choices, answer = (row.get(name) for name in ("question", "choices", "answer"))
    if not isinstance(question, str) or not question.strip():
        raise DialError(f"{where}: expected a question, not {format_value(question)}")
    whole = isinstance(choices, Sequence) and not isinstance(choices, str) and len(choices) > 1
    if not whole or not all(isinstance(one, str) and one.strip() for one in choices or ()):
        raise DialError(f"{where}: expected two choices or more, not {format_value(choices)}")
    known = tuple(map(str, choices or ()))
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(known):
        raise DialError(
            f"{where}: answer must be the number of a choice, 0 to {len(known) - 1}, not "
            f"{format_value(answer)}"
        )
    return TaskItem(str(row.get("id") or default_id), question, known, answer)
