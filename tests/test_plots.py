"""Figures show what a summary holds, all of it and nothing else."""

from __future__ import annotations

import re

import frames
import numpy as np
import pytest

from refusal_dial.plots import COLOURS, alpha_curves, pareto, title_of
from refusal_dial.summary import random_band, summarise
from refusal_dial.types import DialError

GROUPS = frames.GROUPS


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
    learned, random = lines(figure, "learned"), lines(figure, "random (mean)")
    assert len(learned) == len(random) == len(panels)
    assert len(figure.data) == 4 * len(panels)
    band = random_band(summary)
    for (layer, group), one, other in zip(panels, learned, random, strict=True):
        rows = at(summary, "learned", layer, group)
        assert list(one.x) == list(other.x) == [-2.0, 0.0, 2.0]
        np.testing.assert_array_equal(one.y, rows["refusal_rate"])
        here = band[(band["layer"] == layer) & (band["subset"] == group[0])].sort_values("alpha")
        np.testing.assert_array_equal(other.y, here["mean"])
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
    assert list(band.x) == [-2.0, 0.0, 2.0, 2.0, 0.0, -2.0]
    np.testing.assert_array_equal(band.y, [*rows[hi], *rows[lo][::-1]])
    np.testing.assert_array_equal(lines(figure, "learned")[0].y, rows[value])


def test_the_unsteered_model_is_a_dotted_line_in_every_panel(summary, curves):
    figure = curves
    assert len(figure.layout.shapes) == 4
    base = summary[summary["direction"] == "baseline"].set_index("subset")["refusal_rate"]
    heights = [shape.y0 for shape in figure.layout.shapes]
    assert heights == [base[group[0]] for group in GROUPS] * 2


def test_each_name_is_in_the_legend_once(curves, trade_off):
    for figure in (curves, trade_off):
        shown = [trace.name for trace in figure.data if trace.showlegend is not False]
        assert len(shown) == len(set(shown)) == 2


def test_without_random_directions_only_the_learned_one_is_drawn():
    alone = summarise(frames.scores(frames.dial, n_random=0))
    assert {trace.name for trace in alpha_curves(alone, "t").data} == {"learned", None}
    assert len(alpha_curves(alone, "t").data) == 2 * 2
    assert [trace.name for trace in pareto(alone, "t").data] == ["learned"]


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
        assert list(one.text) == ["alpha -2", "alpha 0", "alpha 2"]
    assert [note.text for note in figure.layout.annotations] == ["layer 12", "layer 20"]


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
    for one in lines(draw(holes, "title"), "learned"):
        assert len(one.x) == 3


@pytest.mark.parametrize("draw", [alpha_curves, pareto])
def test_the_same_run_gives_the_same_bytes(summary, draw):
    first, second = (
        draw(summary.copy(), "title").to_html(include_plotlyjs=False, div_id="figure")
        for _ in range(2)
    )
    assert first == second
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-4", first)  # no random ids
    assert 'id="figure"' in first


def test_a_title_says_model_site_and_position_and_escapes_the_name():
    config = {"settings": {"model": {"name": "me/<b>a&b"}, "site": "resid_pre", "pos": -1}}
    assert title_of(config, "Question?") == (
        "Question?<br><sup>me/&lt;b&gt;a&amp;b, resid_pre, position -1</sup>"
    )


def test_the_colours_of_learned_and_random_differ_for_every_eye():
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    assert len(set(COLOURS.values())) == len(COLOURS)
    assert all(1.05 / (luminance(colour) + 0.05) > 3 for colour in COLOURS.values())  # on white
