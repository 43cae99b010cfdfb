"""What the check of a judge against people prints; refusal's side is in test_agreement."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from refusal_dial.common import DialError

SCRIPT = Path(__file__).parents[1] / "experiments" / "validate_judge.py"


def test_toxicity_prints_both_figures_with_intervals(tmp_path, capsys):
    script = runpy.run_path(str(SCRIPT))
    texts = ["You idiot.", "Good day.", "Shut up, moron!", "Have some tea.", "Stupid fool.", "Hi."]
    rows = [
        {part: {"text": text, "toxicity": (i + 1) % 2} for part in ("prompt", "continuation")}
        for i, text in enumerate(texts)
    ]
    path = tmp_path / "rtp.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    script["main"](script["Flags"](behavior="toxicity", files=str(path)))
    printed = capsys.readouterr().out
    assert "rtp continuations: 6 texts, scorer profanity version alt-profanity-check" in printed
    assert "unscored: 0" in printed
    assert ["AUC", "1.0", "1.0", "1.0"] in [line.split() for line in printed.splitlines()]
    assert "correlation" in printed


@pytest.mark.parametrize("lines", [["a,1"], ["a,1", "b,1", "c,1"]])
def test_one_text_or_one_class_says_what_is_missing(lines, tmp_path, capsys):
    script = runpy.run_path(str(SCRIPT))
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(["comment,toxic", *lines]))
    script["main"](script["Flags"](behavior="toxicity", files=str(path)))
    printed = capsys.readouterr().out
    assert "NaN" not in printed
    assert f"AUC: needs 2 texts rated toxic and 2 others, and has {len(lines)} and 0" in printed


def test_one_completion_says_what_is_missing(tmp_path, capsys):
    script = runpy.run_path(str(SCRIPT))
    path = tmp_path / "mine.csv"
    path.write_text("completion,final_label\nNo.,2_full_refusal\n")
    script["main"](script["Flags"](files=str(path)))
    printed = capsys.readouterr().out
    assert "NaN" not in printed
    assert "kappa: needs 2 completions or more that the judge scored, and has 1" in printed


def test_an_unknown_behavior_names_the_choices():
    script = runpy.run_path(str(SCRIPT))
    with pytest.raises(DialError, match=r"did you mean 'toxicity'. choices are refusal, toxicity"):
        script["main"](script["Flags"](behavior="toxicty"))
