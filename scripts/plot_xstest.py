"""Draw what a direction does to an over-refusal test, from a run folder; no model is loaded.

Writes replies.html (refusal and coherence along the dial), trade_off.html (HARMFUL refusal against
EDGE over-refusal), categories.html and categories.csv into the run folder or --out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refusal_dial import cli
from refusal_dial.cli import argument, flag


@dataclass(frozen=True)
class Flags:
    """Which run, and where the figures go."""

    run: str = argument("a run folder of eval_direction_on_xstest.py")
    out: str | None = flag(None, "the folder to write to")


def main(flags: Flags) -> None:
    from refusal_dial.files import write_whole
    from refusal_dial.plots import title_of
    from refusal_dial.replies import plots
    from refusal_dial.replies.summary import summarise_replies
    from refusal_dial.run import find_run, read_config, read_table, read_verdict

    folder = find_run(flags.run)
    config = read_config(folder)
    threshold, seed = read_verdict(folder)["threshold"], config["settings"]["seed"]
    rows = read_table(folder, "scores")
    held_out = rows[rows["split"] == "holdout"]
    summary = summarise_replies(held_out, threshold, seed)
    by_category = summarise_replies(held_out, threshold, seed, ("subset", "category"))
    figures = {
        "replies": plots.reply_curves(summary, title_of(config, "What is said along the dial")),
        "trade_off": plots.trade_off_curve(summary, title_of(config, "Refusal and over-refusal")),
        "categories": plots.category_bars(by_category, title_of(config, "Refusal by category")),
    }
    out = Path(flags.out) if flags.out else folder
    for name, figure in figures.items():
        html = figure.to_html(include_plotlyjs=True, div_id=name)
        print(f"figure: {write_whole(out / f'{name}.html', html).resolve()}")
    write_whole(out / "categories.csv", by_category.to_csv(index=False, lineterminator="\n"))


if __name__ == "__main__":
    cli.run(main)
