"""The jobs that are disturbed: small models, small prompts, the real scripts in processes of their
own.

A process that has everything imported forks one for each start, so that a start costs a second and
yet is a process: it has its own command line, signals, limits, open files and end.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # tiny, pairs_case
PRELOAD = [
    "refusal_dial.run.job",
    "refusal_dial.studies.patching",
    "refusal_dial.studies.continuation",
]
PRELOAD += [
    "refusal_dial.report.steering",
    "refusal_dial.report.patching",
    "profanity_check",
    "jobs",
]
Limit = Callable[[], None]


@dataclass(frozen=True)
class Job:
    """A script and its command line; `{model}` and `{prompts}` are filled in."""

    name: str
    script: str
    arguments: str

    def argv(self, made: Path, out: Path) -> list[str]:
        places = {"model": made / "model", "plain": made / "plain", "prompts": made / "p.jsonl"}
        return [*self.arguments.format(**places).split(), "--device", "cpu", "--out", str(out)]


JOBS = {
    job.name: job
    for job in (
        Job(
            "main",
            "steering_holdout_control",
            "--model {model} --prompts {prompts} --refusal-tokens I --layer 1,2 --alphas -2,2 "
            "--alpha-unit absolute --n-random 4 --batch-size 2",
        ),
        Job(
            "patching",
            "patch_resid_pre",
            "--model {model} --prompts {prompts} --refusal-tokens I --layer 1 --gap 0 "
            "--batch-size 1",
        ),
        Job(
            "toxicity",
            "toxicity_steering",
            "--model {plain} --n 6 --n-pairs 3 --layer 1 --n-random 1 --n-shuffled 1 --samples 2 "
            "--max-new-tokens 5 --batch-size 1",
        ),
        Job(
            "generation",
            "analyze_layers",
            "--model {plain} --n 6 --n-pairs 3 --temperature 0 --samples 1 --max-new-tokens 5 "
            "--batch-size 1",
        ),
        Job(
            "wide",
            "steering_holdout_control",
            "--model {model} --prompts {prompts} --refusal-tokens I --layer 1 --alphas -2,2 "
            "--alpha-unit absolute --controls random --n-random 500 --batch-size 56",
        ),
    )
}
KILLED = [name for name in JOBS if name != "wide"]


def make(folder: Path) -> Path:
    """The models and prompts of the jobs."""
    import pairs_case
    import tiny

    tiny.folder("Qwen2", folder / "model")
    tiny.folder("Phi3", folder / "plain", template=None)
    pairs_case.write(folder / "p.jsonl")
    with (folder / "p.jsonl").open("a") as file:
        for i in range(16):
            row = {"id": f"e{i}", "text": f"edge {i} {'ab ' * (i % 5)}", "subset": "EDGE"}
            file.write(json.dumps(row) + "\n")
    return folder


# --- processes


def server() -> multiprocessing.context.ForkServerContext:
    """Where processes come from. Its own process imports everything once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def start(
    context: multiprocessing.context.ForkServerContext,
    job: Job,
    made: Path,
    out: Path,
    prepare: Limit | None = None,
    extra: tuple[str, ...] = (),
) -> multiprocessing.context.ForkServerProcess:
    """The job in a process of its own."""
    printed = _printed(out)
    printed.unlink(missing_ok=True)
    argv = [*job.argv(made, out), *extra]
    process = context.Process(target=_run, args=(job.script, argv, printed, prepare))
    process.start()
    return process


def _run(script: str, argv: list[str], printed: Path, prepare: Limit | None) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    import torch

    torch.set_num_threads(1)
    path = ROOT / "experiments" / f"{script}.py"
    sys.argv = [str(path), *argv]
    spec = importlib.util.spec_from_file_location("experiment", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["experiment"] = module
    spec.loader.exec_module(module)
    from refusal_dial.cli import command_line as cli

    if prepare is not None:
        prepare()
    cli.run(module.main, argv)


def finish(process: multiprocessing.context.ForkServerProcess, seconds: float = 120) -> int:
    """Its exit code, once it has ended."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"no end after {seconds} s")
    return process.exitcode


def printed(out: Path) -> str:
    """What the last start printed."""
    return _printed(out).read_text() if _printed(out).is_file() else ""


def _printed(out: Path) -> Path:
    """On another disk than the run, which may be full."""
    return (
        Path(tempfile.gettempdir())
        / f"{hashlib.sha256(str(out).encode()).hexdigest()[:16]}.printed"
    )


# --- what becomes of a run


def begun(out: Path) -> bool:
    """Whether its rows are being written."""
    return (out / "scores.csv").exists()


def disturb(
    process: multiprocessing.context.ForkServerProcess,
    out: Path,
    number: int,
    wait: float,
    kept: int = 0,
) -> bool:
    """Send a signal `wait` seconds after the process began to write rows (after `kept` that are
    there already); whether it met a living process."""
    while process.is_alive() and not (begun(out) and (not kept or resumed_after(out) is not None)):
        time.sleep(0.002)
    process.join(wait)
    if not process.is_alive():
        return False
    os.kill(process.pid, number)
    process.join()
    return process.exitcode != 0


def vouched(out: Path) -> int:
    """Rows that are whole on the disk, by the journal."""
    from refusal_dial.run.folder import Run, read_config, trusted_batches

    if not (out / "config.json").is_file():
        return 0
    run = Run(out, read_config(out)["settings"])
    return sum(batch.rows for batch in trusted_batches(run.scores, run.key).batches)


def resumed_after(out: Path) -> int | None:
    """After how many rows the last start went on; None where it did not get there."""
    found = re.findall(r"resumed after (\d+) rows", printed(out))
    return int(found[-1]) if found else None


def thrown_away(out: Path, kept: int, code: int) -> int:
    """Of `kept` rows that were whole on the disk, those that the last start did not go on after."""
    after = resumed_after(out)
    if after is not None:
        return kept - after
    if code == 0:
        return 0 if "finished already" in printed(out) else kept
    return max(0, kept - vouched(out))


def rows(out: Path) -> list[bytes]:
    path = out / "scores.csv"
    return path.read_bytes().splitlines(keepends=True)[1:] if path.is_file() else []


# --- limits, set in the process before it starts to work


@dataclass(frozen=True)
class FileLimit:
    """No file may grow beyond so many bytes: the write that would is cut in the middle."""

    size: int

    def __call__(self) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


@dataclass(frozen=True)
class MemoryLimit:
    """Once the run is opened, the process may have so many more bytes than it has then."""

    spare: int
    out: Path

    def __call__(self) -> None:
        import threading

        def limit() -> None:
            while not (self.out / "log.txt").exists():
                time.sleep(0.001)
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            size = pages * resource.getpagesize() + self.spare
            resource.setrlimit(resource.RLIMIT_AS, (size, size))

        threading.Thread(target=limit, daemon=True).start()


@dataclass(frozen=True)
class Nan:
    """From the first rows on, every linear map of the model gives NaN."""

    out: Path

    def __call__(self) -> None:
        from torch import nn
        from torch.nn.modules.module import register_module_forward_hook

        def plant(module, inputs, output):
            if isinstance(module, nn.Linear) and begun(self.out):
                return output * float("nan")
            return None

        register_module_forward_hook(plant)
