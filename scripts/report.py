"""Write one page about one run or several: verdict, dial, figures, tables, and how it was made.

RUNS are run folders, or experiments' folders, of which the newest finished run is taken; several
stand side by side. The page works offline and holds no code but its own. It is
report.html in the (first) run folder, or the file that --out names. No model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from refusal_dial import cli
from refusal_dial.cli.command_line import argument, flag


@dataclass(frozen=True)
class Flags:
    """Which runs, and where the page goes."""

    runs: str = argument("a run folder, or several", many=True)
    out: str | None = flag(None, "the .html file to write")


def main(flags: Flags) -> None:
    from refusal_dial.common import named, write_whole
    from refusal_dial.report.page import report_page
    from refusal_dial.report.reading import read_run
    from refusal_dial.run.folder import find_run

    out = named(flags.out, ".html") if flags.out else None
    folders = [find_run(part.strip()) for part in flags.runs.split(",") if part.strip()]
    html = report_page([read_run(folder) for folder in folders])
    print(f"report: {write_whole(out or folders[0] / 'report.html', html).resolve()}")


if __name__ == "__main__":
    cli.run(main)
