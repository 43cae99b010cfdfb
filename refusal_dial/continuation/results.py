"""The result files that users of the toxicity study expect, beside those of a run.

    experiment_results.json   the whole of it, when a run is finished
    partial_results.json      what there is, when it was interrupted
    failed_results.json       what there is, and the error, when it failed
    intermediate.jsonl        one line a step, as it came

One mechanism: whatever ends the work, the rows on disk are read back and written as one of the
three, and an older one of another name goes. The error goes on its way. It does not know what the
rows mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from refusal_dial.files import write_whole
from refusal_dial.run import Run, read_config
from refusal_dial.types import DryRun

COMPLETE, PARTIAL, FAILED = (
    "experiment_results.json",
    "partial_results.json",
    "failed_results.json",
)
STEPS = "intermediate.jsonl"


@contextmanager
def kept_results(run: Run, read: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Around the work of a run: leaves its result file, however the work ends. `read` gives what
    there is, from the run's own files. A dry run leaves none."""
    try:
        yield
    except DryRun:
        raise
    except KeyboardInterrupt:
        _write(run, PARTIAL, {"status": "interrupted"}, read)
        raise
    except Exception as error:
        said = {"type": type(error).__name__, "message": str(error)}
        _write(run, FAILED, {"status": "failed", "error": said}, read)
        raise
    if not (run.folder / COMPLETE).is_file():
        _write(run, COMPLETE, {"status": "complete"}, read)
    _only(run, COMPLETE)


def _only(run: Run, name: str) -> None:
    """What an earlier start left is out of date."""
    for other in {COMPLETE, PARTIAL, FAILED} - {name}:
        (run.folder / other).unlink(missing_ok=True)


def _write(
    run: Run, name: str, about: Mapping[str, Any], read: Callable[[], Mapping[str, Any]]
) -> None:
    config = read_config(run.folder)
    try:
        found = dict(read())
    except Exception as error:  # the work's own error must come through, not this one
        found = {"unread": f"{type(error).__name__}: {error}"}
    content = {**about, "experiment": config["experiment"], "settings": config["settings"]}
    write_whole(run.folder / name, json.dumps({**content, **found}, indent=2) + "\n")
    _only(run, name)


def note_step(run: Run, what: Mapping[str, Any]) -> None:
    """Adds a line to the intermediate log."""
    when = datetime.now().astimezone().isoformat(timespec="seconds")
    with (run.folder / STEPS).open("a") as file:
        file.write(json.dumps({"time": when, **what}) + "\n")
