"""The rows of a verification as tables, and the place of an effect among its controls."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal_dial.stats.p_values import rank_p
from refusal_dial.studies.verify import as_tables, one_sided


@given(
    order=st.permutations(range(12)),
    gaps=st.sets(st.integers(0, 11), max_size=3),
)
def test_each_score_is_found_by_its_direction_measure_subset_and_alpha(order, gaps):
    """Whatever the order of the rows: draws down, prompts across in the order they came."""
    rows = pd.DataFrame(
        [
            {"direction": d, "measure": "score", "subset": "EDGE", "alpha": a, "seed": seed}
            | {"prompt_id": f"p{p}", "score": np.nan if n in gaps else float(n)}
            for n, (d, seed, a, p) in enumerate(
                (d, seed, a, p)
                for d, seed in (("learned", None), ("random", 0), ("random", 1))
                for a in (-1.0, 1.0)
                for p in (0, 1)
            )
        ]
    )
    found = as_tables(rows.iloc[list(order)])
    assert len(found) == 4
    for row in rows.itertuples():
        part = rows.iloc[list(order)]
        part = part[(part["direction"] == row.direction) & (part["alpha"] == row.alpha)]
        across = list(dict.fromkeys(part["prompt_id"]))
        values = found[row.direction, "score", "EDGE", row.alpha]
        draw = 0 if row.direction == "learned" else int(row.seed)
        assert values.shape == (1 if row.direction == "learned" else 2, 2)
        np.testing.assert_equal(values[draw, across.index(row.prompt_id)], row.score)


@given(
    null=st.lists(st.floats(-9, 9), min_size=1, max_size=30), effect=st.floats(-9, 9).filter(bool)
)
def test_a_one_sided_p_is_half_of_the_two_sided_one(null, effect):
    p, other = one_sided(effect, np.array(null)), one_sided(-effect, np.array(null))
    assert p + other == pytest.approx(1 + 1 / (2 * len(null) + 2))
    assert min(p, other) == pytest.approx(rank_p(effect, null) / 2)
    assert (p <= 0.5) == (effect > 0)


def test_a_one_sided_p_is_uniform_at_most_where_the_effect_is_one_more_draw():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4000, 20))
    found = np.array([one_sided(float(row[0]), row[1:]) for row in draws])
    for level in (0.05, 0.25, 0.5):
        assert (found <= level).mean() <= level + 0.015


def test_a_missing_control_counts_as_further():
    assert one_sided(1.0, np.array([0.5, np.nan])) == pytest.approx((1 + 1) / 3 / 2)
    assert np.isnan(one_sided(1.0, np.empty(0)))
