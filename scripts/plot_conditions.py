"""Draw the comparison of a system message with steering, from a run folder; no model is loaded.

Writes conditions.html (refusal by subset and coherence under every condition, with intervals) into
the run folder, or the file that --out names.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.flags import PlotFlags


def main(flags: PlotFlags) -> None:
    from refusal_dial.figure_files import write_figures
    from refusal_dial.replies.conditions import named
    from refusal_dial.replies.plots import condition_bars
    from refusal_dial.run import find_run, read_config, read_table
    from refusal_dial.run_columns import REPLIES
    from refusal_dial.theme import title_of

    folder = find_run(flags.run)
    rows = named(read_table(folder, "summary", *REPLIES))
    title = title_of(read_config(folder, "model.name"), "A system message, the dial, or both", rows)
    figure = condition_bars(rows, title)
    for path in write_figures({"conditions": figure}, folder, flags.format, flags.out):
        print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
