"""Does steering only the prompts that a detector fires on keep what steering buys on HARMFUL, and
leave EDGE alone?

Every subset is cut in three. On the first part the refusal direction is learned (top-scored minus
bottom-scored EDGE prompts) and the detector (HARMFUL minus EDGE, at the same place); on the second
the detector's threshold is set for the stated rate of false positives on EDGE; the third is
reported. Beside it: steering always, and steering behind random detectors of the same rate.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import ConditionalFlags


def main(flags: ConditionalFlags) -> None:
    from refusal_dial.data.prompts import of_subset
    from refusal_dial.report.steering import print_trade_off
    from refusal_dial.report.theme import in_norms
    from refusal_dial.run.folder import read_table
    from refusal_dial.stats.trade_off import trade_off
    from refusal_dial.studies.base import load_study, prompt_rows
    from refusal_dial.studies.steering import (
        conditional_cells,
        conduct,
        detectors,
        learn,
        parts_of,
        three_parts,
    )

    study = load_study(flags, flags.layer or None, flags.site, flags.pos)
    edge = three_parts(of_subset(study.prompts, "EDGE"), flags.seed)
    harm = three_parts(of_subset(study.prompts, "HARMFUL"), flags.seed)
    learned = learn(study, flags, edge[0])
    watching = detectors(study, learned, harm[0], edge[0], edge[1], flags.rate)
    cells = conditional_cells(study, flags, learned, watching, edge[1])
    rows = prompt_rows(study)
    rows["split"] = parts_of(study.prompts, [*edge[0], *harm[0]], [*edge[1], *harm[1]])
    run, _ = conduct("conditional_steering", study, flags, rows, cells, learned)
    scores = read_table(run.folder, "scores")
    held_out = in_norms(scores[scores["split"] == "holdout"])
    print_trade_off(trade_off(held_out, wanted="HARMFUL", others="EDGE", threshold=study.threshold))
    print(f"run: {run.folder}")
    print(f"plot it: python scripts/plot_trade_off.py {run.folder}")
    print(f"report: python scripts/report.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
