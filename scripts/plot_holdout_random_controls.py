"""Draw refusal along alpha, learned direction against bands of its controls, from a run folder.

RUN is a run folder, or an experiment's folder, of which the newest finished run is taken. Writes
holdout_random_controls.html into it.
"""

from __future__ import annotations

from dataclasses import dataclass

from refusal_dial import cli
from refusal_dial.cli.command_line import flag
from refusal_dial.cli.flags import PlotFlags


@dataclass(frozen=True)
class Flags(PlotFlags):
    """What of the run is drawn."""

    value: str = flag(
        "auto",
        "refusal_rate, score_mean, shift, or auto: the rate, and the shift of the mean score where "
        "all rates are under 0.02 or over 0.98",
    )


def main(flags: Flags) -> None:
    from refusal_dial.common import one_of
    from refusal_dial.report.steering import VALUE_LABELS, alpha_curves
    from refusal_dial.report.theme import title_of, write_figures
    from refusal_dial.run.folder import find_run, read_config, read_table
    from refusal_dial.run.schema import SUMMARY

    if flags.value not in ("auto", *VALUE_LABELS):
        raise one_of(flags.value, ("auto", *VALUE_LABELS), "value")
    folder = find_run(flags.run)
    config, summary = read_config(folder, "model.name"), read_table(folder, "summary", *SUMMARY)
    title = title_of(config, "Refusal along the dial, learned against its controls", summary)
    value = None if flags.value == "auto" else flags.value
    figure = alpha_curves(summary, title, value)
    figures = {"holdout_random_controls": figure}
    for path in write_figures(figures, folder, flags.format, flags.out):
        print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
