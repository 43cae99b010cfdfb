"""Heatmaps show effects and controls on one scale, with tokens and the number of pairs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from test_patching_summary import TABLE, rows

from refusal_dial.common import DialError
from refusal_dial.report.patching import axis_of, heatmaps, patching_title
from refusal_dial.report.theme import LINES
from refusal_dial.studies.patching_summary import moved, summarise_patching

SUMMARY = summarise_patching(TABLE)
CONFIG = {
    "settings": {
        "model": {"name": "a<b"},
        "gap": 1.0,
        "pairs": {"used": 12, "matched": 20, "excluded": 8},
    }
}


def by_layer(values: dict[int, float], **changes: object):
    table = rows({("patch", i, "attn_out", "denoise"): [v, v] for i, v in values.items()})
    return table.assign(**changes)


def test_a_panel_for_the_patch_and_each_control():
    figure = heatmaps(SUMMARY, "title", "site")
    titles = [a.text for a in figure.layout.annotations]
    assert [t.split("<br>")[0] for t in titles[:3]] == [
        "patched",
        "control: same class",
        "control: random vector",
    ]
    assert "denoise (clean into corrupted), EDGE pairs, n=12" in titles[0]
    assert "noise (corrupted into clean)" in "".join(titles)
    assert len(figure.data) == 6
    assert {trace.coloraxis for trace in figure.data} == {"coloraxis"}


def test_the_scale_is_centred_on_nothing_and_the_same_both_ways_round():
    figure = heatmaps(SUMMARY, "title", "site")
    axis = figure.layout.coloraxis
    assert (axis.cmid, axis.cmin, axis.cmax) == (0, -1, 1)
    there, back = figure.data[0], figure.data[3]
    row = list(there.y).index("attn_out")
    assert there.z[row][0] == pytest.approx(back.z[row][0], abs=0.02)
    wide = heatmaps(summarise_patching(by_layer({0: -2.5, 1: 0.3})), "title")
    assert wide.layout.coloraxis.cmin == -2.5
    assert wide.layout.coloraxis.cmax == 2.5


def test_values_stand_where_their_layer_and_name_are():
    figure = heatmaps(SUMMARY, "title", "site")
    table = moved(SUMMARY)
    patches = table[(table["direction"] == "patch") & (table["way"] == "denoise")]
    trace = figure.data[0]
    for _, row in patches[patches["head"].isna()].iterrows():
        value = trace.z[list(trace.y).index(row["site"])][list(trace.x).index(row["layer"])]
        assert value == row["moved"]
    assert f"n = {patches['n'].iloc[0]}" in str(trace.text)


def test_layers_that_lie_apart_are_as_wide_as_neighbours():
    apart, side = (dict.fromkeys(layers, 0.5) for layers in ((0, 2, 7), (3, 4, 5)))
    for chosen, kind in ((apart, "category"), (side, None)):
        figure = heatmaps(summarise_patching(by_layer(chosen)), "title")
        assert figure.layout.xaxis.type == kind
        assert list(figure.data[0].x) == list(chosen)


def test_roles_carry_their_tokens_escaped():
    table = by_layer({0: 0.1, 1: 0.9})
    other = table.assign(role="phrase-2", token="<b>")
    figure = heatmaps(summarise_patching(np_concat(table, other)), "title")
    assert list(figure.data[0].y) == ["phrase-2 '&lt;b&gt;'", "end-1 '\\n'"]


def np_concat(*tables: pd.DataFrame) -> pd.DataFrame:

    return pd.concat(tables, ignore_index=True)


def test_the_axis_is_found_from_what_varies():
    assert axis_of(SUMMARY) == "site"
    heads = summarise_patching(by_layer({0: 0.1}, head=2))
    assert axis_of(heads) == "head"
    assert list(heatmaps(heads, "title").data[0].y) == ["head 2"]
    neurons = np_concat(*(by_layer({0: i / 100}, neuron=i) for i in range(50)))
    figure = heatmaps(summarise_patching(neurons), "title")
    assert list(figure.data[0].y) == [f"neuron {i}" for i in range(10, 50)]
    roles = np_concat(by_layer({0: 0.1}), by_layer({0: 0.2}, role="end-2..end-1"))
    assert list(heatmaps(summarise_patching(roles), "title").data[0].y)[1] == "end-2..end-1 '\\n'"


def test_mixed_runs_draw_what_the_axis_tells_apart():
    figure = heatmaps(SUMMARY, "title", "head")
    assert list(figure.data[0].y) == ["head 1"]
    with pytest.raises(DialError, match="patched no neurons: there is no heatmap to draw"):
        heatmaps(SUMMARY, "title", "neuron")
    with pytest.raises(DialError, match="unknown axis 'heads': did you mean 'head'"):
        heatmaps(SUMMARY, "title", "heads")


def test_cells_that_were_not_patched_stay_empty():
    hole = np_concat(by_layer({0: 0.1, 1: 0.2}), by_layer({1: 0.5}, role="end-2"))
    z = np.array(heatmaps(summarise_patching(hole), "title").data[0].z)
    assert np.isnan(z).sum() == 1
    shown = heatmaps(summarise_patching(hole), "title").layout
    assert shown.plot_bgcolor == LINES  # what is not patched is grey, not the white of no effect
    assert "White: the patch changes nothing (0)." in shown.title.text


def test_the_title_counts_the_pairs_left_out():
    title = patching_title(CONFIG, "Where?")
    assert title == (
        "Where?<br><sup>a&lt;b, n = 12 of 20 matched pairs (8 left out: scores closer than 1)</sup>"
    )


def test_the_same_summary_is_the_same_page():
    pages = [heatmaps(SUMMARY, "t").to_html(div_id="figure") for _ in range(2)]
    assert pages[0] == pages[1]
