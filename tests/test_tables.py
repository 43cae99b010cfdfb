"""Tables in the terminal show the summary's figures, at any width."""

from __future__ import annotations

import re

import frames
import numpy as np
import pandas as pd
import pytest

from refusal_dial.report import steering as tables
from refusal_dial.report.steering import (
    dial_sentences,
    print_band,
    print_controls,
    print_dial,
    print_groups,
    print_slopes,
    print_verdict,
)
from refusal_dial.stats.summary import summarise


@pytest.fixture(scope="module")
def summary():
    return summarise(frames.scores(frames.dial, layers=(12, 20), n_random=19))


@pytest.fixture
def printed(capsys, monkeypatch):
    """What a table prints at a width."""

    def show(width, print_table, *arguments):
        monkeypatch.setattr(tables, "_WIDTH", width)
        print_table(*arguments)
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= width
        assert "\x1b" not in out  # a file gets no colours
        return out

    return show


def row_of(out, alpha):
    return next(line for line in out.splitlines() if re.match(rf"[│\s]*{re.escape(alpha)} ", line))


def test_the_dial_has_a_table_a_layer_and_a_line_an_alpha(summary, printed):
    out = printed(118, print_dial, summary)
    for layer in (12, 20):
        assert f"Refusal rate, learned direction: layer {layer}, resid_pre, position -1" in out
    assert "unsteered 0.25, n=4" in out
    assert "random x19" in out
    one = summary[(summary["direction"] == "learned") & (summary["alpha"] == 2.0)].iloc[0]
    expected = f"{one['refusal_rate']:.2f} [{one['rate_lo']:.2f}, {one['rate_hi']:.2f}] p=0.050"
    assert one["subset"] == "EDGE"
    assert expected in row_of(out, "0.2")


def test_the_verdict_is_a_sentence_a_layer_about_edge_and_its_control(summary, printed):
    out = " ".join(printed(118, print_verdict, summary).split())
    for layer in (12, 20):
        assert f"EDGE holdout, layer {layer}: refusal rate 0.25 unsteered" in out
    assert "HARMFUL" not in out
    assert "at alpha -0.2 (p = " in out
    assert "the mean of the random directions stays within 0." in out
    alone = printed(118, print_verdict, summary[summary["direction"] != "random"])
    assert "no random directions to compare with" in " ".join(alone.split())


def rows_at(*ends):
    """A summary of an unsteered model that refuses half of EDGE, and of ends of its dial: alpha,
    shift, half width of its interval, refusal rate."""
    names = ["alpha", "shift", "shift_lo", "shift_hi", "refusal_rate", "direction", "layer"]
    rows = [(0.0, np.nan, np.nan, np.nan, 0.5, "baseline", None)]
    rows += [(a, d, d - w, d + w, rate, "learned", 20) for a, d, w, rate in ends]
    return pd.DataFrame(rows, columns=names).assign(subset="EDGE", split="holdout")


YES = {"layer": 20, "p": 0.001, "reason": ""}


@pytest.mark.parametrize(
    ("end", "test", "says"),
    [
        ((0.6, 2.0, 0.5, 0.9), YES, "turned up, yes, it refuses more"),
        ((-0.6, -2.0, 0.5, 0.1), YES, "turned down, yes, it refuses less"),
        ((0.6, -2.0, 0.5, 0.1), YES, "turned up, no, it refuses less"),
        ((-0.6, 2.0, 0.5, 0.9), YES, "turned down, no, it refuses more"),
        ((0.6, 0.3, 0.5, 0.6), YES, "turned up, not shown (no change beyond chance at alpha 0.6)"),
        (
            (0.6, 2.0, 0.5, 0.9),
            {**YES, "p": 0.3},
            "turned up, not shown (it refuses more, as it does with permuted labels)",
        ),
        (
            (-0.6, -2.0, 0.5, 0.1),
            {**YES, "p": None, "reason": "no labels to permute"},
            "turned down, not shown (no labels to permute)",
        ),
        ((0.6, 2.0, 0.5, 0.5), YES, "turned up, yes, the score rises, the refusals do not"),
    ],
)
def test_each_way_of_the_dial_is_yes_no_or_not_shown(end, test, says):
    assert dial_sentences({"slope": [test]}, rows_at(end)) == [("the dial, layer 20", says)]


def test_both_ways_stand_before_the_numbers(capsys):
    record = {"slope": [{**YES, "n": 100, "p_unit": 0.02, "slope": 2.0}]}
    print_slopes(record, rows_at((-0.6, 0.1, 0.5, 0.5), (0.0, 0, 0, 0.5), (0.6, 2.0, 0.5, 0.9)))
    words, numbers = capsys.readouterr().out.splitlines()
    assert words == (
        "the dial, layer 20: turned up, yes, it refuses more; turned down, not shown "
        "(no change beyond chance at alpha -0.6)"
    )
    assert numbers.startswith("turns refusal, layer 20: yes, p = 0.001")


def test_a_run_without_a_test_of_its_slope_says_nothing_of_the_dial(capsys):
    print_slopes({}, rows_at((0.6, 2.0, 0.5, 0.9)))
    assert capsys.readouterr().out == ""


def test_judged_replies_are_told_by_their_paired_p():
    rows = rows_at((0.6, np.nan, np.nan, 0.9)).assign(p_paired=[np.nan, 0.01])
    assert dial_sentences({"slope": [YES]}, rows)[0][1] == "turned up, yes, it refuses more"
    rows["p_paired"] = [np.nan, 0.2]
    assert "not shown (no change beyond chance" in dial_sentences({"slope": [YES]}, rows)[0][1]


def test_beside_a_null_result_stands_what_could_have_been_shown(printed):
    def idle(direction, seed, layer, alpha, subset, i):
        push = np.random.default_rng([len(direction), seed or 0]).normal()
        return i + alpha * push * (1 + 0.1 * i)

    groups = [("EDGE", "holdout"), ("HARMFUL", "holdout"), ("BENIGN", "holdout")]
    null = summarise(frames.scores(idle, n_random=20, groups=groups))
    out = " ".join(printed(118, print_verdict, null).split())
    one = null[(null["direction"] == "learned") & (null["subset"] == "EDGE")].iloc[-1]
    assert (
        f"Not distinguishable from random directions at alpha 0.2 (p = {one['p_corrected']:.3f})"
        in out
    )
    assert f"could have shown is {one['detectable']:.2f}" in out
    few = summarise(frames.scores(idle, n_random=3, groups=groups))
    assert "with so few draws or prompts no effect could have shown" in " ".join(
        printed(118, print_verdict, few).split()
    )


def test_every_control_has_a_line_with_its_range_and_p(printed):
    rows = frames.scores(frames.dial, n_random=19)
    more = [
        rows[rows["direction"] == "random"].assign(direction=kind)
        for kind in ("shuffled", "length")
    ]
    more[1] = more[1][more[1]["seed"] == 0].assign(seed=pd.NA)
    whole = summarise(pd.concat([rows, *more]))
    out = printed(118, print_controls, whole)
    for line in ("directions from shuffled labels", "random directions", "prompt length"):
        assert line in out
    shuffled = next(line for line in out.splitlines() if "shuffled" in line)
    assert "19" in shuffled
    assert shuffled.count("p=0.050") == 2
    assert "p=" not in next(line for line in out.splitlines() if "prompt length" in line)


def test_a_run_without_controls_has_no_table_of_them(capsys):
    print_controls(summarise(frames.scores(frames.dial, n_random=0)))
    assert capsys.readouterr().out == ""


def test_alphas_go_up(summary, printed):
    out = printed(118, print_dial, summary[summary["layer"].isna() | (summary["layer"] == 12)])
    places = [out.index(row_of(out, alpha)) for alpha in ("-0.2", "0", "0.2")]
    assert places == sorted(places)


@pytest.mark.parametrize("width", [30, 50, 80])
def test_a_narrow_terminal_gets_the_same_tables_wrapped(width, summary, printed):
    for show in (print_dial, print_band):
        wide, narrow = printed(118, show, summary), printed(width, show, summary)
        assert len(narrow.splitlines()) >= len(wide.splitlines())
    assert "EDGE" in printed(width, print_groups, summary.head(2), "scores")


def test_groups_show_mean_and_rate_with_their_intervals(summary, printed):
    base = summary[summary["direction"] == "baseline"]
    out = printed(118, print_groups, base, "the model, unsteered")
    assert "the model, unsteered" in out
    for _, row in base.iterrows():
        line = next(line for line in out.splitlines() if row["subset"] in line)
        assert f"{row['score_mean']:.2f} [{row['score_lo']:.2f}, {row['score_hi']:.2f}]" in line
        assert f"{row['refusal_rate']:.2f} [{row['rate_lo']:.2f}, {row['rate_hi']:.2f}]" in line


def test_the_band_shows_mean_and_range_over_seeds(summary, printed):
    out = printed(118, print_band, summary)
    random = summary[(summary["direction"] == "random") & (summary["layer"] == 12)]
    at = random[(random["alpha"] == 2.0) & (random["subset"] == "EDGE")]["refusal_rate"]
    expected = f"{at.mean():.2f} [{at.quantile(0.025):.2f}, {at.quantile(0.975):.2f}]"
    assert "19 random directions: layer 12" in out
    assert expected in row_of(out, "0.2")


def test_an_interval_of_nan_is_shown_and_not_read_as_a_style(summary, printed):
    columns = ["score_mean", "score_lo", "score_hi", "refusal_rate", "rate_lo", "rate_hi"]
    sick = summary.assign(**dict.fromkeys(columns, np.nan))
    for show in (print_dial, print_band):
        assert "nan [nan, nan]" in printed(118, show, sick)
    assert "nan [nan, nan]" in printed(118, print_groups, sick.head(1), "[bold]scores[/bold]")
    assert "[bold]scores[/bold]" in printed(118, print_groups, sick.head(1), "[bold]scores[/bold]")


def test_without_random_directions_the_dial_has_no_column_for_them(printed):
    alone = summarise(frames.scores(frames.dial, n_random=0))
    out = printed(118, print_dial, alone)
    assert "random" not in out
    assert "p=" not in out
    assert "p:" not in out
    assert "-0.2" in out


def test_without_a_baseline_the_dial_says_nothing_about_it(summary, printed):
    assert "unsteered" not in printed(118, print_dial, summary[summary["direction"] != "baseline"])


# --- rates at the floor or the ceiling: the shift of the mean score stands in their place


def low(direction, seed, layer, alpha, subset, i):
    """A dial that moves a score that never comes near the threshold; HARMFUL is turned over it."""
    value = frames.dial(direction, seed, layer, alpha, subset, i)
    return value if subset == "HARMFUL" else value - 40


def test_at_the_floor_the_shift_is_displayed_with_its_interval(printed):
    summary = summarise(frames.scores(low, n_random=19))
    out = printed(118, print_dial, summary)
    assert "SHIFT of the score" in out
    assert "EDGE holdout: rates stay under 0.02 or over 0.98" in " ".join(out.split())
    assert "+2.00 [+2.00, +2.00]" in row_of(out, "0.2")
    assert "HARMFUL holdout: rates" not in out  # whose rates move
    controls = printed(118, print_controls, summary)
    assert "Controls, shift of the mean score on EDGE holdout" in controls
    assert re.search(r"learned\s*│\s*│\s*-2.00 │\s*2.00 │", controls)
    verdict = " ".join(printed(118, print_verdict, summary).split())
    assert "the mean score moves by -2.00 [-2.00, -2.00] at alpha -0.2" in verdict
    assert "and by +2.00 [+2.00, +2.00] at alpha 0.2" in verdict


def test_rates_that_move_are_displayed_as_rates(summary, printed):
    out = printed(118, print_dial, summary)
    assert "SHIFT" not in out
    assert "rates stay" not in out


def test_a_summary_of_an_older_version_displays_rates(printed):
    old = summarise(frames.scores(low)).drop(columns=["shift_lo", "shift_hi"])
    assert "SHIFT" not in printed(118, print_dial, old)
