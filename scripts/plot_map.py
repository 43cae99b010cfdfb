"""Draw the map of a direction's slope, layer by position, from a run of map_direction.

RUN is a run folder, or an experiment's folder, of which the newest finished run is taken. Writes
map.html into it. No model is loaded.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import PlotFlags


def main(flags: PlotFlags) -> None:
    from refusal_dial.report.direction_map import map_figure
    from refusal_dial.report.theme import title_of, write_figures
    from refusal_dial.run.folder import find_run, read_config, read_table, read_verdict
    from refusal_dial.run.schema import MAP_COLUMNS

    folder = find_run(flags.run)
    summary = read_table(folder, "summary", *MAP_COLUMNS)
    n = read_verdict(folder).get("held_out")
    title = title_of(read_config(folder, "model.name"), "Where a direction turns refusal", n=str(n))
    for path in write_figures({"map": map_figure(summary, title)}, folder, flags.format, flags.out):
        print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
