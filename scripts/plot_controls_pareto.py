"""Draw HARMFUL refusal against EDGE over-refusal along alpha, learned against random directions.

RUN is a run folder, or an experiment's folder, of which the newest finished run is taken. Writes
controls_pareto.html into the run folder, or the file that --out names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refusal_dial import cli
from refusal_dial.cli import argument, flag


@dataclass(frozen=True)
class Flags:
    """Which run, and where the figure goes."""

    run: str = argument("a run folder, or an experiment's folder")
    out: str | None = flag(None, "the .html file to write")


def main(flags: Flags) -> None:
    from refusal_dial.files import write_whole
    from refusal_dial.plots import pareto, title_of
    from refusal_dial.run import find_run, read_config, read_table

    folder = find_run(flags.run)
    title = title_of(read_config(folder), "HARMFUL refusal against EDGE over-refusal")
    figure = pareto(read_table(folder, "summary"), title)
    path = Path(flags.out) if flags.out else folder / "controls_pareto.html"
    write_whole(path, figure.to_html(include_plotlyjs=True, div_id="figure"))
    print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
