"""Draw where patching moves the score, effect and controls side by side, from a run folder.

RUN is a run folder, or an experiment's folder, of which the newest finished run is taken. Writes
patching.html into it.
"""

from __future__ import annotations

from dataclasses import dataclass

from refusal_dial import cli
from refusal_dial.cli.command_line import flag
from refusal_dial.cli.flags import PlotFlags


@dataclass(frozen=True)
class Flags(PlotFlags):
    """What of the run is drawn."""

    axis: str | None = flag(None, "role, head, neuron or site; default what the run varied")


def main(flags: Flags) -> None:
    from refusal_dial.report.patching import heatmaps, patching_title
    from refusal_dial.report.theme import write_figures
    from refusal_dial.run.folder import find_run, read_config, read_table
    from refusal_dial.run.schema import PAIRS, PATCHES

    folder = find_run(flags.run)
    config, summary = read_config(folder, *PAIRS), read_table(folder, "summary", *PATCHES)
    title = patching_title(config, "Where patching moves refusal")
    figures = {"patching": heatmaps(summary, title, flags.axis)}
    for path in write_figures(figures, folder, flags.format, flags.out):
        print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
