"""Draw how often the test of the slope, and ranks among 20 draws, find a planted effect.

RUN is a run of `experiments/calibrate.py --part power`. Writes power.html into it.
"""

from __future__ import annotations

from refusal_dial import cli
from refusal_dial.cli.flags import PlotFlags


def main(flags: PlotFlags) -> None:
    from refusal_dial.report.calibration import power_curves
    from refusal_dial.report.theme import write_figures
    from refusal_dial.run.folder import find_run, read_table

    folder = find_run(flags.run)
    summary = read_table(folder, "summary", "prompts", "rho", "direction", "power", "lo", "hi")
    figure = power_curves(summary, "How often a planted effect is found, at p ≤ 0.05")
    for path in write_figures({"power": figure}, folder, flags.format, flags.out):
        print(f"figure: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
