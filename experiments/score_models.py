"""How strongly does each model refuse each prompt, as it is or under a direction you already have?

Prints the mean refusal score and the refusal rate of every subset with their intervals, and writes
the per-prompt scores. `--model` takes several models, separated by commas; each gets its own run.
With `--direction FILE` each is also scored under that direction, and random ones, at every alpha.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from refusal_dial import cli
from refusal_dial.cli.command_line import flag, own_layers_of
from refusal_dial.cli.flags import SteeringFlags


@dataclass(frozen=True)
class Flags(SteeringFlags):
    """A saved direction, besides the usual."""

    layer: tuple[int, ...] = flag(
        (), "a layer, or a list; default: the direction's own", own_layers_of
    )
    direction: str | None = flag(
        None, "a direction file of any format, or a run folder; without it nothing is steered"
    )
    any_model: bool = flag(False, "use a direction that was learned on another model")


def main(flags: Flags) -> None:
    from refusal_dial.cells import BASELINE
    from refusal_dial.common import DialError, DryRun
    from refusal_dial.report.steering import print_controls, print_dial, print_groups
    from refusal_dial.studies.base import load_study, prompt_rows
    from refusal_dial.studies.steering import (
        conduct,
        layers_to_use,
        steering_cells,
        used_directions,
    )

    file = flags.direction
    layers = layers_to_use(file, flags.layer, flags.site) if file is not None else ()
    names = [name.strip() for name in flags.model.split(",") if name.strip()]
    if not names:
        raise DialError(f"--model {flags.model!r} names no model: give one, or several with commas")
    for name in names:
        one = replace(flags, model=name)
        if flags.out is not None and len(names) > 1:
            one = replace(one, out=str(Path(flags.out) / name.strip("/.").replace("/", "__")))
        study = load_study(one, layers, one.site, one.pos)
        given = used_directions(study, one, file, one.any_model)[0] if file is not None else []
        cells = steering_cells(study, one, given) if given else [BASELINE]
        with suppress(DryRun):
            run, summary = conduct("score_models", study, one, prompt_rows(study), cells, given)
            print_groups(summary[summary["direction"] == "baseline"], f"{name}, unsteered")
            print_dial(summary)
            print_controls(summary)
            print(f"run: {run.folder}")
            print(f"plot it: python scripts/plot_score_histograms.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
