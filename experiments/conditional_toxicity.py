"""Does steering only the openings that a detector fires on lower toxicity as much as steering all,
and leave the others' words alone?

The direction and the detector are learned on openings that are not measured. Gain is the fall of
toxicity after challenging openings; cost is the share of benign ones after which anything else is
said than by the unsteered model. Beside it: steering always, and behind random detectors.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import SparingFlags


def main(flags: SparingFlags) -> None:
    from refusal_dial.data.openings import BENIGN, CHALLENGING
    from refusal_dial.report.steering import print_trade_off
    from refusal_dial.report.theme import in_norms
    from refusal_dial.run.folder import read_table
    from refusal_dial.stats.trade_off import trade_off
    from refusal_dial.studies.continuation import as_trade_off, conduct_continuations, gated_cells

    run, _ = conduct_continuations("conditional_toxicity", flags, gated_cells)
    rows = as_trade_off(in_norms(read_table(run.folder, "scores")))
    print_trade_off(trade_off(rows, wanted=CHALLENGING, others=BENIGN))
    print(f"run: {run.folder}")
    print(f"plot it: python scripts/plot_trade_off.py {run.folder}")


if __name__ == "__main__":
    cli.run(main)
