"""Which heads and neurons write the refusal direction, and which of them matter?

What stands along the direction at the last prompt token (or at --pos) is taken apart into an exact
sum over the embedding, every head, every neuron and the biases below. The largest writers are then
replaced by those of the pair's other prompt, by the mean and by nothing, and the change of the
projection and of the score is measured beside controls: parts that write much and matter little
show there, and so do heads that write little and steer others (gates).
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import DecompositionFlags


def main(flags: DecompositionFlags) -> None:
    from refusal_dial.directions.files import direction_at
    from refusal_dial.report.decomposition import print_decomposition
    from refusal_dial.run.folder import read_verdict
    from refusal_dial.studies.base import load_study
    from refusal_dial.studies.decomposition import conduct_decomposition
    from refusal_dial.studies.steering import layers_to_use

    asked = () if flags.layer is None else (flags.layer,)
    (layer,) = layers_to_use(flags.direction, asked, flags.site)
    where = flags.direction
    given = None if where is None else direction_at(where, layer, flags.site)
    pos = -1 if given is None else given.provenance.pos
    study = load_study(flags, (layer,), flags.site, pos if flags.pos is None else flags.pos)
    run, summary = conduct_decomposition(study, flags, given)
    print_decomposition(summary, read_verdict(run.folder))
    print(f"run: {run.folder}")
    print(f"plot it: python scripts/plot_decomposition.py {run.folder}")
    print(f"report: python scripts/report.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
