"""Draw the front over two dials, from a run folder of multi_objective.py; no model is loaded.

Writes front.html into the run folder, or the file that --out names.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import PlotFlags


def main(flags: PlotFlags) -> None:
    from refusal_dial.report.objectives import front_counts, front_figure
    from refusal_dial.report.theme import title_of, write_figures
    from refusal_dial.run.folder import find_run, read_config, read_table
    from refusal_dial.run.schema import FRONT

    folder = find_run(flags.run)
    config, summary = read_config(folder, "model.name"), read_table(folder, "summary", *FRONT)
    title = title_of(config, "Toxicity down, refusal in its place", n=front_counts(summary))
    figure = front_figure(summary, title)
    for path in write_figures({"front": figure}, folder, flags.format, flags.out):
        print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
