"""Draw contrast vectors by layer and strength, from a run folder; no model is loaded.

Writes layer_strength.html (HARMFUL refusal and false positives) and replies.html (both along the
dial, with coherence) into the run folder or --out: both from the half of the prompts that nothing
was chosen on, as the table that the run prints.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.flags import PlotFlags


def main(flags: PlotFlags) -> None:
    from refusal_dial.figure_files import write_figures
    from refusal_dial.replies import plots
    from refusal_dial.replies.layers import REPORT, table
    from refusal_dial.run import find_run, read_config, read_table
    from refusal_dial.run_columns import REPLIES
    from refusal_dial.theme import title_of, unit_label

    folder = find_run(flags.run)
    config, summary = read_config(folder, "model.name"), read_table(folder, "summary", *REPLIES)
    strength = unit_label("strength", config["settings"])
    reported = summary[summary["split"] == REPORT]
    title = title_of(config, "Contrast vectors by layer and strength", reported)
    said = title_of(config, "What is said along the dial", reported)
    figures = {
        "layer_strength": plots.layer_strength(table(summary, REPORT), title, strength),
        "replies": plots.reply_curves(reported, said, strength),
    }
    for path in write_figures(figures, folder, flags.format, flags.out):
        print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
