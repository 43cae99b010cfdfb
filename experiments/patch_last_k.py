"""Is what makes the model refuse held at the last position alone, or spread over the last few?

Each of the last K positions of every layer is patched alone, and then all K together, between
matched pairs that differ in one phrase: `--site resid_pre` is what the layer reads, `attn_out` and
`mlp_out` are what attention and the MLP add. Where all K together move much more than the best of
them alone, the difference is spread. Beside every effect stand the same patch from another prompt
of the same class, and a random vector as far away.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from refusal_dial import cli
from refusal_dial.cli.command_line import at_least, choice, flag, parse_whole
from refusal_dial.cli.flags import PatchingFlags

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


@dataclass(frozen=True)
class Flags(PatchingFlags):
    """How many positions, and where in the block."""

    k: int = flag(5, "how many of the last positions", at_least(1, parse_whole))
    site: str = flag("resid_pre", f"one of {', '.join(SITES)}", choice(SITES, "site"))


def main(flags: Flags) -> None:
    from refusal_dial.report.patching import print_patching
    from refusal_dial.studies.base import load_study
    from refusal_dial.studies.patching import conduct_patching, last_k

    study = load_study(flags, flags.layer, flags.site)
    layout = partial(last_k, k=flags.k, site=flags.site, layers=flags.layer)
    run, summary = conduct_patching("patch_last_k", study, flags, layout)
    print_patching(summary, "layer", "role")
    print(f"run: {run.folder}")
    print(f"plot it: python scripts/plot_patching.py {run.folder}")
    print(f"report: python scripts/report.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
