"""Does it matter at which token of the prompt a direction is added?

The same direction is added at each of the template's tokens and at the last of the prompt's own,
one position at a time, and compared with the last position, prompt by prompt: refusal of HARMFUL,
over-refusal of EDGE and BENIGN, and how far replies to BENIGN prompts move (KL a token). Beside it
stand the direction that each position teaches itself, and random ones of the same length.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import PositionFlags


def main(flags: PositionFlags) -> None:
    from refusal_dial.report.positions import print_positions
    from refusal_dial.studies.base import load_study
    from refusal_dial.studies.positions import conduct_positions

    study = load_study(flags, (flags.layer,), flags.site)
    run, summary = conduct_positions("steer_positions", study, flags)
    print_positions(summary)
    print(f"run: {run.folder}")
    print(f"plot it: python scripts/plot_positions.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
