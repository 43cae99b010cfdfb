"""Draw contrast vectors by layer and strength, from a run folder; no model is loaded.

Writes layer_strength.html (HARMFUL refusal and false positives) and replies.html (both along the
dial, with coherence) into the run folder or --out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refusal_dial import cli
from refusal_dial.cli import argument, flag


@dataclass(frozen=True)
class Flags:
    """Which run, and where the figures go."""

    run: str = argument("a run folder of caa_refusal.py")
    out: str | None = flag(None, "the folder to write to")


def main(flags: Flags) -> None:
    from refusal_dial.files import write_whole
    from refusal_dial.plots import title_of
    from refusal_dial.replies import plots
    from refusal_dial.replies.layers import REPORT
    from refusal_dial.run import find_run, read_config, read_table

    folder = find_run(flags.run)
    config, summary = read_config(folder), read_table(folder, "summary")
    reported = summary[summary["split"] == REPORT]
    title = title_of(config, "Contrast vectors by layer and strength")
    figures = {
        "layer_strength": plots.layer_strength(summary, title),
        "replies": plots.reply_curves(reported, title_of(config, "What is said along the dial")),
    }
    out = Path(flags.out) if flags.out else folder
    for name, figure in figures.items():
        html = figure.to_html(include_plotlyjs=True, div_id=name)
        print(f"figure: {write_whole(out / f'{name}.html', html).resolve()}")


if __name__ == "__main__":
    cli.run(main)
