"""Can toxicity be turned down while refusal stays where it belongs?

Two directions are added at once, each with its own dial: away from hostile openings, and refusal.
Every pair of steps is measured on openings (how toxic are the completions) and on prompts (are
HARMFUL ones refused, and EDGE ones not). Pairs that no other pair beats are the front. A random
direction in place of toxicity's says what any push of the same length does.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import ObjectiveFlags


def main(flags: ObjectiveFlags) -> None:
    from refusal_dial.report.objectives import print_objectives
    from refusal_dial.run.folder import read_verdict
    from refusal_dial.studies.objectives import conduct_objectives

    run, summary = conduct_objectives("multi_objective", flags)
    print_objectives(summary, read_verdict(run.folder)["overlap"], flags.unit)
    print(f"run: {run.folder}")
    print(f"plot it: python scripts/plot_front.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
