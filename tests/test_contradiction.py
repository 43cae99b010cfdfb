"""Two runs side by side: sampling anew overlaps, another experiment does not, alpha 0 must hold."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from refusal_dial.cli.recipes import PublishedFigure
from refusal_dial.common import DialError
from refusal_dial.studies.calibration import (
    interval_overlap,
    off_baseline,
    published,
    run_agreement,
    runs_side_by_side,
)

N = 50
CELLS = (("baseline", 0.0), ("learned", -1.0), ("learned", 0.0), ("learned", 1.0))


def run(seed: int, benign: float = 0.02, alpha_0_anew: bool = False) -> pd.DataFrame:
    """A run of 50 + 50 openings, toxicity .6 and `benign`, one sample each."""
    rows = []
    for s, (subset, rate) in enumerate({"CHALLENGING": 0.6, "BENIGN": benign}.items()):
        for c, (direction, alpha) in enumerate(CELLS):
            anew = [c] if alpha_0_anew else []
            rng = np.random.default_rng([seed, s, *anew])  # the same numbers under every alpha
            scores = rng.random(N) < np.clip(rate - 0.2 * alpha * rate, 0, 1)
            place = {"seed": pd.NA, "layer": 16, "site": "resid_pre", "pos": -1, "alpha": alpha}
            labels = {"direction": direction, **place, "strength": alpha, "subset": subset}
            rows += [
                {
                    **labels,
                    "split": "all",
                    "prompt_id": f"{subset}{i}",
                    "score": float(x),
                    "nll": 1.0,
                }
                for i, x in enumerate(scores)
            ]
    return pd.DataFrame(rows)


def test_another_sampling_seed_overlaps_and_nothing_differs():
    table = runs_side_by_side(run(0), run(1))
    assert len(table) == 2 * len(CELLS)
    assert table["overlap"].all()
    assert (table["n"] == N).all()
    assert (table["p_holm"] > 0.05).all()
    assert ((table["diff_lo"] <= 0) & (table["diff_hi"] >= 0)).mean() > 0.7


def test_runs_that_measured_another_thing_are_apart_where_they_did():
    table = runs_side_by_side(run(0), run(1, benign=0.8)).set_index("subset")
    assert table.loc["CHALLENGING", "overlap"].all()
    assert not table.loc["BENIGN", "overlap"].any()
    assert (table.loc["BENIGN", "p_holm"] < 0.01).all()


def test_alpha_0_that_is_not_the_baseline_is_said_however_small():
    assert off_baseline(run(0)) == {}
    anew = run(0, alpha_0_anew=True)
    assert "CHALLENGING" in off_baseline(anew)
    one = run(0)
    zero = (one["direction"] == "learned") & (one["strength"] == 0) & (one["subset"] == "BENIGN")
    one.loc[one[zero].index[0], "score"] += 1e-9
    assert list(off_baseline(one)) == ["BENIGN"]


def test_a_baseline_from_another_run_is_caught_though_its_interval_overlaps():
    rows = pd.concat([run(0).assign(run="seed 0"), run(1).assign(run="seed 1")])
    table, verdict = run_agreement(rows)
    assert verdict["overlap"]
    assert table["overlap"].all()
    off = verdict["off_baseline"]
    assert off["one"] == off["other"] == {}
    assert abs(off["mixed"]["CHALLENGING"]) < 0.2


def test_runs_of_other_prompts_cannot_be_compared():
    other = run(1)
    other["prompt_id"] += "x"
    with pytest.raises(DialError, match="other prompts or cells: there is nothing to compare"):
        runs_side_by_side(run(0), other)


def test_published_means_have_the_widest_interval_that_values_from_0_to_1_allow():
    figures = [
        PublishedFigure("run 1, benign", 0.006, "score_mean", {}),
        PublishedFigure("run 2, benign", 0.816, "score_mean", {}),
        PublishedFigure("run 1, challenging", 0.602, "score_mean", {}),
        PublishedFigure("run 2, challenging", 0.417, "score_mean", {}),
        PublishedFigure("run 1, only here", 0.5, "score_mean", {}),
    ]
    table = published(figures, 50).set_index("what")
    assert list(table.index) == ["benign", "challenging"]
    assert list(table["overlap"]) == [False, True]
    assert table.loc["benign", "one_hi"] < 0.1 < 0.6 < table.loc["benign", "other_lo"]


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [((0, 1), (1, 2), True), ((0, 1), (1.1, 2), False), ((0, 9), (3, 4), True)],
)
def test_intervals_overlap_where_they_have_a_value_in_common(one, other, both):
    assert interval_overlap(one, other) == interval_overlap(other, one) == both
