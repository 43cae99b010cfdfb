"""Every unusable command line stops with one line before any work; every usable one is read."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from cli_case import Flags

from refusal_dial.cli import command_line as cli
from refusal_dial.cli.command_line import flag
from refusal_dial.common import DialError
from refusal_dial.run.folder import close_log, open_run

log = logging.getLogger("refusal_dial")


SCRIPT = '''"""Do something to a run.

With a second paragraph.
"""
from __future__ import annotations
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import cli_case
from refusal_dial import cli

def main(flags: cli_case.Flags) -> None:
    Path("marker").write_text(repr(flags))
    {work}

if __name__ == "__main__":
    cli.run(main)
'''


@pytest.fixture
def script(tmp_path):
    """Run a small script with this module's flags: (exit code, stdout, stderr, main was called)."""

    def call(*arguments, work="pass"):
        path = tmp_path / "do_it.py"
        path.write_text(SCRIPT.format(tests=str(Path(__file__).parent), work=work))
        done = subprocess.run(
            [sys.executable, str(path), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr, (tmp_path / "marker").exists()

    return call


@pytest.fixture(autouse=True)
def quiet():
    """Leave the package's log as it was found."""
    level, handlers = log.level, list(log.handlers)
    yield
    close_log()
    log.handlers[:] = handlers
    log.setLevel(level)


@pytest.fixture
def inside(capsys):
    """The same in this process, without starting a Python."""

    def call(*arguments, work=lambda: None):
        called = []

        def main(flags: Flags) -> None:
            called.append(flags)
            work()

        try:
            cli.run(main, arguments)
            code = 0
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err, bool(called)

    return call


WRONG = {
    "unknown flag": (["RUN", "--layr", "3"], "unknown flag --layr: did you mean --layer"),
    "unknown flag =": (["RUN", "--layr=3"], "unknown flag --layr: did you mean --layer"),
    "unknown switch": (
        ["RUN", "--plane"],
        "unknown flag --plane: did you mean --plain",
    ),
    "underscored": (["RUN", "--n_randon=3"], "unknown flag --n_randon: did you mean --n-random"),
    "part of a name": (["RUN", "--mem", "3"], "unknown flag --mem: did you mean --memory-gb?"),
    "far off": (["RUN", "--xyzzy"], "unknown flag --xyzzy: --help lists them all\n"),
    "one letter": (["RUN", "-z", "3"], "unknown flag -z: --help lists"),
    "unfinished": (["RUN", "--ru", "x"], "unknown flag --ru: did you mean --run?"),
    "ambiguous": (["RUN", "-n", "3"], "unknown flag -n: did you mean --n-random or --near?"),
    "letters": (["RUN", "-layer", "3"], "unknown flag -layer: did you mean --layer"),
    "minus a word": (["RUN", "--threshold", "-inf"], "--threshold needs a value"),
    "two dashes": (["RUN", "--"], "unknown flag --: "),
    "two dashes and more": (["RUN", "--", "--trace"], "unknown flag --: "),
    "negated switch": (["RUN", "--noplain"], "unknown flag --noplain: did you mean --plain"),
    "wrong type": (["RUN", "--n-random", "many"], "--n-random: expected a whole number, not 'man"),
    "fraction": (["RUN", "--n-random", "2.5"], "--n-random: expected a whole number, not 2.5"),
    "word in a list": (["RUN", "--layer", "1,x"], "--layer: expected a whole number, not 'x'"),
    "true as number": (["RUN", "--layer", "True"], "--layer: expected a whole number, not True"),
    "not finite": (["RUN", "--threshold", "1e999"], "--threshold: expected a finite number, not"),
    "not a number": (["RUN", "--threshold", "nan"], "--threshold: expected a finite number, not"),
    "nothing": (["RUN", "--k", "None"], "--k: expected a whole number, not None"),
    "empty number": (["RUN", "--k", ""], "--k: expected a whole number, not ''"),
    "choice": (
        ["RUN", "--colour", "bleu"],
        "--colour: unknown colour 'bleu': did you mean 'blue'",
    ),
    "missing value": (["RUN", "--layer"], "--layer needs a value: one layer or several"),
    "missing before flag": (["RUN", "--system", "--plain"], "--system needs a value: a system mes"),
    "given twice": (["RUN", "--k", "1", "--k", "2"], "--k is given twice"),
    "given twice =": (["RUN", "--n-random=1", "--n_random=1"], "--n-random is given twice"),
    "short and long": (["RUN", "-l", "1", "--layer", "2"], "--layer is given twice"),
    "unexpected": (["RUN", "more"], "unexpected argument 'more': options are given as --name"),
    "list with spaces": (["RUN", "--layer", "1", "2"], "unexpected argument '2'"),
    "missing argument": (["--k", "3"], "missing argument RUN: see --help"),
    "no arguments": ([], "missing argument RUN: see --help"),
    "named and placed": (["RUN", "--run", "OTHER"], "unexpected argument 'RUN'"),
    "switch with a value": (["RUN", "--plain", "yes"], "--plain: is a switch and takes no value"),
    "switch = value": (["RUN", "--plain=1"], "--plain: is a switch and takes no value, not 1"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_command_line_is_one_line_and_no_work(kind, inside):
    arguments, says = WRONG[kind]
    code, out, err, called = inside(*arguments)
    assert (code, out, called) == (2, "", False)
    assert err.startswith(f"error: {says}"), err
    assert err.count("\n") == 1


EACH_KIND = ["unknown flag", "wrong type", "missing value", "given twice", "unexpected"]
EACH_KIND += ["missing argument", "switch with a value"]


@pytest.mark.parametrize("kind", EACH_KIND)
def test_a_wrong_command_line_stops_a_real_script_before_main(kind, script):
    arguments, says = WRONG[kind]
    code, out, err, called = script(*arguments)
    assert (code, out, called) == (2, "", False)
    assert err.startswith(f"error: {says}"), err
    assert err.count("\n") == 1


# --- help


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["-h"], ["--", "--help"], ["RUN", "--help"], ["--layr", "x", "--help"]],
)
def test_help_shows_every_flag_with_its_help_and_default_and_does_no_work(arguments, inside):
    code, out, err, called = inside(*arguments)
    assert (code, err, called) == (0, "", False)
    for f in fields(Flags):
        assert f.metadata["help"] in out
        assert f.name == "run" or f"--{f.name.replace('_', '-')}=" in out
    assert "RUN" in out
    assert "Default: 20\n" in out
    assert "_random" not in out.replace("N_RANDOM", "")


def test_help_of_a_script_shows_its_docstring_and_leaves_torch_alone(script, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    code, out, err, called = script("--help")
    assert (code, err, called) == (0, "", False)
    assert "do_it.py" in out
    assert "Do something to a run." in out
    assert "With a second paragraph." in out


def test_help_does_not_offer_h_for_a_flag_that_begins_with_it(capsys):
    @dataclass(frozen=True)
    class Held:
        holdout: float = flag(0.5, "share held out")

    def main(flags) -> None: ...

    assert cli.parse_flags(Held, ["-h"], main) is None
    shown = capsys.readouterr().out
    assert "--holdout=HOLDOUT" in shown
    assert "-h," not in shown


# --- what goes wrong inside main


def test_debug_shows_the_traceback_behind_a_line(inside):
    for arguments in (["RUN", "--debug"], ["--debug", "RUN"]):
        code, out, err, called = inside(*arguments, work=raising(DialError("no such layer")))
        assert (code, out, called) == (2, "", True)
        assert err.startswith("error: no such layer\nTraceback (most recent call last):")
        assert err.rstrip().endswith("DialError: no such layer")
    code, _, err, _ = inside("RUN", "--debug", "--layr", "3")
    assert code == 2
    assert "Traceback" in err
    assert inside("RUN", "--debug")[:3] == (0, "", "")
    assert "Traceback" not in inside("RUN", work=raising(DialError("no such layer")))[2]
    assert "--debug" in inside("--help")[1]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_running_out_of_memory_is_one_line_with_a_remedy(error, inside):
    code, _, err, _ = inside("RUN", work=raising(error))
    assert code == 2
    assert err == "error: out of memory: lower --batch-size, or take a smaller --dtype\n"


def test_control_characters_of_the_input_do_not_reach_the_terminal(inside):
    text = "a\x1b[2Jb\x07\u202ec\x9bd\ud800é🙂שלום"
    shown = r"a\x1b[2Jb\x07\u202ec\x9bd\ud800é🙂שלום"
    assert inside("RUN", work=raising(DialError(text)))[2] == f"error: {shown}\n"
    assert inside("RUN", work=lambda: log.info("%s", text))[2] == f"{shown}\n"


def test_success_is_exit_code_0(inside, script):
    assert inside("RUN") == (0, "", "", True)
    assert script("RUN", work="print('done')") == (0, "done\n", "", True)


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DialError("layer 99 is out of range"), 2, "error: layer 99 is out of range"),
        (DialError("a\nname with\r\nlines"), 2, "error: a name with lines"),
        (KeyboardInterrupt(), 130, "interrupted: run the same command again to resume where it"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: cannot read or write to the"),
        (
            OSError(errno.EDQUOT, "Quota exceeded", "/runs/x"),
            2,
            "error: cannot read or write /ru",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 2, "error: cannot read or"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), 2, "error: cannot read or write /x:"),
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", "/a/b"),
            2,
            "error: cannot read or w",
        ),
        (FileExistsError(errno.EEXIST, "File exists", "/a/b"), 2, "error: cannot read or write /a"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/a"), 2, "error: cannot read or write"),
        (
            FileNotFoundError(errno.ENOENT, "Not there", "/proc/x"),
            2,
            "error: cannot read or write /p",
        ),
        (
            OSError(errno.EIO, "Input/output error", "/a"),
            2,
            "error: cannot read or write /a: Input",
        ),
        (TimeoutError("no answer"), 2, "error: cannot read or write to the disk: no answer"),
        (OSError(), 2, "error: cannot read or write to the disk: OSError"),
    ],
)
def test_a_foreseen_failure_is_one_line(error, code, line, inside):
    got, out, err, called = inside("RUN", work=raising(error))
    assert (got, out, called) == (code, "", True)
    assert err.startswith(line), err
    assert err.count("\n") == 1
    if isinstance(error, OSError):
        assert (error.strerror or str(error)) in err


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a fault"),
        RuntimeError("a fault"),
        KeyError("a fault"),
    ],
)
def test_a_fault_of_ours_keeps_its_traceback(error, inside):
    with pytest.raises(type(error), match="a fault"):
        inside("RUN", work=raising(error))


def test_failures_of_a_real_script_keep_their_exit_codes(script):
    code, _, err, _ = script("RUN", work="raise KeyboardInterrupt")
    assert (code, err.count("\n")) == (130, 1)
    code, _, err, _ = script("RUN", work="1 / 0")
    assert code == 1
    assert "Traceback" in err
    assert "ZeroDivisionError" in err


class Freed:
    """Its destructor gets a signal. Python cannot pass on an error raised in there."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def interruptible():
    """Ctrl-C does what it usually does, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_signal_that_python_loses_in_a_destructor_comes_once_more(inside):
    passed = []

    def work():
        Freed()
        passed.append("the destructor")
        time.sleep(60)  # the signal ends it

    code, _, err, _ = inside("RUN", work=work)
    assert passed
    assert (code, err.splitlines()[-1].split(":")[0]) == (130, "interrupted")
    assert "Traceback" not in err


def test_an_error_that_is_no_signal_is_printed_from_a_destructor_as_ever(script):
    work = "type('Freed', (), {'__del__': lambda self: 1 / 0})()"
    code, _, err, _ = script("RUN", work=work)
    assert code == 0
    assert "ZeroDivisionError" in err


def test_a_full_disk_is_one_line(script):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    work = "file = open('/dev/full', 'wb', buffering=0); file.write(b'x')"
    code, _, err, called = script("RUN", work=work)
    assert (code, called) == (2, True)
    assert err == "error: cannot read or write to the disk: No space left on device\n"


@pytest.mark.parametrize("below", ["file/run", "file/deep/run"])
def test_a_run_folder_below_a_file_is_one_line(below, inside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    code, _, err, _ = inside("RUN", work=lambda: open_run("e", {}, out=below))
    assert code == 2
    assert err == f"error: --out '{below}': file is a file: give a folder for the run\n"
    assert err.count("\n") == 1


def test_a_reader_who_has_gone_is_no_error(tmp_path):
    path = tmp_path / "do_it.py"
    path.write_text(SCRIPT.format(tests=str(Path(__file__).parent), work="print('x' * 10)"))
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, str(path), "RUN"],
        cwd=tmp_path,
        env=buffered,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait() == 0
    assert err == ""


def test_the_log_reaches_stderr_whoever_holds_it_now(inside):
    for message in ("first", "second"):
        code, out, err, _ = inside("RUN", work=lambda text=message: log.info(text))
        assert (code, out, err) == (0, "", f"{message}\n")
