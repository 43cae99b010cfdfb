"""Draw what steering did to what is said, from a run folder; no model is loaded.

Writes alpha_sweep.html, heatmap_subset.html, heatmap_layer.html, distributions.html,
statistics.csv and, for several layers, layers.html into the run folder or --out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refusal_dial import cli
from refusal_dial.cli import argument, flag


@dataclass(frozen=True)
class Flags:
    """Which run, and where the figures go."""

    run: str = argument("a run folder of toxicity_steering.py or analyze_layers.py")
    out: str | None = flag(None, "the folder to write to")


def main(flags: Flags) -> None:
    from refusal_dial.continuation import plots
    from refusal_dial.continuation.layers import by_layer
    from refusal_dial.files import write_whole
    from refusal_dial.openings import CHALLENGING
    from refusal_dial.plots import title_of
    from refusal_dial.run import find_run, read_config, read_table

    folder = find_run(flags.run)
    summary, scores = read_table(folder, "summary"), read_table(folder, "scores")
    title = title_of(read_config(folder), "Score of what is said")
    figures = {
        "alpha_sweep": plots.alpha_sweep(summary, title),
        "heatmap_subset": plots.heatmap(summary, title, "subset"),
        "heatmap_layer": plots.heatmap(summary, title, "layer"),
        "distributions": plots.distributions(scores, title),
    }
    layers = by_layer(summary, CHALLENGING)
    if layers["layer"].nunique() > 1:
        figures["layers"] = plots.six_panels(layers, summary, title)
    out = Path(flags.out) if flags.out else folder
    for name, figure in figures.items():
        html = figure.to_html(include_plotlyjs=True, div_id=name)
        print(f"figure: {write_whole(out / f'{name}.html', html).resolve()}")
    table = plots.statistics(scores)
    write_whole(out / "statistics.csv", table.to_csv(index=False, lineterminator="\n"))
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    cli.run(main)
