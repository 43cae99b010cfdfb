"""Draw contrast vectors by layer and strength, from a run folder; no model is loaded.

Writes layer_strength.html (HARMFUL refusal and false positives) and replies.html (both along the
dial, with coherence) into the run folder or --out: both from the half of the prompts that nothing
was chosen on, as the table that the run prints.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import PlotFlags


def main(flags: PlotFlags) -> None:
    from refusal_dial.data.prompts import REPORT
    from refusal_dial.report import replies as plots
    from refusal_dial.report.theme import title_of, unit_label, write_figures
    from refusal_dial.run.folder import find_run, read_config, read_table
    from refusal_dial.run.schema import REPLY_COLUMNS
    from refusal_dial.studies.replies import layer_table

    folder = find_run(flags.run)
    config, summary = (
        read_config(folder, "model.name"),
        read_table(folder, "summary", *REPLY_COLUMNS),
    )
    strength = unit_label("strength", config["settings"])
    reported = summary[summary["split"] == REPORT]
    title = title_of(config, "Contrast vectors by layer and strength", reported)
    found = title_of(config, "Completions along the dial", reported)
    figures = {
        "layer_strength": plots.layer_strength(layer_table(summary, REPORT), title, strength),
        "replies": plots.reply_curves(reported, found, strength),
    }
    for path in write_figures(figures, folder, flags.format, flags.out):
        print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
