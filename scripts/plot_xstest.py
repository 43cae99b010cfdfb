"""Draw what a direction does to an over-refusal test, from a run folder; no model is loaded.

Writes replies.html (refusal and coherence along the dial), trade_off.html (HARMFUL refusal against
EDGE over-refusal), categories.html and categories.csv into the run folder or --out.
"""

from __future__ import annotations

from pathlib import Path

from refusal_dial import cli
from refusal_dial.cli.flags import PlotFlags


def main(flags: PlotFlags) -> None:
    from refusal_dial.common import write_whole
    from refusal_dial.report import replies as plots
    from refusal_dial.report.theme import title_of, unit_label, write_figures
    from refusal_dial.run.folder import find_run, read_config, read_table, read_verdict, to_show
    from refusal_dial.run.schema import REPLY_ROWS
    from refusal_dial.studies.replies import summarise_replies

    folder = find_run(flags.run)
    config = read_config(folder, "model.name", "seed")
    rows = read_table(folder, "scores", *REPLY_ROWS)
    threshold = read_verdict(folder, "threshold")["threshold"]
    seed, strength = config["settings"]["seed"], unit_label("strength", config["settings"])
    held_out = rows[rows["split"] == "holdout"]
    summary = summarise_replies(held_out, threshold, seed)
    by_category = summarise_replies(held_out, threshold, seed, ("subset", "category"))

    def title(question: str) -> str:
        return title_of(config, question, held_out)

    figures = {
        "replies": plots.reply_curves(summary, title("Completions along the dial"), strength),
        "trade_off": plots.trade_off_curve(summary, title("Refusal and over-refusal")),
        "categories": plots.category_bars(by_category, title("Refusal by category")),
    }
    table = to_show(by_category).to_csv(index=False, lineterminator="\n")
    write_whole(Path(flags.out or folder) / "categories.csv", table)
    for path in write_figures(figures, folder, flags.format, flags.out):
        print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
