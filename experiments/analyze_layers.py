"""At which layer does the direction lower toxicity most, and does that hold on other openings?

Steers every layer in turn at the same alphas. The best layer is chosen on one half of the openings
and reported on the other, with its paired interval and a p-value corrected over all layers.
`--load-existing RUN` reads a finished run of this script or of toxicity_steering, without a model.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import LayerFlags


def main(flags: LayerFlags) -> None:
    from refusal_dial.data.openings import CHALLENGING
    from refusal_dial.report.continuation import print_layer_effects
    from refusal_dial.run.folder import find_run, read_config, read_table
    from refusal_dial.run.schema import CONTINUATION_COLUMNS
    from refusal_dial.studies.continuation import best_layer, by_group, by_layer

    if flags.load_existing is not None:
        folder = find_run(flags.load_existing)
        summary = read_table(folder, "summary", *CONTINUATION_COLUMNS)
    else:
        from refusal_dial.studies.continuation import conduct_continuations

        run, summary = conduct_continuations("analyze_layers", flags)
        folder = run.folder
    n_layers = read_config(folder, "model.n_layers")["settings"]["model"]["n_layers"]
    layers = by_layer(summary, CHALLENGING, n_layers)
    unit = read_config(folder, "alpha_unit")["settings"]["alpha_unit"]
    print_layer_effects(layers, by_group(layers), best_layer(layers), unit)
    print(f"run: {folder}")
    print(f"plot it: python scripts/plot_toxicity.py {folder}")


if __name__ == "__main__":
    cli.run(main)
