"""How far does a judge agree with people's labels?

Refusal: prints, for every labelled file, the confusion matrix and the figures from it with their
intervals, beside what two people agree on. `--cross` asks what carries over to a model that was not
looked at: the builtin judge's thresholds are fitted on each file alone and measured on the others.
Toxicity: the area under the ROC curve and the correlation with people's ratings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refusal_dial import cli
from refusal_dial.common import DialError, one_of

SHARED = Path(__file__).parents[2] / "shared" / "data"
FILES = {"refusal": ("xstest/*_completions_*[!l].csv",), "toxicity": ("rtp", "wiki_toxicity")}
DEFAULT = {"refusal": "builtin", "toxicity": "profanity"}


@dataclass(frozen=True)
class Flags:
    behavior: str = cli.flag("refusal", "refusal or toxicity")
    judge: str = cli.flag("auto", "auto, substring, builtin, profanity, or a model's folder or id")
    files: str = cli.flag("", "labelled csv or jsonl files, separated by commas")
    device: str = cli.flag("auto", "where a model that judges runs: auto, cpu, cuda")
    toxic_label: str | None = cli.flag(None, "which of a toxicity classifier's labels to read")
    cross: bool = cli.flag(False, "fit the builtin thresholds on one file, measure on the others")


def main(flags: Flags) -> None:
    if flags.behavior not in FILES:
        raise one_of(flags.behavior, FILES, "behavior")
    from refusal_dial.report.calibration import print_refusal, print_toxicity

    paths = [path.strip() for path in flags.files.split(",") if path.strip()]
    paths = paths or [str(p) for name in FILES[flags.behavior] for p in sorted(SHARED.glob(name))]
    if not paths:
        raise DialError(f"no labelled files in {SHARED}: give --files a.csv,b.csv")
    judge = DEFAULT[flags.behavior] if flags.judge == "auto" else flags.judge
    if flags.behavior == "toxicity":
        print_toxicity(paths, judge, flags.device, flags.toxic_label)
    else:
        print_refusal(paths, judge, flags.device, flags.cross)


if __name__ == "__main__":
    cli.run(main)
