"""Are there several kinds of refusal inside, or one with many occasions?

Learns a direction for every category of prompts that the model refuses, for harmfulness read
before the template, for the refusal of harmless prompts and for politeness. Compares them (cosines
of halves that share no prompt, angles of what they span), removes each and measures what is left of
every other, and asks whether all trade HARMFUL refusal against over-refusal alike. Permuted labels
and random directions stand beside.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import KindFlags


def main(flags: KindFlags) -> None:
    from refusal_dial.report.kinds import print_kinds
    from refusal_dial.studies.base import load_study
    from refusal_dial.studies.kinds import conduct_kinds

    study = load_study(flags, (flags.layer,))
    run, summary = conduct_kinds("refusal_kinds", study, flags)
    print_kinds(summary)
    print(f"run: {run.folder}")
    print(f"report: python scripts/report.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
