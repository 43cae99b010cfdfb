"""Intervals hold the truth as often as they say, and the count sees it where they do not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from refusal_dial.run.plan import compute_all
from refusal_dial.studies import calibration as coverage
from refusal_dial.studies.calibration import (
    CASES,
    SIZES,
    TRIALS,
    Case,
    CoveragePlan,
    count_covered,
    covered,
)

FAIR = [
    ("mean", "normal"),
    ("paired difference", "skewed"),
    ("rate", "0 to 0.1"),
    ("rate", "0.9 to 1"),
    ("rate difference", "up 0.3, down 0.1"),
    ("difference of two sets", "exponential"),
    ("slope over prompts", "uneven noise"),
    ("AUC", "0.95"),
    ("choice of the best of ten", "reported on other prompts"),
]


def case_of(interval: str, law: str) -> Case:
    return next(case for case in CASES if (case.interval, case.law) == (interval, law))


def coverage_of(case: Case, n: int, trials: int = 600) -> float:
    return float(count_covered(case, n, trials, seed=0, number=0)["score"])


@pytest.mark.parametrize(("interval", "law"), FAIR)
def test_a_nominal_95_percent_interval_covers_93_to_97(interval, law):
    assert 0.92 <= coverage_of(case_of(interval, law), 50) <= 0.98


def test_choosing_and_reporting_on_the_same_prompts_is_seen():
    same = case_of("choice of the best of ten", "reported on the same")
    row = count_covered(same, 50, 1000, seed=0, number=0)
    assert row["score"] < 0.85
    assert row["below"] == 0
    assert row["above"] == round(1000 * (1 - row["score"]))


def test_an_interval_that_takes_a_standard_error_for_a_half_width_is_seen():
    def narrow(rng, trials, n):
        rows = rng.normal(size=(trials, n))
        mean, error = rows.mean(1), rows.std(1, ddof=1) / np.sqrt(n)
        return np.stack([mean - error, mean + error], 1), 0.0

    rows = pd.DataFrame([count_covered(Case("mean", "narrow", narrow), 50, 1000, 0, 0)])
    (found,) = covered(rows).to_dict("records")
    assert found["coverage"] == pytest.approx(0.68, abs=0.05)
    assert not found["kept"]


def test_tasks_add_up_and_each_is_the_same_alone(monkeypatch):
    monkeypatch.setattr(coverage, "CASES", [case_of(*one) for one in FAIR[2:5]])
    plan = CoveragePlan(TRIALS + 10, seed=3)
    assert [len(task.prompts) for task in plan.tasks[:2]] == [TRIALS, 10]
    whole = compute_all(None, plan)
    fifth = plan.compute(None, plan.tasks[5])
    pd.testing.assert_frame_equal(fifth, whole[5:6].reset_index(drop=True))
    table = covered(whole)
    assert list(table["n"]) == 3 * list(SIZES)
    assert (table["trials"] == TRIALS + 10).all()
    first = whole[:2]
    missed = (first["below"] + first["above"]).sum()
    assert table["coverage"].iloc[0] == pytest.approx(1 - missed / (TRIALS + 10))


def test_every_batch_has_random_numbers_of_its_own():
    case = case_of("mean", "normal")
    widths = {
        count_covered(case, 20, 5, seed, number)["width"] for seed in (0, 1) for number in (0, 1)
    }
    assert len(widths) == 4
