"""How far does a judge agree with people's labels?

Prints, for every labelled file, the confusion matrix and the figures from it with their intervals,
beside what two people agree on. `--cross` asks what carries over to a model that was not looked at:
the builtin judge's thresholds are fitted on each file alone and measured on the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refusal_dial import cli
from refusal_dial.types import DialError

SHARED = Path(__file__).parents[2] / "shared" / "data" / "xstest"


@dataclass(frozen=True)
class Flags:
    judge: str = cli.flag("builtin", "substring, builtin, or a model's folder or hub id")
    files: str = cli.flag("", "labelled csv files with XSTest's columns, separated by commas")
    device: str = cli.flag("auto", "where a model that judges runs: auto, cpu, cuda")
    cross: bool = cli.flag(False, "fit the builtin thresholds on one file, measure on the others")


def main(flags: Flags) -> None:
    from refusal_dial import agreement
    from refusal_dial.judge_model import load_judge
    from refusal_dial.judges import judge_all
    from refusal_dial.judging.fitting import crossed

    paths = [path.strip() for path in flags.files.split(",") if path.strip()]
    paths = paths or [str(path) for path in sorted(SHARED.glob("*_completions_*[!l].csv"))]
    if not paths:
        raise DialError(f"no labelled files in {SHARED}: give --files a.csv,b.csv")
    labelled = [agreement.load_labelled(path) for path in paths]
    judge = load_judge(flags.judge, flags.device)
    for one in labelled:
        told = [judgement.label for judgement in judge_all(judge, one.completions, one.prompts)]
        matrix = agreement.confusion(one.labels, told)
        unscored = told.count("unscored")
        print(f"\n{one.name}: {len(one)} completions, judge {judge.name} version {judge.version}")
        print(f"unscored: {unscored}\n\n{agreement.table(matrix)}\n")
        print(agreement.summary(matrix).round(3).to_string(index=False))
        people = agreement.between_raters(one)
        if people is not None:
            both = agreement.three_way(people), agreement.kappa(people)
            print(f"two people, three-way: {both[0]:.3f}, kappa {both[1]:.3f}")
    if flags.cross:
        print(
            f"\nthresholds fitted on one file:\n{crossed(labelled).round(3).to_string(index=False)}"
        )


if __name__ == "__main__":
    cli.run(main)
