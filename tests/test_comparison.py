"""What a summary says of a cell beside its controls: p by kind, corrected p, and sizes."""

from __future__ import annotations

import frames
import numpy as np
import pandas as pd
import pytest

from refusal_dial.stats.p_values import holm, max_t_p, rank_p, smallest_ranked, standardised
from refusal_dial.stats.summary import ADDED, CORRECTED, RANKED, fairest_p, summarise

KINDS = ("random", "covariance", "shuffled")


def scores(n_draws=9, alphas=(-2.0, 0.0, 2.0), layers=(3, 7), effect=0.0):
    """A sweep with three kinds of control that move scores at random, and a learned direction that
    is one more draw, plus `effect` times alpha."""
    rng = np.random.default_rng(0)
    pushes: dict[object, float] = {}

    def score(direction, seed, layer, alpha, subset, i):
        start = {"HARMFUL": 4.0, "BENIGN": -4.0}.get(subset, 0.0) + 0.1 * i
        push = pushes.setdefault((direction, seed, layer), float(rng.normal()))
        if direction == "learned":
            push += effect
        return start if direction == "baseline" else start + alpha * push * (1 + 0.01 * i)

    groups = [("EDGE", "holdout"), ("HARMFUL", "holdout"), ("BENIGN", "holdout")]
    frame = frames.scores(score, layers=layers, alphas=alphas, n_random=n_draws, groups=groups)
    more = [frame]
    for kind in KINDS[1:]:
        random = frame[frame["direction"] == "random"]
        other = frames.scores(
            lambda d, s, *rest, kind=kind: score(kind if d == "random" else d, s, *rest),
            layers=layers,
            alphas=alphas,
            n_random=n_draws,
            groups=groups,
        )
        assert len(other) == len(frame)
        more.append(other[other["direction"] == "random"].assign(direction=kind))
        assert len(more[-1]) == len(random)
    return pd.concat(more, ignore_index=True)


@pytest.fixture(scope="module")
def summary():
    return summarise(scores())


def group(summary, subset="EDGE", **where):
    rows = summary[summary["subset"] == subset]
    for name, value in where.items():
        rows = rows[rows[name] == value]
    return rows


@pytest.mark.parametrize("kind", KINDS)
def test_each_p_is_the_rank_among_its_own_kind(summary, kind):
    for _, one in group(summary, direction="learned").iterrows():
        null = group(summary, direction=kind, layer=one["layer"], alpha=one["alpha"])
        assert len(null) == 9
        assert one[RANKED[kind]] == rank_p(one["shift"], null["shift"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_corrected_p_is_that_of_the_largest_effect_over_layers_and_alphas(summary, kind):
    learned = group(summary, direction="learned")
    null = [
        [
            group(summary, direction=kind, layer=layer, alpha=alpha, seed=seed)["shift"].iloc[0]
            for layer, alpha in zip(learned["layer"], learned["alpha"], strict=True)
        ]
        for seed in range(9)
    ]
    np.testing.assert_allclose(learned[CORRECTED[kind]], max_t_p(learned["shift"], null))
    assert (learned[CORRECTED[kind]] >= learned[RANKED[kind]] - 1e-12).all()


def test_holm_is_over_the_cells_that_do_something_among_shuffled_labels(summary):
    learned = group(summary, direction="learned")
    acting = learned["alpha"] != 0
    expected = holm(learned.loc[acting, "p_shuffled"])
    np.testing.assert_allclose(learned.loc[acting, "p_holm"], expected)
    assert (learned.loc[~acting, ["p_holm", "p_bh", "p_corrected"]] == 1.0).all(axis=None)


def test_sizes_are_by_their_definitions(summary):
    rows = scores()
    edge = rows[(rows["subset"] == "EDGE") & (rows["layer"] == 3) & (rows["alpha"] == 2.0)]
    base = rows[(rows["subset"] == "EDGE") & (rows["direction"] == "baseline")]
    mine = edge[edge["direction"] == "learned"]["score"].to_numpy() - base["score"].to_numpy()
    one = group(summary, direction="learned", layer=3, alpha=2.0).iloc[0]
    assert one["shift"] == pytest.approx(mine.mean())
    assert one["effect_size"] == pytest.approx(standardised(mine))
    assert one["gap_share"] == pytest.approx(mine.mean() / 8.0)
    shuffled = group(summary, direction="shuffled", layer=3, alpha=2.0)["shift"]
    assert smallest_ranked(shuffled) == one["detectable"] == float("inf")  # 9 draws show nothing


def test_twenty_draws_can_show_an_effect_and_say_how_large():
    summary = summarise(scores(n_draws=20, layers=(3,), effect=9.0))
    one = group(summary, direction="learned", alpha=2.0).iloc[0]
    assert one["p_shuffled_corrected"] == 1 / 21
    assert 0 < one["detectable"] < abs(one["shift"])
    shuffled = group(summary, direction="shuffled", alpha=2.0)["shift"]
    assert one["detectable"] >= shuffled.abs().max()


def test_controls_and_baseline_have_no_p_and_a_run_of_before_has_fewer(summary):
    tests = ["p_value", *(name for name in ADDED if name.startswith("p_"))]
    others = summary[summary["direction"] != "learned"]
    assert others[tests].isna().all(axis=None)
    alone = summarise(frames.scores(frames.dial))
    assert alone[["p_covariance", "p_shuffled", "p_shuffled_corrected"]].isna().all(axis=None)
    learned = alone[alone["direction"] == "learned"]
    assert learned[["p_value", "p_corrected", "p_holm", "p_bh"]].notna().all(axis=None)
    assert alone["gap_share"].isna().all()  # no BENIGN prompts


def test_without_a_baseline_nothing_is_compared():
    rows = scores()
    assert summarise(rows[rows["direction"] != "baseline"])[ADDED].isna().all(axis=None)


def test_a_draw_that_is_missing_counts_as_no_weaker():
    rows = scores(n_draws=19, effect=50.0)
    whole = summarise(rows)
    sick = (rows["direction"] == "shuffled") & (rows["seed"] == 4) & (rows["layer"] == 7)
    broken = summarise(rows.assign(score=rows["score"].mask(sick)))
    before, after = (
        group(s, direction="learned", layer=3, alpha=2.0).iloc[0] for s in (whole, broken)
    )
    assert before["p_shuffled_corrected"] == 1 / 20
    assert after["p_shuffled_corrected"] == 2 / 20


def test_the_p_that_is_shown_is_among_the_fairest_controls_there_are():
    rows = scores()
    for gone, kind in (
        ((), "shuffled"),
        (("shuffled",), "covariance"),
        (("shuffled", "covariance"), "random"),
    ):
        table = summarise(rows[~rows["direction"].isin(gone)])
        one = table[table["direction"] == "learned"].iloc[0]
        assert fairest_p(one) == (kind, one[CORRECTED[kind]])
    assert fairest_p({"p_value": 0.25}) == ("", 0.25)
    assert np.isnan(fairest_p({"p_shuffled_corrected": None, "p_value": None})[1])
