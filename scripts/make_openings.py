"""Write data/openings.jsonl: the hostile and friendly openings of the toxicity experiments.

Scenes of both sides of the grammar's split, each once, marked `train` or `holdout`. The same file
is written whenever and wherever this runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refusal_dial import cli
from refusal_dial.cli.command_line import flag


@dataclass(frozen=True)
class Flags:
    """Where the openings go."""

    out: str = flag(str(Path(__file__).resolve().parents[1] / "data/openings.jsonl"), "the file")


def main(flags: Flags) -> None:
    from embedded_model.tone import make_openings, to_jsonl

    from refusal_dial.common import named, write_whole

    rows = make_openings()
    write_whole(named(flags.out, ".jsonl"), to_jsonl(rows))
    hostile = sum(row["challenging"] for row in rows)
    print(f"{flags.out}: {hostile} hostile and {len(rows) - hostile} friendly openings")


if __name__ == "__main__":
    cli.run(main)
