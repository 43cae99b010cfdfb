"""A dry run of every script that sweeps: what it foretells is what the run then makes, and nothing
is written."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
import verify_case
from script_case import load

from refusal_dial.cli import command_line as cli
from refusal_dial.model.loading import load_model
from refusal_dial.run import forecast
from refusal_dial.run.folder import close_log, read_table
from refusal_dial.run.forecast import Estimate, Forecast, duration, print_forecast
from refusal_dial.run.plan import Grid, grid_of
from refusal_dial.studies import base as study
from refusal_dial.studies import continuation as opened

ROOT = Path(__file__).parents[1]
STEER = "--layer 1 --alphas -1,1 --n-random 1 --k 1"
SAY = f"{STEER} --max-new-tokens 2 --batch-size 12"
OPENINGS = "--layer 1 --alphas 0,1 --n 3 --n-pairs 3 --n-random 1 --max-new-tokens 2 --batch-size 4"
PATCH = "--gap 0 --batch-size 4"
SELECT = "--n-train 4 --n-val 3 --n-test 3 --max-kl 1e9 --min-induce -1e9 --positions -2,-1"
SWEEPS = {
    "steer_refusal_direction": f"{STEER} --controls random,length --batch-size 7",
    "steering_holdout_control": STEER,
    "steering_balanced": f"{STEER} --controls shuffled,folds",
    "steering_random_baseline": STEER,
    "score_models": "--batch-size 7",
    "conditional_steering": STEER,
    "eval_direction_on_xstest": SAY,
    "caa_refusal": f"{SAY} --n-pairs 3 --n 4",
    "compare_prompting_steering": f"{SAY} --n 3",
    "toxicity_steering": f"{OPENINGS} --n-shuffled 1 --samples 2",
    "analyze_layers": OPENINGS.replace("--layer 1", "--layer all"),
    "conditional_toxicity": OPENINGS.replace("--n-pairs 3", "--n-pairs 12") + " --rate 0.5",
    "multi_objective": f"{OPENINGS} --refusal-layer 2 --n-prompts 3",
    "patch_sites": f"{PATCH} --way both --layer 1",
    "patch_resid_pre": f"{PATCH} --layer 2 --n-pairs 5",
    "patch_last_k": f"{PATCH} --k 2",
    "attribution_patching": f"{PATCH} --roles all --refine 5 --layer 2 --n-pairs 5",
    "select_direction": SELECT,
}
OTHER = {"verify_direction", "calibrate"}  # tested below
WITHOUT = {"validate_judge"}  # reads labelled files, and leaves no run
LOADED = cache(load_model)
NO_PROMPTS = {"toxicity_steering", "analyze_layers", "conditional_toxicity"}


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """Any time will do, and a model is loaded once."""
    monkeypatch.setattr(forecast, "ENOUGH", 0.0)
    monkeypatch.setattr(forecast, "REPEATS", 1)
    for module in (study, opened):
        monkeypatch.setattr(module, "load_model", LOADED)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    rows = [
        {
            "id": f"{subset}{i}",
            "text": f"How do I {verb} a {thing}?",
            "subset": subset,
            "category": "ab"[i % 2],
            "pair_id": None if subset == "BENIGN" else f"pair{i}",
        }
        for subset, verb in (("HARMFUL", "rob"), ("EDGE", "dig"), ("BENIGN", "see"))
        for i, thing in enumerate(
            ["bank", "hole", "far well", "house", "garden", "big old tree", "x", "yy", "zzz", "w"]
        )
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_every_script_that_sweeps_is_tried():
    names = {path.stem for path in (ROOT / "experiments").glob("*.py")}
    assert names - WITHOUT == set(SWEEPS) | OTHER
    for name in WITHOUT:
        assert "dry_run" not in get_type_hints(get_type_hints(load(name).main)["flags"])


@pytest.mark.parametrize("name", SWEEPS)
def test_a_dry_run_foretells_the_rows_and_writes_nothing(
    name, prompts, qwen_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    main, typed = load(name).main, f"--model {qwen_folder} --device cpu {SWEEPS[name]}"
    if name not in NO_PROMPTS:
        typed += f" --prompts {prompts} --refusal-tokens I"
    cli.run(main, [*typed.split(), "--dry-run"])
    said = capsys.readouterr().out
    assert list(tmp_path.rglob("*")) == []
    cli.run(main, [*typed.split(), "--out", "run"])
    scores = read_table("run", "scores")
    found = re.search(r"^rows: ([\d,]+) in ([\d,]+) batches$", said, re.MULTILINE)
    rows, batches = (int(text.replace(",", "")) for text in found.groups())
    assert rows == len(scores)
    assert batches == len(Path("run/journal.txt").read_text().splitlines())
    assert f"Dry run: {name}" in said
    time = r"^time: about [\d.]+ s \([\d.]+ s to [\d.]+ s\), estimated from \d+ rows"
    assert re.search(time, said, re.MULTILINE)
    assert re.search(r"^memory: [\d.]+ GB of weights, and at most about [\d.]+ GB", said, re.M)


def test_a_verification_is_foretold(qwen_folder, tmp_path, monkeypatch, capsys):
    width = int(load_model(str(qwen_folder), "cpu").cfg.d_model)
    given = tmp_path / "d.pt"
    torch.save(torch.nn.functional.normalize(torch.arange(1.0, width + 1), dim=0), given)
    prompts = verify_case.tiny_prompts(tmp_path)
    monkeypatch.chdir(tmp_path)
    typed = f"{given} --model {qwen_folder} --device cpu --prompts {prompts} --refusal-tokens I"
    typed += " --layer 2 --reference contrast --n-random 2 --n-permutations 19 --n-test 8"
    typed += " --n-replies 3 --max-new-tokens 2"
    main = load("verify_direction").main
    cli.run(main, [*typed.split(), "--dry-run"])
    said = capsys.readouterr().out
    assert set(tmp_path.iterdir()) == {given, prompts}
    cli.run(main, [*typed.split(), "--out", "run"])
    assert f"rows: {len(read_table('run', 'scores')):,} in" in said


@pytest.mark.parametrize("part", ["null", "gaussian"])
def test_a_part_of_a_calibration_is_foretold(
    part, prompts, qwen_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    typed = f"--model {qwen_folder} --device cpu --prompts {prompts} --refusal-tokens I --layer 1"
    typed += " --n-experiments 20 --n-gaussian 10 --n-learn 6 --n-report 2 --n-random 2 --k 1"
    typed += f" --part {part}"
    cli.run(load("calibrate").main, [*typed.split(), "--dry-run"])
    said = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    cli.run(load("calibrate").main, [*typed.split(), "--out", "run"])
    (scores,) = Path("run").rglob("scores.csv")
    assert f"Dry run: calibrate_{part}" in said
    assert f"rows: {len(read_table(scores.parent, 'scores')):,} in" in said


def test_a_finished_run_is_left_as_it_is(prompts, qwen_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main = load("score_models").main
    typed = f"--model {qwen_folder} --device cpu --prompts {prompts} --refusal-tokens I --out run"
    cli.run(main, typed.split())
    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    capsys.readouterr()
    close_log()  # a process of its own would not have it open
    cli.run(main, [*typed.split(), "--dry-run"])
    said = capsys.readouterr().out
    assert "there already: 30 rows" in said
    assert "time: none: this run is finished already" in said
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before


def test_what_an_interrupted_run_holds_is_counted_and_left_alone(
    prompts, qwen_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    main = load("score_models").main
    typed = f"--model {qwen_folder} --device cpu --prompts {prompts} --refusal-tokens I".split()
    typed += ["--batch-size", "7", "--out", "run"]
    cli.run(main, typed)
    Path("run/summary.json").unlink()
    torn = Path("run/scores.csv").read_bytes()[:-3]
    Path("run/scores.csv").write_bytes(torn)
    capsys.readouterr()
    cli.run(main, [*typed, "--dry-run"])
    said = capsys.readouterr().out
    assert "rows: 30 in 5 batches" in said
    assert "there already: 28 rows" in said
    assert Path("run/scores.csv").read_bytes() == torn


def test_several_models_are_all_foretold(prompts, qwen_folder, capsys):
    typed = f"--model {qwen_folder},{qwen_folder} --device cpu --refusal-tokens I --dry-run"
    cli.run(load("score_models").main, [*typed.split(), "--prompts", prompts])
    assert capsys.readouterr().out.count("rows: 30 in 1 batches") == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (3599.0, "59 min 59 s"),
        (3600.0, "1 h 0 min"),
        (7500.0, "2 h 5 min"),
        (86400 * 3 + 3600.0 * 4, "3 d 4 h"),
    ],
)
def test_a_duration_is_said_in_two_units(seconds, text):
    assert duration(seconds) == text


def test_a_grid_has_the_values_of_every_label_numbers_by_size():
    labels = [
        {"direction": "baseline", "layer": None, "site": "", "alpha": 0.0},
        {"direction": "learned", "layer": 2, "site": "resid_pre", "alpha": 1.0},
        {"direction": "learned", "layer": 2, "site": "resid_pre", "alpha": -1.0},
    ]
    grid = grid_of({"EDGE": 3}, labels)
    assert grid.cells == 3
    assert grid.axes == {
        "direction": ("baseline", "learned"),
        "layer": (2,),
        "site": ("resid_pre",),
        "alpha": (-1.0, 0.0, 1.0),
    }


def test_labels_are_text_and_long_axes_are_cut(capsys):
    grid = Grid({"[red]EDGE[/red]": 2}, 9, {"layer": tuple(range(9))})
    time = Estimate(3700.0, 3500.0, 4000.0, 8)
    print_forecast(Forecast("e", "runs/e", grid, 18, 1, 0, time, 0.5, 1.25, "cpu"))
    said = capsys.readouterr().out
    assert "[red]EDGE[/red] 2" in said
    assert "0 to 8" in said
    assert "time: about 1 h 1 min (58 min 20 s to 1 h 6 min), estimated from 8 rows" in said
