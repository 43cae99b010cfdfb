"""The map of slopes: a planted direction is found where it is, permuted labels find nothing, and
slope times alpha predicts the dial as alpha goes to 0."""

from __future__ import annotations

import json

import bad_case
import numpy as np
import pandas as pd
import pytest
import small_runs
import tiny
import torch
from script_case import ROOT

from refusal_dial.common import DialError
from refusal_dial.engine import score_grid
from refusal_dial.engine.slopes import first_order
from refusal_dial.hooks import ablate, patch, steer
from refusal_dial.model.tokens import last_logits, tokenize
from refusal_dial.report.direction_map import map_figure, map_sentence
from refusal_dial.run.folder import read_table, read_verdict
from refusal_dial.run.schema import MAP_COLUMNS


def place(labels="scores", layer=3, pos=-1, p=0.001, slope=1.0, z=5.0):
    about = {"labels": labels, "layer": layer, "site": "resid_pre", "pos": pos, "token": "'<b>'"}
    values = {"residual_norm": 3.0, "slope": slope, "z": z, "p": p, "p_two_sided": p}
    values |= {"p_corrected": p, "slope_unit": slope, "z_unit": z, "p_unit": p, "n": 999}
    return about | values | {"reason": "" if p == p else "the same everywhere"}


def test_every_place_has_a_row_for_each_set_of_labels(small_material):
    run = small_runs.small_run(small_material, "map_direction")
    summary = read_table(run.folder, "summary", *MAP_COLUMNS)
    assert summary.groupby(["labels", "layer", "pos"]).size().eq(1).all()
    assert set(summary["labels"]) == {"scores", "contrast"}
    assert set(summary["layer"]) == {0, 1, 2}
    nowhere = summary[(summary["layer"] == 0) & (summary["pos"] == -1)]
    assert nowhere["p"].isna().all()
    assert nowhere["reason"].str.len().gt(0).all()
    rest = summary[summary["p"].notna()]
    assert rest["p_corrected"].ge(rest["p_two_sided"] - 1e-12).all()


def test_slope_times_alpha_is_the_dial_for_small_alphas(small_material):
    run = small_runs.small_run(small_material, "map_direction")
    rows = pd.DataFrame(read_verdict(run.folder)["agreement"])
    small = rows[rows["alpha_relative"] == rows["alpha_relative"].min()]
    large = rows[rows["alpha_relative"] == rows["alpha_relative"].max()]
    assert (small["correlation"] > 0.999).all()
    assert (small["error"] < 0.05).all()
    assert large["error"].mean() > 2 * small["error"].mean()


def test_the_verdict_counts_places_that_are_shown_and_names_the_first():
    table = pd.DataFrame([place(layer=1, p=0.4, z=1), place(layer=2), place(layer=4, z=9)])
    text = map_sentence(table)[1]
    assert "at 2 of 3 places" in text
    assert "first at layer 2" in text
    assert "most clearly at layer 4 (position -1, z = 9.0" in text
    assert "at no place that was shown, of 1" in map_sentence(table.head(1))[1]
    down = pd.DataFrame([place(slope=-1.0, z=-5.0, p=0.999) | {"p_corrected": 0.001}])
    assert "at no place that was shown" in map_sentence(down)[1]
    assert "1 places have no p" in map_sentence(pd.DataFrame([place(), place(p=np.nan)]))[1]


def test_the_figure_marks_what_is_shown_and_escapes_tokens():
    table = pd.DataFrame([place(), place(layer=4, p=0.3, z=1.0), place("contrast", 3, p=np.nan)])
    figure = map_figure(table, "title")
    heat, dots = figure.data[0], figure.data[1]
    assert list(dots.x) == [3]
    assert "&lt;b&gt;" in heat.y[0]
    assert "<b>" not in json.dumps(figure.to_plotly_json(), default=str)


@pytest.mark.parametrize(
    ("positions", "wanted"),
    [
        ("-500,-1", "expected positions that every prompt has"),
        ("-3,-2", "expected -1 among them"),
    ],
)
def test_positions_that_cannot_be_are_one_line(positions, wanted, small_material, tmp_path, capsys):
    typed = small_runs.arguments(small_material, "map_direction")
    typed = [one for one in typed if not one.startswith("--positions")]
    path = ROOT / "experiments" / "map_direction.py"
    ended = bad_case.run(path, [*typed, f"--positions={positions}"], tmp_path, capsys)
    assert wanted in ended.line


def scorer(logits):
    return logits.double()[:, 40] - logits.double()[:, 50]


def test_a_first_order_estimate_meets_the_engine_as_edits_become_small(qwen):
    tokens = tokenize(qwen, [*tiny.sentences(3), "a longer prompt with more tokens"])
    width = int(qwen.cfg.d_model)
    vector = torch.nn.functional.normalize(torch.arange(1.0, width + 1), dim=0)
    value = torch.randn(4, width, generator=torch.Generator().manual_seed(1))
    grid = [
        [],
        [steer(vector, 2e-3, layer=1, pos=-1)],
        [steer(vector, 2e-3, layer=1, pos="all"), steer(vector, -2e-3, layer=2, site="mlp_out")],
    ]
    found = first_order(qwen, tokens, grid, scorer, batch_size=3)
    exact = score_grid(qwen, tokens, grid, scorer)
    torch.testing.assert_close(found, exact, atol=1e-4, rtol=0)
    moved = (exact[1:] - exact[0]).abs().max()
    assert moved > 1e-3  # or the agreement above would be one of nothing with nothing
    # An estimate that is far is an estimate of the same edit: a patch's is linear in its value.
    own = score_grid(qwen, tokens, [[]], scorer)[0]
    ends = [[steer(vector, alpha, layer=1, pos=-1)] for alpha in (0.5, 1.0)]
    half, whole = first_order(qwen, tokens, ends, scorer) - own
    torch.testing.assert_close(2 * half, whole, atol=1e-6, rtol=1e-4)
    far = first_order(qwen, tokens, [[patch(value, layer=1, pos=-1)]], scorer)[0]
    assert (far - own).abs().max() > 1e-2


def test_a_first_order_estimate_takes_edits_alone(qwen):
    tokens, width = tokenize(qwen, tiny.sentences(2)), int(qwen.cfg.d_model)
    own = ("blocks.1.hook_resid_pre", lambda activation, hook: activation)
    with pytest.raises(DialError, match="expected steer, ablate, clamp or patch"):
        first_order(qwen, tokens, [[own]], scorer)
    one = first_order(qwen, tokens, [[ablate(torch.ones(width) / width**0.5, layer=1)]], scorer)
    assert one.shape == (1, 2)
    base = scorer(last_logits(qwen, tokens))
    torch.testing.assert_close(first_order(qwen, tokens, [[]], scorer)[0], base, atol=1e-6, rtol=0)
