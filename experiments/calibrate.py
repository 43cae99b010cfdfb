"""Do the p-values and intervals of this toolkit keep what they promise, where the answer is known?

`null`: the steering pipeline on the model, given scores that mean nothing, so that a p-value under
0.05 is a false claim. `gaussian`: the same without a model, many times. `intervals`: how often
nominal 95% intervals hold the truth. `contradiction`: two runs of the same openings side by side,
and two published write-ups that cannot both be right.

docs/validity.md has what this came to.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import CalibrationFlags


def main(flags: CalibrationFlags) -> None:
    from refusal_dial.report.calibration import print_calibration
    from refusal_dial.run.folder import read_verdict
    from refusal_dial.studies.calibration import conduct_calibration

    for part, (run, summary) in conduct_calibration(flags).items():
        print_calibration(part, summary, read_verdict(run.folder))
        print(f"run: {run.folder}")
        print(f"report: python scripts/report.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
