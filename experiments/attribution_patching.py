"""How much of activation patching can one gradient predict, and where does it go wrong?

The first-order estimate of every patch at once, from a forward and a backward pass: every site of
every layer and every attention head, at the last position or (`--roles all`) at every role. Then
the same cells are patched exactly, with their controls: the run says how well the ranks agree and
where estimate and patch are furthest apart. `--refine N` patches only the N cells that the gradient
finds strongest, which is what the gradient is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from refusal_dial import cli
from refusal_dial.cli.command_line import at_least, choice, flag, parse_whole
from refusal_dial.cli.flags import PatchingFlags


@dataclass(frozen=True)
class Flags(PatchingFlags):
    """Which cells, and how many of them exactly."""

    roles: str = flag("last", "last (position) or all", choice(("last", "all"), "roles"))
    refine: int | None = flag(
        None,
        "patch exactly only this many of the strongest cells; default all",
        at_least(1, parse_whole),
    )


def main(flags: Flags) -> None:
    from refusal_dial.report.patching import print_attribution_agreement, print_patching
    from refusal_dial.studies.base import load_study
    from refusal_dial.studies.patching import LAST_ROLE, conduct_attribution, lay_out

    def layout(model: Any, pairs: Any) -> Sequence[Any]:
        roles = (LAST_ROLE,) if flags.roles == "last" else None
        blocks = lay_out(model, pairs, layers=flags.layer, roles=roles)
        return [*blocks, *lay_out(model, pairs, sites=("z",), layers=flags.layer, roles=roles)]

    study = load_study(flags, flags.layer, "z")
    experiment = "attribution_patching"
    run, summary = conduct_attribution(experiment, study, flags, layout, flags.refine)
    print_patching(summary, "", "", top=15)
    print_attribution_agreement(summary)
    print(f"run: {run.folder}")
    print(f"plot it: python scripts/plot_patching.py {run.folder}")
    print(f"report: python scripts/report.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
