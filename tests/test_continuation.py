"""Continuations steered on a tiny random model: pairing, controls, resuming, and what is left."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from refusal_dial.cli.flags import ContinuationFlags, LayerFlags, PlotFlags
from refusal_dial.generate.decode import Decoding
from refusal_dial.model.activations import collect_pooled
from refusal_dial.model.tokens import tokenize
from refusal_dial.report.continuation import print_continuations
from refusal_dial.run.folder import read_table
from refusal_dial.run.plan import compute_all
from refusal_dial.studies import continuation as job
from refusal_dial.studies import continuation as results
from refusal_dial.studies.continuation import (
    ContinuationPlan,
    continuation_cells,
    load_continuations,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tiny.folder("Phi3", tmp_path_factory.mktemp("phi"), template=None)
    return ContinuationFlags(
        model=str(folder),
        layer=(0, 2),
        n=6,
        n_pairs=3,
        n_random=1,
        n_shuffled=1,
        samples=2,
        max_new_tokens=5,
        batch_size=4,
        device="cpu",
    )


@pytest.fixture(scope="module")
def opened(flags):
    return load_continuations(flags)


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    job.conduct_continuations("toxicity_steering", replace(flags, out=str(out)))
    return out


def test_pooling_is_the_mean_over_the_last_real_tokens(opened):
    texts = ["a b c d e f", "g h"]
    tokens = tokenize(opened.model, texts, chat=False)
    pooled = collect_pooled(opened.model, tokens, (0,), 3)[0]
    alone = tokenize(opened.model, texts[1:], chat=False)
    embedded = opened.model.original_model.get_input_embeddings()(alone.ids)[0].detach()
    torch.testing.assert_close(pooled[1], embedded[-3:].mean(0), atol=1e-5, rtol=1e-5)
    many = collect_pooled(opened.model, tokens, (0,), 99)[0]
    torch.testing.assert_close(many[1], embedded.mean(0), atol=1e-5, rtol=1e-5)


def test_the_scale_is_that_of_the_last_tokens(opened, flags):
    last = collect_pooled(
        opened.model,
        tokenize(opened.model, [p.text for p in opened.openings.learn], chat=False),
        (2,),
        1,
    )[0]
    hostile, friendly = last[:3], last[3:]
    far = float((hostile.mean(0) - friendly.mean(0)).norm())
    assert opened.distance(2) == pytest.approx(far, rel=1e-4)
    norms = last.norm(dim=-1)
    assert opened.residual_norm(2) == pytest.approx(float(norms.mean()), rel=1e-5)


def test_controls_are_as_long_and_alpha_zero_has_no_hooks(opened, flags):
    cells = continuation_cells(opened, flags)
    assert len(cells) == 1 + 2 * (3 + 2 * 2)
    for cell in cells:
        if cell.labels["strength"] == 0:
            assert not cell.hooks
            continue
        vector = cell.hooks[0][1].operation.vector
        assert float(vector.norm()) == pytest.approx(abs(cell.labels["alpha"]), rel=1e-4)


def test_alpha_zero_is_the_baseline_and_the_machine_does_not_matter(opened, flags):
    cells = continuation_cells(opened, replace(flags, n_random=0, n_shuffled=0))
    rows = job.opening_rows(opened, 0)
    frames = []
    for size, at_once in ((4, 512), (12, 40)):
        decoding = Decoding(5, 0.7, 0.9, 2, 0, at_once)
        plan = ContinuationPlan(opened.tokens, rows, cells, opened.scorer, decoding, size)
        frame = compute_all(opened.model, plan)
        assert len(frame) == sum(task.rows for task in plan.tasks) == 12 * 2 * len(cells)
        keys = ["direction", "layer", "strength", "prompt_id", "sample"]
        frames.append(frame.sort_values(keys).reset_index(drop=True))
    assert list(frames[0]["completion"]) == list(frames[1]["completion"])
    one = frames[0].set_index(["direction", "strength", "prompt_id", "sample"])["completion"]
    for prompt in rows["prompt_id"]:
        for sample in (0, 1):
            same = one.loc[("baseline", 0.0, prompt, sample)]
            assert set(one.loc[("learned", 0.0, prompt, sample)]) == {same}


def test_random_weights_show_no_effect_and_the_run_is_complete(whole, capsys):
    record = json.loads((whole / results.COMPLETE).read_text())
    assert record["status"] == "complete"
    assert record["rows"] == len(read_table(whole, "scores")) == 12 * 2 * 15
    assert len((whole / results.STEPS_FILE).read_text().splitlines()) == 3
    summary = read_table(whole, "summary")
    assert not (whole / results.PARTIAL).exists()
    zero = summary[(summary["direction"] == "learned") & (summary["strength"] == 0)]
    assert (zero[["difference", "diff_lo", "diff_hi"]] == 0).all(axis=None)
    script = runpy.run_path(str(ROOT / "experiments/analyze_layers.py"))
    script["main"](LayerFlags(load_existing=str(whole)))
    printed = capsys.readouterr().out
    assert "best layer on one half" in printed
    assert "after Holm's correction over layers: no difference that these prompts show" in printed


def test_figures_and_statistics_come_from_the_run_alone(whole, tmp_path, capsys):
    script = runpy.run_path(str(ROOT / "scripts/plot_toxicity.py"))
    script["main"](PlotFlags(run=str(whole), out=str(tmp_path)))
    names = {path.stem for path in tmp_path.glob("*.html")}
    assert names == {"alpha_sweep", "heatmap_subset", "heatmap_layer", "distributions", "layers"}
    assert (tmp_path / "statistics.csv").read_text().startswith("layer,subset,strength,mean,std")
    assert "CHALLENGING" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "name", "status"),
    [
        (KeyboardInterrupt(), results.PARTIAL, "interrupted"),
        (RuntimeError("the disk is on fire"), results.FAILED, "failed"),
    ],
)
def test_what_ends_a_run_leaves_its_results_and_an_interrupted_one_resumes_to_the_same_bytes(
    flags, whole, tmp_path, monkeypatch, error, name, status
):
    real, calls = job.note_step, []

    def stopping(run, what):
        calls.append(what)
        if len(calls) == 1:  # its rows are on disk
            raise error
        real(run, what)

    again = replace(flags, out=str(tmp_path / "run"))
    with monkeypatch.context() as patched:
        patched.setattr(job, "note_step", stopping)
        with pytest.raises(type(error)):
            job.conduct_continuations("toxicity_steering", again)
    record = json.loads((tmp_path / "run" / name).read_text())
    assert record["status"] == status
    assert record["rows"] == 4 * 2 * 15
    if status == "failed":
        assert record["error"] == {"type": "RuntimeError", "message": "the disk is on fire"}
        return
    job.conduct_continuations("toxicity_steering", again)
    assert (tmp_path / "run" / "scores.csv").read_bytes() == (whole / "scores.csv").read_bytes()
    assert (tmp_path / "run" / results.COMPLETE).is_file()
    assert not (tmp_path / "run" / name).exists()


def test_the_result_file_of_an_earlier_start_goes(flags, tmp_path, monkeypatch):
    again = replace(flags, out=str(tmp_path / "run"))
    for error, name in ((KeyboardInterrupt(), results.PARTIAL), (OSError("no"), results.FAILED)):

        def stopping(run, what, error=error):
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(job, "note_step", stopping)
            with pytest.raises(type(error)):
                job.conduct_continuations("toxicity_steering", again)
        left = {path.name for path in (tmp_path / "run").glob("*_results.json")}
        assert left == {name}


def test_the_table_names_its_controls_and_both_p_values(whole, capsys):
    summary = read_table(whole, "summary")
    print_continuations(summary, {"CHALLENGING": 0.5, "BENIGN": 0.25}, "residual")
    printed = capsys.readouterr().out
    assert "shuffled x1" in printed
    assert "p rank: of the difference among those of directions from shuffled labels" in printed
    assert "the openings themselves: CHALLENGING 0.500, BENIGN 0.250" in printed
    whole_split = summary[summary["split"] == "all"]
    keys = (whole_split["direction"] == "random") & (whole_split["layer"] == 0)
    one = whole_split[keys & (whole_split["subset"] == "BENIGN") & (whole_split["strength"] == 0.5)]
    (difference,) = one["difference"]
    assert f"random x1 at 0.5, BENIGN: [{difference:+.3f}, {difference:+.3f}]" in printed
