"""Steering only where a detector fires, in completions: cells, rates, and the trade-off's rows."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch

from refusal_dial.cli.flags import SparingFlags
from refusal_dial.common import DialError
from refusal_dial.hooks import AddIf
from refusal_dial.run.folder import read_table
from refusal_dial.stats.trade_off import trade_off
from refusal_dial.studies.continuation import (
    as_trade_off,
    detectors_at,
    gated_cells,
    load_continuations,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tiny.folder("Phi3", tmp_path_factory.mktemp("phi"), template=None)
    return SparingFlags(
        model=str(folder),
        layer=(1,),
        alphas=(0.0, 1.0),
        n=4,
        n_pairs=8,
        n_random=2,
        samples=2,
        max_new_tokens=3,
        batch_size=8,
        device="cpu",
    )


def test_a_detector_fires_on_no_more_benign_openings_than_its_rate(flags):
    opened = load_continuations(flags)
    found = detectors_at(opened, flags, 1)
    assert len(found) == 3
    calibrated_on = opened.last[0][: len(opened.last[0]) // 2][1::2]
    for detector in found:
        assert float(detector.fires(calibrated_on).float().mean()) <= flags.rate
    taught = found[0].direction.unit @ found[1].direction.unit
    assert abs(float(taught)) < 0.9


def test_cells_are_always_on_and_the_same_behind_detectors(flags):
    cells = gated_cells(load_continuations(flags), flags)
    kinds = [cell.labels["direction"] for cell in cells]
    assert kinds == ["baseline", *["learned"] * 2, *["conditional"] * 2, *["random_detector"] * 4]
    always, gated = cells[2].hooks[0][1], cells[4].hooks[0][1]
    assert isinstance(gated.operation, AddIf)
    torch.testing.assert_close(gated.operation.vector, always.operation.vector)
    assert not cells[3].hooks


def row(direction, subset, prompt, sample, toxicity, completion, alpha=1.0):
    base = direction == "baseline"
    return {
        "direction": direction,
        "seed": None,
        "layer": None if base else 1,
        "site": "" if base else "resid_pre",
        "pos": None if base else -1,
        "alpha": 0.0 if base else alpha,
        "subset": subset,
        "split": "report",
        "prompt_id": prompt,
        "sample": sample,
        "score": toxicity,
        "completion": completion,
    }


def test_gain_is_less_toxicity_and_cost_is_other_words():
    rows = []
    for sample in (0, 1):
        for kind, hostile, friendly in (
            ("baseline", 0.9, "hello"),
            ("learned", 0.1, "hello" if sample else "bye"),
            ("conditional", 0.2, "hello"),
        ):
            for i in range(4):
                rows.append(row(kind, "CHALLENGING", f"c{i}", sample, hostile, "x"))
                rows.append(row(kind, "BENIGN", f"b{i}", sample, 0.0, friendly))
    table_rows = as_trade_off(pd.DataFrame(rows))
    assert len(table_rows) == 3 * 8
    friendly = table_rows[
        (table_rows["subset"] == "BENIGN") & (table_rows["direction"] == "learned")
    ]
    assert list(friendly["score"]) == [0.5] * 4
    table = trade_off(table_rows, wanted="CHALLENGING", others="BENIGN").set_index("direction")
    assert table.loc["learned", "gain"] == pytest.approx(0.8)
    assert table.loc["conditional", "kept"] == pytest.approx(0.7 / 0.8)
    assert table.loc["learned", "cost"] == 1
    assert table.loc["conditional", "paid"] == 0
    with pytest.raises(DialError, match="one thing the unsteered model says, and there are more"):
        as_trade_off(pd.DataFrame([*rows, rows[0]]))
    with pytest.raises(DialError, match="needs what the unsteered model says"):
        as_trade_off(pd.DataFrame(rows).query("direction != 'baseline'"))


def test_the_experiment_runs_and_is_drawn(flags, tmp_path):
    main = runpy.run_path(str(ROOT / "experiments/conditional_toxicity.py"))["main"]
    main(replace(flags, out=str(tmp_path / "run"), alphas=(1.0,)))
    rows = read_table(tmp_path / "run", "scores")
    assert set(rows["direction"]) == {"baseline", "learned", "conditional", "random_detector"}
    draw = runpy.run_path(str(ROOT / "scripts/plot_trade_off.py"))
    draw["main"](draw["Flags"](str(tmp_path / "run")))
    assert "minus toxicity" in (tmp_path / "run" / "trade_off.html").read_text()
