"""Effect sizes by their definitions, and the smallest effect a study could have shown."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as reference

from refusal_dial.stats.p_values import (
    gap_share,
    rank_p,
    smallest_detectable,
    smallest_ranked,
    standardised,
)


def test_a_standardised_effect_is_unbiased_for_few_prompts_and_has_no_unit():
    rng = np.random.default_rng(0)
    found = [standardised(row) for row in rng.normal(0.8, 1.0, (4000, 8))]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)
    d = rng.normal(1.0, 2.0, 30)
    assert standardised(5 * d) == pytest.approx(standardised(d))
    assert standardised(-d) == -standardised(d)


def test_what_has_no_standardised_effect():
    assert standardised(np.zeros(9)) == 0.0
    assert np.isnan(standardised(np.full(9, 0.1)))
    assert np.isnan(standardised([1.0, 2.0]))
    assert np.isnan(standardised([1.0, 2.0, np.nan]))


def test_a_share_of_the_gap():
    assert gap_share(2.0, 5.0, 1.0) == 0.5
    assert gap_share(-2.0, 5.0, 1.0) == -0.5
    assert np.isnan(gap_share(2.0, 1.0, 1.0))
    assert np.isnan(gap_share(2.0, np.nan, 1.0))


@pytest.mark.parametrize("n", [5, 20, 130])
def test_the_smallest_detectable_effect_is_found_four_times_in_five(n):
    delta = smallest_detectable(2.0, n)
    rows = np.random.default_rng(n).normal(delta, 2.0, (8000, n))
    assert (reference.ttest_1samp(rows, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(
        0.8, abs=0.02
    )


def test_more_prompts_detect_less_and_none_detect_nothing():
    assert smallest_detectable(1.0, 10_000) == pytest.approx(2.8 / 100, rel=0.01)
    assert smallest_detectable(0.0, 50) == 0.0
    assert smallest_detectable(1.0, 50, power=0.9) > smallest_detectable(1.0, 50)
    assert np.isnan(smallest_detectable(1.0, 1))
    assert np.isnan(smallest_detectable(np.nan, 50))


@pytest.mark.parametrize("n", [19, 20, 99])
def test_an_effect_over_the_smallest_ranked_one_is_under_the_level_and_one_below_is_not(n):
    null = np.random.default_rng(0).normal(size=n)
    edge = smallest_ranked(null)
    assert rank_p(edge * 1.001, null) <= 0.05
    assert rank_p(edge * 0.999, null) > 0.05


def test_too_few_controls_rank_nothing():
    assert smallest_ranked(np.ones(18)) == float("inf")
    assert smallest_ranked([]) == float("inf")
