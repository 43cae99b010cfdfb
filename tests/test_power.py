"""How often a planted effect is found, and that nothing is where there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import verify_case

from refusal_dial.cli.flags import HoldoutFlags
from refusal_dial.data.prompts import holdout_split, of_subset
from refusal_dial.report.calibration import power_curves, print_powers
from refusal_dial.report.steering import slope_sentences
from refusal_dial.run.plan import compute_all
from refusal_dial.studies.base import study_of
from refusal_dial.studies.calibration import (
    POWER_RHOS,
    POWER_SIZES,
    POWER_TESTS,
    PowerPlan,
    planted_effect,
    powers,
)
from refusal_dial.studies.steering import learn, slope_tests


def share(n: int, rho: float, test: str, trials: int = 50) -> float:
    rows = [row for i in range(trials) for row in planted_effect(i, n, rho, 1)]
    table = powers(pd.DataFrame(rows)).set_index("direction")
    return float(table.loc[test, "power"])


@pytest.mark.parametrize("test", ["slope", "slope, unit length", "shuffled"])
def test_a_fair_test_finds_nothing_where_nothing_is_planted(test):
    assert share(20, 0.0, test) < 0.15


def test_isotropic_random_directions_are_beaten_by_labels_that_mean_nothing():
    assert share(50, 0.0, "random") > 0.15


@pytest.mark.slow
def test_a_larger_effect_is_found_more_often_and_the_slope_finds_more_than_twenty_draws():
    found = [share(20, rho, "slope") for rho in (0.0, 0.3, 0.8)]
    assert found[0] < found[1] < found[2]
    assert found[2] > 0.9
    assert share(50, 0.45, "slope") > share(50, 0.45, "shuffled")


def test_every_size_and_effect_has_a_row_a_test_in_the_table_and_the_figure(capsys):
    plan = PowerPlan(2, 0)
    rows = compute_all(None, plan)
    assert len(rows) == sum(task.rows for task in plan.tasks)
    table = powers(rows)
    assert len(table) == len(POWER_SIZES) * len(POWER_RHOS) * len(POWER_TESTS)
    print_powers(table)
    assert "slope, permuted labels (own length)" in capsys.readouterr().out
    figure = power_curves(table, "title")
    assert len([one for one in figure.data if one.fill is None]) == 4 * len(POWER_SIZES)


# --- the three controls of the demo: what its verdict must not say yes to


@pytest.fixture(scope="module")
def study(embedded, tmp_path_factory):
    prompts = verify_case.few_prompts(tmp_path_factory.mktemp("prompts") / "few.jsonl", edge=60)
    flags = HoldoutFlags(prompts=str(prompts), layer=(20,), device="cpu")
    return study_of(embedded, flags, flags.layer, flags.site, flags.pos), flags


def answer(study, flags, scores=None):
    """The demo's first line, had the prompts these scores."""
    train, held_out = holdout_split(of_subset(study.prompts, "EDGE"), 0)
    taught = study if scores is None else replace(study, scores=scores)
    learned = learn(taught, flags, train)
    tests = slope_tests(taught, flags, learned, held_out)
    return slope_sentences({"slope": tests.to_dict("records")})[0]


def test_the_verdict_says_yes_of_the_refusal_direction(study):
    about, found = answer(*study)
    assert about == "turns refusal, layer 20"
    assert found.startswith("yes, p = 0.0")
    assert "among 10,000 permuted labels (own length)" in found


def test_the_verdict_says_not_shown_of_shuffled_labels_and_of_prompt_length(study):
    opened, flags = study
    shuffled = np.random.default_rng(0).permutation(opened.scores)
    assert answer(opened, flags, shuffled)[1].startswith("not shown, p = ")
    lengths = opened.tokens.mask.sum(1).numpy().astype(float)
    assert answer(opened, flags, lengths)[1].startswith("not shown, p = ")


def test_the_verdict_says_why_there_is_no_test(study):
    opened, flags = study
    edge = of_subset(opened.prompts, "EDGE")
    learned = learn(opened, flags, edge)
    none = slope_tests(opened, flags, learned, [])
    assert none["reason"].tolist() == [
        "every EDGE prompt was learned from: hold some out (--controls holdout)"
    ]
    other = replace(learned[0], unit=-learned[0].unit)
    none = slope_tests(opened, flags, [other], edge[:8])
    assert "no labels to permute" in none["reason"][0]
