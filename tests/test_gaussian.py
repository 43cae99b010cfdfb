"""Without an effect, ranks among the right controls are uniform, and among wrong ones are not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from refusal_dial.run.plan import compute_all
from refusal_dial.studies import calibration as gaussian
from refusal_dial.studies.calibration import (
    GAUSSIAN_ROWS,
    GAUSSIANS_A_BATCH,
    SLOPE_TESTS,
    GaussianPlan,
    rows_of,
    uniformity,
)

N = 150
SMALL = {"n_learn": 20, "n_report": 6, "draws": 4, "seed": 0}


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return compute_all(None, GaussianPlan(N, **SMALL))


FAIR = ["covariance", "shuffled", "flipped", "slope", "slope, corrected"]
FAIR += ["slope, unit length", "slope, unit length, corrected"]


@pytest.mark.parametrize("kind", FAIR)
def test_a_fair_control_has_uniform_p_values(rows, kind):
    found = uniformity(rows[rows["direction"] == kind]).iloc[0]
    assert found["n"] == N
    assert found["ks_p"] > 0.01


@pytest.mark.parametrize("kind", ["covariance", "shuffled", "slope"])
def test_the_smallest_of_two_layers_is_fair_only_when_corrected(rows, kind):
    shares = {
        name: (rows.loc[rows["direction"] == f"{kind}, {name}", "p_value"] <= 0.2).mean()
        for name in ("corrected", "smallest")
    }
    assert shares["corrected"] == pytest.approx(0.2, abs=0.08)
    assert shares["smallest"] > 0.27


def test_directions_of_labels_that_mean_nothing_beat_isotropic_ones(rows):
    found = uniformity(rows[rows["direction"] == "random"]).iloc[0]
    assert not found["uniform"]
    assert (rows.loc[rows["direction"] == "random", "p_value"] <= 0.2).mean() > 0.28


@pytest.mark.slow
def test_the_slope_is_fair_in_five_thousand_experiments():
    rows = compute_all(None, GaussianPlan(5000, 40, 8, 1, 0))
    for kind in (kind for kind in SLOPE_TESTS if kind != "slope, smallest"):
        found = uniformity(rows[rows["direction"] == kind]).iloc[0]
        assert found["uniform"], kind  # KS p > 0.01, and at most 6.5% under 0.05


def test_a_task_is_the_same_however_many_come_before_it(rows):
    plan = GaussianPlan(N - 40, **SMALL)
    rest = plan.compute(None, plan.tasks[2])
    assert len(rest) == (N - 40 - 2 * GAUSSIANS_A_BATCH) * GAUSSIAN_ROWS
    whole = rows[rows["seed"].between(2 * GAUSSIANS_A_BATCH, N - 41)].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, whole)


def test_the_seed_and_the_number_decide_an_experiment():
    one = gaussian.experiment(3, 20, 6, 4, 0)
    assert one == gaussian.experiment(3, 20, 6, 4, 0)
    scores = {gaussian.experiment(i, 20, 6, 4, s)[0]["score"] for i in (3, 4) for s in (0, 1)}
    assert len(scores) == 4


def test_a_planted_effect_has_the_smallest_p_there_is():
    null = np.random.default_rng(0).normal(size=(2, 20))
    layers = [{"learned": np.array([9.0]), "shuffled": draws} for draws in null]
    p = {row["direction"]: row["p_value"] for row in rows_of(0, layers)}
    assert p == dict.fromkeys(["shuffled", "shuffled, corrected", "shuffled, smallest"], 1 / 21)
