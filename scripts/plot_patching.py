"""Draw where patching moves the score, effect and controls side by side, from a run folder.

RUN is a run folder, or an experiment's folder, of which the newest finished run is taken. Writes
patching.html into the run folder, or the file that --out names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refusal_dial import cli
from refusal_dial.cli import argument, flag


@dataclass(frozen=True)
class Flags:
    """Which run, and what of it."""

    run: str = argument("a run folder, or an experiment's folder")
    axis: str | None = flag(None, "role, head, neuron or site; default what the run varied")
    out: str | None = flag(None, "the .html file to write")


def main(flags: Flags) -> None:
    from refusal_dial.files import write_whole
    from refusal_dial.patching.plots import heatmaps, patching_title
    from refusal_dial.run import find_run, read_config, read_table
    from refusal_dial.types import DialError

    folder = find_run(flags.run)
    config = read_config(folder)
    if "pairs" not in config["settings"]:
        raise DialError(f"{folder} is a run of {config['experiment']}, which patched no pairs")
    title = patching_title(config, "Where patching moves refusal")
    figure = heatmaps(read_table(folder, "summary"), title, flags.axis)
    path = Path(flags.out) if flags.out else folder / "patching.html"
    write_whole(path, figure.to_html(include_plotlyjs=True, div_id="figure"))
    print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
