"""What does the refusal direction do to every prompt when it is turned up and down?

The direction is the mean activation of the top-scored EDGE prompts minus that of the bottom-scored
ones, learned from all of EDGE: what it does to EDGE here is exploratory (the split column says
train), what it does to HARMFUL and BENIGN is not. `steering_holdout_control.py` holds EDGE out.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import SteeringFlags


def main(flags: SteeringFlags) -> None:
    from refusal_dial.report.steering import print_controls, print_dial, print_slopes, print_verdict
    from refusal_dial.run.folder import read_verdict
    from refusal_dial.studies.base import load_study, prompt_rows
    from refusal_dial.studies.steering import conduct, learn, steering_cells, training

    study = load_study(flags, flags.layer or None, flags.site, flags.pos)
    edge = training(study, flags)
    learned = learn(study, flags, edge)
    cells = steering_cells(study, flags, learned, edge)
    rows = prompt_rows(study, edge)
    run, summary = conduct("steer_refusal_direction", study, flags, rows, cells, learned)
    print_slopes(read_verdict(run.folder), summary)
    print_dial(summary)
    print_controls(summary)
    print_verdict(summary)
    print(f"run: {run.folder}")
    print(f"plot it: python scripts/plot_holdout_random_controls.py {run.folder}")
    print(f"report: python scripts/report.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
