"""Tokens of the environment reach no log, no config, no table, no report and no terminal."""

from __future__ import annotations

import json

import bad_case
import pytest
from script_case import ROOT

SECRETS = {
    name: f"secret-{name.lower()}-7f3a"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY")
}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def call(script, *arguments):
        ended = bad_case.run(ROOT / script, list(arguments), tmp_path, capsys)
        kept = bad_case.files_in(tmp_path)
        everything = b"\n".join(
            [*kept.values(), *(str.encode(t) for t in (*kept, ended.out, ended.err))]
        )
        return ended.code, everything

    return call


def test_a_run_and_its_report_hold_no_secret(run, qwen_folder, tmp_path):
    rows = [
        {"id": f"{s}{i}", "text": f"{s} {i}", "subset": s}
        for s in ("HARMFUL", "EDGE")
        for i in range(3)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--model", str(qwen_folder), "--prompts", "prompts.jsonl", "--refusal-tokens", "I"]
    code, written = run(
        "experiments/score_models.py", *given, "--device", "cpu", "--out", "run", "--debug"
    )
    assert code == 0
    assert b"prompts.jsonl" in written  # so that an empty folder does not pass
    assert not [value for value in SECRETS.values() if value.encode() in written]
    code, written = run("scripts/report.py", "run")
    assert code == 0
    assert b"<html" in written
    assert not [value for value in SECRETS.values() if value.encode() in written]


def test_a_failure_tells_no_secret(run):
    code, written = run("experiments/score_models.py", "--model", "nobody/nothing", "--debug")
    assert code == 2
    assert b"nobody/nothing" in written
    assert not [value for value in SECRETS.values() if value.encode() in written]
