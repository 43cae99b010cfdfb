"""Bad input to every script and loader: one clear line, exit code 2, no traceback, nothing written.

Scripts run in this process, from the command line on. Most inputs fail before a model would be
loaded; those that need one take a tiny one.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import get_type_hints

import bad_case
import pytest
import torch
from script_case import ROOT, SCRIPTS, load

from refusal_dial.cli import command_line as cli
from refusal_dial.cli.flags import CALIBRATION_PARTS
from refusal_dial.common import DialError
from refusal_dial.data.contrast import load_contrast

TAKES = {path: get_type_hints(load(path.stem).main)["flags"] for path in SCRIPTS}
name = {"ids": lambda value: value.stem if isinstance(value, Path) else None}


def flags_of(path: Path) -> set[str]:
    return {f.name for f in fields(TAKES[path])}


def taking(*flags: str) -> list[Path]:
    """The scripts that have all these flags."""
    return [path for path in SCRIPTS if set(flags) <= flags_of(path)]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a script in an empty folder of its own."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def call(path, *arguments):
        return bad_case.run(path, list(arguments), tmp_path, capsys)

    return call


def required(path: Path) -> list[str]:
    """Something for every argument without a default."""
    return ["nowhere" for f in fields(TAKES[path]) if f.default is MISSING]


# --- command lines


COMMAND_LINES = [
    ["--xyzzy"],
    ["--xyzzy=\x1b[2J"],
    ["more", "and more"],
    ["--seed"],
    ["--", "--trace"],
    ["--config"],
    ["--config", "nowhere.yaml"],
]


def distinct_flags():
    """Each flag once, on the first script that has it with this default and reader."""
    seen = {}
    for path in SCRIPTS:
        for f in fields(TAKES[path]):
            key = (f.name, str(f.type), str(f.default), str(f.metadata.get("parse")))
            if f.name != "config" and f.default is not MISSING:
                seen.setdefault(key, (path, f.name, str(f.type)))
    return list(seen.values())


@pytest.mark.parametrize("path", sorted({path for path, *_ in distinct_flags()}), **name)
def test_a_value_that_a_flag_cannot_take_is_named(path, run):
    """Every value by what reads it; the first of a flag by the whole script."""
    for mine, field, kind in distinct_flags():
        if mine != path:
            continue
        flag, tried = "--" + field.replace("_", "-"), 0
        for value in bad_case.VALUES:
            arguments = [*required(path), f"{flag}={value}"]
            try:
                cli.parse_flags(TAKES[path], arguments, load(path.stem).main)
            except DialError as error:
                line = f"error: {error}"
                assert tried or run(path, *arguments).line == line
                assert line.startswith(f"error: {flag}"), (value, line)
                assert any(w in line for w in ("expected", "choices are", "switch", "needs")), line
                assert line.isprintable(), value
                tried += 1
        assert tried >= 8 or "str" in kind


@pytest.mark.parametrize("path", SCRIPTS, **name)
@pytest.mark.parametrize(
    "arguments",
    COMMAND_LINES,
    ids=lambda arguments: " ".join(arguments).replace("\x1b", "ESC"),
)
def test_a_command_line_that_cannot_be_read(path, arguments, run):
    assert run(path, *arguments).line


@pytest.mark.parametrize("kind", bad_case.RECIPES)
def test_a_recipe_that_cannot_be_read(kind, run, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(bad_case.RECIPES[kind])
    for script in ("steering_holdout_control", "toxicity_steering"):
        path = ROOT / "experiments" / f"{script}.py"
        nowhere = "--prompts" if "prompts" in flags_of(path) else "--openings"
        assert run(path, "--config", str(file), nowhere, "nowhere.jsonl").line
    assert not list(tmp_path.rglob("tagged"))


# --- files


def written(folder: Path, kind: str, suffix: str, content: bytes) -> str:
    file = folder / f"{kind.replace(' ', '_').replace(',', '')[:20]}{suffix}".replace("'", "")
    file.write_bytes(content)
    return str(file)


SOURCES = ("nowhere.jsonl", "/nowhere", "./no", "~nobody/x.jsonl", "embeded", "\x1b.csv")


@pytest.mark.parametrize("path", taking("prompts"), **name)
def test_prompts_that_cannot_be_read(path, run, tmp_path):
    whole = path.stem == "steering_holdout_control"
    for kind in bad_case.PROMPTS if whole else ("no json", "not utf-8", "an id twice"):
        suffix, content = bad_case.PROMPTS[kind]
        file = written(tmp_path, kind, suffix, content)
        line = run(path, *required(path), "--prompts", file).line
        assert file in line, (kind, line)
    for source in SOURCES if whole else SOURCES[:2]:
        assert run(path, *required(path), "--prompts", source).line
    (tmp_path / "empty").mkdir()
    assert (
        "holds no prompts" in run(path, *required(path), "--prompts", str(tmp_path / "empty")).line
    )


@pytest.mark.parametrize("path", taking("openings"), **name)
def test_openings_that_cannot_be_read(path, run, tmp_path):
    for kind, content in bad_case.OPENINGS.items():
        file = written(tmp_path, kind, ".jsonl", content)
        assert file in run(path, "--openings", file).line, kind


def test_labelled_files_that_cannot_be_read(run, tmp_path):
    path = ROOT / "experiments" / "validate_judge.py"
    for kind, content in bad_case.LABELLED.items():
        file = written(tmp_path, kind, ".csv", content)
        assert file in run(path, "--files", file).line, kind
    for kind, (suffix, content) in bad_case.RATED.items():
        file = written(tmp_path, kind, suffix, content)
        line = run(path, "--behavior", "toxicity", "--files", file).line
        assert Path(file).stem in line, kind
    for behavior in ("refusal", "toxicity"):
        assert run(path, "--behavior", behavior, "--files", "nowhere.csv").line


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "pickle", "other", "matrix"])
def test_a_direction_that_cannot_be_read(kind, run, tmp_path):
    import torch
    from safetensors.torch import save

    whole = save({"unit": torch.ones(8)}, {"direction": json.dumps({"format": "x"})})
    content = {
        "empty": b"",
        "text": b"a direction",
        "truncated": whole[:-9],
        "pickle": b"\x80\x04\x95",
        "other": save({"weight": torch.ones(2, 2, 2, 8)}),
        "matrix": save({"unit": torch.ones(8, 8)}, {"direction": "{}"}),
    }[kind]
    file = tmp_path / "direction.safetensors"
    file.write_bytes(content)
    for path in taking("direction"):
        elsewhere = ["--out", str(tmp_path / "out")] if "out" in flags_of(path) else []
        nowhere = ["--prompts", "nowhere.jsonl"] if "prompts" in flags_of(path) else []
        repo = ["--repo", "me/dial"] if "repo" in flags_of(path) else []
        line = run(path, "--direction", str(file), *repo, *elsewhere, *nowhere).line
        assert str(file) in line or "nowhere.jsonl" in line
    path = ROOT / "experiments" / "score_models.py"
    assert str(file) in run(path, "--direction", str(file)).line


@pytest.mark.parametrize("script", ["calibrate", "verify_direction"])
def test_no_controls_are_refused_where_they_are_the_question(script, run):
    path = ROOT / "experiments" / f"{script}.py"
    for value in ("[]", "()", "none", "holdout", "random,folds"):
        line = run(path, *required(path), "--controls", value).line
        assert "--controls: " in line
        assert "random, covariance, shuffled" in line


def test_a_level_that_nothing_or_everything_reaches_is_refused(run):
    path = ROOT / "experiments" / "verify_direction.py"
    for value in ("0", "-0", "1", "0.6", "1e-300"):
        line = run(path, "nowhere", "--level", value).line
        assert "--level: expected a level from 1e-06 to 0.25" in line


def test_a_calibration_of_too_few_prompts_leaves_no_folder(run, qwen_folder, some_prompts):
    path = ROOT / "experiments" / "calibrate.py"
    typed = f"--model {qwen_folder} --device cpu --prompts {some_prompts} --refusal-tokens I"
    typed += " --layer 1 --part null --out run"
    assert "more than the" in run(path, *typed.split(), "--n-learn", "500").line
    few = ["--n-learn", "6", "--n-report", "2", "--k", "4"]
    assert "hold 3 each at most" in run(path, *typed.split(), *few).line


def test_decoding_that_cannot_be_is_refused_before_a_run_is_opened(
    run, qwen_folder, small_material
):
    common = ["--model", str(qwen_folder), "--device", "cpu", "--layer", "1"]
    given = [*common, "--refusal-tokens", "I", "--n-pairs", "6"]
    given += ["--prompts", str(small_material.prompts)]
    path = ROOT / "experiments" / "caa_refusal.py"
    assert "top_p must be over 0 and at most 1, not 16" in run(path, *given, "--top-p", "16").line
    path = ROOT / "experiments" / "toxicity_steering.py"
    assert "greedy decoding has one sample" in run(path, *common, "--temperature", "0").line


def test_a_layer_is_chosen_among_strengths_and_prompts_that_there_are(run, qwen_folder, tmp_path):
    path = ROOT / "experiments" / "caa_refusal.py"
    assert "a strength that is not 0" in run(path, "--alphas", "0").line
    assert "--alphas: expected a finite number, not 'auto'" in run(path, "--alphas", "auto").line
    rows = [{"text": f"say {i}", "subset": "EDGE", "pair_id": None} for i in range(9)]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = tmp_path / "pairs.json"
    reply = {"question": "q", "answer_matching_behavior": "(A)"}
    pairs.write_text(json.dumps([reply | {"answer_not_matching_behavior": "(B)"}]))
    typed = f"--model {qwen_folder} --device cpu --layer 1 --refusal-tokens I"
    line = run(path, *typed.split(), "--prompts", str(prompts), "--pairs", str(pairs)).line
    assert "0 HARMFUL and 4 others" in line or "0 HARMFUL and 5 others" in line


@pytest.mark.parametrize("path", taking("direction", "model"), **name)
def test_an_empty_direction_is_not_the_same_as_none(path, run, qwen_folder):
    """`--direction "$FILE"` of a variable that is not set must not learn another direction."""
    line = run(path, "--direction", "", "--model", str(qwen_folder), "--device", "cpu").line
    assert "names no file" in line or "no direction file ''" in line


@pytest.mark.parametrize("kind", bad_case.CONTRAST)
def test_contrast_pairs_that_cannot_be_read(kind, tmp_path):
    suffix, content = bad_case.CONTRAST[kind]
    file = written(tmp_path, kind, suffix, content)
    with pytest.raises(DialError, match=re.escape(file)):
        load_contrast(file)


@pytest.mark.parametrize("path", taking("out", "dry_run"), **name)
def test_a_folder_that_is_no_run_is_refused_before_the_model_is_read(path, run, tmp_path):
    """The model named is not there either, and reading one may take minutes."""
    notes = tmp_path / "notes"
    for folder in (notes, *(notes / part for part in CALIBRATION_PARTS)):
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
    direction = tmp_path / "unit.pt"
    torch.save(torch.nn.functional.one_hot(torch.tensor(0), 8).float(), direction)
    given = [str(direction), "--layer", "1"] if required(path) else []
    line = run(path, *given, "--model", "/nowhere", "--out", str(notes)).line
    assert "is not a run folder: it has no config.json" in line


@pytest.mark.parametrize("path", taking("workers"), **name)
def test_workers_of_no_cluster_are_refused_before_the_model_is_read(path, run, tmp_path):
    direction = tmp_path / "unit.pt"
    torch.save(torch.nn.functional.one_hot(torch.tensor(0), 8).float(), direction)
    given = [str(direction), "--layer", "1"] if required(path) else []
    line = run(path, *given, "--model", "/nowhere", "--workers", "2").line
    assert line == "error: --workers 2 is for --executor ray: give both, or neither"


@pytest.fixture
def nobody():
    """The process is still root's, but may write what a user who owns nothing may write, as
    `os.access` has it; where it is not root's, it is as it is."""
    user = os.getuid()
    if os.geteuid() == 0:
        os.setreuid(65534, -1)
    yield
    if os.geteuid() == 0:
        os.setreuid(user, -1)


@pytest.mark.usefixtures("nobody")
def test_a_folder_that_cannot_be_written_to_is_named_before_the_model_is_read(run, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    path, asked = ROOT / "experiments" / "score_models.py", ["--model", "/nowhere"]
    line = run(path, *asked, "--out", str(closed / "run")).line
    assert line.endswith(f"{closed} cannot be written to: give --out a folder that can")
    assert "/nowhere" in run(path, *asked, "--out", str(closed / "run"), "--dry-run").line
