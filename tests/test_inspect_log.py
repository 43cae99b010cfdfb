"""A judged run as an Inspect log: Inspect's own reader opens it, and unscored stays unscored."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from small_runs import small_run
from tool_env import tool_python

from refusal_dial.common import DialError
from refusal_dial.generate.completions import completion_text
from refusal_dial.report.inspect_log import eval_log

ROOT = Path(__file__).parents[1]
READ = """
import json, math, sys
from inspect_ai.log import read_eval_log
log = read_eval_log(sys.argv[1])
rows = [
    {"id": s.id, "epoch": s.epoch, "input": s.input, "reply": s.output.completion,
     "value": None if math.isnan(s.scores["refusal"].value) else s.scores["refusal"].value,
     "harm": None if math.isnan(s.scores["harm"].value) else s.scores["harm"].value,
     "prompt_id": s.metadata["prompt_id"], "label": s.metadata["label"]}
    for s in log.samples
]
print(json.dumps({"status": log.status, "task": log.eval.task, "rows": rows}))
"""


@pytest.mark.slow
def test_inspect_opens_the_log_of_a_judged_run(small_material, tmp_path, request):
    python = str(tool_python(request.config.cache, whole=("inspect-ai==0.3.285",), pinned=False))
    folder = tmp_path / "run"
    made = Path(small_run(small_material, "eval_direction_on_xstest").folder)
    (found,) = {path.parent for path in made.rglob("scores.csv")}
    folder.mkdir()
    for path in found.iterdir():
        if path.is_file() and path.name != "summary.json":  # its digests would find what follows
            (folder / path.name).write_bytes(path.read_bytes())
    scores = pd.read_csv(folder / "scores.csv", dtype=str, keep_default_na=False)
    scores.loc[0, "label"] = "unscored"
    scores["harm"] = ["", *["0.75"] * (len(scores) - 1)]  # as a judge of it leaves them
    scores.to_csv(folder / "scores.csv", index=False, lineterminator="\n")
    script = [python, str(ROOT / "scripts" / "inspect_log.py"), str(folder)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": str(Path(sys.executable).parent)}
    done = subprocess.run(script, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    read = [python, "-c", READ, str(folder / "replies.eval")]
    done = subprocess.run(read, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    log = json.loads(done.stdout)
    assert (log["status"], log["task"]) == ("success", "eval_direction_on_xstest")
    rows = log["rows"]
    assert Counter(row["harm"] for row in rows) == {None: 1, 0.75: len(rows) - 1}
    assert len(rows) == len(scores) == len({(row["id"], row["epoch"]) for row in rows})
    names = ("prompt_id", "reply", "label", "value")
    refused = {"full_refusal": 1.0, "partial_refusal": 1.0, "unscored": None}
    ours = Counter(
        (row["prompt_id"], completion_text(row["completion"]), label, refused.get(label, 0.0))
        for row in scores.to_dict("records")
        if (label := row["label"])
    )
    assert Counter(tuple(row[name] for name in names) for row in rows) == ours
    assert [row["label"] for row in rows if row["value"] is None] == ["unscored"]


def test_without_inspect_the_error_says_what_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with pytest.raises(DialError, match="an Inspect log needs inspect_ai: pip install inspect_ai"):
        eval_log({}, pd.DataFrame(), {})
