"""A run's log.txt: what the package says while one run is written, and who may write it.

Everything from INFO up goes to the file, whatever level a notebook or a script set for its console;
the console goes on showing what it showed before. The open file is also the run's lock. This module
does not know what a run is made of.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TextIO, cast

from refusal_dial.types import DialError

log = logging.getLogger("refusal_dial")


class LogFile(logging.FileHandler):
    """The handler of the one open log.txt. As a filter of the logger it keeps from the console what
    the console's own level (`console`) would have dropped."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.before, self.console = log.level, log.getEffectiveLevel()

    def shown(self, record: logging.LogRecord) -> bool:
        """Whether the console sees it. What it does not see is written here and goes no further."""
        if record.levelno >= self.console:
            return True
        self.handle(record)
        return False

    def close(self) -> None:
        if self in log.handlers:
            log.removeHandler(self)
            log.removeFilter(self.shown)
            if log.level == logging.INFO:  # nobody has chosen another since
                log.setLevel(self.before)
        super().close()


def open_log(folder: Path) -> None:
    """From here on the package's log goes to this run's log.txt too, and to no other run's.

    Raises `DialError` where another process has it open.
    """
    close_log()
    handler = LogFile(folder / "log.txt")
    _claim(handler, folder)
    log.addHandler(handler)
    log.addFilter(handler.shown)
    log.setLevel(min(handler.console, logging.INFO))


def close_log() -> None:
    """The package's log goes to no run; its level is what it was."""
    for handler in [h for h in log.handlers if isinstance(h, LogFile)]:
        handler.close()


def _claim(handler: logging.FileHandler, folder: Path) -> None:
    """Hold the run's log while this process writes to the run; a second process is refused.

    The operating system lets go when the process ends, however it ends.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(cast(TextIO, handler.stream), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        handler.close()
        raise DialError(
            f"{folder} is being written by another process: wait for it, or choose another --out"
        ) from error
    except OSError:  # a file system without locks
        log.info("no lock on %s: see that no other process writes to it", folder)
