"""Figures show what a summary holds, all of it and nothing else."""

from __future__ import annotations

import re

import frames
import numpy as np
import pandas as pd
import pytest

from refusal_dial.common import DialError
from refusal_dial.report.steering import (
    LEARNED,
    alpha_curves,
    control_kinds,
    pareto,
    score_histograms,
    set_off,
)
from refusal_dial.report.theme import COLOURS, SCORE_AXIS, colour_of, prompts_in
from refusal_dial.stats.summary import summarise

GROUPS = frames.GROUPS
RANDOM = "random, 3 draws, a line each"


@pytest.fixture(scope="module")
def summary():
    return summarise(frames.scores(frames.dial, layers=(12, 20), alphas=(2.0, -2.0, 0.0)))


@pytest.fixture(scope="module")
def curves(summary):
    return alpha_curves(summary, "title")


@pytest.fixture(scope="module")
def trade_off(summary):
    return pareto(summary, "title")


def lines(figure, name):
    return [trace for trace in figure.data if trace.name == name]


def bands(figure):
    return [trace for trace in figure.data if trace.fill == "toself"]


def at(summary, direction, layer, group):
    rows = summary[(summary["direction"] == direction) & (summary["layer"] == layer)]
    rows = rows[(rows["subset"] == group[0]) & (rows["split"] == group[1])]
    return rows.sort_values("alpha")


def test_curves_show_every_layer_and_group_in_the_order_of_alpha(summary, curves):
    figure = curves
    panels = [(layer, group) for layer in (12, 20) for group in GROUPS]
    learned, random = lines(figure, LEARNED), lines(figure, RANDOM)
    assert len(learned) == len(random) == len(panels)
    assert len(figure.data) == 3 * len(panels)
    for (layer, group), one, other in zip(panels, learned, random, strict=True):
        rows = at(summary, "learned", layer, group)
        assert list(one.x) == [-0.2, 0.0, 0.2]
        assert list(other.x) == [-0.2, 0.0, 0.2, None] * 3
        np.testing.assert_array_equal(one.y, rows["refusal_rate"])
        draws = at(summary, "random", layer, group)
        drawn = [value for value in other.y if value is not None]
        np.testing.assert_array_equal(drawn, draws.sort_values(["seed", "alpha"])["refusal_rate"])
        assert figure.data.index(other) < figure.data.index(one)  # under it
        assert other.line.width < one.line.width
    titles = [note.text for note in figure.layout.annotations]
    assert titles == [f"layer {n}: {subset} {split} (n=4)" for n, (subset, split) in panels]


@pytest.mark.parametrize(
    ("value", "lo", "hi"),
    [("refusal_rate", "rate_lo", "rate_hi"), ("score_mean", "score_lo", "score_hi")],
)
def test_the_band_around_a_curve_is_its_interval_there_and_back(summary, value, lo, hi):
    figure = alpha_curves(summary, "title", value)
    band = next(trace for trace in bands(figure) if trace.fillcolor == COLOURS["learned"])
    rows = at(summary, "learned", 12, GROUPS[0])
    assert list(band.x) == [-0.2, 0.0, 0.2, 0.2, 0.0, -0.2]
    np.testing.assert_array_equal(band.y, [*rows[hi], *rows[lo][::-1]])
    np.testing.assert_array_equal(lines(figure, LEARNED)[0].y, rows[value])


def test_held_out_prompts_come_before_those_learned_from():
    groups = (("EDGE", "train"), ("EDGE", "holdout"), ("HARMFUL", "holdout"))
    rows = summarise(frames.scores(frames.dial, groups=groups))
    titles = [note.text.split(" (")[0] for note in alpha_curves(rows, "t").layout.annotations]
    order = ("EDGE holdout", "HARMFUL holdout", "EDGE train")
    assert titles == [f"layer 20: {group}" for group in order]


def test_the_unsteered_model_is_a_dotted_line_in_every_panel(summary, curves):
    figure = curves
    assert len(figure.layout.shapes) == 4
    base = summary[summary["direction"] == "baseline"].set_index("subset")["refusal_rate"]
    heights = [shape.y0 for shape in figure.layout.shapes]
    assert heights == [base[group[0]] for group in GROUPS] * 2


def test_each_name_is_in_the_legend_once(curves, trade_off):
    for figure in (curves, trade_off):
        shown = [trace.name for trace in figure.data if trace.showlegend is not False]
        assert len(shown) == len(set(shown)) == 2 + (figure is trade_off)


def test_without_random_directions_only_the_learned_one_is_drawn():
    alone = summarise(frames.scores(frames.dial, n_random=0))
    assert {trace.name for trace in alpha_curves(alone, "t").data} == {LEARNED, None}
    assert len(alpha_curves(alone, "t").data) == 2 * 2
    assert [trace.name for trace in pareto(alone, "t").data] == ["learned", "unsteered"]


def test_pareto_sets_harmful_against_edge_along_alpha(summary, trade_off):
    figure = trade_off
    assert len(lines(figure, "learned")) == 2
    assert len(lines(figure, "random")) == 2 * 3
    for layer, one in zip((12, 20), lines(figure, "learned"), strict=True):
        np.testing.assert_array_equal(
            one.x, at(summary, "learned", layer, GROUPS[0])["refusal_rate"]
        )
        np.testing.assert_array_equal(
            one.y, at(summary, "learned", layer, GROUPS[1])["refusal_rate"]
        )
        assert list(one.text) == ["alpha -0.2", "", "alpha 0.2"]
        assert "text" in one.mode
        assert list(one.customdata) == [-0.2, 0, 0.2]
    assert not any(one.text for one in lines(figure, "random"))
    titles = [note.text for note in figure.layout.annotations]
    assert titles == [f"layer {n} (n = 4 EDGE, 4 HARMFUL)" for n in (12, 20)] + ["better"] * 2
    base = summary[summary["direction"] == "baseline"].set_index("subset")["refusal_rate"]
    for one in lines(figure, "unsteered"):
        assert (one.x[0], one.y[0]) == (base["EDGE"], base["HARMFUL"])
    assert "up and left is better" in figure.layout.title.text


def test_pareto_reads_held_out_prompts_only():
    groups = (("EDGE", "train"), ("EDGE", "holdout"), ("HARMFUL", "holdout"))
    rows = summarise(frames.scores(frames.dial, groups=groups))
    (one,) = lines(pareto(rows, "t"), "learned")
    assert len(one.x) == 3
    rows = rows[(rows["subset"] != "EDGE") | (rows["split"] != "holdout")]
    with pytest.raises(DialError, match="needs held-out EDGE and HARMFUL prompts; the run has H"):
        pareto(rows, "t")
    with pytest.raises(DialError, match="the run has none"):
        pareto(rows.assign(split="train"), "t")


@pytest.mark.parametrize("draw", [alpha_curves, pareto])
def test_a_run_without_a_learned_direction_has_no_curve(summary, draw):
    with pytest.raises(DialError, match="this run steered no learned direction"):
        draw(summary[summary["direction"] != "learned"], "title")


@pytest.mark.parametrize("draw", [alpha_curves, pareto])
def test_a_cell_that_is_nan_leaves_a_gap_and_not_an_error(summary, draw):
    sick = (summary["direction"] == "learned") & (summary["subset"] == "EDGE")
    holes = summary.copy()
    holes.loc[sick, ["refusal_rate", "rate_lo", "rate_hi", "score_mean"]] = np.nan
    drawn = [one for one in draw(holes, "title").data if str(one.name).startswith("learned")]
    assert drawn
    assert all(len(one.x) == 3 for one in drawn)


@pytest.mark.parametrize("draw", [alpha_curves, pareto])
def test_the_same_run_gives_the_same_bytes(summary, draw):
    first, second = (
        draw(summary.copy(), "title").to_html(include_plotlyjs=False, div_id="figure")
        for _ in range(2)
    )
    assert first == second
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-4", first)  # no random ids
    assert 'id="figure"' in first


def test_every_kind_of_control_is_drawn_in_its_own_colour():
    rows = frames.scores(frames.dial)
    other = rows[rows["direction"] == "random"].assign(direction="covariance")
    both = summarise(pd.concat([rows, other], ignore_index=True))
    assert control_kinds(both) == ["random", "covariance"]
    figure = alpha_curves(both, "t")
    for kind in ("random", "covariance"):
        drawn = lines(figure, f"{kind}, 3 draws, a line each")
        assert len(drawn) == 2
        assert {line.line.color for line in drawn} == {colour_of(kind)}
    assert {"random", "covariance", "learned"} <= {trace.name for trace in pareto(both, "t").data}


def test_one_direction_alone_is_a_line_and_only_the_learned_one_has_a_band():
    rows = frames.scores(frames.dial)
    one = rows[(rows["direction"] == "random") & (rows["seed"] == 0)].assign(direction="length")
    figure = alpha_curves(summarise(pd.concat([rows, one], ignore_index=True)), "t")
    assert len(lines(figure, "length")) == len(GROUPS)
    assert {band.fillcolor for band in bands(figure)} == {COLOURS["learned"]}


def test_what_is_set_off_is_what_the_panel_counts(summary, trade_off):
    rows = set_off(summary.assign(split="train"))
    assert rows.empty
    assert prompts_in(set_off(summary)) == 4 + 4


def test_histograms_hold_every_scored_prompt_once_a_panel():
    rows = frames.scores(frames.dial)
    rows.loc[rows["prompt_id"] == "EDGE-holdout-0", "score"] = np.nan
    figure = score_histograms(rows, "t")
    titles = [note.text for note in figure.layout.annotations]
    assert titles == ["unsteered", "layer 20, alpha -0.2", "layer 20, alpha 0.2"]
    assert [bar.name for bar in figure.data[:2]] == ["EDGE (n=3)", "HARMFUL (n=4)"]
    for bar in figure.data:
        assert sum(bar.y) == pytest.approx(1)
    edge = figure.data[0]
    centre = sum(x * y for x, y in zip(edge.x, edge.y, strict=True))
    assert centre == pytest.approx(np.mean([-0.5, 0, 0.5]), abs=float(edge.width[0]))
    assert len(figure.layout.shapes) == 3
    assert figure.layout.xaxis3.title.text == SCORE_AXIS
    assert not score_histograms(rows, "t", None).layout.shapes
    with pytest.raises(DialError, match="no row of this run has a score"):
        score_histograms(rows.assign(score=np.nan), "t")


def test_a_group_at_the_floor_is_drawn_by_its_shift():
    def low(direction, seed, layer, alpha, subset, i):
        moved = frames.dial(direction, seed, layer, alpha, subset, i)
        return moved if subset == "HARMFUL" else moved - 40

    summary = summarise(frames.scores(low))
    figure = alpha_curves(summary, "t")
    edge, harmful = (
        next(one for one in lines(figure, LEARNED) if one.xaxis == axis) for axis in ("x", "x2")
    )
    np.testing.assert_allclose(edge.y, [-2.0, 0.0, 2.0])
    rows = at(summary, "learned", 20, ("HARMFUL", "holdout"))
    np.testing.assert_array_equal(harmful.y, rows["refusal_rate"])
    assert figure.layout.yaxis.title.text.startswith("shift of the mean")
    assert figure.layout.yaxis2.title.text == "share refused"
