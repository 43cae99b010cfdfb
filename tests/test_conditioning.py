"""Steering behind a detector on the embedded model, as the script runs it."""

from __future__ import annotations

import json

import pytest
from script_case import ROOT, load

from refusal_dial.cli import command_line as cli
from refusal_dial.data.prompts import Prompt
from refusal_dial.run.folder import find_run, read_table
from refusal_dial.stats.trade_off import trade_off
from refusal_dial.studies.steering import three_parts


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One alpha, one layer, two random detectors, every other prompt."""
    folder = tmp_path_factory.mktemp("conditional")
    lines = (ROOT / "data/prompts.jsonl").read_text().splitlines()
    rows = [{**json.loads(line), "pair_id": None} for line in lines[::2]]
    (folder / "some.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = f"--alphas 0.3 --n-random 2 --device cpu --prompts {folder}/some.jsonl"
    cli.run(load("conditional_steering").main, [*flags.split(), "--out", f"{folder}/run"])
    return folder / "run"


def test_the_three_parts_share_every_category_and_no_prompt():
    prompts = [Prompt(f"{c}{i}", "x", "EDGE", c) for c in "ab" for i in range(9)]
    parts = three_parts(prompts, 0)
    assert sorted(p.id for part in parts for p in part) == sorted(p.id for p in prompts)
    for part in parts:
        assert [p.category for p in part].count("a") == 3


@pytest.mark.slow
def test_the_detector_keeps_the_gain_and_spares_the_rest(run):
    scores = read_table(run, "scores")
    held_out = scores[scores["split"] == "holdout"]
    table = trade_off(held_out, wanted="HARMFUL", others="EDGE").set_index("direction")
    assert table.loc["learned", "cost_lo"] > 0.2
    assert table.loc["conditional", "kept"] >= 0.9
    assert table.loc["conditional", "paid_hi"] <= 0.2
    assert (table.loc["random_detector", "kept"] < table.loc["conditional", "kept_lo"]).all()


@pytest.mark.slow
def test_only_prompts_that_fire_move_at_all(run):
    scores = read_table(run, "scores").set_index(["direction", "prompt_id"])["score"]
    moved = scores.loc["conditional"] != scores.loc["baseline"].loc[scores.loc["conditional"].index]
    where = read_table(run, "scores").drop_duplicates("prompt_id").set_index("prompt_id")
    calibrated = where[(where["subset"] == "EDGE") & (where["split"] == "validation")].index
    n = len(calibrated)  # the prompt at the threshold may be over it by rounding
    assert moved[calibrated].sum() <= int(0.3 * (n + 1))
    assert not moved.all()


@pytest.mark.slow
def test_the_table_and_the_figure_come_from_the_run_alone(run, capsys):
    cli.run(load("plot_trade_off").main, [str(run)])
    assert "trade_off.html" in capsys.readouterr().out
    assert "behind the detector" in (find_run(run) / "trade_off.html").read_text()
