"""How much does adding a random direction move refusal?

Twenty seeds, isotropic unit vectors, at the same layer, site, position and alphas as the direction
learned from all of EDGE: the mean over seeds and its 95% range, for every group of prompts. What
the learned direction does inside that band is no evidence for it.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import SteeringFlags


def main(flags: SteeringFlags) -> None:
    from refusal_dial.common import DialError
    from refusal_dial.report.steering import print_band, print_slopes
    from refusal_dial.run.folder import read_verdict
    from refusal_dial.studies.base import load_study, prompt_rows
    from refusal_dial.studies.steering import conduct, learn, steering_cells, training

    if flags.n_random == 0:
        raise DialError("--n-random 0: a random baseline needs at least one random direction")
    study = load_study(flags, flags.layer or None, flags.site, flags.pos)
    edge = training(study, flags)
    learned = learn(study, flags, edge)
    cells = steering_cells(study, flags, learned, edge)
    rows = prompt_rows(study, edge)
    run, summary = conduct("steering_random_baseline", study, flags, rows, cells, learned)
    print_slopes(read_verdict(run.folder), summary)
    print_band(summary)
    print(f"run: {run.folder}")
    print(f"plot it: python scripts/plot_holdout_random_controls.py {run.folder}")
    print(f"report: python scripts/report.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
