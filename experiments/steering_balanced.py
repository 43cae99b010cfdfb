"""Does the direction still work when every EDGE category stands equally in both of its groups?

Top-scored and bottom-scored prompts are taken within each category, so the direction cannot merely
say which category a prompt belongs to. Beside the run's usual files it writes examples.jsonl: every
prompt with its text, which group it was learned in, and its exact score at every alpha.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import HoldoutFlags


def main(flags: HoldoutFlags) -> None:
    from refusal_dial.common import write_whole
    from refusal_dial.report.reading import examples
    from refusal_dial.report.steering import (
        print_controls,
        print_dial,
        print_slopes,
        print_verdict,
    )
    from refusal_dial.run.folder import read_table, read_verdict
    from refusal_dial.studies.base import load_study, prompt_rows
    from refusal_dial.studies.steering import conduct, learn, steering_cells, training

    study = load_study(flags, flags.layer or None, flags.site, flags.pos)
    train = training(study, flags, flags.holdout)
    learned = learn(study, flags, train, balanced=True)
    cells = steering_cells(study, flags, learned, train, balanced=True)
    rows = prompt_rows(study, train)
    run, summary = conduct("steering_balanced", study, flags, rows, cells, learned)
    dump = run.folder / "examples.jsonl"
    if not dump.exists():
        write_whole(dump, examples(read_table(run.folder, "scores"), study.prompts))
    held_out = summary[summary["split"] == "holdout"]
    print_slopes(read_verdict(run.folder), summary)
    print_dial(held_out)
    print_controls(held_out)
    print_verdict(held_out)
    print(f"run: {run.folder}")
    print(f"examples: {dump}")
    print(f"plot it: python scripts/plot_holdout_random_controls.py {run.folder}")
    print(f"report: python scripts/report.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
