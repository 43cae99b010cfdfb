"""At which layer, and how strongly, does a contrast vector (CAA) turn refusal?

The vector of a layer is the mean difference of activations at the last token of matched texts, one
that the model is to refuse and one that it is not: two requests that differ in a phrase, or two
replies to one request (`--pairs FILE`, CAA's own format among them). It is added at several
strengths to the last prompt token and every new one, while the model replies to other prompts. Half
of those choose layer and strength; the figures reported are those of the other half.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import ContrastFlags


def main(flags: ContrastFlags) -> None:
    from functools import partial

    from pandas import DataFrame

    from refusal_dial.cli.recipes import print_published
    from refusal_dial.data.prompts import REPORT
    from refusal_dial.report.replies import print_judge, print_layers, print_norms
    from refusal_dial.report.steering import print_slopes
    from refusal_dial.run.folder import read_verdict
    from refusal_dial.studies.base import load_study
    from refusal_dial.studies.replies import (
        best_cell,
        conduct_replies,
        contrast_activations,
        contrast_pairs,
        contrast_slopes,
        contrast_vectors,
        halves,
        inverted_layers,
        layer_table,
        load_conversation,
        reply_cells,
    )

    study = load_study(flags, flags.layer or None, flags.site, flags.pos)
    pairs, rest = contrast_pairs(study, flags)
    sides = contrast_activations(study, flags, pairs)
    vectors = contrast_vectors(study, flags, pairs, sides)
    prompts, chosen = halves(rest, flags.n, flags.seed)
    talk = load_conversation(study, flags, prompts)
    cells = reply_cells(study, flags, vectors)
    slopes = partial(contrast_slopes, study, flags, sides, vectors, prompts)
    rows = talk.rows(chosen)
    run, summary = conduct_replies("caa_refusal", talk, flags, cells, vectors, rows, slopes)
    print_slopes(read_verdict(run.folder), summary)
    print_norms({one.provenance.layer: one.norm for one in vectors})
    half = layer_table(summary, REPORT)
    print_layers(half, best_cell(summary), inverted_layers(summary), flags.unit)
    print_judge(read_verdict(run.folder))
    norms = DataFrame([{"layer": one.provenance.layer, "norm": one.norm} for one in vectors])
    print_published(flags.config, flags.model, {"summary": summary, "layers": half, "norms": norms})
    print(f"run: {run.folder}")
    print(f"plot it: python scripts/plot_layer_strength.py {run.folder}")
    print(f"report: python scripts/report.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
