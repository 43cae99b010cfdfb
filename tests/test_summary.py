"""A summary against figures worked out by hand, and the columns that are a public contract."""

from __future__ import annotations

import json

import frames
import numpy as np
import pandas as pd
import pytest

from refusal_dial.common import DialError
from refusal_dial.stats.intervals import mean_interval, rate_interval
from refusal_dial.stats.p_values import rank_p
from refusal_dial.stats.summary import (
    ADDED,
    AXES,
    SHIFT_INTERVAL,
    SUMMARY_COLUMNS,
    random_band,
    summarise,
    verdict,
)

CONTRACT = (
    "direction, seed, layer, site, pos, alpha, subset, split, n, score_mean, score_lo, score_hi, "
    "refusal_rate, rate_lo, rate_hi, p_value"
).split(", ")


def cell(summary, direction, subset="EDGE", **where):
    rows = summary[(summary["direction"] == direction) & (summary["subset"] == subset)]
    for name, value in where.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def test_the_columns_are_the_contract_and_others_come_after():
    assert SUMMARY_COLUMNS == CONTRACT
    scores = frames.scores(frames.dial)
    assert list(summarise(scores).columns) == [*CONTRACT, "alpha_relative", *ADDED, *SHIFT_INTERVAL]
    without = summarise(scores.drop(columns="alpha_relative"))
    assert list(without.columns) == [*CONTRACT, *ADDED, *SHIFT_INTERVAL]


# one group of three prompts: baseline, one learned alpha, two random directions at that alpha
HAND = {
    ("baseline", None): [-1.0, 0.0, 2.0],
    ("learned", None): [1.0, 3.0, 5.0],
    ("random", 0): [-1.0, 0.0, 5.0],
    ("random", 1): [-4.0, -4.0, -3.0],
}


def hand():
    rows = []
    for (direction, seed), values in HAND.items():
        place = (None, "", None, 0.0) if direction == "baseline" else (7, "resid_pre", -1, 4.0)
        rows += [
            (direction, seed, *place, f"p{i}", "EDGE", "holdout", value)
            for i, value in enumerate(values)
        ]
    frame = pd.DataFrame(rows, columns=[*AXES, "prompt_id", "subset", "split", "score"])
    return frame.astype(dict.fromkeys(("seed", "layer", "pos"), "Int64"))


def test_a_small_frame_is_summarised_as_by_hand():
    summary = summarise(hand())
    assert list(summary["direction"]) == ["baseline", "learned", "random", "random"]
    assert list(summary["n"]) == [3] * 4
    np.testing.assert_allclose(summary["score_mean"], [1 / 3, 3.0, 4 / 3, -11 / 3])
    np.testing.assert_allclose(summary["refusal_rate"], [1 / 3, 1.0, 1 / 3, 0.0])
    # shifts from the baseline: learned 8/3, random 1 and -4: one of two is at least as far
    assert summary["p_value"][1] == pytest.approx((1 + 1) / (1 + 2))
    assert summary["p_value"].isna().tolist() == [True, False, True, True]


def test_a_score_at_the_threshold_is_no_refusal():
    rates = summarise(hand(), threshold=2.0)["refusal_rate"]
    np.testing.assert_allclose(rates, [0.0, 2 / 3, 1 / 3, 0.0])
    assert summarise(hand(), threshold=1.9)["refusal_rate"][0] == pytest.approx(1 / 3)


def test_means_and_intervals_are_those_of_stats_with_the_seed():
    rng = np.random.default_rng(0)
    scores = frames.scores(lambda *_: rng.normal(), n_prompts=12)
    for seed in (0, 5):
        summary = summarise(scores, seed=seed)
        for (subset, split), group in scores.groupby(["subset", "split"]):
            one = cell(summary, "learned", subset, alpha=2.0)
            mine = group[(group["direction"] == "learned") & (group["alpha"] == 2.0)]["score"]
            mean, rate = mean_interval(mine, seed=seed)[0], rate_interval(mine > 0)[0]
            assert one["split"] == split
            assert one["score_mean"] == pytest.approx(mine.mean())
            assert one["refusal_rate"] == pytest.approx((mine > 0).mean())
            np.testing.assert_allclose([one["score_lo"], one["score_hi"]], mean)
            np.testing.assert_allclose([one["rate_lo"], one["rate_hi"]], rate)


def test_p_ranks_a_shift_among_the_random_ones_of_the_same_place_alpha_and_group():
    rng = np.random.default_rng(1)
    scores = frames.scores(
        lambda *_: rng.normal(), layers=(3, 7), n_random=9, n_prompts=4, alphas=(-2.0, 2.0)
    )
    summary = summarise(scores)
    for layer in (3, 7):
        for alpha in (-2.0, 2.0):
            for subset, _ in frames.GROUPS:
                base = cell(summary, "baseline", subset)["score_mean"]
                null = [
                    cell(summary, "random", subset, layer=layer, alpha=alpha, seed=i)["score_mean"]
                    for i in range(9)
                ]
                one = cell(summary, "learned", subset, layer=layer, alpha=alpha)
                expected = rank_p(one["score_mean"] - base, np.array(null) - base)
                assert one["p_value"] == pytest.approx(expected)
    assert summary["p_value"].nunique() > 2


def test_a_direction_that_works_has_the_smallest_p_and_none_has_one_at_alpha_0():
    summary = summarise(frames.scores(frames.dial, n_random=19))
    assert cell(summary, "learned", alpha=2.0)["p_value"] == 1 / 20
    same = frames.scores(lambda d, s, layer, a, subset, i: float(i) + (a if s is None else 0.0))
    assert cell(summarise(same), "learned", alpha=0.0)["p_value"] == 1.0


def test_without_random_directions_or_baseline_there_is_no_p():
    assert summarise(frames.scores(frames.dial, n_random=0))["p_value"].isna().all()
    scores = frames.scores(frames.dial)
    assert summarise(scores[scores["direction"] != "baseline"])["p_value"].isna().all()


def test_rows_may_come_in_any_order():
    scores = frames.scores(frames.dial, layers=(3, 7))
    keys = [*AXES, "subset", "split"]
    plain = summarise(scores).sort_values(keys).reset_index(drop=True)
    mixed = summarise(scores.sample(frac=1.0, random_state=0))
    mixed = mixed.sort_values(keys).reset_index(drop=True)
    exact = ["n", "refusal_rate", "p_value", "alpha_relative", *keys]
    pd.testing.assert_frame_equal(mixed[exact], plain[exact], check_dtype=False)
    np.testing.assert_allclose(mixed["score_mean"], plain["score_mean"])


def test_cells_stay_in_the_order_in_which_they_came():
    summary = summarise(frames.scores(frames.dial, layers=(9, 3), alphas=(2.0, -2.0)))
    first = summary[summary["subset"] == "EDGE"]
    assert list(first["alpha"]) == [0.0, *[2.0, -2.0] * 8]
    assert first["layer"].dropna().drop_duplicates().tolist() == [9, 3]


def test_alphas_that_differ_in_the_last_digit_are_different_cells():
    near = (0.1 + 0.2, 0.3)
    summary = summarise(frames.scores(frames.dial, alphas=near))
    assert len(summary) == 2 * (1 + 2 * 4)
    assert summary["p_value"].notna().sum() == 4


@pytest.mark.parametrize("change", ["missing", "twice", "swapped"])
def test_every_cell_needs_every_prompt_once(change):
    scores = frames.scores(frames.dial)
    at = scores.index[(scores["direction"] == "learned") & (scores["subset"] == "EDGE")]
    if change == "missing":
        scores = scores.drop(at[0])
    elif change == "twice":
        scores = pd.concat([scores, scores.loc[[at[0]]]])
    else:  # as many rows as there should be: one prompt twice, another not at all
        scores.loc[at[0], "prompt_id"] = scores.loc[at[1], "prompt_id"]
    with pytest.raises(DialError, match=r"EDGE: \d+ rows for 13 cells of 4 prompts"):
        summarise(scores)


def test_a_score_that_is_missing_is_left_out_and_counted():
    scores = frames.scores(frames.dial)
    sick = (scores["direction"] == "learned") & (scores["alpha"] == 2.0)
    sick &= scores["prompt_id"] == "EDGE-holdout-1"
    whole = cell(summarise(scores), "learned", alpha=2.0)
    mine = scores.loc[sick | (scores["prompt_id"] != "EDGE-holdout-1")]
    scores.loc[sick, "score"] = np.nan
    summary = summarise(scores)
    one = cell(summary, "learned", alpha=2.0)
    assert (whole["n"], one["n"]) == (4, 3)
    kept = mine[(mine["direction"] == "learned") & (mine["alpha"] == 2.0) & ~sick[mine.index]]
    kept = kept[kept["subset"] == "EDGE"]["score"]
    assert one["score_mean"] == kept.mean()
    assert one["refusal_rate"] == (kept > 0).mean()
    assert kept.min() <= one["score_lo"] < one["score_mean"] < one["score_hi"] <= kept.max()
    others = summary[summary["n"] == 4]
    assert len(others) == len(summary) - 1
    assert others.equals(summarise(frames.scores(frames.dial)).loc[others.index])


def test_a_cell_without_any_score_has_no_number_anywhere():
    scores = frames.scores(frames.dial)
    sick = (scores["direction"] == "learned") & (scores["alpha"] == 2.0)
    scores.loc[sick & (scores["subset"] == "EDGE"), "score"] = np.nan
    summary = summarise(scores)
    one = cell(summary, "learned", alpha=2.0)
    values = ["score_mean", "score_lo", "score_hi", "refusal_rate", "rate_lo", "rate_hi", "p_value"]
    assert one["n"] == 0
    assert one[values].isna().all()
    record = verdict(summary)[0]
    assert record["highest"]["refusal_rate"] is None
    json.dumps(record, allow_nan=False)


def test_a_control_that_is_missing_is_no_weaker_than_what_it_is_compared_with():
    scores = frames.scores(frames.dial, n_random=19)
    assert cell(summarise(scores), "learned", alpha=2.0)["p_value"] == 1 / 20
    sick = (scores["seed"] == 1) & (scores["alpha"] == 2.0)
    scores.loc[sick, "score"] = np.nan
    assert cell(summarise(scores), "learned", alpha=2.0)["p_value"] == 2 / 20
    assert cell(summarise(scores), "learned", alpha=-2.0)["p_value"] == 1 / 20


# --- bands and verdicts


def test_a_band_is_mean_and_percentiles_over_seeds():
    summary = summarise(frames.scores(lambda *a: float(a[1] or 0) + a[5], n_random=11))
    band = random_band(summary, "score_mean")
    assert list(band.columns) == [
        *["layer", "site", "pos", "alpha", "subset", "split", "mean", "lo", "hi", "n_seeds"]
    ]
    assert len(band) == 3 * 2
    means = np.arange(11) + 1.5
    np.testing.assert_allclose(band["mean"], means.mean())
    np.testing.assert_allclose(band["lo"], np.percentile(means, 2.5))
    np.testing.assert_allclose(band["hi"], np.percentile(means, 97.5))
    assert set(band["n_seeds"]) == {11}


def test_without_random_directions_the_band_is_empty_with_its_columns():
    band = random_band(summarise(frames.scores(frames.dial, n_random=0)))
    assert band.empty
    assert {"layer", "alpha", "subset", "mean", "lo", "hi", "n_seeds"} <= set(band.columns)


def rates(table, random=0.5, n=20):
    """Scores whose learned refusal rate at each alpha is what the table says."""

    def score(direction, seed, layer, alpha, subset, i):
        rate = {"learned": table.get(alpha), "random": random}.get(direction, 0.5)
        return 1.0 if i < round(rate * n) else -1.0

    alphas = list(table)
    groups = [("EDGE", "holdout")]
    return frames.scores(score, alphas=alphas, n_prompts=n, groups=groups)


def test_a_verdict_says_what_the_dial_did_at_its_ends():
    summary = summarise(rates({4.0: 0.95, -4.0: 0.05, 0.0: 0.5}))  # in any order
    (record,) = verdict(summary)
    assert {name: record[name] for name in ("layer", "site", "pos", "subset", "split", "n")} == {
        "layer": 20,
        "site": "resid_pre",
        "pos": -1,
        "subset": "EDGE",
        "split": "holdout",
        "n": 20,
    }
    assert record["baseline_rate"] == 0.5
    assert (record["lowest"]["alpha"], record["lowest"]["refusal_rate"]) == (-4.0, 0.05)
    assert (record["highest"]["alpha"], record["highest"]["refusal_rate"]) == (4.0, 0.95)
    for end, alpha in (("lowest", -4.0), ("highest", 4.0)):
        one = cell(summary, "learned", alpha=alpha)
        for name in ("rate_lo", "rate_hi", "p_value"):
            assert record[end][name] == one[name]
    assert record["largest_fall"] == 0.0
    assert record["monotone_within_interval"] is True
    assert record["random_mean_off_baseline"] == 0.0
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_a_small_fall_is_within_the_intervals_and_a_large_one_is_not():
    (small,) = verdict(summarise(rates({-1.0: 0.5, 0.0: 0.45, 1.0: 0.9})))
    assert small["largest_fall"] == pytest.approx(0.05)
    assert small["monotone_within_interval"] is True
    (large,) = verdict(summarise(rates({-1.0: 0.95, 0.0: 0.05, 1.0: 0.9})))
    assert large["largest_fall"] == pytest.approx(0.9)
    assert large["monotone_within_interval"] is False


def test_the_random_band_is_measured_from_the_baseline():
    (record,) = verdict(summarise(rates({-1.0: 0.1, 1.0: 0.9}, random=0.75)))
    assert record["random_mean_off_baseline"] == pytest.approx(0.25)
    alone = summarise(frames.scores(frames.dial, n_random=0))
    assert {r["random_mean_off_baseline"] for r in verdict(alone)} == {None}
    assert {r["lowest"]["p_value"] for r in verdict(alone)} == {None}


def test_there_is_a_verdict_for_every_layer_and_group_and_none_without_a_direction():
    summary = summarise(frames.scores(frames.dial, layers=(3, 7)))
    found = {(r["layer"], r["subset"]) for r in verdict(summary)}
    assert found == {(3, "EDGE"), (3, "HARMFUL"), (7, "EDGE"), (7, "HARMFUL")}
    assert verdict(summary[summary["direction"] != "learned"]) == []
