"""Draw who writes a direction, from a run of decompose_direction: heads by layer, and the curve.

RUN is a run folder, or an experiment's folder, of which the newest finished run is taken. Writes
decomposition.html into it. No model is loaded.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import PlotFlags


def main(flags: PlotFlags) -> None:
    from refusal_dial.report.decomposition import decomposition_figure
    from refusal_dial.report.theme import title_of, write_figures
    from refusal_dial.run.folder import find_run, read_config, read_table, read_verdict
    from refusal_dial.run.schema import DECOMPOSITION

    folder = find_run(flags.run)
    summary = read_table(folder, "summary", *DECOMPOSITION)
    config, record = read_config(folder, "model.name"), read_verdict(folder)
    title = title_of(config, "Who writes the direction", n=f"{record.get('n_pairs')} pairs")
    figures = {"decomposition": decomposition_figure(summary, record, title)}
    for path in write_figures(figures, folder, flags.format, flags.out):
        print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
