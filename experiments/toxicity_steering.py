"""Does a direction away from hostile openings lower the toxicity of what the model says, more than
random directions do, and without harm to benign openings?

The direction is the mean activation of benign openings minus that of challenging ones, pooled over
their last tokens, from openings that are not measured. Completions are sampled with the same random
numbers under every alpha, so differences are paired and alpha 0 is the baseline. Beside the score:
random directions and directions from shuffled labels, as long at the same place, and how unlikely
the unsteered model finds the text, since gibberish is not safe.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import ContinuationFlags


def main(flags: ContinuationFlags) -> None:
    from refusal_dial.cli.recipes import print_published
    from refusal_dial.data.openings import CHALLENGING
    from refusal_dial.report.continuation import print_continuations
    from refusal_dial.run.folder import read_config, read_verdict
    from refusal_dial.studies.continuation import conduct_continuations, layer_comparison

    run, summary = conduct_continuations("toxicity_steering", flags)
    print_continuations(summary, read_verdict(run.folder)["prompt_score"], flags.unit)
    n_layers = read_config(run.folder)["settings"]["model"]["n_layers"]
    tables = {"summary": summary, **layer_comparison(summary, CHALLENGING, n_layers)}
    print_published(flags.config, flags.model, tables)
    print(f"run: {run.folder}")
    print(f"plot it: python scripts/plot_toxicity.py {run.folder}")
    print(f"report: python scripts/report.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
