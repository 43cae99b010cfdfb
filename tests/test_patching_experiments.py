"""The patching scripts as people run them: the run they leave, resuming, mistakes, the result."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pairs_case
import pandas as pd
import pytest
import tiny
from script_case import load
from small_runs import arguments, small_run

from refusal_dial.cli import command_line as cli
from refusal_dial.common import DialError
from refusal_dial.model.loading import EMBEDDED
from refusal_dial.run.folder import read_config, read_table
from refusal_dial.studies.pairs import far_apart
from refusal_dial.studies.patching import PATCH_COLUMNS, Patching, by_role, lay_out, patched
from refusal_dial.studies.patching_summary import PATCH_SUMMARY as SUMMARY_COLUMNS
from refusal_dial.studies.patching_summary import moved, summarise_patching

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ("patch_sites", "patch_resid_pre", "patch_last_k", "attribution_patching")


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory) -> str:
    return pairs_case.write(tmp_path_factory.mktemp("prompts") / "pairs.jsonl")


def small(name: str, model: Path, prompts: str, out: Path, **changes: Any) -> None:
    """Run a script in this process on a tiny random model."""
    module = load(name)
    flags_type = next(
        kind
        for kind in (getattr(module, "Flags", None), getattr(module, "PatchingFlags", None))
        if kind is not None
    )
    settings: dict[str, Any] = {"model": str(model), "prompts": prompts, "refusal_tokens": "I"}
    settings |= {"device": "cpu", "gap": 0.0, "batch_size": 4, "out": str(out)} | changes
    known = {f.name for f in fields(flags_type)}
    module.main(flags_type(**{k: v for k, v in settings.items() if k in known}))


@pytest.fixture(scope="module")
def runs(small_material) -> dict[str, Path]:
    """The small run of every experiment (`small_runs`)."""
    return {name: Path(small_run(small_material, name).folder) for name in EXPERIMENTS}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_counts_its_pairs_and_has_its_columns(runs, name):
    scores, summary = (read_table(runs[name], table) for table in ("scores", "summary"))
    assert list(scores.columns) == [*PATCH_COLUMNS, "reason"]
    assert list(summary.columns) == SUMMARY_COLUMNS
    settings = read_config(runs[name])["settings"]
    assert settings["pairs"]["matched"] == 16
    assert settings["pairs"]["used"] == 4
    assert {"patch", "same_class", "random"} <= set(scores["direction"])
    verdict = json.loads((runs[name] / "summary.json").read_text())
    assert verdict["pairs"] == settings["pairs"]
    assert verdict["verdict"]
    assert ("agreement" in verdict) == (name == "attribution_patching")


def test_what_was_patched_is_what_was_asked_for(runs):
    sites = read_table(runs["patch_sites"], "scores")
    assert set(sites["site"]) == {"resid_pre", "resid_mid", "attn_out", "mlp_out"}
    assert set(sites["role"]) == {"end-1"}
    assert set(sites["layer"]) == {1, 2}
    roles = read_table(runs["patch_resid_pre"], "scores")
    assert set(roles["layer"]) == {1, 2}
    assert set(roles["way"]) == {"noise"}
    assert {"start+1", "before-1", "phrase-1", "after+1", "end-1"} <= set(roles["role"])
    last = read_table(runs["patch_last_k"], "scores")
    assert set(last["role"]) == {"end-2", "end-1", "end-2..end-1"}
    assert set(last["site"]) == {"mlp_out"}
    both = read_table(runs["attribution_patching"], "scores")
    assert set(both["way"]) == {"denoise", "noise"}
    exact = both[both["direction"] == "patch"]
    cells = ["layer", "site", "role", "head"]
    assert exact.groupby(cells, dropna=False).ngroups == 5
    guess = both[both["direction"] == "attribution"]
    at_each = 2 * 4 + 2 * 4  # layers by sites, and by heads
    assert guess.groupby(cells, dropna=False).ngroups == at_each * guess["role"].nunique()
    assert guess["role"].nunique() > 5
    assert set(guess["site"]) == {"resid_pre", "resid_mid", "attn_out", "mlp_out", "z"}


@pytest.mark.parametrize("name", ["patch_sites", "attribution_patching"])
def test_a_finished_run_is_read_and_not_computed(
    runs, small_material, name, tmp_path, capsys, monkeypatch
):
    from refusal_dial.studies import patching as patching_job

    monkeypatch.setattr(patching_job, "attributed", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr(patching_job.PatchPlan, "compute", lambda *_: pytest.fail("computed again"))
    out = tmp_path / "run"
    shutil.copytree(runs[name], out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    cli.run(load(name).main, [*arguments(small_material, name), f"--out={out}"])
    assert "Cells that moved most" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_pairs_that_tell_nothing_are_left_out_and_counted(
    qwen_folder, prompts_file, tmp_path, caplog
):
    few = {"layer": (0,), "site": "attn_out"}
    small("patch_sites", qwen_folder, prompts_file, tmp_path / "all", **few)
    scores = read_table(tmp_path / "all", "scores").drop_duplicates("prompt_id")
    apart = (scores["clean"] - scores["corrupted"]).abs().sort_values()
    gap = float(apart.iloc[1:3].mean())
    out = tmp_path / "run"
    with caplog.at_level("INFO", "refusal_dial"):
        small("patch_sites", qwen_folder, prompts_file, out, gap=gap, **few)
    counts = read_config(out)["settings"]["pairs"]
    assert (counts["matched"], counts["excluded"], counts["used"]) == (6, 2, 4)
    assert "4 of 6 matched pairs: 2 differ in score by less than" in caplog.text
    left = read_table(out, "scores")["prompt_id"]
    assert set(left) == set(scores["prompt_id"]) - set(scores["prompt_id"][apart.index[:2]])


def test_heads_and_neurons(qwen_folder, prompts_file, tmp_path, capsys):
    small("patch_sites", qwen_folder, prompts_file, tmp_path / "h", site="head", layer=(0, 2))
    heads = read_table(tmp_path / "h", "summary")
    assert set(heads["head"]) == {0, 1, 2, 3}
    assert "layer \\ head" in capsys.readouterr().out
    neuron = {"site": "mlp_post", "layer": (1,), "n_pairs": 2}
    small("patch_sites", qwen_folder, prompts_file, tmp_path / "n", **neuron)
    neurons = read_table(tmp_path / "n", "summary")
    assert set(neurons["neuron"]) == set(range(48))
    plot = load("plot_patching")
    for run in ("h", "n"):
        plot.main(plot.Flags(run=str(tmp_path / run)))
        assert "plotly" in (tmp_path / run / "patching.html").read_text()


def test_plots_are_drawn_from_a_run_folder_alone(runs, tmp_path, capsys):
    plot = load("plot_patching")
    for name, run in runs.items():
        alone = tmp_path / name
        shutil.copytree(run, alone)
        pages = []
        for attempt in ("first.html", "again.html"):
            plot.main(plot.Flags(run=str(alone), out=str(tmp_path / attempt)))
            pages.append((tmp_path / attempt).read_text())
        assert pages[0] == pages[1]
        assert "4 of 16 matched pairs (0 left out: scores closer than 0)" in pages[0]
    assert f"figure: {(tmp_path / 'first.html').resolve()}" in capsys.readouterr().out


def test_a_plot_of_another_experiment(runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs["patch_sites"], other)
    config = json.loads((other / "config.json").read_text())
    del config["settings"]["pairs"]
    (other / "config.json").write_text(json.dumps(config))
    plot = load("plot_patching")
    with pytest.raises(
        DialError, match=r"no setting 'pairs\.used', which .* the run is of patch_sites"
    ):
        plot.main(plot.Flags(run=str(other)))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("patch_sites", {"site": "mlp_post"}, "neurons one by one: give --layer"),
        ("patch_sites", {"layer": (7,)}, "layer 7 is out of range: this model has layers 0 to 2"),
        ("patch_last_k", {"k": 99}, "k must be from 1 to the shortest prompt's"),
        ("patch_resid_pre", {"gap": 99.0}, "none of 6 pairs differs in score by 99 or more"),
    ],
)
def test_what_cannot_be_patched_is_one_line_and_no_run(
    qwen_folder, prompts_file, tmp_path, name, changes, message
):
    with pytest.raises(DialError) as error:
        small(name, qwen_folder, prompts_file, tmp_path / "run", **changes)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_model_without_the_site(prompts_file, tmp_path):
    folder = tiny.folder("GPTNeoX", tmp_path / "model")
    small("patch_sites", folder, prompts_file, tmp_path / "run", n_pairs=2, layer=(1,))
    assert "GPTNeoXForCausalLM has no resid_mid: skipped" in (tmp_path / "run/log.txt").read_text()
    with pytest.raises(DialError, match="GPTNeoXForCausalLM has no site 'resid_mid': it has"):
        small("patch_sites", folder, prompts_file, tmp_path / "named", site="resid_mid")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("patch_sites", ("--site", "heads"), "unknown site 'heads': did you mean 'head'?"),
        ("patch_resid_pre", ("--way", "back"), "unknown way 'back'"),
        ("patch_last_k", ("--k", "0"), "--k: expected a number from 1 up"),
        ("patch_sites", ("--gap", "-1"), "--gap: expected a number from 0 up"),
        ("attribution_patching", ("--refine", "many"), "--refine: expected a whole number"),
        ("attribution_patching", ("--n-pair", "3"), "did you mean --n-pairs?"),
    ],
)
def test_a_wrong_value_stops_before_any_work(name, arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run(load(name).main, arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


# ---- on the embedded model ------------------------------------------------------------------


@pytest.fixture(scope="module")
def study():
    """The embedded model's prompts, scored."""
    if not (EMBEDDED / "config.json").is_file():
        pytest.skip("the embedded model is not there yet")
    from refusal_dial.cli.flags import StudyFlags
    from refusal_dial.studies.base import load_study

    return load_study(StudyFlags(device="cpu"))


@pytest.fixture(scope="module")
def far(study):
    """A few pairs that the model tells apart well."""
    from refusal_dial.cli.flags import PatchingFlags
    from refusal_dial.studies.patching import choose_pairs

    flags = PatchingFlags(device="cpu", gap=2.0, n_pairs=40)
    return choose_pairs(study, flags).pairs


def means(study, pairs, places) -> pd.DataFrame:
    rows = patched(study.model, Patching(pairs, places), study.scorer)
    return moved(summarise_patching(rows.assign(subset="ALL")))


@pytest.mark.slow
def test_the_effect_moves_from_the_phrase_to_the_last_position(study, far):
    n = int(study.model.cfg.n_layers)
    layers = (0, n // 4, n // 2, 3 * n // 4, n - 1)
    roles = ("phrase-1", "end-1")
    summary = means(study, far, by_role(study.model, far, layers=layers, roles=roles))
    patches = summary[summary["direction"] == "patch"]
    shares = patches.pivot(index="role", columns="layer", values="moved")
    phrase, last = shares.loc["phrase-1"], shares.loc["end-1"]
    assert phrase[0] > 0.5
    assert last[0] == 0
    assert (phrase[list(layers[2:])] < 0.2).all()
    assert (last[list(layers[2:])] > 0.5).all()
    assert list(last) == sorted(last)
    assert last[n - 1] > 0.9
    control = summary[summary["direction"] == "same_class"]["moved"]
    assert control.abs().max() < 0.12


@pytest.mark.slow
def test_attention_carries_it_at_named_layers(study, far):
    from refusal_dial.studies.patching_summary import patching_verdict

    places = lay_out(study.model, far, sites=("attn_out",))
    record = patching_verdict(means(study, far, places))[0]
    carried = [cell["layer"] for cell in record["carries"]]
    assert carried
    assert record["most"]["moved"] > 0.1
    assert len(carried) < len(places)
    assert abs(record["furthest_same_class"]["moved"]) < 0.1


@pytest.mark.slow
def test_both_engines_patch_the_embedded_model_alike(study, far):
    from refusal_dial.run.plan import Budget

    pairs = far.chosen(range(4))
    places = by_role(study.model, pairs, layers=(1,), roles=("phrase-1", "after+1", "end-1"))
    tables = [
        patched(study.model, Patching(pairs, places, budget=Budget(engine=engine)), study.scorer)
        for engine in ("auto", "plain")
    ]
    assert (tables[0]["score"] - tables[1]["score"]).abs().max() < 1e-5


@pytest.mark.slow
def test_every_embedded_pair_has_one_phrase(study):
    from refusal_dial.studies.pairs import match

    pairs = match(study.model, study.prompts, study.tokens)
    for pair in pairs.items:
        assert pair.where("phrase-1") is not None
        assert pair.where("end-1") == (-1, -1)
    place = {prompt.id: i for i, prompt in enumerate(study.prompts)}
    clean = study.scores[[place[pair.clean.id] for pair in pairs.items]]
    corrupted = study.scores[[place[pair.corrupted.id] for pair in pairs.items]]
    assert len(far_apart(clean, corrupted, 1.0)) > 0.8 * len(pairs)
    assert np.mean(clean > corrupted) > 0.9
