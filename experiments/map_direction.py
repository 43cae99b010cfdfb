"""Where does a direction turn refusal: at which layers and positions, and how far is that a line?

At every layer and template position a direction is learned twice: from the EDGE prompts that score
highest against those that score lowest, and from HARMFUL against BENIGN prompts. One backward pass
over EDGE prompts that were held out gives the slope of every one of them, and 10,000 permutations
of the labels its p, corrected for all places of the map. Then 200 directions at each of five layers
are turned for real, by 0.1, 0.3 and 0.6 residual norms: the run says how well the slope predicted
that.

Towards the last layers the first map becomes trivial: there the label is a function of that very
activation. The second does not.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import MapFlags


def main(flags: MapFlags) -> None:
    from refusal_dial.report.direction_map import print_map
    from refusal_dial.run.folder import read_verdict
    from refusal_dial.studies.base import load_study
    from refusal_dial.studies.direction_map import conduct_map

    study = load_study(flags)
    run, summary = conduct_map(study, flags)
    print_map(summary, read_verdict(run.folder))
    print(f"run: {run.folder}")
    print(f"plot it: python scripts/plot_map.py {run.folder}")
    print(f"report: python scripts/report.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
