"""Kill the jobs again and again at random points, resume them, and count what was lost.

    python tests/faults/campaign.py --n 100

`lost`: rows that were whole on the disk when the process was killed and were not kept, or are not
there at the end. `repeated`: rows that stand in the table twice. `torn`: rows that were being
written at the moment, cut off and computed again. A cycle ends when the run is finished; its tables
must then have the bytes of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import jobs

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
TABLES = ("scores.csv", "summary.csv")


@dataclass
class Tally:
    """What became of a job under so many kills."""

    cycles: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    repeated: int = 0
    torn: int = 0
    different: int = 0
    seconds: float = 0.0  # how long a run takes from its first rows on, as the machine now is

    def line(self, name: str) -> str:
        signals = ", ".join(f"{self.kills[s.name]} {s.name}" for s in SIGNALS)
        return (
            f"{name}: {self.cycles} runs, {sum(self.kills.values())} kills ({signals}), "
            f"{self.lost} rows lost, {self.repeated} repeated, {self.torn} torn and computed "
            f"again, {self.different} runs that ended with other bytes"
        )


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody disturbed, and how long it took from its first rows on."""

    tables: dict[str, bytes]
    seconds: float


def tables(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in TABLES}


def undisturbed(context, job: jobs.Job, made: Path) -> Undisturbed:
    out = made / f"{job.name}-whole"
    process = jobs.start(context, job, made, out)
    while process.is_alive() and not jobs.begun(out):
        time.sleep(0.002)
    begun = time.monotonic()
    code = jobs.finish(process)
    if code:
        raise RuntimeError(f"{job.name} ended with {code} undisturbed: {jobs.printed(out)}")
    return Undisturbed(tables(out), time.monotonic() - begun)


def cycle(context, job, made, whole: Undisturbed, draw: random.Random, tally: Tally) -> None:
    """One run, killed up to three times at random points and resumed after each."""
    out = made / f"{job.name}-{tally.cycles}"
    kept = 0
    for _ in range(draw.randint(1, 3)):
        number = draw.choice(SIGNALS)
        process = jobs.start(context, job, made, out)
        met = jobs.disturb(process, out, number, draw.uniform(0, tally.seconds), kept)
        tally.lost += jobs.thrown_away(out, kept, process.exitcode)
        if not met:
            tally.seconds *= 0.8
            break  # it was finished first
        tally.seconds = min(whole.seconds, 1.05 * tally.seconds)
        tally.kills[number.name] += 1
        kept = jobs.vouched(out)
        tally.torn += max(0, len(jobs.rows(out)) - kept)
    code = jobs.finish(jobs.start(context, job, made, out))
    if code:
        raise RuntimeError(f"{job.name} could not be resumed ({code}): {jobs.printed(out)}")
    tally.lost += jobs.thrown_away(out, kept, code)
    written, expected = jobs.rows(out), whole.tables["scores.csv"].splitlines(keepends=True)[1:]
    tally.lost += sum((Counter(expected) - Counter(written)).values())
    tally.repeated += sum((Counter(written) - Counter(expected)).values())
    tally.different += tables(out) != whole.tables
    tally.cycles += 1
    shutil.rmtree(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=100, help="kills of each job, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", default=",".join(jobs.KILLED), help="which")
    asked = parser.parse_args()
    context, bad = jobs.server(), 0
    with tempfile.TemporaryDirectory() as folder:
        made = jobs.make(Path(folder))
        for name in asked.jobs.split(","):
            job, draw = jobs.JOBS[name], random.Random(asked.seed)
            whole = undisturbed(context, job, made)
            tally = Tally(seconds=whole.seconds)
            while sum(tally.kills.values()) < asked.n:
                cycle(context, job, made, whole, draw, tally)
            print(tally.line(name), flush=True)
            bad += tally.lost + tally.repeated + tally.different
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
