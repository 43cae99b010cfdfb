"""Draw the directions of a run: their norms by layer, and the cosines between layers.

RUN is a run folder that holds direction*.safetensors, one for each layer (`--layer all` leaves
them). Writes direction_norms.html and, for several layers, direction_cosines.html.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import PlotFlags


def main(flags: PlotFlags) -> None:
    import pandas as pd

    from refusal_dial.directions.learning import load
    from refusal_dial.report.steering import layer_cosines, norms_by_layer
    from refusal_dial.report.theme import title_of, write_figures
    from refusal_dial.run.folder import find_run, read_config

    folder = find_run(flags.run)
    config = read_config(folder, "model.name")
    found = [load(path) for path in sorted(folder.glob("direction*.safetensors"))]
    by_layer = {one.provenance.layer: one for one in found}
    learned_from = pd.DataFrame({"prompt_id": [i for d in found for i in d.provenance.prompt_ids]})
    title = title_of(config, "How long the direction is at each layer", learned_from)
    figures = {"direction_norms": norms_by_layer({n: d.norm for n, d in by_layer.items()}, title)}
    if len(by_layer) > 1:
        units = {n: d.unit.double().numpy() for n, d in by_layer.items()}
        title = title_of(config, "How alike the layers' directions are", learned_from)
        figures["direction_cosines"] = layer_cosines(units, title)
    for path in write_figures(figures, folder, flags.format, flags.out):
        print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
