"""Draw subspaces beside one direction at equal damage, from a run folder of refusal_subspace.py.

No model is loaded. Writes subspaces.html into the run folder, or the file that --out names.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import PlotFlags


def main(flags: PlotFlags) -> None:
    from refusal_dial.report.subspace import subspace_figure
    from refusal_dial.report.theme import title_of, write_figures
    from refusal_dial.run.folder import find_run, read_config, read_table
    from refusal_dial.run.schema import SUBSPACES

    folder = find_run(flags.run)
    config, summary = read_config(folder, "model.name"), read_table(folder, "summary", *SUBSPACES)
    title = title_of(config, "When more than one dimension pays", n=str(int(summary["n"].max())))
    figures = {"subspaces": subspace_figure(summary, title)}
    for path in write_figures(figures, folder, flags.format, flags.out):
        print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
