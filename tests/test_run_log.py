"""A run's log gets every line from INFO up, and the console none that it did not want."""

from __future__ import annotations

import io
import logging

import pytest

from refusal_dial.run.folder import LogFile, close_log, open_log

log = logging.getLogger("refusal_dial")
root = logging.getLogger()


@pytest.fixture(autouse=True)
def as_found():
    close_log()
    level = log.level
    yield
    close_log()
    log.setLevel(level)


@pytest.fixture(params=["own", "root"])
def console(request):
    """What a console shows, whether its handler is the package's or the root's."""
    shown = io.StringIO()
    handler = logging.StreamHandler(shown)
    where = log if request.param == "own" else root
    where.addHandler(handler)
    yield shown
    where.removeHandler(handler)


def lines(folder):
    return [line.split()[-1] for line in (folder / "log.txt").read_text().splitlines()]


LEVELS = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


@pytest.mark.parametrize("level", LEVELS)
def test_whatever_the_console_shows_the_file_has_info(level, console, tmp_path):
    log.setLevel(level)
    open_log(tmp_path)
    for name in LEVELS:
        log.log(getattr(logging, name), name)
    shown = LEVELS[LEVELS.index(level) :]
    assert console.getvalue().split() == shown
    assert lines(tmp_path) == (shown if level == "DEBUG" else LEVELS[1:])
    close_log()
    assert logging.getLevelName(log.level) == level


def test_a_console_level_set_for_all_packages_is_kept_too(console, tmp_path):
    before = root.level
    log.setLevel(logging.NOTSET)
    root.setLevel(logging.ERROR)
    try:
        open_log(tmp_path)
        log.info("told")
        log.error("shown")
    finally:
        root.setLevel(before)
    assert console.getvalue().split() == ["shown"]
    assert lines(tmp_path) == ["told", "shown"]
    close_log()
    assert log.level == logging.NOTSET


def test_one_log_is_open_at_a_time_and_each_line_stands_in_it_once(console, tmp_path):
    log.setLevel(logging.WARNING)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        open_log(tmp_path / name)
        log.info("info-%s", name)
        log.warning("warning-%s", name)
    assert sum(isinstance(h, LogFile) for h in log.handlers) == 1
    assert lines(tmp_path / "a") == ["info-a", "warning-a"]
    assert lines(tmp_path / "b") == ["info-b", "warning-b"]
    assert console.getvalue().split() == ["warning-a", "warning-b"]


def test_a_level_chosen_while_the_run_is_open_stays(tmp_path):
    log.setLevel(logging.INFO)
    open_log(tmp_path)
    log.setLevel(logging.ERROR)
    close_log()
    assert log.level == logging.ERROR
