"""Experiments, stopped from outside as a scheduler does it: it says how to go on, and the rows
that it has written are whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from script_case import ROOT
from small_runs import arguments

from refusal_dial.run.folder import Run, read_config, trusted_batches

RESUME = "interrupted: run the same command again to resume where it stopped"
HANGS = 240  # seconds after which a process that did not end is stuck
STOPPED = [
    ("patch_resid_pre", signal.SIGTERM),
    ("patch_resid_pre", signal.SIGINT),
    ("select_direction", signal.SIGTERM),
    ("toxicity_steering", signal.SIGTERM),
    ("eval_direction_on_xstest", signal.SIGTERM),
]
"""One of each kind of study; that every experiment resumes is in test_experiments."""
LONGER = {"--batch-size": "2", "--n-experiments": "400"}
"""Flags of small runs with which they have more batches, and so are still at work when stopped."""


class Started:
    """An experiment in a process of its own, and what it prints."""

    def __init__(self, name: str, typed: list[str], folder: Path) -> None:
        self.printed = folder / "printed.txt"
        with self.printed.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "experiments" / f"{name}.py"), *typed],
                cwd=folder,
                stdout=file,
                stderr=file,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def stop_once(self, ready, number: int) -> str:
        """Sends the signal when `ready()` first holds; all that was printed, once it has ended."""
        began = time.monotonic()
        while not ready() and self.process.poll() is None:
            assert time.monotonic() - began < HANGS, self.printed.read_text()
            time.sleep(0.01)
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(HANGS)
        return self.printed.read_text()


def longer(typed: list[str]) -> list[str]:
    pairs = [word.partition("=") for word in typed]
    return [f"{flag}={LONGER.get(flag, value)}" if mid else flag for flag, mid, value in pairs]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), STOPPED)
def test_a_stopped_experiment_says_how_to_go_on(name, number, small_material, tmp_path):
    typed = [*longer(arguments(small_material, name)), f"--out={tmp_path / 'run'}"]
    # 1. at its first line, before anything is loaded
    first = Started(name, typed, tmp_path)
    printed = first.stop_once(lambda: first.printed.stat().st_size > 0, number)
    assert printed.splitlines()[-1] == RESUME, printed
    assert first.process.returncode == 130
    assert not list((tmp_path / "run").rglob("scores.csv"))
    # 2. with rows on the disk
    second = Started(name, typed, tmp_path)
    printed = second.stop_once(lambda: list((tmp_path / "run").rglob("journal.txt")), number)
    assert "Traceback" not in printed, printed
    (scores,) = (tmp_path / "run").rglob("scores.csv")
    run = Run(scores.parent, read_config(scores.parent)["settings"])
    if run.finished:
        pytest.skip("it had ended before the signal came")
    assert second.process.returncode == 130
    assert printed.splitlines()[-1] == RESUME, printed
    assert "rows are to be computed" in printed
    kept = sum(batch.rows for batch in trusted_batches(run.scores, run.key).batches)
    # 3. it goes on after them
    third = Started(name, typed, tmp_path)
    printed = third.stop_once(lambda: False, number)
    assert third.process.returncode == 0, printed
    assert not kept or f"resumed after {kept} rows" in printed
