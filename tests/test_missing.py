"""A row that could not be computed says why, enters no figure, and too many of them end the run."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refusal_dial.cells import BASELINE, CELL_LABELS, Cell
from refusal_dial.cli.flags import SteeringFlags
from refusal_dial.common import DialError
from refusal_dial.hooks import steer
from refusal_dial.run.folder import close_log, read_table
from refusal_dial.stats.intervals import mean_interval
from refusal_dial.stats.p_values import rank_p
from refusal_dial.stats.summary import (
    BROKEN,
    NO_NUMBER,
    check_dropped_share,
    dropped_reasons,
    finite_intervals,
    finite_means,
    finite_rank_p,
    mark_dropped,
)
from refusal_dial.studies.base import load_study, prompt_rows
from refusal_dial.studies.steering import conduct

floats = st.floats(-5, 5) | st.just(float("nan"))


@pytest.fixture(autouse=True)
def no_open_log():
    yield
    close_log()


# --- rows


def test_a_row_without_a_number_says_why_and_the_others_say_nothing():
    rows = pd.DataFrame({"score": [1.0, np.nan, np.inf, -np.inf, 0.0], "effect": 1.0})
    out = mark_dropped(rows)
    assert list(out.columns) == ["score", "effect", "reason"]
    assert list(out["reason"]) == ["", NO_NUMBER, NO_NUMBER, NO_NUMBER, ""]
    assert list(out["score"].isna()) == list(out["effect"].isna()) == [0, 1, 1, 1, 0]
    assert dropped_reasons(out) == {NO_NUMBER: 3}
    assert dropped_reasons(rows) == {}  # a run of an older version


def test_what_was_said_before_the_numbers_broke_is_not_scored():
    rows = pd.DataFrame({"score": [0.2, 0.9], "stop": ["length", "nan"]})
    assert list(mark_dropped(rows)["reason"]) == ["", BROKEN]
    assert mark_dropped(rows)["score"].isna().tolist() == [False, True]


def test_a_reason_of_ones_own_is_kept_and_the_score_is_not():
    rows = pd.DataFrame({"score": [0.2, np.nan, 0.4], "reason": ["the judge timed out", None, ""]})
    out = mark_dropped(rows)
    assert list(out["reason"]) == ["the judge timed out", NO_NUMBER, ""]
    assert out["score"].isna().tolist() == [True, True, False]


def test_more_than_the_stated_share_is_refused_with_its_reasons():
    check_dropped_share({}, 10, 0.0)
    check_dropped_share({"a": 1}, 20, 0.05)
    with pytest.raises(DialError) as error:
        check_dropped_share({"a": 1, "b": 2}, 20, 0.1)
    assert str(error.value).startswith("3 of 20 rows have no score (1 a, 2 b), more than the share")
    assert "0.1 that --max-missing allows: try" in str(error.value)


# --- arrays


@given(st.lists(st.lists(floats, min_size=4, max_size=4), min_size=1, max_size=5))
def test_means_and_intervals_are_those_of_what_is_there(rows):
    values = np.array(rows)
    means, intervals = (
        finite_means(values),
        finite_intervals(values, partial(mean_interval, seed=3)),
    )
    for row, mean, interval in zip(values, means, intervals, strict=True):
        there = row[np.isfinite(row)]
        np.testing.assert_allclose(mean, there.mean() if len(there) else np.nan)
        alone = mean_interval(there, seed=3)[0] if len(there) else [np.nan, np.nan]
        np.testing.assert_allclose(interval, alone, atol=1e-12)


@given(st.data())
def test_a_p_value_never_falls_because_a_control_is_missing(data):
    rows = st.lists(st.floats(-5, 5), min_size=3, max_size=3)
    effect = np.array(data.draw(rows))
    null = np.array(data.draw(st.lists(rows, min_size=1, max_size=6)))
    whole = finite_rank_p(effect, null)
    assert whole == rank_p(effect.mean(), null.mean(1))
    broken = null.copy()
    broken[data.draw(st.integers(0, len(null) - 1))] = np.nan
    assert whole <= finite_rank_p(effect, broken) <= 1


def test_effect_and_control_are_compared_on_the_prompts_that_both_have():
    effect, null = np.array([9.0, 1.0, 1.0]), np.array([[np.nan, 2.0, 2.0], [0.0, 0.0, 0.0]])
    assert finite_rank_p(effect, null) == 2 / 3  # 2 > 1 on the last two prompts, whatever the first
    assert np.isnan(finite_rank_p(np.full(3, np.nan), null))
    assert np.isnan(finite_rank_p(effect, null[:0]))
    assert (
        finite_rank_p(np.array([1.0, np.nan]), np.array([[np.nan, 0.1]])) == 1.0
    )  # none in common


# --- a run, with NaN planted in activations


@pytest.fixture(scope="module")
def study(qwen_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    rows = [{"text": f"say {'x' * i}", "subset": "EDGE", "id": f"p{i}"} for i in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = SteeringFlags(
        model=str(qwen_folder), prompts=str(path), refusal_tokens="I", device="cpu", batch_size=4
    )
    return load_study(flags), flags


def cells(study, broken=1):
    """The baseline, a steered cell, and one whose hook writes NaN into `broken` rows a batch."""
    unit = torch.nn.functional.normalize(torch.ones(int(study.model.cfg.d_model)), dim=0)

    def planted(activation, hook):
        out = activation.clone()
        out[:broken, -1] = float("nan")
        return out

    named = {
        "learned": steer(unit, 2.0, layer=1, pos=-1),
        "random": ("blocks.1.hook_resid_pre", planted),
    }
    place = (1, "resid_pre", -1, 2.0, 0.1, 0.1)
    made = [BASELINE]
    for i, (name, hook) in enumerate(named.items()):
        values = (name, 0 if i else None, *place)
        made.append(Cell(dict(zip(CELL_LABELS, values, strict=True)), [hook]))
    return made


def run(study, flags, cells, out):
    return conduct("missing", study, replace(flags, out=str(out)), prompt_rows(study), cells)


def test_nan_in_activations_becomes_rows_with_a_reason(study, tmp_path):
    opened, flags = study
    made, summary = run(opened, replace(flags, max_missing=0.2), cells(opened), tmp_path / "run")
    scores = read_table(made.folder, "scores")
    assert list(scores.columns)[-1] == "reason"
    sick = scores["prompt_id"].isin(["p0", "p4", "p8"]) & (scores["direction"] == "random")
    assert (scores["reason"] == NO_NUMBER).equals(sick)
    assert scores["score"].isna().equals(sick)
    assert list(summary["n"]) == [10, 10, 7]
    verdict = json.loads((made.folder / "summary.json").read_text())
    assert verdict["left_out"] == {"rows": 3, "of": 30, "reasons": {NO_NUMBER: 3}}
    log = (made.folder / "log.txt").read_text()
    assert f"3 of 30 rows have no score and are left out: {NO_NUMBER}" in log


def test_too_many_end_the_run_and_allowing_more_goes_on(study, tmp_path):
    opened, flags = study
    out = tmp_path / "run"
    for _ in range(2):  # a rerun does not get further
        with pytest.raises(DialError, match="4 of 30 rows have no score"):
            run(opened, replace(flags, max_missing=0.1), cells(opened, broken=2), out)
        close_log()
    assert len(read_table(out, "scores")) == 12  # the batch that was one too many is not there
    run(opened, replace(flags, max_missing=1.0), cells(opened, broken=2), out)
    whole, _ = run(
        opened, replace(flags, max_missing=1.0), cells(opened, broken=2), tmp_path / "whole"
    )
    assert (out / "scores.csv").read_bytes() == whole.scores.read_bytes()


def test_a_run_without_anything_missing_says_nothing_of_it(study, tmp_path):
    opened, flags = study
    made, _ = run(opened, flags, cells(opened)[:2], tmp_path / "run")
    assert (read_table(made.folder, "scores")["reason"] == "").all()
    assert "left_out" not in json.loads((made.folder / "summary.json").read_text())
