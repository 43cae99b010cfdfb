"""Draw what steering did to completions, from a run folder; no model is loaded.

Writes alpha_sweep.html, heatmap_subset.html, heatmap_layer.html, distributions.html,
statistics.csv and, for several layers, layers.html into the run folder or --out.
"""

from __future__ import annotations

from pathlib import Path

from refusal_dial import cli
from refusal_dial.cli.flags import PlotFlags


def main(flags: PlotFlags) -> None:
    from pandas import DataFrame

    from refusal_dial.common import write_whole
    from refusal_dial.data.openings import CHALLENGING
    from refusal_dial.report import continuation as plots
    from refusal_dial.report.theme import title_of, unit_label, write_figures
    from refusal_dial.run.folder import find_run, read_config, read_table, to_show
    from refusal_dial.run.schema import COMPLETION_ROWS, CONTINUATION_COLUMNS
    from refusal_dial.studies.continuation import by_layer

    folder = find_run(flags.run)
    summary = read_table(folder, "summary", *CONTINUATION_COLUMNS)
    scores = read_table(folder, "scores", *COMPLETION_ROWS)
    config = read_config(folder, "model.name", "model.n_layers")
    alpha = unit_label("alpha", config["settings"])
    whole, hostile = plots.all_prompts(summary), summary[summary["subset"] == CHALLENGING]

    def title(question: str, rows: DataFrame) -> str:
        return title_of(config, question, rows)

    sweep, spread = title("Score of completions along the dial", whole), "Every completion's score"
    figures = {
        "alpha_sweep": plots.alpha_sweep(summary, sweep, alpha),
        "heatmap_subset": plots.subset_heatmap(
            summary, title("Mean score by subset", whole), alpha
        ),
        "distributions": plots.distributions(scores, title(spread, scores), alpha),
    }
    if len(hostile):
        asked = title("Mean score by layer", hostile)
        figures["heatmap_layer"] = plots.layer_heatmap(summary, asked, alpha, CHALLENGING)
    if summary["layer"].nunique() > 1 and summary["strength"].max() > 0:
        asked = title("Which layers lower the score", whole)
        layers = by_layer(summary, CHALLENGING, config["settings"]["model"]["n_layers"])
        figures["layers"] = plots.six_panels(layers, summary, asked)
    table = plots.statistics(scores)
    out = Path(flags.out) if flags.out else folder
    write_whole(out / "statistics.csv", to_show(table).to_csv(index=False, lineterminator="\n"))
    print(table.round(3).to_string(index=False))
    for path in write_figures(figures, folder, flags.format, flags.out):
        print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
