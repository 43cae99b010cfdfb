"""Draw the comparison of a system message with steering, from a run folder; no model is loaded.

Writes conditions.html (refusal by subset and coherence under every condition, with intervals) into
the run folder, or the file that --out names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refusal_dial import cli
from refusal_dial.cli import argument, flag


@dataclass(frozen=True)
class Flags:
    """Which run, and where the figure goes."""

    run: str = argument("a run folder of compare_prompting_steering.py")
    out: str | None = flag(None, "the .html file to write")


def main(flags: Flags) -> None:
    from refusal_dial.files import write_whole
    from refusal_dial.plots import title_of
    from refusal_dial.replies.conditions import named
    from refusal_dial.replies.plots import condition_bars
    from refusal_dial.run import find_run, read_config, read_table

    folder = find_run(flags.run)
    title = title_of(read_config(folder), "A system message, the dial, or both")
    figure = condition_bars(named(read_table(folder, "summary")), title)
    path = Path(flags.out) if flags.out else folder / "conditions.html"
    write_whole(path, figure.to_html(include_plotlyjs=True, div_id="conditions"))
    print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
