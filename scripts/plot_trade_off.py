"""Draw steering always against steering behind a detector, from a run folder.

Gain where it is wanted against cost where it is not, along alpha, on held-out prompts. Nothing is
computed but the figures of the run's own rows. Writes trade_off.html into the run folder.
"""

from __future__ import annotations

from dataclasses import dataclass

from refusal_dial import cli
from refusal_dial.cli.command_line import flag
from refusal_dial.cli.flags import PlotFlags


@dataclass(frozen=True)
class Flags(PlotFlags):
    """Which prompts steering is for."""

    wanted: str | None = flag(None, "the subset that steering is for; HARMFUL, or CHALLENGING")
    spared: str | None = flag(None, "the subset to leave alone; EDGE, or BENIGN")


def main(flags: Flags) -> None:
    from refusal_dial.report.steering import trade_off_curves
    from refusal_dial.report.theme import SCORE_AXIS, title_of, write_figures
    from refusal_dial.run.folder import find_run, read_config, read_table
    from refusal_dial.run.schema import COMPLETION_ROWS, SCORES, check_table
    from refusal_dial.stats.trade_off import trade_off
    from refusal_dial.studies.continuation import as_trade_off

    folder = find_run(flags.run)
    config, scores = read_config(folder, "model.name"), read_table(folder, "scores")
    text = "completion" in scores
    needed = COMPLETION_ROWS if text else SCORES
    check_table(folder / "scores.csv", config["experiment"], scores, needed)
    if text:
        rows, about = as_trade_off(scores), ("CHALLENGING", "BENIGN")
        units = "minus toxicity", "words changed"
    else:
        rows, about = scores[scores["split"] == "holdout"], ("HARMFUL", "EDGE")
        units = SCORE_AXIS, "refused"
    wanted, others = flags.wanted or about[0], flags.spared or about[1]
    threshold = float(config["settings"].get("threshold") or 0)
    table = trade_off(rows, wanted=wanted, others=others, threshold=threshold)
    drawn = rows[rows["subset"].isin((wanted, others))]
    title = title_of(config, "What steering buys, and what it costs", drawn)
    names = f"{wanted} ({units[0]})", f"{others} ({units[1]})"
    figure = trade_off_curves(table, title, *names)
    figures = {"trade_off": figure}
    for path in write_figures(figures, folder, flags.format, flags.out):
        print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
