"""Intervals cover what they claim to cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from refusal_dial.common import DialError
from refusal_dial.stats.intervals import auc, expanded, mean_interval, rate_interval
from refusal_dial.studies.calibration import (
    auc_interval,
    fitted_slopes,
    gap_interval,
    rate_difference_interval,
    slope_interval,
)

LAW = settings(deadline=None, derandomize=True, max_examples=25)
QUICK = {"n_resamples": 200}
rows_of_numbers = st.integers(2, 12).flatmap(
    lambda n: st.lists(
        st.lists(st.integers(-50, 50), min_size=n, max_size=n), min_size=1, max_size=5
    )
)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rows = np.random.default_rng(1).normal(3.0, 2.0, (1200, 50))
    lo, hi = mean_interval(rows).T
    assert 0.93 <= ((lo <= 3.0) & (hi >= 3.0)).mean() <= 0.97


def test_skewed_scores_cost_little_coverage_and_both_tails_share_the_misses():
    truth = 4.0
    lo, hi = mean_interval(
        np.random.default_rng(1).gamma(truth, 1.0, (600, 50)), n_resamples=1000
    ).T
    assert 0.91 <= ((lo <= truth) & (truth <= hi)).mean() <= 0.97
    missed_below, missed_above = (hi < truth).mean(), (lo > truth).mean()
    assert max(missed_below, missed_above) < 0.06


def test_the_interval_of_a_rate_covers_the_rate():
    hits = np.random.default_rng(1).random((600, 50)) < 0.3
    lo, hi = rate_interval(hits).T
    assert 0.92 <= ((lo <= 0.3) & (hi >= 0.3)).mean() <= 0.98


def test_another_level_gives_its_own_coverage():
    rows = np.random.default_rng(2).normal(size=(600, 50))
    lo, hi = mean_interval(rows, level=0.8, n_resamples=800).T
    assert 0.75 <= ((lo <= 0) & (hi >= 0)).mean() <= 0.84


@LAW
@given(rows_of_numbers)
def test_an_interval_holds_its_mean_and_stays_within_the_values(rows):
    rows = np.array(rows, dtype=float)
    lo, hi = mean_interval(rows, **QUICK).T
    mean = rows.mean(1)
    slack = 1e-9
    assert np.isfinite([lo, hi]).all()
    assert (rows.min(1) - slack <= lo).all()
    assert (lo <= mean + slack).all()
    assert (mean <= hi + slack).all()
    assert (hi <= rows.max(1) + slack).all()


@LAW
@given(rows_of_numbers, st.integers(-20, 20), st.integers(0, 9))
def test_shifting_and_scaling_a_row_shifts_and_scales_its_interval(rows, shift, seed):
    rows = np.array(rows, dtype=float)
    plain = mean_interval(rows, seed=seed, **QUICK)
    moved = mean_interval(4.0 * rows + shift, seed=seed, **QUICK)
    np.testing.assert_allclose(moved, 4.0 * plain + shift, atol=1e-9)


def test_rows_are_paired_the_same_prompts_are_resampled_in_every_row():
    one = np.random.default_rng(0).normal(size=30)
    rows = np.stack([one, one + 5.0, one, one[::-1]])
    intervals = mean_interval(rows)
    np.testing.assert_array_equal(intervals[0], intervals[2])
    np.testing.assert_allclose(intervals[1], intervals[0] + 5.0)
    assert (intervals[3] != intervals[0]).any()  # the same values, other prompts


def test_a_rows_interval_does_not_depend_on_its_company():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 60))  # enough rows that the resampling runs in several batches
    many = mean_interval(rows, n_resamples=1500)
    np.testing.assert_allclose(mean_interval(rows[7], n_resamples=1500)[0], many[7], atol=1e-12)
    rows[3], rows[4, 0] = 1.0, np.nan
    again = mean_interval(rows, n_resamples=1500)[7]
    np.testing.assert_allclose(again, many[7], atol=1e-12)


def test_the_seed_decides_the_interval():
    row = np.random.default_rng(0).normal(size=20)
    np.testing.assert_array_equal(mean_interval(row, seed=1), mean_interval(row, seed=1))
    assert (mean_interval(row, seed=1) != mean_interval(row, seed=2)).any()


def test_more_prompts_narrow_the_interval_as_the_root_of_their_number():
    rng = np.random.default_rng(0)
    wide = np.diff(mean_interval(rng.normal(size=(200, 20)), **QUICK)).mean()
    narrow = np.diff(mean_interval(rng.normal(size=(200, 320)), **QUICK)).mean()
    assert wide / narrow == pytest.approx(4.0, rel=0.15)


def test_a_constant_row_is_its_own_interval_and_nan_or_one_prompt_has_none():
    rows = [[2.5, 2.5, 2.5], [1.0, np.nan, 2.0], [1.0, 2.0, 4.0], [np.inf, 1.0, 2.0]]
    intervals = mean_interval(rows)
    np.testing.assert_array_equal(intervals[0], [2.5, 2.5])
    assert np.isnan(intervals[[1, 3]]).all()
    assert np.isfinite(intervals[2]).all()
    assert np.isnan(mean_interval([7.0])).all()
    assert np.isnan(mean_interval([[7.0], [8.0]])).all()
    assert mean_interval([]).shape == (1, 2)


@pytest.mark.parametrize("n", [1, 2, 20, 240])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_a_rate_of_none_or_all_has_wilsons_interval(n, level):
    z = reference.norm.ppf(0.5 + level / 2)
    open_end = z**2 / (n + z**2)
    none, everything = rate_interval([[0.0] * n, [1.0] * n], level=level)
    np.testing.assert_allclose(none, [0.0, open_end], atol=1e-12)
    np.testing.assert_allclose(everything, [1 - open_end, 1.0], atol=1e-12)


def test_a_rate_in_between_has_wilsons_interval_too_and_nan_has_none():
    hits = np.array([[0.0, 1.0, 1.0, 0.0, 1.0], [0.0, np.nan, 1.0, 1.0, 0.0], [np.nan] * 5])
    intervals = rate_interval(hits)
    wilson = reference.binomtest(3, 5).proportion_ci(method="wilson")
    np.testing.assert_allclose(intervals[0], [wilson.low, wilson.high])
    assert np.isnan(intervals[1:]).all()
    assert np.isnan(rate_interval([])).all()


def test_booleans_are_hits():
    np.testing.assert_array_equal(
        rate_interval([[True, False, True]]), rate_interval([[1.0, 0.0, 1.0]])
    )


def test_the_bootstrap_is_scipys_draw_for_draw():
    rows = np.random.default_rng(0).gamma(2.0, size=(5, 40))
    theirs = reference.bootstrap(
        (rows,),
        np.mean,
        axis=1,
        confidence_level=expanded(0.95, 40),
        n_resamples=500,
        method="BCa",
        rng=np.random.default_rng(3),
    ).confidence_interval
    ours = mean_interval(rows, seed=3, n_resamples=500)
    np.testing.assert_allclose(ours, np.stack(theirs, 1), atol=1e-10)


@pytest.mark.parametrize("n", [20, 50, 200])
@pytest.mark.parametrize("shape", ["normal", "gamma"])
def test_few_prompts_cost_no_coverage(n, shape):
    rng = np.random.default_rng(3)
    rows = rng.normal(2.0, 1.0, (3000, n)) if shape == "normal" else rng.gamma(4, 0.5, (3000, n))
    lo, hi = mean_interval(rows).T
    assert 0.93 <= ((lo <= 2.0) & (hi >= 2.0)).mean() <= 0.97


@pytest.mark.parametrize("n", [20, 50, 200])
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.1), (0.1, 0.9), (0.9, 1.0)])
def test_rates_near_their_ends_are_covered(n, low, high):
    rng = np.random.default_rng(4)
    truth = rng.uniform(low, high, 20_000)
    lo, hi = rate_interval(rng.random((20_000, n)) < truth[:, None]).T
    assert 0.93 <= ((lo <= truth) & (truth <= hi)).mean() <= 0.97


def test_a_paired_difference_of_rates_is_covered_and_stays_open_where_nothing_changes():
    rng = np.random.default_rng(5)
    u = rng.random((4000, 50))
    base, hits = u < 0.1, u < 0.25  # every prompt that was hit is hit again
    lo, hi = rate_difference_interval(hits, base).T
    assert 0.93 <= ((lo <= 0.15) & (hi >= 0.15)).mean() <= 0.98
    ((low, high),) = rate_difference_interval(np.ones(20), np.ones(20))
    assert low == -high
    assert 0.05 < high < 0.2
    assert np.isnan(rate_difference_interval([0.0, np.nan], [0.0, 0.0])).all()
    assert np.isnan(rate_difference_interval([], [])).all()


@pytest.mark.parametrize("separation", [0.0, 1.5, 2.5])
def test_an_auc_is_covered(separation):
    rng = np.random.default_rng(6)
    truth = reference.norm.cdf(separation / 2**0.5)
    draws = rng.normal(size=(500, 2, 30))
    pairs = [auc_interval(a + separation, b) for a, b in draws]  # at 2.5 some do not overlap
    lo, hi = np.stack(pairs, 1)
    assert 0.93 <= ((lo <= truth) & (truth <= hi)).mean() <= 0.97


@LAW
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=9),
    st.lists(st.integers(0, 9), min_size=1, max_size=9),
)
def test_an_auc_counts_pairs_and_its_interval_mirrors(positive, negative):
    pairs = [(a > b) + (a == b) / 2 for a in positive for b in negative]
    assert auc(positive, negative) == pytest.approx(np.mean(pairs))
    low, high = auc_interval(positive, negative)
    assert 0 <= low <= auc(positive, negative) <= high <= 1
    np.testing.assert_allclose(auc_interval(negative, positive), [1 - high, 1 - low], atol=1e-9)


def test_perfect_separation_is_not_certainty():
    low, high = auc_interval(np.arange(10, 20), np.arange(10))
    assert high == 1.0
    assert 0.5 < low < 0.95
    assert np.isnan(auc_interval([], [1.0])).all()
    assert np.isnan(auc([np.nan], [1.0]))


def test_two_sets_of_prompts_have_a_gap_with_its_interval():
    rng = np.random.default_rng(7)
    draws = rng.normal(size=(800, 2, 25)) * [[1.0], [2.0]] + [[3.0], [1.0]]
    lo, hi = np.stack([gap_interval(a, b) for a, b in draws], 1)
    assert 0.93 <= ((lo <= 2.0) & (hi >= 2.0)).mean() <= 0.97
    theirs = reference.ttest_ind(*draws[0], equal_var=False).confidence_interval(0.9)
    np.testing.assert_allclose(gap_interval(*draws[0], level=0.9), [theirs.low, theirs.high])
    np.testing.assert_array_equal(gap_interval([2.0, 2.0], [1.0, 1.0]), [1.0, 1.0])
    assert np.isnan(gap_interval([1.0], [1.0, 2.0])).all()


def test_the_mean_of_the_slopes_is_the_slope_of_the_mean():
    rng = np.random.default_rng(8)
    alphas, scores = np.array([-2.0, 0.0, 1.0, 4.0]), rng.normal(size=(4, 30))
    expected = reference.linregress(alphas, scores.mean(1)).slope
    assert fitted_slopes(scores, alphas).mean() == pytest.approx(expected)
    with pytest.raises(DialError, match=r"at least two different alphas, not \[1.0, 1.0\]"):
        fitted_slopes(scores[:2], [1.0, 1.0])


def test_a_slope_over_prompts_is_covered_and_a_constant_has_none():
    rng = np.random.default_rng(9)
    x = rng.normal(size=(800, 20))
    y = 0.5 * x + rng.normal(size=x.shape) * np.sqrt(0.5 + x**2 / 2)
    lo, hi = np.stack([slope_interval(a, b) for a, b in zip(x, y, strict=True)], 1)
    assert 0.92 <= ((lo <= 0.5) & (hi >= 0.5)).mean() <= 0.97
    line = np.arange(5.0)
    np.testing.assert_allclose(slope_interval(line, 3 * line + 1), [3.0, 3.0])
    assert np.isnan(slope_interval([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])).all()


def test_a_rate_of_what_is_no_hit_is_refused():
    with pytest.raises(DialError, match="hits, which are 0 or 1"):
        rate_interval([0.0, 1.5])
