"""At which layers, and by which part of the block, does what makes the model refuse arrive at the
last position?

Every site of every layer (the residual stream before and after attention, what attention adds, what
the MLP adds) is patched at the last prompt token, between matched pairs that differ in one phrase.
`--site head` patches each attention head alone (z, before W_O), `--site mlp_post --layer L` each
neuron of a layer. Beside every effect stand the same patch from another prompt of the same class,
and a random vector as far away. Sites that an architecture lacks are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from refusal_dial import cli
from refusal_dial.cli.command_line import choice, flag
from refusal_dial.cli.flags import PatchingFlags

SITES = ("all", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head", "mlp_post")


@dataclass(frozen=True)
class Flags(PatchingFlags):
    """Which part of the block."""

    site: str = flag("all", f"one of {', '.join(SITES)}", choice(SITES, "site"))


def main(flags: Flags) -> None:
    from refusal_dial.common import DialError
    from refusal_dial.report.patching import print_carriers, print_patching
    from refusal_dial.studies.base import load_study
    from refusal_dial.studies.patching import conduct_patching, lay_out

    if flags.site == "mlp_post" and not flags.layer:
        raise DialError("--site mlp_post patches a layer's neurons one by one: give --layer")
    named = {"all": "resid_pre", "head": "z"}.get(flags.site, flags.site)
    study = load_study(flags, flags.layer, named)
    sites = None if flags.site == "all" else (named,)
    layout = partial(lay_out, sites=sites, layers=flags.layer)
    run, summary = conduct_patching("patch_sites", study, flags, layout)
    rows = "" if flags.site == "mlp_post" else "layer"
    print_patching(summary, rows, "head" if flags.site == "head" else "site", top=12)
    print_carriers(summary, "attn_out")
    print(f"run: {run.folder}")
    print(f"plot it: python scripts/plot_patching.py {run.folder}")
    print(f"report: python scripts/report.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
