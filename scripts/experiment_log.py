"""Write the experiment log of a run on replies: one page of Markdown; no model is loaded.

Writes experiment_log.md into the run folder, or the file that --out names.
"""

from __future__ import annotations

from dataclasses import dataclass

from refusal_dial import cli
from refusal_dial.cli.command_line import argument, flag


@dataclass(frozen=True)
class Flags:
    """Which run, and where the page goes."""

    run: str = argument("a run folder of caa_refusal, compare_prompting_steering or eval_direction")
    out: str | None = flag(None, "the .md file to write")


def main(flags: Flags) -> None:
    from refusal_dial import directions
    from refusal_dial.common import DialError, named, write_whole
    from refusal_dial.report.replies import LOG_COLUMNS, LOG_SETTINGS, LOG_VERDICT, log_page
    from refusal_dial.run.folder import find_run, read_config, read_table, read_verdict

    folder = find_run(flags.run)
    config = read_config(folder)
    if "judge" not in read_verdict(folder):
        raise DialError(f"{folder} is no run on replies: its experiment is {config['experiment']}")
    config, verdict = read_config(folder, *LOG_SETTINGS), read_verdict(folder, *LOG_VERDICT)
    kept = [directions.load(path) for path in sorted(folder.glob("direction*.safetensors"))]
    norms = {one.provenance.layer: one.norm for one in kept}
    text = log_page(
        config, verdict, read_table(folder, "summary", *LOG_COLUMNS), dict(sorted(norms.items()))
    )
    path = named(flags.out, ".md") if flags.out else folder / "experiment_log.md"
    print(f"log: {write_whole(path, text).resolve()}")


if __name__ == "__main__":
    cli.run(main)
