"""Draw the comparison of a system message with steering, from a run folder; no model is loaded.

Writes conditions.html (refusal by subset and coherence under every condition, with intervals) into
the run folder, or the file that --out names.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import PlotFlags


def main(flags: PlotFlags) -> None:
    from refusal_dial.report.replies import condition_bars
    from refusal_dial.report.theme import title_of, write_figures
    from refusal_dial.run.folder import find_run, read_config, read_table
    from refusal_dial.run.schema import REPLY_COLUMNS
    from refusal_dial.studies.replies import with_condition

    folder = find_run(flags.run)
    rows = with_condition(read_table(folder, "summary", *REPLY_COLUMNS))
    title = title_of(read_config(folder, "model.name"), "A system message, the dial, or both", rows)
    figure = condition_bars(rows, title)
    for path in write_figures({"conditions": figure}, folder, flags.format, flags.out):
        print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
