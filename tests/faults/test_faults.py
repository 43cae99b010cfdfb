"""Whatever ends a job, its rows are there when it is started again, and the bytes are the same.

`make faults N=100` does this for long; here is a handful of each.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import campaign
import jobs

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def context():
    return jobs.server()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return jobs.make(tmp_path_factory.mktemp("jobs"))


@pytest.fixture(scope="module")
def whole(context, made):
    """The tables of a job that nobody disturbed."""
    found = {}

    def of(name):
        if name not in found:
            found[name] = campaign.undisturbed(context, jobs.JOBS[name], made)
        return found[name]

    return of


def ended(context, made, name, out, prepare=None, extra=()):
    """(exit code, what it printed) of a job that was started."""
    process = jobs.start(context, jobs.JOBS[name], made, out, prepare, extra)
    return jobs.finish(process), jobs.printed(out)


def one_error(printed):
    """The one line of an error that the job ended with."""
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, printed
    assert printed.rstrip().endswith(lines[0])
    assert "Traceback" not in printed
    return lines[0]


def same_as(whole, out):
    return campaign.tables(out) == whole.tables


@pytest.mark.parametrize(
    ("name", "number"),
    [("main", signal.SIGKILL), ("patching", signal.SIGTERM), ("generation", signal.SIGINT)],
)
def test_a_killed_job_goes_on_to_the_same_bytes(name, number, context, made, whole, tmp_path):
    undisturbed, out = whole(name), tmp_path / "run"
    process = jobs.start(context, jobs.JOBS[name], made, out)
    if jobs.disturb(process, out, number, 0.3 * undisturbed.seconds):
        assert process.exitcode == (-number if number == signal.SIGKILL else 130)
    kept = jobs.vouched(out)
    code, printed = ended(context, made, name, out)
    assert code == 0, printed
    assert jobs.thrown_away(out, kept, code) == 0
    assert same_as(undisturbed, out)


def test_a_write_that_is_cut_in_the_middle(context, made, whole, tmp_path):
    undisturbed, out = whole("main"), tmp_path / "run"
    limit = jobs.FileLimit(int(0.6 * len(undisturbed.tables["scores.csv"])))
    code, printed = ended(context, made, "main", out, limit)
    assert code == 2
    assert "error: cannot read or write" in one_error(printed)
    assert (out / "scores.csv").stat().st_size == limit.size
    kept = jobs.vouched(out)
    code, printed = ended(context, made, "main", out)
    assert (code, jobs.resumed_after(out)) == (0, kept)
    assert "its last rows are torn; what follows is computed again" in printed
    assert same_as(undisturbed, out)


def mount(*arguments):
    done = subprocess.run(
        [shutil.which("mount"), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, of 64 KiB."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("mounting a file system takes root")
    where = tmp_path / "disk"
    where.mkdir()
    mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", str(where))
    yield where
    subprocess.run([shutil.which("umount"), str(where)], check=True)


def test_a_full_disk(context, made, whole, disk, tmp_path):
    undisturbed, out = whole("main"), disk / "run"
    taken = 64 * 1024 - len(undisturbed.tables["scores.csv"]) // 2 - 16 * 1024
    (disk / "other").write_bytes(b"x" * taken)
    code, printed = ended(context, made, "main", out)
    assert code == 2
    assert "No space left on device" in one_error(printed)
    kept = jobs.vouched(out)
    (disk / "other").unlink()
    mount("-o", "remount,size=4m", str(disk))
    code, printed = ended(context, made, "main", out)
    assert (code, jobs.resumed_after(out)) == (0, kept or None)
    assert same_as(undisturbed, out)


def test_a_folder_that_becomes_read_only(context, made, whole, disk, tmp_path):
    undisturbed, out = whole("main"), disk / "run"
    mount("-o", "remount,size=4m", str(disk))
    process = jobs.start(context, jobs.JOBS["main"], made, out)
    assert jobs.disturb(process, out, signal.SIGKILL, 0.2 * undisturbed.seconds)
    kept = jobs.vouched(out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    mount("-o", "remount,ro", str(disk))
    code, printed = ended(context, made, "main", out)
    assert code == 2
    assert "Read-only file system" in one_error(printed)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    mount("-o", "remount,rw", str(disk))
    code, printed = ended(context, made, "main", out)
    assert (code, jobs.resumed_after(out)) == (0, kept or None)
    assert same_as(undisturbed, out)


def test_running_out_of_memory(context, made, whole, tmp_path):
    """The device's memory, as far as a CPU has one: allocations fail for real."""
    undisturbed, out = whole("wide"), tmp_path / "run"
    try:
        code, printed = ended(context, made, "wide", out, jobs.MemoryLimit(2**19, out))
    except TimeoutError:  # killed by then; OpenBLAS, where it is what lacks memory, waits for more
        code = None
    if code == 0:
        pytest.skip("the allocator had enough in hand: nothing failed")
    if code is not None:
        assert code == 2, printed
        assert "error: out of memory: lower --batch-size" in one_error(printed)
    kept = jobs.vouched(out)
    code, printed = ended(context, made, "wide", out)
    assert (code, jobs.resumed_after(out)) == (0, kept or None)
    assert same_as(undisturbed, out)


def test_nan_in_activations_ends_the_job_and_leaves_no_number(context, made, whole, tmp_path):
    undisturbed, out, name = whole("main"), tmp_path / "run", "main"
    code, printed = ended(context, made, name, out, jobs.Nan(out))
    assert code == 2, printed
    assert "rows have no score" in one_error(printed)
    kept = jobs.vouched(out)
    code, printed = ended(context, made, name, out)
    assert (code, jobs.resumed_after(out)) == (0, kept)
    assert same_as(undisturbed, out)
