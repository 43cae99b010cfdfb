"""Claims: when one passes, fails or is not shown; and bounds on what should stay as it is."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal_dial.common import without_nan
from refusal_dial.stats.p_values import holm
from refusal_dial.studies import verify_claims as harm
from refusal_dial.studies.verify import Measurements
from refusal_dial.studies.verify_claims import (
    Evidence,
    beyond_controls,
    ends,
    judge_claims,
    verdict_json,
)

ps = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def evidence(p=0.001, holds=True, unable="", name="it works"):
    return Evidence(name, "says", "nats", 10, 1.0, (0.5, 1.5), p, holds, "found", "because", unable)


@given(p=ps, holds=st.lists(st.booleans(), min_size=8, max_size=8))
def test_a_claim_passes_only_as_claimed_and_after_correction(p, holds):
    verdict = judge_claims([evidence(one, has) for one, has in zip(p, holds, strict=False)], 0.05)
    for one, corrected in zip(verdict.claims, holm(p), strict=True):
        assert one.p_corrected == corrected
        assert (one.status == "pass") == (one.evidence.holds and corrected <= 0.05)
        assert one.reason
    statuses = [one.status for one in verdict.claims]
    assert (verdict.status == "pass") == (set(statuses) == {"pass"})
    assert (verdict.status == "fail") == ("fail" in statuses)


def test_what_could_not_be_shown_does_not_fail():
    few = evidence(0.9, unable="too few draws")
    lost = evidence(0.04, name="lost to the correction")
    found = judge_claims([few, lost, evidence(), evidence()], 0.05)
    assert [one.status for one in found.claims] == ["not shown", "not shown", "pass", "pass"]
    assert found.claims[0].reason == "too few draws"
    assert found.claims[1].reason == "p = 0.04 is 0.08 once corrected for 4 claims, over 0.05"
    assert found.status == "not shown"
    assert judge_claims([evidence(float("nan"))], 0.05).claims[0].status == "not shown"
    assert judge_claims([few, evidence(0.9)], 0.05).reason == "it works: because"


def test_the_verdict_is_json_without_nan():
    verdict = without_nan(verdict_json(judge_claims([evidence(float("nan"))], 0.05)))
    assert json.loads(json.dumps(verdict, allow_nan=False)) == verdict
    assert verdict["claims"][0]["p"] is None
    assert without_nan({"a": np.float64("inf"), "b": (np.int64(1), 0.5)}) == {
        "a": None,
        "b": [1, 0.5],
    }


def measured(kl, cost=0.0, new=0, n=100, swing=2.0, spread=0.01, draws=50):
    """A direction with these figures on `n` prompts, beside weak random directions."""
    rng = np.random.default_rng(0)
    base = rng.normal(-3, 0.1, n)
    up = base.copy()
    up[:new] = 1.0
    table = {("baseline", "score", name, 0.0): base[None] for name in ("EDGE", "BENIGN")}
    table["baseline", "score", "HARMFUL", 0.0] = base[None] + 5
    table["learned", "score", "BENIGN", 4.0] = up[None]
    table["baseline", "cost", "BENIGN", 0.0] = rng.normal(1, 0.1, n)[None]
    for sign in (4.0, -4.0):
        noise = rng.normal(0, spread, (draws, n))
        noise -= noise.mean(1, keepdims=True)
        table["learned", "score", "EDGE", sign] = (base + np.sign(sign) * swing / 2 + noise[0])[
            None
        ]
        table["random", "score", "EDGE", sign] = base + noise + rng.normal(0, 0.02, (draws, 1))
        for kind in ("learned", "random"):
            table[kind, "kl", "BENIGN", sign] = np.full((1, n), kl) + noise[:1]
            own = table["baseline", "cost", "BENIGN", 0.0]
            table[kind, "cost", "BENIGN", sign] = own + cost + noise[:1]
    return Measurements(table, 4.0, 0.0, 0.05, 0, False, ("random",), {"random": np.zeros(draws)})


@pytest.mark.parametrize(
    ("n", "new", "status"),
    [(100, 2, "pass"), (100, 20, "fail"), (10, 0, "not shown"), (100, 9, "not shown")],
)
def test_new_refusals_pass_only_where_the_limit_is_ruled_out(n, new, status):
    found = judge_claims([harm.specific(measured(0.0, new=new, n=n), 0.1)], 0.05)
    assert found.status == status
    assert f"{new} of {n} BENIGN prompts are newly refused" in found.claims[0].reason


def test_a_direction_without_effect_is_not_called_specific():
    found = judge_claims([harm.specific(measured(0.0, swing=0.0), 0.1)], 0.05)
    assert found.status == "not shown"
    assert "no effect upwards" in found.reason
    weak = judge_claims([harm.specific(measured(0.0, swing=0.005), 0.1)], 0.05)
    assert weak.status == "not shown"
    assert "not distinguishable from that of random directions" in weak.reason


def test_draws_that_no_p_could_have_been_small_with_show_nothing_and_refute_nothing():
    """Of five draws p is 1/6 at least: a direction that beats all of them is not shown."""
    few = measured(0.0, draws=5)
    found = [*ends(few), beyond_controls(few), harm.specific(few, 0.1)]
    for claim in judge_claims(found, 0.05).claims:
        assert claim.status == "not shown"
        assert claim.reason == "5 draws are too few for any effect: raise --n-random"
    other_way = judge_claims(ends(measured(0.0, draws=5, swing=-2.0)), 0.05)
    assert [claim.status for claim in other_way.claims] == ["fail", "fail"]


def test_where_draws_bound_p_the_claim_says_how_many_would_do():
    """39 draws give 1/40 and, of a swing, 1/80 at least: nine claims take that away."""
    few, others = measured(0.0, draws=39), [evidence(0.04) for _ in range(6)]
    verdict = judge_claims([*ends(few), beyond_controls(few), *others], 0.05)
    up, _, swing = verdict.claims[:3]
    assert [one.status for one in verdict.claims[:3]] == ["not shown"] * 3
    assert up.reason == (
        "p = 0.025 is 0.2 once corrected for 9 claims, over 0.05; it is the smallest p that 39 "
        "draws can give: try --n-random 179"
    )
    assert swing.reason.endswith("the smallest p that 39 draws can give: try --n-random 89")
    enough = measured(0.0, draws=179)
    again = judge_claims([*ends(enough), beyond_controls(enough), *others], 0.05)
    assert [one.status for one in again.claims[:3]] == ["pass"] * 3
    assert "try --n-random" not in judge_claims([evidence(0.04)] * 2, 0.05).claims[0].reason


def test_prompts_are_not_too_few_for_an_effect_that_they_show():
    """Scattered prompts could not have shown a gap as small as this one; the shift is larger."""
    found = measured(0.0, swing=20.0)
    scattered = np.random.default_rng(1).normal(0, 2, 100)
    table = dict(found.table)
    table["learned", "score", "EDGE", 4.0] = table["learned", "score", "EDGE", 4.0] + scattered
    table["baseline", "score", "HARMFUL", 0.0] = table["baseline", "score", "BENIGN", 0.0] + 0.1
    small = replace(found, table=table)
    up = judge_claims(ends(small), 0.05).claims[0]
    assert up.evidence.smallest > small.gap
    assert up.status == "pass"
    table["learned", "score", "EDGE", 4.0] = table["baseline", "score", "EDGE", 0.0] + scattered
    none = judge_claims(ends(replace(found, table=table)), 0.05).claims[0]
    assert none.status == "not shown"
    assert "100 prompts are too few: the smallest shift" in none.reason


@pytest.mark.parametrize(("size", "status"), [(0.02, "pass"), (0.3, "fail")])
def test_replies_are_held_to_their_limits(size, status):
    found = judge_claims(
        [harm.divergence(measured(size), 0.1), harm.cost(measured(0.0, size), 0.1)], 0.05
    )
    assert [one.status for one in found.claims] == [status, status]
    assert all("random directions" in one.reason for one in found.claims)
    few = judge_claims([harm.divergence(measured(0.06, n=3, spread=0.06), 0.1)], 0.05)
    assert few.status == "not shown"
    assert "cannot be ruled out with 3 prompts" in few.reason


def test_each_end_has_to_go_its_own_way():
    up, down = judge_claims(ends(measured(0.0)), 0.05).claims
    assert (up.status, down.status) == ("pass", "pass")
    assert up.evidence.estimate == pytest.approx(1, abs=0.05)
    assert down.evidence.estimate == pytest.approx(-1, abs=0.05)
    for one in judge_claims(ends(measured(0.0, swing=-2.0)), 0.05).claims:
        assert one.status == "fail"
        assert "it points the other way" in one.reason
    for one in judge_claims(ends(measured(0.0, swing=0.0)), 0.05).claims:
        assert one.status == "fail"
        assert "not distinguishable from random directions" in one.reason


def test_a_swing_is_set_beside_controls_and_what_could_have_stood_out():
    found = beyond_controls(measured(0.0))
    assert judge_claims([found], 0.05).status == "pass"
    assert 0 < found.smallest < 0.1 < found.estimate
    weak = judge_claims([beyond_controls(measured(0.0, swing=0.001))], 0.05)
    assert weak.status == "fail"
    assert "not distinguishable from that of random directions" in weak.reason
