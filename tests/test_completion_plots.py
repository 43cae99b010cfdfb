"""Figures of completions: which control is whose, what alpha is one of, and nothing hidden."""

from __future__ import annotations

import frames
import numpy as np
import pandas as pd
import pytest

from refusal_dial.common import UNIT_NAMES, UNITS, DialError
from refusal_dial.report.continuation import (
    alpha_sweep,
    distributions,
    layer_heatmap,
    subset_heatmap,
)
from refusal_dial.report.theme import subset_colour, unit_label
from refusal_dial.studies.continuation import CONTINUATION_CONTROLS, summarise_continuations

GROUPS = (("CHALLENGING", "all"), ("BENIGN", "all"))
ALPHAS = (-1.0, 0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def rows():
    one = frames.scores(frames.dial, alphas=ALPHAS, groups=GROUPS, layers=(3, 7))
    shuffled = one[one["direction"] == "random"].assign(direction="shuffled")
    both = pd.concat([one, shuffled], ignore_index=True)
    return both.assign(strength=both["alpha"], nll=0.5)


@pytest.fixture(scope="module")
def summary(rows):
    return summarise_continuations(rows)


def test_a_control_is_told_by_its_subset_and_its_kind(summary):
    figure = alpha_sweep(summary, "t", "alpha")
    drawn = [one for one in figure.data if one.mode == "markers"]
    assert len(drawn) == 2 * len(GROUPS) * len(CONTINUATION_CONTROLS)
    looks = {(one.name, one.marker.color, one.marker.symbol) for one in drawn}
    assert (
        len(looks) == len({look[1:] for look in looks}) == len(GROUPS) * len(CONTINUATION_CONTROLS)
    )
    for one in drawn:
        subset, kind = one.name.split(" x")[0].split(", ")
        assert one.marker.color == subset_colour(subset)
        part = summary[(summary["subset"] == subset) & (summary["direction"] == kind)]
        assert set(one.y) <= set(part["score_mean"])
        assert one.name.endswith(" x3")
    shown = [one.name for one in drawn if one.showlegend]
    assert len(shown) == len(set(shown)) == len(looks)


def test_controls_stand_beside_each_other_near_their_alpha(summary):
    drawn = [one for one in alpha_sweep(summary, "t", "a").data if one.mode == "markers"][:4]
    shifts = [np.asarray(one.x) - np.asarray(one.customdata) for one in drawn]
    assert all(np.ptp(shift) < 1e-12 for shift in shifts)
    places = [shift[0] for shift in shifts]
    assert len(set(places)) == 4
    assert max(map(abs, places)) < 0.5 / 4  # a quarter of the way to the next alpha, at most
    assert set(drawn[0].customdata) == set(ALPHAS)


def test_a_heatmap_of_one_row_has_room_for_its_scale(summary):
    one = summary[(summary["subset"] == "BENIGN") & (summary["layer"] == 3)]
    figure = subset_heatmap(one, "t", "alpha")
    margin = figure.layout.margin
    assert len(figure.data[0].z) == 1
    assert figure.layout.height - margin.t - margin.b >= 180


def test_a_heatmap_says_what_its_cells_are_of(summary):
    figure = layer_heatmap(summary, "t", "alpha", "CHALLENGING")
    assert figure.layout.annotations[0].text == "CHALLENGING openings alone"
    wanted = summary[(summary["direction"] == "learned") & (summary["subset"] == "CHALLENGING")]
    np.testing.assert_array_equal(np.ravel(figure.data[0].z), wanted["score_mean"])
    assert subset_heatmap(summary, "t", "a").layout.annotations[0].text == "mean over 2 layers"
    with pytest.raises(DialError, match=r"no learned direction \(EDGE openings alone\)"):
        layer_heatmap(summary, "t", "alpha", "EDGE")


def test_every_unit_has_its_words_and_they_are_on_the_axis(rows, summary):
    assert set(UNITS) < set(UNIT_NAMES)
    alpha = unit_label("alpha", {"alpha_unit": "distance"})
    assert alpha == "alpha (distances of the class means)"
    assert unit_label("alpha", {}) == "alpha"
    for figure in (
        alpha_sweep(summary, "t", alpha),
        layer_heatmap(summary, "t", alpha, "BENIGN"),
        subset_heatmap(summary, "t", alpha),
        distributions(rows, "t", alpha),
    ):
        assert figure.layout.xaxis.title.text == alpha
