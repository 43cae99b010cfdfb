"""The steering pipeline, given scores that mean nothing, claims nothing; or the check sees it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from refusal_dial.cli.flags import CalibrationFlags
from refusal_dial.common import DialError
from refusal_dial.data.prompts import load_prompts, of_subset
from refusal_dial.engine.score import score_grid
from refusal_dial.run.plan import compute_all
from refusal_dial.stats.summary import summarise
from refusal_dial.studies.base import study_of
from refusal_dial.studies.calibration import (
    NULLS_A_BATCH,
    NullPlan,
    null_cells,
    null_tests,
    p_values,
    uniformity,
)
from refusal_dial.studies.steering import learn, steering_cells

N = 30


@pytest.fixture(scope="module")
def opened(embedded, tmp_path_factory):
    known = load_prompts()
    some = of_subset(known, "EDGE")[:50]
    some += [p for name in ("HARMFUL", "BENIGN") for p in of_subset(known, name)[:20]]
    path = tmp_path_factory.mktemp("prompts") / "some.jsonl"
    path.write_text("".join(json.dumps(vars(p) | {"pair_id": None}) + "\n" for p in some))
    flags = CalibrationFlags(
        prompts=str(path), layer=(22,), n_random=4, n_learn=24, n_report=3, n_experiments=N
    )
    return study_of(embedded, flags, flags.layer), flags


@pytest.fixture(scope="module")
def rows(opened, embedded):
    study, flags = opened
    return compute_all(embedded, NullPlan(study, flags, N))


def test_every_experiment_has_a_row_for_every_test(opened, rows):
    _, flags = opened
    assert (
        rows.groupby("seed", sort=False)["direction"].agg(list).to_list() == [null_tests(flags)] * N
    )
    assert rows["p_value"].between(0, 1).all()


@pytest.mark.parametrize("kind", ["shuffled", "covariance", "flipped", "slope", "slope, corrected"])
def test_labels_that_mean_nothing_give_uniform_p_values(rows, kind):
    assert uniformity(rows[rows["direction"] == kind]).iloc[0]["ks_p"] > 0.01


def test_isotropic_directions_are_no_fair_null_and_the_check_sees_it(rows):
    mine = rows[rows["direction"] == "random"]
    assert not uniformity(mine).iloc[0]["uniform"]
    assert (mine["p_value"] <= 0.2).mean() > 0.5


@pytest.mark.slow
def test_the_slope_is_fair_in_five_hundred_experiments(embedded):
    flags = CalibrationFlags(device="cpu", controls=("slope",))
    study = study_of(embedded, flags, flags.layer)
    rows = compute_all(embedded, NullPlan(study, flags, 500))
    for kind, part in rows.groupby("direction"):
        if kind != "slope, smallest":  # which nothing corrects for two layers
            found = uniformity(part).iloc[0]
            assert found["ks_p"] > 0.01, kind
            assert found["under_lo"] <= found["expected"] <= found["under_hi"], kind


def test_learning_from_the_true_scores_is_found(opened, embedded):
    """The same pipeline and controls, on true scores: the effect is further than its controls."""
    study, flags = opened
    train = of_subset(study.prompts, "EDGE")[:24]
    report = study.rows(of_subset(study.prompts, "EDGE")[24:32])
    more = replace(flags, n_random=19, controls=("covariance", "shuffled"))
    cells = steering_cells(study, more, learn(study, more, train), train)
    grid = [cell.hooks for cell in cells]
    scores = score_grid(embedded, study.tokens.chosen(report), grid, study.scorer).numpy()
    p = {row["direction"]: row["p_value"] for row in p_values(0, cells, scores)}
    assert p["shuffled"] == p["covariance"] == 1 / 20


def test_the_p_values_are_those_of_a_steering_runs_summary(opened, embedded, rows):
    study, flags = opened
    edge = of_subset(study.prompts, "EDGE")
    order = np.random.default_rng([flags.seed, 0]).permutation(len(edge))
    report = [edge[i] for i in order[24:27]]
    cells = null_cells(study, flags, 2, [edge[i] for i in order[:24]])
    grid = [cell.hooks for cell in cells]
    tokens = study.tokens.chosen(study.rows(report))
    scores = score_grid(embedded, tokens, grid, study.scorer).numpy()
    frame = pd.DataFrame(
        [
            {**cell.labels, "prompt_id": p.id, "subset": "EDGE", "split": "holdout", "score": s}
            for cell, line in zip(cells, scores, strict=True)
            for p, s in zip(report, line, strict=True)
        ]
    )
    summary = summarise(frame)
    first = summary[summary["direction"] == "learned"].iloc[0]
    mine = rows[rows["seed"] == 2].set_index("direction")["p_value"]
    assert mine["shuffled"] == first["p_shuffled"]
    assert mine["covariance"] == first["p_covariance"]
    assert mine["random"] == first["p_value"]


def test_a_task_is_the_same_whatever_comes_before_it(opened, embedded, rows):
    study, flags = opened
    short = replace(flags, n_experiments=NULLS_A_BATCH + 2)
    plan = NullPlan(study, short, NULLS_A_BATCH + 2)
    rest = plan.compute(embedded, plan.tasks[1])
    whole = rows[rows["seed"].between(NULLS_A_BATCH, NULLS_A_BATCH + 1)].reset_index(drop=True)
    assert list(rest["p_value"]) == list(whole["p_value"])
    np.testing.assert_allclose(rest["score"], whole["score"], atol=1e-6)


def test_too_few_prompts_are_said(opened, embedded):
    study, flags = opened
    with pytest.raises(DialError, match=r"48 .* and 3 to report on are more than the 50 EDGE"):
        compute_all(embedded, NullPlan(study, replace(flags, n_learn=48), N))
