"""When does removing more than one dimension of refusal pay?

Axes are found in several ways on half of the prompts: by the mean difference, removed and learned
again, and by gradient with the published losses of refusal cones. They are removed from every block
and measured on the other half, beside random axes as many, and beside one direction that is pushed
beyond 0 until it does the same damage to BENIGN prompts.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import SubspaceFlags


def main(flags: SubspaceFlags) -> None:
    from refusal_dial.report.subspace import print_subspaces
    from refusal_dial.studies.base import load_study
    from refusal_dial.studies.subspace import conduct_subspaces

    study = load_study(flags, (flags.layer,))
    run, summary = conduct_subspaces("refusal_subspace", study, flags)
    print_subspaces(summary)
    print(f"run: {run.folder}")
    print(f"plot it: python scripts/plot_subspaces.py {run.folder}")
    print(f"report: python scripts/report.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
