"""Draw what steering did to what is said, from a run folder; no model is loaded.

Writes alpha_sweep.html, heatmap_subset.html, heatmap_layer.html, distributions.html,
statistics.csv and, for several layers, layers.html into the run folder or --out.
"""

from __future__ import annotations

from pathlib import Path

from refusal_dial import cli
from refusal_dial.flags import PlotFlags


def main(flags: PlotFlags) -> None:
    from refusal_dial.continuation import plots
    from refusal_dial.continuation.layers import by_layer
    from refusal_dial.figure_files import write_figures
    from refusal_dial.files import write_whole
    from refusal_dial.openings import CHALLENGING
    from refusal_dial.run import find_run, read_config, read_table
    from refusal_dial.theme import title_of

    folder = find_run(flags.run)
    summary, scores = read_table(folder, "summary", "strength"), read_table(folder, "scores")
    config = read_config(folder)
    title = title_of(config, "Score of what is said")
    figures = {
        "alpha_sweep": plots.alpha_sweep(summary, title),
        "heatmap_subset": plots.heatmap(summary, title, "subset"),
        "heatmap_layer": plots.heatmap(summary, title, "layer"),
        "distributions": plots.distributions(scores, title),
    }
    if summary["layer"].nunique() > 1 and summary["strength"].max() > 0:
        layers = by_layer(summary, CHALLENGING, config["settings"]["model"]["n_layers"])
        figures["layers"] = plots.six_panels(layers, summary, title)
    table = plots.statistics(scores)
    out = Path(flags.out) if flags.out else folder
    write_whole(out / "statistics.csv", table.to_csv(index=False, lineterminator="\n"))
    print(table.round(3).to_string(index=False))
    for path in write_figures(figures, folder, flags.format, flags.out):
        print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
