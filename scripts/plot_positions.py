"""Draw steering at every position beside the last one, from a run folder of steer_positions.py.

No model is loaded. Writes positions.html into the run folder, or the file that --out names.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import PlotFlags


def main(flags: PlotFlags) -> None:
    from refusal_dial.report.positions import positions_figure
    from refusal_dial.report.theme import title_of, write_figures
    from refusal_dial.run.folder import find_run, read_config, read_table
    from refusal_dial.run.schema import POSITIONS

    folder = find_run(flags.run)
    config, summary = read_config(folder, "model.name"), read_table(folder, "summary", *POSITIONS)
    title = title_of(config, "Where along the prompt", n=str(int(summary["n"].max())))
    unit = str(config["settings"].get("alpha_unit") or "residual")
    figure = positions_figure(summary, title, unit)
    for path in write_figures({"positions": figure}, folder, flags.format, flags.out):
        print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
