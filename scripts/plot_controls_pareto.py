"""Draw HARMFUL refusal against EDGE over-refusal along alpha, learned direction against controls.

RUN is a run folder, or an experiment's folder, of which the newest finished run is taken. Writes
controls_pareto.html into it.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import PlotFlags


def main(flags: PlotFlags) -> None:
    from refusal_dial.report.steering import pareto, set_off
    from refusal_dial.report.theme import title_of, write_figures
    from refusal_dial.run.folder import find_run, read_config, read_table
    from refusal_dial.run.schema import SUMMARY

    folder = find_run(flags.run)
    config, summary = read_config(folder, "model.name"), read_table(folder, "summary", *SUMMARY)
    title = title_of(config, "HARMFUL refusal against EDGE over-refusal", set_off(summary))
    figures = {"controls_pareto": pareto(summary, title)}
    for path in write_figures(figures, folder, flags.format, flags.out):
        print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
