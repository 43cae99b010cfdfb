"""How strongly does each model refuse each prompt, before anything is done to it?

Prints the mean refusal score and the refusal rate of every subset with their intervals, and writes
the per-prompt scores. `--model` takes several models, separated by commas; each gets its own run.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from refusal_dial import cli
from refusal_dial.flags import StudyFlags


def main(flags: StudyFlags) -> None:
    from refusal_dial.job import conduct
    from refusal_dial.steering import BASELINE
    from refusal_dial.study import open_study, prompt_rows
    from refusal_dial.tables import print_groups

    names = [name.strip() for name in flags.model.split(",") if name.strip()]
    for name in names:
        one = replace(flags, model=name)
        if flags.out is not None and len(names) > 1:
            one = replace(one, out=str(Path(flags.out) / name.strip("/.").replace("/", "__")))
        study = open_study(one)
        run, summary = conduct("score_models", study, one, prompt_rows(study), [BASELINE])
        print_groups(summary, f"{name}, unsteered")
        print(f"run: {run.folder}")


if __name__ == "__main__":
    cli.run(main)
