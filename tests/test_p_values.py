"""A p-value is valid under its null, exact where it says so, and corrected for company."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from refusal_dial.common import DialError
from refusal_dial.stats.p_values import (
    benjamini_hochberg,
    holm,
    max_t_p,
    rank_p,
    sign_flip_p,
)

LAW = settings(deadline=None, derandomize=True, max_examples=25)
some_p = st.lists(st.floats(0, 1), min_size=1, max_size=12)

# --- ranks among controls


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


# --- many cells at once


def ranks(effects, null):
    """Each cell's p among its own column of the null."""
    return np.array([rank_p(one, null[:, c]) for c, one in enumerate(effects)])


def test_the_smallest_corrected_p_of_a_family_is_valid_under_the_null():
    """26 cells that move together, as alphas do: any p under 0.05 is as rare as it says, where
    uncorrected ones would be a lie."""
    rng = np.random.default_rng(1)
    scale = np.linspace(0.1, 10, 26)
    draws = (rng.normal(size=(400, 20, 1)) + rng.normal(size=(400, 20, 26))) * scale
    corrected = np.array([max_t_p(one[0], one[1:]).min() for one in draws])
    plain = np.array([ranks(one[0], one[1:]).min() for one in draws])
    for a in (0.05, 0.1, 0.25, 0.5):
        assert (corrected <= a + 1e-12).mean() <= a + 3 * np.sqrt(a * (1 - a) / 400)
    assert (plain <= 0.05).mean() > 0.2


def test_a_corrected_p_resolves_what_the_draws_resolve_and_is_never_below_its_own():
    rng = np.random.default_rng(2)
    null = rng.normal(size=(20, 300))
    strong = np.full(300, 50.0)
    assert (max_t_p(strong, null) == 1 / 21).all()
    assert (holm(ranks(strong, null)) == 1.0).all()  # the price of ranks under Holm
    weak = rng.normal(size=300)
    assert (max_t_p(weak, null) >= ranks(weak, null) - 1e-12).all()
    assert max_t_p(weak[:1], null[:, :1])[0] == rank_p(weak[0], null[:, 0])


def test_a_cell_in_which_nothing_moves_has_p_one_and_nan_stays_nan():
    null = np.array([[0.0, 1.0, 0.5], [0.0, -2.0, 0.5]])
    p = max_t_p([0.0, 9.0, np.nan], null)
    assert p[0] == 1.0
    assert p[1] == pytest.approx(1 / 3)
    assert np.isnan(p[2])
    assert np.isnan(max_t_p([1.0], np.zeros((0, 1)))).all()
    with pytest.raises(DialError, match="2 effects and a null"):
        max_t_p([1.0, 2.0], [[1.0]])
    with pytest.raises(DialError, match="1 of 2 null effects are NaN"):
        max_t_p([1.0, 2.0], [[1.0, np.nan]])


# --- permutations


def test_a_sign_flip_p_is_a_share_of_all_signs():
    assert sign_flip_p([1.0, 1.0, 1.0, 1.0])[0] == 2 / 16
    assert sign_flip_p([1.0, -1.0])[0] == 1.0
    assert sign_flip_p([0.0, 0.0, 3.0])[0] == sign_flip_p([0.0])[0] == 1.0
    assert sign_flip_p(np.ones(30))[0] == pytest.approx(1 / 10_000)
    assert np.isnan(sign_flip_p([1.0, np.nan])).all()
    assert np.isnan(sign_flip_p([])).all()


@pytest.mark.parametrize("n", [5, 13])
def test_few_pairs_have_their_exact_p(n):
    d = np.random.default_rng(n).normal(0.3, 1.0, n)
    sums = np.array([np.dot(signs, d) for signs in product([-1, 1], repeat=n)])
    exact = (np.abs(sums) >= abs(d.sum()) - 1e-9).mean()
    np.testing.assert_allclose(sign_flip_p(np.stack([d, -d, 10 * d])), exact)


@pytest.mark.parametrize("n", [8, 20])
def test_p_is_uniform_where_signs_are_free(n):
    p = sign_flip_p(np.random.default_rng(5).normal(size=(600, n)), n_permutations=999)
    for level in (0.05, 0.2, 0.5):
        assert (p <= level).mean() == pytest.approx(level, abs=0.05)


# --- corrections


@given(some_p)
def test_holm_is_monotone_between_p_and_bonferroni(p):
    found = holm(p)
    assert (found >= np.array(p) - 1e-12).all()
    assert (found <= np.minimum(1, len(p) * np.array(p)) + 1e-12).all()
    assert (np.diff(found[np.argsort(p, kind="stable")]) >= 0).all()


@given(some_p)
def test_benjamini_hochberg_is_between_p_and_holm(p):
    found = benjamini_hochberg(p)
    assert (found >= np.array(p) - 1e-12).all()
    assert (found <= holm(p) + 1e-12).all()


def test_corrections_by_hand_and_nan_is_not_counted():
    p = [0.01, 0.04, 0.03, np.nan]
    np.testing.assert_allclose(holm(p), [0.03, 0.06, 0.06, np.nan])
    np.testing.assert_allclose(benjamini_hochberg(p), [0.03, 0.04, 0.04, np.nan])
    assert np.isnan(holm([np.nan])).all()
    assert np.isnan(benjamini_hochberg([np.nan])).all()
