"""Draw what the dial costs against what it does, from a run folder; no model is loaded.

Writes capability.html (task accuracy, loss on plain text and drift of harmless replies against the
share of prompts refused, with intervals) into the run folder, or the file that --out names.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import PlotFlags


def main(flags: PlotFlags) -> None:
    from refusal_dial.report.capability import CAPABILITY_TABLE, capability_figure
    from refusal_dial.report.theme import write_figures
    from refusal_dial.run.folder import find_run, read_config, read_table

    folder = find_run(flags.run)
    config = read_config(folder, "model.name")
    summary = read_table(folder, "summary", *CAPABILITY_TABLE)
    figure = capability_figure(summary, config["settings"]["model"]["name"])
    for path in write_figures({"capability": figure}, folder, flags.format, flags.out):
        print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
