"""Does a direction learned on half of the EDGE prompts turn refusal on prompts it has not seen,
more than random directions do?

EDGE is split in two, category by category. On one half the direction is learned: the mean
activation of its top-scored prompts minus that of its bottom-scored ones. Then alpha times the unit
direction is added at the same place while the model reads the other half, HARMFUL and BENIGN, and
refusal is scored; the same with random directions of the same length. A control that moves refusal
as much means that the direction found nothing.

`--score replies` lets the model reply under every cell instead, and a judge says what it refuses.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import HoldoutFlags


def main(flags: HoldoutFlags) -> None:
    from refusal_dial.cli.recipes import print_published
    from refusal_dial.report.replies import print_judge, print_replies
    from refusal_dial.report.steering import (
        print_controls,
        print_dial,
        print_slopes,
        print_verdict,
    )
    from refusal_dial.run.folder import read_verdict
    from refusal_dial.studies.base import load_study, prompt_rows
    from refusal_dial.studies.replies import conduct_holdout_replies
    from refusal_dial.studies.steering import conduct, learn, steering_cells, training

    study = load_study(flags, flags.layer or None, flags.site, flags.pos)
    train = training(study, flags, flags.holdout)
    learned = learn(study, flags, train)
    cells = steering_cells(study, flags, learned, train)
    experiment = "steering_holdout_control"
    if flags.score == "replies":
        run, summary = conduct_holdout_replies(experiment, study, flags, cells, learned, train)
        print_slopes(read_verdict(run.folder), summary)
        print_replies(summary, flags.unit)
        print_judge(read_verdict(run.folder))
        plot = "plot_xstest.py"
    else:
        rows = prompt_rows(study, train)
        run, summary = conduct(experiment, study, flags, rows, cells, learned)
        held_out = summary[summary["split"] == "holdout"]
        print_slopes(read_verdict(run.folder), summary)
        print_dial(held_out)
        print_controls(held_out)
        print_verdict(held_out)
        print_published(flags.config, flags.model, {"summary": held_out})
        plot = "plot_holdout_random_controls.py"
    print(f"run: {run.folder}")
    print(f"plot it: python scripts/{plot} {run.folder}")
    print(f"report: python scripts/report.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
