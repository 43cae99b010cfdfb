"""At which layer, and how strongly, does a contrast vector (CAA) turn refusal?

The vector of a layer is the mean difference of activations at the last token of matched texts, one
that the model is to refuse and one that it is not: two requests that differ in a phrase, or two
replies to one request (`--pairs FILE`, CAA's own format among them). It is added at several
strengths to the last prompt token and every new one, while the model replies to other prompts. Half
of those choose layer and strength; the figures reported are those of the other half.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.replies.flags import ContrastFlags


def main(flags: ContrastFlags) -> None:
    from pandas import DataFrame

    from refusal_dial.recipes import print_published
    from refusal_dial.replies.cells import reply_cells
    from refusal_dial.replies.contrasting import contrast_pairs, contrast_vectors, halves
    from refusal_dial.replies.job import conduct_replies
    from refusal_dial.replies.layers import REPORT, best, inverted, table
    from refusal_dial.replies.opened import open_conversation
    from refusal_dial.replies.tables import print_judge, print_layers, print_norms
    from refusal_dial.run import read_verdict
    from refusal_dial.study import open_study

    study = open_study(flags, flags.layer or None, flags.site, flags.pos)
    pairs, rest = contrast_pairs(study, flags)
    vectors = contrast_vectors(study, flags, pairs)
    prompts, chosen = halves(rest, flags.n, flags.seed)
    talk = open_conversation(study, flags, prompts)
    cells = reply_cells(study, flags, vectors)
    run, summary = conduct_replies("caa_refusal", talk, flags, cells, vectors, talk.rows(chosen))
    print_norms({one.provenance.layer: one.norm for one in vectors})
    half = table(summary, REPORT)
    print_layers(half, best(summary), inverted(summary))
    print_judge(read_verdict(run.folder))
    norms = DataFrame([{"layer": one.provenance.layer, "norm": one.norm} for one in vectors])
    print_published(flags.config, flags.model, {"summary": summary, "layers": half, "norms": norms})
    print(f"run: {run.folder}")
    print(f"plot it: python scripts/plot_layer_strength.py {run.folder}")
    print(f"report: python scripts/report.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
