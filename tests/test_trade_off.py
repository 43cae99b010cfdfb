"""The trade-off on scores whose gain and cost are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from refusal_dial.common import DialError
from refusal_dial.report.steering import CURVE_NAMES, trade_off_curves
from refusal_dial.stats.trade_off import trade_off

N = 20


def scores(kept: int = 15, others_hit: int = 2) -> pd.DataFrame:
    """Always-on raises all wanted prompts by 2 and takes half of the spared over 0; the conditional
    one does it to `kept` of the wanted and `others_hit` of the spared."""
    rows = []
    for direction, seed, alpha in (
        ("baseline", None, 0.0),
        ("learned", None, 1.0),
        ("conditional", None, 1.0),
        ("random_detector", 0, 1.0),
    ):
        place = (None, "", None) if direction == "baseline" else (4, "resid_pre", -1)
        fires = {"learned": (N, N // 2), "conditional": (kept, others_hit)}.get(direction, (0, 0))
        for i in range(N):
            rows.append((direction, seed, *place, alpha, f"w{i}", "W", i + 2.0 * (i < fires[0])))
            rows.append((direction, seed, *place, alpha, f"s{i}", "S", -1 + 2.0 * (i < fires[1])))
    names = ["direction", "seed", "layer", "site", "pos", "alpha", "prompt_id", "subset", "score"]
    return pd.DataFrame(rows, columns=names).sample(frac=1, random_state=0)


def row(table: pd.DataFrame, direction: str) -> pd.Series:
    return table[table["direction"] == direction].iloc[0]


def test_gain_cost_and_shares_are_what_was_put_in():
    table = trade_off(scores(), wanted="W", others="S")
    always, gated, random = (row(table, name) for name in CURVE_NAMES)
    assert (always["gain"], always["cost"]) == (2.0, 0.5)
    assert (always["kept"], always["paid"]) == (1.0, 1.0)
    assert (gated["gain"], gated["cost"]) == (1.5, 0.1)
    assert gated["kept"] == 0.75
    assert gated["paid"] == pytest.approx(0.2)
    assert (random["kept"], random["paid"]) == (0.0, 0.0)
    for name in ("gain", "cost", "kept", "paid"):
        assert gated[f"{name}_lo"] <= gated[name] <= gated[f"{name}_hi"]
        assert gated[f"{name}_lo"] < gated[f"{name}_hi"]


def test_an_interval_of_kept_is_that_of_a_share():
    gated = row(trade_off(scores(), wanted="W", others="S"), "conditional")
    assert gated["kept_lo"] == pytest.approx(0.75 - 1.96 * np.sqrt(0.75 * 0.25 / N), abs=0.06)


def test_none_of_twenty_leaves_room_for_more_than_none():
    gated = row(trade_off(scores(others_hit=0), wanted="W", others="S"), "conditional")
    assert gated["paid"] == gated["paid_lo"] == 0
    assert 0.1 < gated["cost_hi"] < 0.2
    assert gated["paid_hi"] == pytest.approx(2 * gated["cost_hi"])


def test_a_share_of_nothing_is_unknown():
    flat = scores(kept=0, others_hit=0)
    flat = flat[flat["direction"] != "learned"]
    table = trade_off(flat.assign(score=1.0), wanted="W", others="S", always="conditional")
    assert np.isnan(row(table, "conditional")["kept"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[s["subset"] == "W"], "needs S prompts that are held out; there are W"),
        (lambda s: s[s["direction"] != "baseline"], "needs the baseline's scores"),
    ],
)
def test_what_is_missing_is_named(change, message):
    with pytest.raises(DialError, match=message):
        trade_off(change(scores()), wanted="W", others="S")


def test_the_figure_shows_both_ways_on_the_same_axes():
    table = trade_off(scores(), wanted="W", others="S")
    figure = trade_off_curves(table, "title", "W", "S")
    drawn = {trace.name: trace for trace in figure.data}
    assert set(drawn) == {*CURVE_NAMES.values(), "unsteered"}
    assert (drawn["behind the detector"].x[0], drawn["behind the detector"].y[0]) == (0.1, 1.5)
    assert figure.layout.xaxis.title.text == "rise of the share refused, S"
    with pytest.raises(DialError, match="expected directions learned, conditional"):
        trade_off_curves(table.assign(direction="other"), "title", "W", "S")


def test_a_cell_on_one_subset_alone_or_with_two_scores_is_refused():
    whole = scores()
    lost = whole[(whole["direction"] != "conditional") | (whole["subset"] != "S")]
    with pytest.raises(DialError, match="needs every cell on W and on S prompts"):
        trade_off(lost, wanted="W", others="S")
    with pytest.raises(DialError, match="needs one score a prompt and cell, and there are more"):
        trade_off(pd.concat([whole, whole[:1]]), wanted="W", others="S")
