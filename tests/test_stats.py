"""Intervals cover what they claim to cover, and a p-value is valid under its null."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from refusal_dial.stats import mean_interval, rank_p, rate_interval
from refusal_dial.types import DialError

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
    lo, hi = rate_interval(hits, n_resamples=1000).T
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
    np.testing.assert_array_equal(mean_interval(rows[7], n_resamples=1500)[0], many[7])
    rows[3], rows[4, 0] = 1.0, np.nan
    np.testing.assert_array_equal(mean_interval(rows, n_resamples=1500)[7], many[7])


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


def test_a_rate_in_between_has_the_bootstraps_interval_and_nan_has_none():
    hits = np.array([[0.0, 1.0, 1.0, 0.0, 1.0], [0.0, np.nan, 1.0, 1.0, 0.0], [np.nan] * 5])
    intervals = rate_interval(hits)
    np.testing.assert_array_equal(intervals, mean_interval(hits))
    assert np.isnan(intervals[1:]).all()
    assert ((intervals[0] >= 0) & (intervals[0] <= 1)).all()


def test_booleans_are_hits():
    np.testing.assert_array_equal(
        rate_interval([[True, False, True]]), rate_interval([[1.0, 0.0, 1.0]])
    )


# --- the rank of an effect


def test_p_is_uniform_when_the_effect_is_one_more_draw_from_the_null():
    rng = np.random.default_rng(0)
    n = 19
    draws = rng.normal(size=(2000, n + 1))
    p = np.array([rank_p(row[0], row[1:]) for row in draws])
    levels = np.arange(1, n + 2) / (n + 1)
    assert set(np.round(p, 12)) <= set(np.round(levels, 12))
    counts = np.array([(np.isclose(p, level)).sum() for level in levels])
    assert reference.chisquare(counts).pvalue > 0.01
    assert reference.kstest(p - rng.random(2000) / (n + 1), "uniform").pvalue > 0.01
    for a in (0.05, 0.1, 0.25, 0.5):
        assert (p <= a + 1e-12).mean() <= a + 3 * np.sqrt(a * (1 - a) / 2000)


def test_a_true_effect_gets_the_smallest_p_that_the_null_allows():
    assert rank_p(100.0, np.zeros(19)) == 1 / 20
    assert rank_p(-100.0, np.zeros(99)) == 1 / 100


@LAW
@given(
    st.integers(-9, 9).map(float),
    st.lists(st.integers(-9, 9).map(float), min_size=1, max_size=20),
)
def test_p_counts_the_null_at_least_as_far_from_zero_ties_included(effect, null):
    far = sum(abs(draw) >= abs(effect) for draw in null)
    p = rank_p(effect, null)
    assert p == (1 + far) / (1 + len(null))
    assert 1 / (1 + len(null)) <= p <= 1
    assert p == rank_p(-effect, null) == rank_p(effect, [-x for x in null])
    assert p == rank_p(effect, null[::-1])
    assert rank_p(effect + np.copysign(1, effect), null) <= p


def test_without_an_effect_p_is_one_and_ties_count_against_it():
    assert rank_p(0.0, [0.0] * 20) == 1.0
    assert rank_p(2.0, [2.0, -2.0, 1.0]) == 3 / 4


def test_no_null_or_no_effect_has_no_p():
    assert np.isnan(rank_p(1.0, []))
    assert np.isnan(rank_p(float("nan"), [1.0]))
    assert np.isnan(rank_p(float("inf"), [1.0]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_missing_control_is_an_error_and_not_a_weak_control(bad):
    with pytest.raises(DialError, match="2 of 3 null effects are NaN"):
        rank_p(1.0, [0.5, bad, bad])
