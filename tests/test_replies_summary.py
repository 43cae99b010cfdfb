"""Summaries of replies: figures by hand, what is left out, and what is chosen where."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from refusal_dial.common import DialError
from refusal_dial.data.prompts import CHOOSE, REPORT
from refusal_dial.report.replies import layer_strength, print_replies
from refusal_dial.studies.replies import (
    best_cell,
    coherent_range,
    control_range,
    inverted_layers,
    layer_table,
    not_significant,
    summarise_replies,
    with_condition,
    with_readings,
)

N = 12


def cell(direction, strength, labels, *, layer=20, seed=None, system="", subset="EDGE", nll=1.0):
    """Rows of one cell: prompt i of the subset gets labels[i % len(labels)]."""
    base = direction == "baseline"
    labelled = [labels[i % len(labels)] for i in range(N)]
    return pd.DataFrame(
        {
            "direction": direction,
            "seed": pd.array([seed] * N, dtype="Int64"),
            "layer": pd.array([None if base else layer] * N, dtype="Int64"),
            "site": "" if base else "resid_pre",
            "pos": pd.array([None if base else -1] * N, dtype="Int64"),
            "alpha": 10 * strength,
            "alpha_relative": strength,
            "strength": strength,
            "system": system,
            "subset": subset,
            "split": "holdout",
            "category": ["a", "b"] * (N // 2),
            "prompt_id": [f"{subset}{i}" for i in range(N)],
            "sample": 0,
            "score": [1.0 if one == "full_refusal" else -1.0 for one in labelled],
            "label": labelled,
            "phrase": [int(one == "full_refusal") for one in labelled],
            "nll": nll,
            "repeated": 0.0,
            "stop": "end",
            "completion": '"some words"',
        }
    )


YES, NO, PART = "full_compliance", "full_refusal", "partial_refusal"


def rows(*cells):
    return pd.concat(cells, ignore_index=True)


def test_rates_differences_and_coherence_by_hand():
    table = rows(
        cell("baseline", 0.0, [YES, YES, YES, NO]),
        cell("learned", 0.4, [NO, NO, PART, NO], nll=1.0 + np.log(2)),
        cell("random", 0.4, [YES, YES, NO, NO], seed=0),
    )
    summary = summarise_replies(table).set_index("direction")
    assert list(summary["refusal_rate"]) == [0.25, 1.0, 0.5]
    assert list(summary["difference"]) == [0.0, 0.75, 0.25]
    assert summary.loc["learned", "coherence"] == pytest.approx(0.5)
    assert summary.loc["learned", "unlike"] == 0.25  # a partial refusal without a phrase
    assert summary.loc["learned", "p_paired"] == pytest.approx(2 / 2**9)
    assert summary.loc["learned", "p_control"] == 0.5  # one control, which it beats
    assert (
        summary.loc["baseline", ["diff_lo", "diff_hi"]].abs().min() > 0.1
    )  # 12 prompts leave room
    assert (summary["rate_lo"] <= summary["refusal_rate"]).all()


def test_what_the_judge_could_not_score_enters_no_rate():
    table = rows(
        cell("baseline", 0.0, [YES, "unscored", YES, NO]),
        cell("learned", 0.4, [NO, NO, "unscored", NO]),
        cell("learned", 0.6, ["unscored"]),
    )
    summary = summarise_replies(table)
    assert list(summary["unscored"]) == [3, 3, 12]
    assert summary["refusal_rate"].iloc[0] == pytest.approx(1 / 3)
    assert summary["refusal_rate"].iloc[1] == 1
    assert summary["difference"].iloc[1] == pytest.approx(0.5)  # over the prompts scored in both
    assert summary.iloc[2][["refusal_rate", "rate_lo", "difference", "diff_hi"]].isna().all()


def test_samples_of_a_prompt_are_one_prompt():
    one = rows(cell("baseline", 0.0, [YES, NO]), cell("learned", 0.4, [NO]))
    two = pd.concat([one, one.assign(sample=1)], ignore_index=True)
    both = [summarise_replies(table) for table in (one, two)]
    assert list(both[1]["samples"]) == [2, 2]
    pd.testing.assert_frame_equal(both[0].drop(columns="samples"), both[1].drop(columns="samples"))


def test_a_cell_without_all_prompts_or_a_run_without_baseline():
    table = rows(cell("baseline", 0.0, [YES]), cell("learned", 0.4, [NO]))
    with pytest.raises(DialError, match="EDGE holdout: every cell needs every prompt once"):
        summarise_replies(table.iloc[:-1])
    with pytest.raises(DialError, match="unsteered model's own replies are missing"):
        with_readings(table[table["direction"] == "learned"])


def test_degenerate_is_empty_looping_or_endless():
    table = rows(cell("baseline", 0.0, [YES]))
    table.loc[0, "completion"] = '""'
    table.loc[1, "repeated"] = 0.9
    table.loc[2, "stop"] = "length"
    assert list(with_readings(table)["degenerate"]) == [1, 1, 1] + [0] * (N - 3)


def test_where_coherence_ends():
    parts = [cell("baseline", 0.0, [YES])]
    for strength, cost in ((-0.5, 1.0), (0.5, 1.01), (1.0, 1.05), (1.5, 3.0), (2.0, 1.0)):
        parts.append(cell("learned", strength, [NO], nll=cost))
    less, more = coherent_range(summarise_replies(rows(*parts)), tolerance=0.1)
    assert (less["toward"], less["holds_to"], less["breaks_at"]) == ("less", -0.5, None)
    assert (more["toward"], more["holds_to"], more["breaks_at"]) == ("more", 1.0, 1.5)
    assert more["coherence_there"] == pytest.approx(np.exp(-2))


def test_conditions_have_names_and_say_what_is_not_shown():
    table = rows(
        cell("baseline", 0.0, [YES]),
        cell("learned", 0.4, [NO]),
        cell("random", 0.4, [YES, YES, YES, NO], seed=0),
        cell("baseline", 0.0, [YES, YES, YES, NO], system="instructed"),
        cell("learned", 0.4, [NO], system="instructed"),
    )
    summary = summarise_replies(table)
    found = with_condition(summary)
    assert list(found["condition"]) == ["base", "steering 0.4", "system message", "both 0.4"]
    (sentence,) = not_significant(found)
    assert sentence.startswith("not significant, EDGE (n=12, Holm's p): system message +0.25 [")
    assert "steering" not in sentence
    assert control_range(summary)[["lo", "hi", "n"]].iloc[0].tolist() == [0.25, 0.25, 1]


def halves(table):
    part = table["prompt_id"].str.extract(r"(\d+)")[0].astype(int) % 2
    return table.assign(split=np.where(part == 0, CHOOSE, REPORT))


def test_a_layer_is_chosen_on_one_half_and_reported_on_the_other():
    """Layer 12 is better by luck on the even prompts, which choose, and worse on the odd ones."""
    parts = []
    for subset, own in (("HARMFUL", [NO, YES]), ("EDGE", [YES])):
        parts.append(cell("baseline", 0.0, [YES] if subset == "HARMFUL" else own, subset=subset))
        parts.append(cell("learned", 1.0, own, layer=12, subset=subset))
        parts.append(
            cell("learned", 1.0, [YES, NO] if subset == "HARMFUL" else own, layer=14, subset=subset)
        )
    summary = summarise_replies(halves(rows(*parts)))
    found = best_cell(summary)
    assert (found.layer, found.strength, found.chosen_on, found.reported) == (12, 1.0, 1.0, 0.0)
    assert list(layer_table(summary, REPORT)["improvement"]) == [0.0, 1.0]
    harmful, false = layer_strength(layer_table(summary, REPORT), "t").data
    assert (list(harmful.y), list(harmful.x)) == (["12", "14"], ["1"])
    np.testing.assert_array_equal(harmful.z, [[0.0], [1.0]])  # 0.5 over both halves
    np.testing.assert_array_equal(np.ravel(harmful.z), layer_table(summary, REPORT)["harmful"])
    np.testing.assert_array_equal(
        np.ravel(false.z), layer_table(summary, REPORT)["false_positives"]
    )
    with pytest.raises(DialError, match="cells that both halves have, off strength 0"):
        best_cell(summary[(summary["split"] == CHOOSE) | (summary["layer"] != 14)])
    with pytest.raises(DialError, match="no replies to summarise"):
        summarise_replies(halves(rows(*parts))[:0])
    with pytest.raises(DialError, match="needs HARMFUL and other prompts in the half 'choose'"):
        layer_table(summary[summary["subset"] == "EDGE"], CHOOSE)


def test_inverted_polarity_is_flagged_and_noise_is_not():
    parts = [cell("baseline", 0.0, [NO], subset="HARMFUL")]
    parts += [cell("learned", 1.0, [YES], layer=14, subset="HARMFUL")]
    parts += [cell("learned", 1.0, [NO] * 11 + [YES], layer=16, subset="HARMFUL")]
    assert inverted_layers(summarise_replies(rows(*parts))) == [14]


def test_the_table_shows_alphas_in_the_unit_that_its_head_names(capsys):
    table = rows(cell("baseline", 0.0, [YES]), cell("learned", 0.4, [NO]))
    print_replies(summarise_replies(table), "residual")
    printed = capsys.readouterr().out
    assert "mean residual" in printed
    (line,) = [line for line in printed.splitlines() if "1.00 [" in line]
    assert line.split()[1] == "0.4"
