"""At which tokens is what makes the model refuse held, layer by layer?

The residual stream entering every layer is patched at one position at a time, between matched pairs
that differ in one phrase. Positions go by their role, so that pairs of different lengths average:
the template's tokens, the shared words before the phrase, the phrase, the shared words after it.
Before the phrase the two runs are the same and the effect is exactly 0. Beside every effect stand
the same patch from another prompt of the same class, and a random vector as far away.
"""

from __future__ import annotations

from functools import partial

from refusal_dial import cli
from refusal_dial.cli.flags import PatchingFlags


def main(flags: PatchingFlags) -> None:
    from refusal_dial.report.patching import print_patching
    from refusal_dial.studies.base import load_study
    from refusal_dial.studies.patching import by_role, conduct_patching

    study = load_study(flags, flags.layer)
    layout = partial(by_role, layers=flags.layer)
    run, summary = conduct_patching("patch_resid_pre", study, flags, layout)
    print_patching(summary, "role", "layer")
    print(f"run: {run.folder}")
    print(f"plot it: python scripts/plot_patching.py {run.folder}")
    print(f"report: python scripts/report.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
