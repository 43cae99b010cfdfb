"""Draw refusal along alpha, learned direction against random bands, from a run folder.

RUN is a run folder, or an experiment's folder, of which the newest finished run is taken. Writes
holdout_random_controls.html into the run folder, or the file that --out names.
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
    value: str = flag("refusal_rate", "refusal_rate or score_mean")
    out: str | None = flag(None, "the .html file to write")


def main(flags: Flags) -> None:
    from refusal_dial.files import write_whole
    from refusal_dial.plots import LABELS, alpha_curves, title_of
    from refusal_dial.run import find_run, read_config, read_table
    from refusal_dial.types import one_of

    if flags.value not in LABELS:
        raise one_of(flags.value, LABELS, "value")
    folder = find_run(flags.run)
    title = title_of(read_config(folder), "Refusal along the dial, learned against random")
    figure = alpha_curves(read_table(folder, "summary"), title, flags.value)
    path = Path(flags.out) if flags.out else folder / "holdout_random_controls.html"
    write_whole(path, figure.to_html(include_plotlyjs=True, div_id="figure"))
    print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
