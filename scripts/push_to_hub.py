"""Upload a direction with its card to the Hugging Face hub, as one commit.

The card says what the direction is, where it was read and, for a run folder, what the run's test
came to. Log in first (hf auth login). --dry-run prints the card and uploads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from refusal_dial import cli
from refusal_dial.cli.command_line import argument, at_least, flag, parse_whole


@dataclass(frozen=True)
class Flags:
    """Which direction, and where to."""

    direction: str = argument("a direction file of any format, or a run folder")
    repo: str = argument("owner/name of a model repository; made where there is none")
    layer: int | None = flag(
        None, "its layer; default: what the file records", at_least(0, parse_whole)
    )
    public: bool = flag(False, "make a new repository public; default: private")
    dry_run: bool = flag(False, "print the card, and upload nothing")


def main(flags: Flags) -> None:
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from refusal_dial.common import located
    from refusal_dial.directions import save
    from refusal_dial.directions.files import direction_at
    from refusal_dial.hub import push_to_hub
    from refusal_dial.report.card import DIRECTION_FILE, direction_card
    from refusal_dial.report.steering import slope_sentences
    from refusal_dial.run.folder import find_run, read_verdict

    direction = direction_at(flags.direction, flags.layer)
    verdict: list[str] = []
    if located(flags.direction).is_dir():
        lines = slope_sentences(read_verdict(find_run(flags.direction)))
        verdict = [f"{about}: {effect}" for about, effect in lines]
    card = direction_card(direction, flags.repo, verdict)
    if flags.dry_run:
        print(card)
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / DIRECTION_FILE
        save(direction, path)
        files = {DIRECTION_FILE: path.read_bytes(), "README.md": card.encode()}
    print(f"uploaded: {push_to_hub(flags.repo, files, private=not flags.public)}")


if __name__ == "__main__":
    cli.run(main)
