"""The scripts as people run them: help, mistakes, the run they leave, resuming, the main result."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import get_type_hints

import bad_case
import numpy as np
import pytest
from script_case import ROOT, load
from small_runs import TYPED, arguments, small_run

from refusal_dial.cli import command_line as cli
from refusal_dial.run.folder import read_config, read_table
from refusal_dial.stats.summary import random_band

EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
STEERING = [path for path in EXPERIMENTS if path.stem.startswith("steer")]
SCORING = [*STEERING, ROOT / "experiments" / "score_models.py"]
CONTRACT = "direction,seed,layer,site,pos,alpha,prompt_id,subset,split,score"
SUMMARY_CONTRACT = (
    "direction,seed,layer,site,pos,alpha,subset,split,"
    "n,score_mean,score_lo,score_hi,refusal_rate,rate_lo,rate_hi,p_value"
)
name = {"ids": lambda path: path.stem}


def command(path: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(path), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("path", EXPERIMENTS, **name)
def test_an_experiment_asks_a_question(path):
    assert "?" in load(path.stem).__doc__.split("\n\n")[0]


def test_help_of_every_script_comes_without_torch(tmp_path):
    code = (
        "import contextlib, io, runpy, sys\n"
        "for path in sys.argv[1:]:\n"
        "    sys.argv, shown, code = [path, '--help'], io.StringIO(), 0\n"
        "    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):\n"
        "        try: runpy.run_path(path, run_name='__main__')\n"
        "        except SystemExit as ended: code = ended.code\n"
        "    name = path.split('/')[-1][:-3]\n"
        "    print(path, code, 'torch' in sys.modules, name in shown.getvalue())\n"
    )
    paths = [str(path) for path in (*EXPERIMENTS, *SCRIPTS)]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [f"{path} 0 False True" for path in paths], done.stderr


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("./patch_sites.py --laye", "--layer"), ("patch_sites.py --layer 3 --dry", "--dry-run")],
)
def test_bash_completes_the_flags(typed, offered, tmp_path):
    script = command(ROOT / "experiments" / "patch_sites.py", "--", "--completion", cwd=tmp_path)
    assert script.returncode == 0, script.stderr
    (tmp_path / "done.sh").write_text(script.stdout)
    words = typed.split()
    code = (
        f"source done.sh; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; "
        "$(complete -p patch_sites.py | sed 's/.*-F \\([^ ]*\\).*/\\1/'); echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(
        ["/bin/bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [offered]


def test_a_shell_that_fire_knows_nothing_of(tmp_path):
    done = command(
        ROOT / "experiments" / "patch_sites.py", "--", "--completion", "zsh", cwd=tmp_path
    )
    assert done.returncode == 2
    assert "unknown shell 'zsh'" in done.stderr


@pytest.mark.parametrize("name", TYPED)
def test_every_experiment_leaves_a_whole_run(name, small_material):
    run = small_run(small_material, name)
    folder = Path(run.folder)
    for file in ("config.json", "scores.csv", "summary.csv", "summary.json", "log.txt"):
        assert (folder / file).stat().st_size > 0, file
    config = read_config(folder)
    assert config["settings"]["seed"] == 0
    assert set(config) >= {"command", "versions", "started", "experiment"}
    assert re.search(
        "^(plot|report|verify) it: python |^(report|page): ", run.printed, re.MULTILINE
    )


@pytest.mark.parametrize("name", TYPED)
def test_a_cut_run_is_resumed_to_the_same_bytes(name, small_material, tmp_path, monkeypatch):
    whole = Path(small_run(small_material, name).folder)
    # calibrate's folder holds one run a part
    root = small_material.root / name / "run"
    out = tmp_path / "run"
    cut = out / whole.relative_to(root)
    cut.mkdir(parents=True)
    for file in ("config.json", "journal.txt"):
        (cut / file).write_bytes((whole / file).read_bytes())
    scores = (whole / "scores.csv").read_bytes()
    (cut / "scores.csv").write_bytes(scores[: int(0.8 * len(scores))])
    monkeypatch.chdir(tmp_path)
    cli.run(load(name).main, [*arguments(small_material, name), f"--out={out}"])
    for file in ("scores.csv", "summary.csv"):
        same = (cut / file).read_bytes() == (whole / file).read_bytes()
        assert same, file  # a picture of the difference of two long files takes minutes


@pytest.mark.parametrize("path", EXPERIMENTS, **name)
def test_a_misspelt_flag_stops_before_any_work(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = fields(get_type_hints(load(path.stem).main)["flags"])
    known = "--" + flags[-1].name.replace("_", "-")
    ended = bad_case.run(path, [f"{known}e", "3"], tmp_path, capsys)
    assert f"unknown flag {known}e: did you mean {known}" in ended.line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layer", "twenty"), "--layer: expected a whole number, not 'twenty'"),
        (("--site", "resid_per"), "did you mean 'resid_pre'?"),
        (("--alphas", "1,1"), "--alphas: expected different numbers"),
        (("--alphas", "low:high:3"), "--alphas: expected START:STOP:COUNT"),
        (("--pos", "3"), "--pos: expected a position counted from the end"),
        (("--controls", "randm"), "unknown control 'randm': did you mean 'random'?"),
        (("--n-random", "-1"), "--n-random: expected a number from 0 up"),
        (("--holdout", "1.5"), "--holdout: expected a share between 0 and 1"),
        (("--engine", "fast"), "unknown engine 'fast'"),
        (("--out",), "--out needs a value"),
    ],
)
def test_a_wrong_value_stops_before_any_work(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = ROOT / "experiments" / "steering_holdout_control.py"
    assert message in bad_case.run(path, list(arguments), tmp_path, capsys).line


def test_a_mistake_in_a_process_of_its_own_is_one_line(tmp_path):
    path = ROOT / "experiments" / "steering_holdout_control.py"
    done = command(path, "--layer", "twenty", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: --layer: expected a whole number, not 'twenty'\n"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_layer_names_the_range_and_writes_nothing(
    qwen_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    script = ROOT / "experiments" / "steering_holdout_control.py"
    arguments = ["--model", str(qwen_folder), "--device", "cpu", "--layer", "20"]
    ended = bad_case.run(script, arguments, tmp_path, capsys)
    assert ended.line == "error: layer 20 is out of range: this model has layers 0 to 2"
    assert list(tmp_path.iterdir()) == []


def small(path: Path, out: Path, *, model: Path, prompts: Path, **changes: object) -> None:
    """Run a script in this process on a tiny random model."""
    module = load(path.stem)
    flags_type = module.main.__annotations__["flags"]
    flags_type = getattr(module, flags_type) if isinstance(flags_type, str) else flags_type
    settings = {"model": str(model), "prompts": str(prompts), "refusal_tokens": "I"}
    settings |= {"device": "cpu", "batch_size": 60}
    if path in STEERING:
        settings |= {
            "layer": (1,),
            "alphas": (-2.0, 0.0, 2.0),
            "n_random": 2,
            "alpha_unit": "absolute",
        }
    module.main(flags_type(**{**settings, "out": str(out), **changes}))


@pytest.fixture(scope="module")
def run_small(qwen_folder, some_prompts):
    return partial(small, model=qwen_folder, prompts=some_prompts)


@pytest.fixture(scope="module")
def main_run(run_small, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "main"
    run_small(ROOT / "experiments" / "steering_holdout_control.py", out)
    return out


@pytest.mark.parametrize("path", SCORING, **name)
def test_the_columns_of_a_steering_run_begin_as_ever(path, small_material):
    out = Path(small_run(small_material, path.stem).folder)
    assert (out / "scores.csv").read_text().startswith(CONTRACT)
    assert (out / "summary.csv").read_text().startswith(SUMMARY_CONTRACT)
    settings = read_config(out)["settings"]
    assert settings["refusal_tokens"]["refusal_texts"] == ["I"]
    assert len(settings["data"]["hash"]) == 16
    if path in STEERING:
        assert list(out.glob("direction*.safetensors"))


def test_models_are_scored_under_a_saved_direction_too(main_run, run_small, tmp_path):
    out = tmp_path / "run"
    run_small(
        ROOT / "experiments" / "score_models.py",
        out,
        direction=str(main_run / "direction.safetensors"),
        layer=(1,),
        alphas=(-2.0, 0.0, 2.0),
        alpha_unit="absolute",
        n_random=2,
    )
    columns = ["direction", "seed", "layer", "alpha", "prompt_id"]
    mine = read_table(out, "scores").set_index(columns)["score"]
    theirs = read_table(main_run, "scores").set_index(columns)["score"]
    theirs = theirs[theirs.index.isin(mine.index)]  # others take what it was learned from
    assert list(mine.sort_index().index) == list(theirs.sort_index().index)
    np.testing.assert_allclose(mine.sort_index(), theirs.sort_index(), atol=1e-5)  # other batches


def test_alpha_zero_is_the_baseline_bit_for_bit(main_run):
    scores = read_table(main_run, "scores")
    base = scores[scores["direction"] == "baseline"].set_index("prompt_id")["score"]
    zero = scores[(scores["direction"] != "baseline") & (scores["alpha"] == 0)]
    assert len(zero) == (1 + 2 * 2 + 1) * len(base)  # learned, two kinds of two draws, length
    assert (zero["score"].to_numpy() == base[zero["prompt_id"]].to_numpy()).all()
    moved = scores[(scores["direction"] == "learned") & (scores["alpha"] == 2)]
    assert (moved["score"].to_numpy() != base[moved["prompt_id"]].to_numpy()).mean() > 0.99


def test_the_main_job_on_judged_replies(small_material, tmp_path, capsys):
    typed = [*arguments(small_material, "steering_holdout_control"), f"--out={tmp_path / 'run'}"]
    replies = ["--score=replies", "--n=3", "--max-new-tokens=3"]
    cli.run(load("steering_holdout_control").main, [*typed, *replies])
    rows = read_table(tmp_path / "run", "scores")
    assert set(rows["direction"]) >= {"baseline", "learned", "random", "shuffled", "length"}
    assert set(rows["split"]) == {"holdout"}
    assert rows.groupby("subset")["prompt_id"].nunique().eq(3).all()
    assert rows["label"].notna().all()
    settings = read_config(tmp_path / "run")["settings"]
    assert settings["score"] == "replies"
    assert settings["judge"]["name"] == "builtin"
    assert "turns refusal, layer 1" in capsys.readouterr().out
    logits = read_config(Path(small_run(small_material, "steering_holdout_control").folder))
    assert not {"judge", "max_new_tokens", "rows"} & set(logits["settings"])


def test_train_and_holdout_are_disjoint_halves_of_edge(main_run):
    scores = read_table(main_run, "scores")
    split = scores.drop_duplicates("prompt_id").groupby(["subset", "split"]).size()
    assert set(split.index) == {
        ("EDGE", "holdout"),
        ("EDGE", "train"),
        ("HARMFUL", "holdout"),
        ("BENIGN", "holdout"),
    }
    assert abs(split["EDGE", "holdout"] - split["EDGE", "train"]) <= 1


@pytest.mark.parametrize("cut", [0.0, 0.999])
def test_an_interrupted_run_resumes_to_the_same_bytes(main_run, run_small, tmp_path, cut):
    out = tmp_path / "resumed"
    out.mkdir()
    whole = (main_run / "scores.csv").read_bytes()
    for file in ("config.json", "journal.txt"):
        (out / file).write_bytes((main_run / file).read_bytes())
    (out / "scores.csv").write_bytes(whole[: int(cut * len(whole))])
    run_small(ROOT / "experiments" / "steering_holdout_control.py", out)
    assert (out / "scores.csv").read_bytes() == whole
    assert (out / "summary.csv").read_bytes() == (main_run / "summary.csv").read_bytes()


def test_a_finished_run_is_never_written_again(main_run, run_small, capsys):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in main_run.iterdir()}
    run_small(ROOT / "experiments" / "steering_holdout_control.py", main_run)
    assert "Refusal rate" in capsys.readouterr().out
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in main_run.iterdir()}
    assert after == before


def test_the_same_folder_with_other_settings_is_refused(main_run, run_small):
    from refusal_dial.common import DialError

    with pytest.raises(DialError, match=r"holds a run with seed = 0, and this one has 1: choose"):
        run_small(ROOT / "experiments" / "steering_holdout_control.py", main_run, seed=1)


def test_examples_hold_every_prompt_with_its_exact_scores(run_small, tmp_path):
    out = tmp_path / "run"
    run_small(ROOT / "experiments" / "steering_balanced.py", out)
    lines = [json.loads(line) for line in (out / "examples.jsonl").read_text().splitlines()]
    scores = read_table(out, "scores")
    learned = scores[scores["direction"] == "learned"].set_index(["prompt_id", "alpha"])["score"]
    assert len(lines) == scores["prompt_id"].nunique()
    for line in lines:
        for alpha, score in line["scores"]["1"]:
            assert learned[line["id"], alpha] == score


@pytest.mark.parametrize(
    "script", ["plot_holdout_random_controls", "plot_controls_pareto", "plot_score_histograms"]
)
def test_plots_are_drawn_from_a_run_folder_alone(main_run, script, tmp_path, capsys):
    module = load(script)
    for attempt in ("first.html", "again.html"):
        flags = get_type_hints(module.main)["flags"]
        module.main(flags(run=str(main_run), out=str(tmp_path / attempt)))
    page = (tmp_path / "first.html").read_text()
    assert "<html" in page
    assert "plotly" in page
    assert page == (tmp_path / "again.html").read_text()
    assert f"figure: {(tmp_path / 'first.html').resolve()}" in capsys.readouterr().out


def test_a_plot_of_what_is_no_run(tmp_path):
    done = command(ROOT / "scripts" / "plot_controls_pareto.py", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 2
    assert "neither a run folder nor holds a finished run" in done.stderr


@pytest.mark.slow
def test_the_main_result_on_the_embedded_model(tmp_path):
    """The holdout direction turns refusal from rare to usual; random directions do not.
    (test_organism has layer 12 too.)"""
    module = load("steering_holdout_control")
    out = tmp_path / "run"
    turned = {"alphas": (-0.6, -0.3, 0.0, 0.3, 0.6), "alpha_unit": "residual"}  # of 13 by default
    few = {"controls": ("holdout", "random")}
    module.main(module.HoldoutFlags(layer=(20,), out=str(out), device="cpu", **turned, **few))
    summary = read_table(out, "summary")
    held = summary[(summary["subset"] == "EDGE") & (summary["split"] == "holdout")]
    learned = held[held["direction"] == "learned"].sort_values("alpha")
    rates = learned["refusal_rate"].to_numpy()
    baseline = float(held.loc[held["direction"] == "baseline", "refusal_rate"].iloc[0])
    assert rates[0] <= 0.15
    assert rates[-1] >= 0.85
    lo, hi = learned["rate_lo"].to_numpy(), learned["rate_hi"].to_numpy()
    assert (lo[:-1] <= hi[1:]).all()
    assert (learned["p_slope"].dropna() < 0.001).all()
    assert (learned["p_slope_unit"].dropna() < 0.05).all()
    assert learned["p_slope"].notna().any()
    band = random_band(held)
    assert (band["mean"] - baseline).abs().max() <= 0.10
    scores = read_table(out, "scores")
    base = scores[scores["direction"] == "baseline"].set_index("prompt_id")["score"]
    zero = scores[(scores["alpha"] == 0) & (scores["direction"] == "learned")]
    assert np.array_equal(zero["score"], base[zero["prompt_id"]])
    verdict = json.loads((out / "summary.json").read_text())["verdict"]
    edge = next(v for v in verdict if (v["subset"], v["split"]) == ("EDGE", "holdout"))
    assert edge["monotone_within_interval"]
    assert edge["lowest"]["refusal_rate"] == rates[0]
