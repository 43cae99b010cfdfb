"""One look for every figure: colours that stay, names that are data, titles that say enough."""

from __future__ import annotations

import frames
import pandas as pd
import plotly.graph_objects as go
import pytest

from refusal_dial.report.theme import (
    COLOURS,
    SPARE,
    SUBSET_COLOURS,
    add_band,
    anchored,
    colour_of,
    escaped,
    prompts_in,
    styled,
    subset_colour,
    title_of,
)
from refusal_dial.stats.summary import summarise


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_stand_out_on_white_and_learned_is_like_no_control():
    every = [*COLOURS.values(), *SUBSET_COLOURS.values(), *SPARE]
    assert all(1.05 / (luminance(colour) + 0.05) > 3 for colour in every)
    assert [kind for kind, colour in COLOURS.items() if colour == COLOURS["learned"]] == ["learned"]


def test_a_colour_means_one_thing():
    kinds = {COLOURS[kind] for kind in COLOURS if kind != "random_detector"}
    assert len(kinds) == len(COLOURS) - 1
    assert not kinds & set(SUBSET_COLOURS.values())
    assert len(set(SUBSET_COLOURS.values())) == 3  # CHALLENGING openings are HARMFUL's
    assert not set(SPARE) & {*COLOURS.values(), *SUBSET_COLOURS.values()}
    assert colour_of("unheard of") in SPARE


def test_an_axis_of_shares_goes_from_0_to_1():
    assert anchored([0.1, 0.4, float("nan")]) == [-0.02, 1.02]
    assert anchored([-3.0, 0.4]) is anchored([]) is None


def test_a_kind_nobody_named_has_one_colour_always():
    assert colour_of("unheard of") == colour_of("unheard of") != COLOURS["learned"]
    assert subset_colour("unheard of") == subset_colour("unheard of")


@pytest.mark.parametrize(
    ("layer", "shown"),
    [
        ([20], "layer 20"),
        ([20, 21], "layers 20, 21"),
        ([], "all layers"),
        (list(range(9)), "layers 9 of them"),
        (7, "layer 7"),
        (None, ""),
    ],
)
def test_a_title_says_model_layer_n_site_and_position_and_escapes_names(layer, shown):
    config = {
        "settings": {
            "model": {"name": "me/<b>a&b"},
            "layer": layer,
            "site": "resid_pre",
            "pos": -1,
            "data": {"n_prompts": 540},
        }
    }
    who = "me/&lt;b&gt;a&amp;b" + (f", {shown}" if shown else "")
    rows = pd.DataFrame({"direction": ["baseline", "learned"], "prompt_id": ["a", "b"]})
    assert title_of(config, "Question?", rows) == (
        f"Question?<br><sup>{who} · n = 2 prompts · resid_pre · position -1</sup>"
    )
    unsteered = title_of(config, "Question?", rows[rows["direction"] == "baseline"])
    assert unsteered == "Question?<br><sup>me/&lt;b&gt;a&amp;b · n = 1 prompts</sup>"


def test_a_study_of_openings_counts_openings_and_words_come_before_both():
    settings = {"model": {"name": "m"}, "openings": "embedded"}
    rows = pd.DataFrame({"direction": "learned", "prompt_id": ["a", "b"]})
    assert title_of({"settings": settings}, "Q", rows) == "Q<br><sup>m · n = 2 openings</sup>"
    assert title_of({"settings": settings}, "Q", n="3 of 4") == "Q<br><sup>m · n = 3 of 4</sup>"


def test_prompts_are_counted_from_what_is_drawn():
    rows = frames.scores(frames.dial, groups=(("EDGE", "train"), *frames.GROUPS))
    assert prompts_in(rows) == prompts_in(summarise(rows)) == 12
    assert prompts_in(rows[rows["split"] == "holdout"]) == 8
    summary = summarise(rows)
    both = pd.concat([summary.assign(split="all"), summary])
    assert prompts_in(both) == 8  # `all` holds the halves together
    assert prompts_in(summary[:0]) == 0


def test_what_a_run_does_not_say_is_left_out_of_the_title():
    assert title_of({"settings": {"model": {"name": "m"}}}, "Q") == "Q<br><sup>m</sup>"


def test_escaping_is_undone_by_nobody():
    assert escaped("<script>&") == "&lt;script&gt;&amp;"


def test_a_band_goes_there_and_back_and_is_no_line():
    figure = go.Figure()
    add_band(figure, [1, 2], [0, 1], [2, 3], "#000000", "learned", {})
    (band,) = figure.data
    assert (list(band.x), list(band.y)) == ([1, 2, 2, 1], [2, 3, 1, 0])
    assert (band.mode, band.line.width, band.legendgroup) == ("lines", 0, "learned")


def test_every_figure_has_a_fixed_size_and_the_one_typeface():
    one, two = (styled(go.Figure(), "t", 300, 400), styled(go.Figure(), "u", 300, 400))
    assert one.layout.font == two.layout.font
    assert (one.layout.height, one.layout.width) == (300, 400)
