"""A preview: every row estimated from one gradient, the error measured, and nothing written."""

from __future__ import annotations

import pandas as pd
import pytest
import tiny
import torch
from bad_case import run
from script_case import ROOT
from small_runs import arguments

from refusal_dial.cells import BASELINE, SteeringPlace, alphas_in, cells_at
from refusal_dial.common import DialError
from refusal_dial.directions.learning import Provenance, from_vector
from refusal_dial.model.tokens import tokenize
from refusal_dial.run.plan import Budget, Known, SweepPlan, compute_all
from refusal_dial.run.preview import errors, preview


def scorer(logits):
    return logits.double()[:, 40] - logits.double()[:, 50]


@pytest.fixture
def plan(qwen):
    place = SteeringPlace(1, "resid_pre", -1, 3.0)
    vector = torch.arange(1.0, int(qwen.cfg.d_model) + 1)
    direction = from_vector(vector, Provenance(1, "resid_pre", -1))
    alphas = alphas_in((-0.5, 0.001, 0.5), "residual", place.norm, direction)
    cells = [BASELINE, *cells_at([("learned", None, direction)], alphas, place)]
    rows = pd.DataFrame({"prompt_id": list("abcde"), "subset": "EDGE", "split": "holdout"})
    return SweepPlan(tokenize(qwen, tiny.sentences(5)), rows, cells, scorer, Budget(2))


def test_it_has_a_row_for_every_row_of_the_run_in_its_order(qwen, plan):
    rows, exact = plan.estimate(qwen), compute_all(qwen, plan)
    assert len(rows) == len(exact) == 20
    assert (rows["prompt_id"] == exact["prompt_id"]).all()
    base = rows[rows["direction"] == "baseline"]
    assert base["score"].to_numpy() == pytest.approx(base["base"].to_numpy(), abs=1e-9)


def test_the_error_is_measured_and_falls_with_alpha(qwen, plan):
    table = errors(preview(qwen, plan).sample).set_index("alpha_relative")
    assert table.loc[0.001, "error"] < 0.02
    assert table.loc[0.5, "error"] > table.loc[0.001, "error"]
    assert table.loc[0.5, "n"] == 10


def test_what_has_no_slope_is_refused(qwen):
    with pytest.raises(DialError, match="expected a sweep of scores"):
        preview(qwen, Known(()))


@pytest.mark.parametrize("name", ["steering_holdout_control", "patch_sites", "score_models"])
def test_an_experiment_is_previewed_and_nothing_is_written(name, small_material, tmp_path, capsys):
    typed = [*arguments(small_material, name), "--preview", f"--out={tmp_path / 'run'}"]
    ended = run(ROOT / "experiments" / f"{name}.py", typed, tmp_path, capsys)
    assert ended.code == 0
    assert not ended.touched
    assert "estimated from one gradient" in ended.out
    ends = ("measured error, ", "nothing is written")
    for text in ("nothing is steered here",) if name == "score_models" else ends:
        assert text in ended.out


def test_completions_have_no_preview(small_material, tmp_path, capsys):
    for name in ("caa_refusal", "toxicity_steering"):
        path = ROOT / "experiments" / f"{name}.py"
        ended = run(path, [*arguments(small_material, name), "--preview"], tmp_path, capsys)
        assert "--preview: expected a sweep of scores" in ended.line
