"""Draw steering always against steering behind a detector, from a run folder.

Gain where it is wanted against cost where it is not, along alpha, on held-out prompts. Nothing is
computed but the figures of the run's own rows. Writes trade_off.html into the run folder.
"""

from __future__ import annotations

from dataclasses import dataclass

from refusal_dial import cli


@dataclass(frozen=True)
class Flags:
    """The run, and which prompts steering is for."""

    run: str = cli.argument("a run folder of conditional_steering.py, or runs/conditional_steering")
    wanted: str = cli.flag("HARMFUL", "the subset that steering is for")
    spared: str = cli.flag("EDGE", "the subset that it should leave alone")


def main(flags: Flags) -> None:
    from refusal_dial.files import write_whole
    from refusal_dial.plots import title_of
    from refusal_dial.run import find_run, read_config, read_table
    from refusal_dial.trade_off import trade_off
    from refusal_dial.trade_off_plot import trade_off_curves

    run = find_run(flags.run)
    config, scores = read_config(run), read_table(run, "scores")
    scores = scores[scores["split"] == "holdout"]
    threshold = float(config["settings"].get("threshold", 0.0))
    table = trade_off(scores, wanted=flags.wanted, spared=flags.spared, threshold=threshold)
    title = title_of(config, "What steering buys, and what it costs")
    figure = trade_off_curves(table, title, flags.wanted, flags.spared)
    print(write_whole(run / "trade_off.html", figure.to_html(include_plotlyjs=True)))


if __name__ == "__main__":
    cli.run(main)
