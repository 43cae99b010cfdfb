"""Judges beside people: what `experiments/validate_judge.py` prints.

Loads labelled files, asks a judge or a scorer about them, and prints how far they agree. The
figures are those of `agreement` and `rated`; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from refusal_dial import agreement, rated
from refusal_dial.judge_model import load_judge
from refusal_dial.judges import judge_all
from refusal_dial.judging.fitting import crossed
from refusal_dial.toxicity import load_toxicity


def print_refusal(paths: Sequence[str], name: str, device: str, cross: bool = False) -> None:
    """The confusion matrix of every file and the figures from it; with `cross`, the builtin judge's
    thresholds fitted on each file and measured on the others.

    Raises `DialError` for a file or a judge that cannot be used.
    """
    labelled = [agreement.load_labelled(path) for path in paths]
    judge = load_judge(name, device)
    for one in labelled:
        told = [judgement.label for judgement in judge_all(judge, one.completions, one.prompts)]
        matrix = agreement.confusion(one.labels, told)
        unscored = told.count("unscored")
        print(f"\n{one.name}: {len(one)} completions, judge {judge.name} version {judge.version}")
        print(f"unscored: {unscored}\n\n{agreement.table(matrix)}\n")
        print(_table(agreement.summary(matrix)))
        people = agreement.between_raters(one)
        if people is not None:
            print(f"two people:\n{_table(agreement.summary(people).iloc[[2, 4]])}")
    if cross:
        figures = crossed(labelled).round(3).to_string(index=False, na_rep="-")
        print(f"\nthresholds fitted on one file:\n{figures}")


def print_toxicity(paths: Sequence[str], name: str, device: str, label: str | None = None) -> None:
    """AUC and correlation with people's ratings, for every set of texts in every file.

    Raises `DialError` for a file or a scorer that cannot be used.
    """
    sets = [one for path in paths for one in rated.load_rated(path)]
    scorer = load_toxicity(name, device, label=label)
    for one in sets:
        scores = scorer(one.texts)
        unscored = int(np.isnan(scores).sum())
        print(f"\n{one.name}: {len(one)} texts, scorer {scorer.name} version {scorer.version}")
        print(f"unscored: {unscored}\n{_table(rated.figures(scores, one))}")


def _table(found: pd.DataFrame) -> str:
    """Figures as text; what cannot be told has a line of its own, with what is missing."""
    told = found[found["reason"] == ""].drop(columns="reason").round(3)
    lines = [] if told.empty else [told.to_string(index=False)]
    gone = found[found["reason"] != ""]
    lines += [f"{name}: {why}" for name, why in zip(gone["figure"], gone["reason"], strict=True)]
    return "\n".join(lines)
