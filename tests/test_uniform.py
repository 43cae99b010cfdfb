"""The check of p-values passes fair ones and finds each of the usual ways to be unfair."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from refusal_dial.stats.p_values import rank_p
from refusal_dial.studies.calibration import p_value_spread, uniformity


def frame(p_values, draws: int) -> pd.DataFrame:
    return pd.DataFrame({"direction": "it", "p_value": p_values, "draws": draws})


def ranks(n: int, draws: int, effect: float = 1.0, plus: int = 1) -> pd.DataFrame:
    """Ranks of an effect that is `effect` times as far spread as its controls."""
    rng = np.random.default_rng(n + draws)
    own, null = effect * rng.normal(size=n), rng.normal(size=(n, draws))
    reached = (np.abs(null) >= np.abs(own)[:, None]).sum(1)
    return frame((plus + reached) / (plus + draws), draws)


@pytest.mark.parametrize("draws", [1, 4, 20, 99])
def test_ranks_of_one_more_draw_are_uniform(draws):
    found = uniformity(ranks(1000, draws)).iloc[0]
    assert found["uniform"], found
    assert found["under_lo"] <= found["expected"] <= found["under_hi"]


@pytest.mark.parametrize(
    ("unfair", "what"),
    [
        (ranks(1000, 20, plus=0), "without the +1"),
        (ranks(1000, 20, effect=1.5), "controls that go less far"),
        (ranks(1000, 20, effect=0.6), "controls that go further"),
        (frame(np.random.default_rng(0).random((1000, 2)).min(1), 10**6), "the best of two"),
        (frame(np.full(1000, 0.5), 1), "always the same"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unfair_p_is_not_uniform(unfair, what):
    assert not uniformity(unfair).iloc[0]["uniform"], what


def test_the_ranks_simulated_here_are_those_of_the_statistics():
    rng = np.random.default_rng(24)
    own, null = rng.normal(size=4), rng.normal(size=(4, 20))
    found = ranks(4, 20)["p_value"]
    np.testing.assert_array_equal(found, [rank_p(o, n) for o, n in zip(own, null, strict=True)])


def test_a_spread_p_stays_on_its_own_step():
    p = np.arange(1, 6) / 5
    found = np.array([p_value_spread(p, np.full(5, 4), seed) for seed in range(200)])
    assert (found <= p).all()
    assert (found > p - 0.2 - 1e-12).all()
    assert found.std(0).min() > 0.04


def test_what_a_fair_null_has_under_the_level_depends_on_its_draws():
    some = pd.concat([ranks(50, draws).assign(direction=f"{draws}") for draws in (1, 19, 20, 39)])
    expected = uniformity(some).set_index("direction")["expected"]
    np.testing.assert_allclose(expected, [0, 1 / 20, 1 / 21, 2 / 40])
