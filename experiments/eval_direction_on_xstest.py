"""What does a direction do to an over-refusal test: XSTest, or any prompts with its columns?

The model replies to every HARMFUL and EDGE prompt under every step of the dial, a judge reads the
replies, and the refusal score is read off the logits beside it. Refusal of HARMFUL prompts is
wanted, of EDGE prompts it is over-refusal; the table by category says which kinds of prompt pay.
Prompts that the direction was learned from are kept apart, and random directions show what any push
of the same length does. `--prompts xstest` is the data set itself; the embedded model has its own.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import DirectionFlags


def main(flags: DirectionFlags) -> None:
    from functools import partial

    from refusal_dial.report.replies import print_categories, print_judge, print_replies
    from refusal_dial.report.steering import print_slopes
    from refusal_dial.run.folder import read_table, read_verdict
    from refusal_dial.studies.base import load_study
    from refusal_dial.studies.replies import (
        conduct_replies,
        load_conversation,
        reply_cells,
        summarise_replies,
    )
    from refusal_dial.studies.steering import layers_to_use, slope_tests, used_directions

    layers = layers_to_use(flags.direction, flags.layer, flags.site)
    study = load_study(flags, layers, flags.site, flags.pos)
    prompts = [p for p in study.prompts if p.subset in ("HARMFUL", "EDGE")]
    used, train = used_directions(study, flags, flags.direction, flags.any_model)
    talk = load_conversation(study, flags, prompts)
    cells = reply_cells(study, flags, used)
    rows = talk.rows({prompt.id: "train" for prompt in train})
    seen = {prompt.id for prompt in train}
    held = [p for p in prompts if p.subset == "EDGE" and p.id not in seen]
    slopes = partial(slope_tests, study, flags, used, held)
    run, summary = conduct_replies(
        "eval_direction_on_xstest", talk, flags, cells, used, rows, slopes
    )
    print_slopes(read_verdict(run.folder), summary)
    held_out = read_table(run.folder, "scores").query("split == 'holdout'")
    print_replies(summary[summary["split"] == "holdout"], flags.unit)
    by = ("subset", "category")
    print_categories(summarise_replies(held_out, study.threshold, flags.seed, by))
    print_judge(read_verdict(run.folder))
    print(f"run: {run.folder}")
    print(f"plot it: python scripts/plot_xstest.py {run.folder}")
    print(f"report: python scripts/report.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
