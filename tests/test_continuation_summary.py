"""Laws of the table of completions: pairing, the unit, corrections, and the choice of a layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from refusal_dial.common import DialError
from refusal_dial.studies.continuation import (
    best_layer,
    by_group,
    by_layer,
    summarise_continuations,
)

N = 16


def completion_rows(effect, layers=(0, 1, 2), noise=0.05, samples=2) -> pd.DataFrame:
    """Rows whose score is 0.6 + effect(layer, strength, half) + noise of the prompt and sample."""
    rng = np.random.default_rng(0)
    prompt, sample = rng.normal(0, 0.1, N), rng.normal(0, noise, (N, samples))
    wobble = rng.normal(0, noise, (1 + 9 * len(layers), N))
    cells = [("baseline", pd.NA, pd.NA, 0.0)]
    for layer in layers:
        cells += [("learned", pd.NA, layer, s) for s in (-1.0, 0.0, 1.0)]
        cells += [("random", i, layer, s) for i in range(3) for s in (-1.0, 1.0)]
    rows = []
    for c, (direction, seed, layer, strength) in enumerate(cells):
        for i in range(N):
            half = "choose" if i % 2 else "report"
            move = effect(layer, strength, half) if direction == "learned" else 0.0
            moved = move + (wobble[c, i] if strength else 0.0)
            for k in range(samples):
                score = 0.6 + prompt[i] + sample[i, k] + moved
                place = (layer, "resid_pre", -1, strength, strength)
                row = (direction, seed, *place, f"p{i}", "CHALLENGING", half, score, k, 2.0)
                rows.append(row)
    names = ["direction", "seed", "layer", "site", "pos", "alpha", "strength", "prompt_id"]
    names += ["subset", "split", "score", "sample", "nll"]
    return pd.DataFrame(rows, columns=names).astype({"seed": "Int64", "layer": "Int64"})


def one_layer_works(layer, strength, half):
    return -0.3 * strength if layer == 1 else 0.0


@pytest.fixture(scope="module")
def summary():
    return summarise_continuations(completion_rows(one_layer_works))


def cell(summary, layer, strength, split="all"):
    rows = summary[(summary["direction"] == "learned") & (summary["split"] == split)]
    return rows[(rows["layer"] == layer) & (rows["strength"] == strength)].iloc[0]


def test_an_effect_is_found_and_none_is_not(summary):
    works, idle = cell(summary, 1, 1.0), cell(summary, 2, 1.0)
    assert works["diff_hi"] < -0.25 < works["diff_lo"] + 0.1
    assert works["p_paired"] < 0.001
    assert works["p_control"] == 1 / 4
    assert works["reduction"] == pytest.approx(0.5, abs=0.1)
    assert idle["diff_lo"] < 0 < idle["diff_hi"]
    assert idle["p_paired"] > 0.05


def test_alpha_zero_differs_by_nothing_at_all(summary):
    zero = cell(summary, 1, 0.0)
    assert (zero["difference"], zero["diff_lo"], zero["diff_hi"], zero["p_paired"]) == (0, 0, 0, 1)


def test_the_unit_is_the_prompt_and_copied_samples_add_nothing():
    rows = completion_rows(one_layer_works)
    twice = pd.concat([rows, rows.assign(sample=rows["sample"] + 2)])
    one, two = summarise_continuations(rows), summarise_continuations(twice)
    compared = ["score_lo", "score_hi", "diff_lo", "diff_hi", "p_paired", "n"]
    pd.testing.assert_frame_equal(one[compared], two[compared])
    assert (two["samples"] == 2 * one["samples"]).all()


def test_a_layer_that_the_model_has_not_is_refused(summary):
    with pytest.raises(DialError, match="steered layer 2 of a model that has 2"):
        by_layer(summary, "CHALLENGING", 2)


def test_the_best_layer_is_reported_on_prompts_it_was_not_chosen_on(summary):
    layers = by_layer(summary, "CHALLENGING", 3)
    best = best_layer(layers)
    assert best.layer == 1
    assert best.difference == cell(summary, 1, 1.0, "report")["difference"]
    assert best.chosen_on == cell(summary, 1, 1.0, "choose")["reduction"]
    assert best.p_holm == pytest.approx(3 * best.p_paired)
    assert list(by_group(layers)["group"]) == ["early", "middle", "late"]


def test_groups_are_thirds_of_the_model_and_not_of_the_layers_that_were_steered(summary):
    deep = by_layer(summary, "CHALLENGING", 32)
    assert set(deep["group"]) == {"early"}
    last = by_layer(summary.assign(layer=summary["layer"] + 20), "CHALLENGING", 32)
    assert dict(zip(last["layer"], last["group"], strict=True)) == {
        20: "middle",
        21: "middle",
        22: "late",
    }


def test_effectiveness_takes_an_alpha_over_zero(summary):
    with pytest.raises(DialError, match="must be over 0 and is 0"):
        by_layer(summary[summary["strength"] <= 0], "CHALLENGING", 3)


def test_a_layer_that_works_on_one_half_only_is_not_reported_as_working():
    lucky = summarise_continuations(
        completion_rows(lambda layer, s, half: -0.3 * s if (layer, half) == (2, "choose") else 0.0)
    )
    best = best_layer(by_layer(lucky, "CHALLENGING", 3))
    assert best.layer == 2
    assert best.chosen_on > 0.3
    assert best.p_holm > 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.assign(score=np.nan), "none of 896 completions has a score"),
        (lambda r: r[r["direction"] != "baseline"], "the baseline is missing"),
        (lambda r: r.drop(r[(r["prompt_id"] == "p3") & (r["layer"] == 1)].index), "every cell"),
    ],
)
def test_rows_that_cannot_be_summarised(change, message):
    with pytest.raises(DialError, match=message):
        summarise_continuations(change(completion_rows(one_layer_works)))


def test_what_could_not_be_scored_is_left_out_of_every_figure():
    rows = completion_rows(one_layer_works)
    mine = (rows["direction"] == "learned") & (rows["layer"] == 1) & (rows["strength"] == 1.0)
    some = mine & rows["prompt_id"].isin(["p1", "p2", "p3"])
    sample = some & (rows["sample"] == 0)
    one = cell(summarise_continuations(rows.assign(score=rows["score"].mask(sample))), 1, 1.0)
    assert one["n"] == N  # each of the prompts has another sample
    one = cell(summarise_continuations(rows.assign(score=rows["score"].mask(some))), 1, 1.0)
    apart = summarise_continuations(rows[~rows["prompt_id"].isin(["p1", "p2", "p3"])])
    names = ["difference", "diff_lo", "diff_hi", "reduction", "p_paired", "score_mean"]
    assert one["n"] == N - 3
    np.testing.assert_allclose(
        one[names].astype(float), cell(apart, 1, 1.0)[names].astype(float), rtol=1e-12
    )
    assert one["p_control"] == 1 / 4
    broken = rows["direction"].eq("random") & (rows["seed"] == 2) & (rows["strength"] == 1.0)
    one = cell(summarise_continuations(rows.assign(score=rows["score"].mask(broken))), 1, 1.0)
    assert one["p_control"] == 2 / 4


def test_the_rank_is_among_the_fairest_controls_that_there_are():
    rows = completion_rows(one_layer_works)
    draw = rows["direction"].eq("random")
    stronger = draw & (rows["seed"] == 0)  # a random direction that does more than the learned one
    rows.loc[stronger, "score"] -= 5.0
    assert cell(summarise_continuations(rows), 1, 1.0)["p_control"] == 2 / 4
    fair = rows[draw & ~stronger].assign(direction="shuffled")
    both = pd.concat([rows, fair], ignore_index=True)
    assert cell(summarise_continuations(both), 1, 1.0)["p_control"] == 1 / 3


def test_a_run_without_halves_has_no_best_layer(summary):
    with pytest.raises(DialError, match="no learned direction on BENIGN prompts of both halves"):
        by_layer(summary, "BENIGN", 3)
