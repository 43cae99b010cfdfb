"""Steering position by position: the sums by hand, and a planted place that is found."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import planted
import pytest
from script_case import load
from small_runs import small_run

from refusal_dial.cli.flags import PlotFlags, PositionFlags
from refusal_dial.common import DialError
from refusal_dial.report.positions import positions_figure, print_positions
from refusal_dial.run.folder import read_table
from refusal_dial.studies.base import load_study
from refusal_dial.studies.positions import (
    EVERYWHERE,
    LAST,
    conduct_positions,
    position_cells,
    prompt_positions,
    study_positions,
    summarise_positions,
)

N = 12


def rows(direction, role, scores, alpha=1.0, seed=None, measure="score", subset="EDGE"):
    """One cell with these scores."""
    place = {"layer": 1, "site": "resid_pre", "pos": -1 if role == LAST else -3, "role": role}
    steps = {"alpha": alpha, "alpha_relative": alpha, "strength": alpha}
    ids = [f"p{i}" for i in range(len(scores))]
    about = {"prompt_id": ids, "subset": subset, "split": "holdout", "score": scores}
    frame = pd.DataFrame({"direction": direction, **about, **place, **steps, "measure": measure})
    return frame.assign(seed=pd.array([seed] * len(scores), dtype="Int64"))


def swept(earlier: float) -> pd.DataFrame:
    """The last position adds 2 to every score, an earlier one `earlier`; a random one nothing."""
    base = np.linspace(-1.5, 1.0, N)
    noise = np.random.default_rng(0).normal(0, 0.01, N)
    return pd.concat(
        [
            rows("baseline", "", base, alpha=0.0),
            rows("learned", LAST, base + 2),
            rows("learned", "end-3", base + earlier + noise),
            rows("own", "end-3", base + 2),
            rows("random", LAST, base, seed=0),
            rows("random", "end-3", base + noise, seed=0),
        ],
        ignore_index=True,
    )


def cell(summary, direction, role):
    mine = summary[(summary["direction"] == direction) & (summary["role"] == role)]
    assert len(mine) == 1
    return mine.iloc[0]


def test_differences_to_the_last_position_are_paired_and_their_control_finds_nothing():
    summary = summarise_positions(swept(0.5))
    there = cell(summary, "learned", "end-3")
    assert there["difference"] == pytest.approx(-1.5, abs=0.02)
    assert there["diff_hi"] - there["diff_lo"] < 0.05  # paired: far narrower than scores
    assert there["score_hi"] - there["score_lo"] > 0.5
    assert there["p_holm"] < 0.001
    assert there["shift"] == pytest.approx(0.5, abs=0.02)
    random = cell(summary, "random", "end-3")
    assert random["diff_lo"] <= 0 <= random["diff_hi"]
    assert random["p_holm"] > 0.05
    last = cell(summary, "learned", LAST)
    assert pd.isna(last["difference"])
    assert pd.isna(last["p_holm"])


def test_the_own_direction_of_a_position_is_compared_with_the_last_ones():
    summary = summarise_positions(swept(0.5))
    assert cell(summary, "own", "end-3")["difference"] == 0
    assert cell(summary, "own", "end-3")["p_holm"] == 1


def test_rates_are_of_scores_over_the_threshold_and_a_kl_has_none():
    table = pd.concat(
        [
            swept(0.5),
            rows("baseline", "", np.zeros(N), 0.0, measure="kl", subset="BENIGN"),
            rows("learned", LAST, np.full(N, 0.2), measure="kl", subset="BENIGN"),
            rows("learned", "end-3", np.full(N, 0.1), measure="kl", subset="BENIGN"),
        ]
    )
    summary = summarise_positions(table)
    scored, kept = (summary[summary["measure"] == name] for name in ("score", "kl"))
    assert cell(scored, "learned", LAST)["refusal_rate"] == 1
    base = (np.linspace(-1.5, 1.0, N) > 0).mean()
    assert cell(scored, "random", LAST)["refusal_rate"] == pytest.approx(base)
    assert cell(kept, "learned", "end-3")["difference"] == pytest.approx(-0.1)
    assert kept["refusal_rate"].isna().all()
    with pytest.raises(DialError, match="the unsteered model is missing"):
        summarise_positions(table[table["direction"] != "baseline"])


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    """A model whose head writes refusal at the last layer-but-two, read at the last position."""
    folder = tmp_path_factory.mktemp("positions")
    model, _ = planted.model_folder(folder / "model", "head")
    prompts = planted.prompts_file(folder / "prompts.jsonl")
    harmful = pd.read_json(prompts, lines=True)
    edge = harmful.assign(subset="EDGE", id=harmful["id"] + "e", pair_id=None)
    pd.concat([harmful, edge]).to_json(prompts, orient="records", lines=True)
    return folder, {"model": str(model), "prompts": str(prompts), "device": "cpu"}


def flags_of(plant, layer, **more):
    folder, where = plant
    some = {"refusal_tokens": "I", "words": 2, "n": 10, "n_replies": 3, "max_new_tokens": 2}
    return PositionFlags(
        **where, **{**some, "layer": layer, "out": str(folder / f"{layer}")}, **more
    )


def test_after_the_writer_only_the_last_position_turns_refusal(plant):
    """Refusal is written by layer 2 and read at the last position: beyond it no other matters."""
    flags = flags_of(plant, planted.LAYER + 1, alphas=(0.5,))
    study = load_study(flags, (flags.layer,), flags.site)
    _, summary = conduct_positions("steer_positions", study, flags)
    scored = summary[(summary["measure"] == "score") & (summary["subset"] == "BENIGN")]
    learned = scored[scored["direction"] == "learned"]
    last = cell(learned, "learned", LAST)
    assert last["shift"] > 1
    others = learned[~learned["role"].isin((LAST, EVERYWHERE))]
    assert len(others) >= 3
    assert (others["shift"].abs() < 0.2 * last["shift"]).all()
    assert (others["diff_hi"] < 0).all()
    assert (others["p_holm"] <= 0.05).all()
    random = (
        cell(scored, "random", LAST)
        if flags.n_random == 1
        else scored[(scored["direction"] == "random") & (scored["role"] == LAST)].iloc[0]
    )
    assert abs(random["shift"]) < 0.5 * last["shift"]


def test_positions_are_of_every_prompt_and_end_with_the_last(plant):
    flags = flags_of(plant, 3, dry_run=True)
    study = load_study(flags, (3,), flags.site)
    places = prompt_positions(study, flags)
    assert places[-1].role == LAST
    assert [one.pos for one in places] == list(range(-len(places), 0))
    assert [one.role for one in places[:2]] == ["text-2", "text-1"]
    ids = study.tokens.ids
    for one in places[2:]:  # a token of the template is the same in every prompt
        assert len(set(ids[:, one.pos].tolist())) == 1, one
    opened = study_positions(study, flags)
    cells = position_cells(opened, flags)
    assert not cells[0].hooks
    assert {cell.hooks[0][1].pos for cell in cells[1:] if cell.labels["role"] == LAST} == {
        "last_prompt"
    }
    assert len({repr(cell.labels) for cell in cells}) == len(cells)


def test_thoughts_have_no_positions(plant):
    study = load_study(flags_of(plant, 3), (3,), "resid_pre")
    with pytest.raises(DialError, match="thoughts differ in length: expected --thinking off"):
        prompt_positions(study, flags_of(plant, 3, thinking="on"))


def test_the_run_is_read_back_as_a_table_and_a_figure(small_material, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(small_run(small_material, "steer_positions").folder, out)
    summary = read_table(out, "summary")
    print_positions(summary)
    printed = capsys.readouterr().out
    assert "last" in printed
    assert "text-1" in printed
    # Rates that are all 0 tell nothing: the shift of the score stands in their place.
    print_positions(summary.assign(refusal_rate=0.5))
    assert "SHIFT" not in capsys.readouterr().out
    print_positions(summary.assign(refusal_rate=0.0))
    printed = capsys.readouterr().out
    row = summary[summary["role"] == "last"].dropna(subset="shift").iloc[0]
    assert "SHIFT" in printed
    assert f"{row['shift']:+.2f}" in printed
    figure = positions_figure(summary, "title", "residual")
    drawn = {trace.name for trace in figure.data if trace.name}
    assert {"learned at 1", "learned at -1", "own at 1", "random at 1"} <= drawn
    load("plot_positions").main(PlotFlags(str(out)))
    assert Path(out / "positions.html").stat().st_size > 1000
