"""Draw how the scores of each subset are spread, unsteered and at the ends of the dial.

RUN is a run folder, or an experiment's folder, of which the newest finished run is taken. Writes
score_histograms.html into it.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import PlotFlags


def main(flags: PlotFlags) -> None:
    from refusal_dial.report.steering import score_histograms
    from refusal_dial.report.theme import title_of, write_figures
    from refusal_dial.run.folder import find_run, read_config, read_table
    from refusal_dial.run.schema import SCORES

    folder = find_run(flags.run)
    config, scores = read_config(folder, "model.name"), read_table(folder, "scores", *SCORES)
    title = title_of(config, "How scores are spread", scores)
    figure = score_histograms(scores, title, config["settings"].get("threshold"))
    figures = {"score_histograms": figure}
    for path in write_figures(figures, folder, flags.format, flags.out):
        print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
