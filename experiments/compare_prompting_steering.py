"""Is steering better than asking: a system message, the dial, or both?

The same prompts are replied to by the model as it is, under a system message, steered at several
strengths, and under both. Refusal of HARMFUL prompts is wanted, of EDGE and BENIGN prompts it is a
false positive, and text that falls apart is neither. Every condition is compared with the model as
it is, prompt by prompt, and the table says plainly what these prompts do not show. The direction is
learned on EDGE prompts that are not replied to.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import ComparisonFlags


def main(flags: ComparisonFlags) -> None:
    from refusal_dial.cli.recipes import print_published
    from refusal_dial.data.prompts import holdout_split, of_subset, some_of_each
    from refusal_dial.report.replies import print_conditions, print_judge
    from refusal_dial.run.folder import read_verdict
    from refusal_dial.studies.base import load_study
    from refusal_dial.studies.replies import (
        SYSTEM_NAME,
        conduct_replies,
        load_conversation,
        reply_cells,
        with_and_without,
        with_condition,
    )
    from refusal_dial.studies.steering import learn

    study = load_study(flags, flags.layer or None, flags.site, flags.pos)
    train, _ = holdout_split(of_subset(study.prompts, "EDGE"), flags.seed)
    seen = {prompt.id for prompt in train}
    held_out = [prompt for prompt in study.prompts if prompt.id not in seen]
    talk = load_conversation(
        study, flags, some_of_each(held_out, flags.n, flags.seed), flags.instruction
    )
    learned = learn(study, flags, train)
    cells = with_and_without(reply_cells(study, flags, learned), SYSTEM_NAME)
    run, summary = conduct_replies(
        "compare_prompting_steering", talk, flags, cells, learned, talk.rows()
    )
    print_conditions(with_condition(summary), summary, flags.unit)
    print_judge(read_verdict(run.folder))
    print_published(flags.config, flags.model, {"summary": with_condition(summary)})
    print(f"run: {run.folder}")
    print(f"plot it: python scripts/plot_conditions.py {run.folder}")
    print(f"report: python scripts/report.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
