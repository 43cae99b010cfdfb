"""Rectangles hold every changed pair of prompt and cell once."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_dial.engine.replay import NOTHING, rectangles

LAW = settings(max_examples=60, deadline=None, derandomize=True)


@LAW
@given(
    st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 5), st.sampled_from([0.0, 3.0, 1e9])
)
def test_rectangles_hold_every_changed_pair_once(
    seed: int, cells: int, prompts: int, spare: float
) -> None:
    rng = np.random.default_rng(seed)
    n_layers, length = 4, 6
    start = rng.integers(-1, n_layers + 1, (cells, prompts))
    first = np.where(start == NOTHING, length, rng.integers(0, length, (cells, prompts)))
    seen = np.zeros((cells, prompts), dtype=int)
    for area in rectangles(start, first, n_layers, length, spare):
        assert list(area.starts) == sorted(area.starts)
        for piece in area.pieces(7, length):
            each = length - piece.first
            tokens = len(piece.prompts) * len(piece.cells) * each
            assert tokens <= max(7, each)
            for half in piece.halves() if len(piece.cells) * len(piece.prompts) > 1 else (piece,):
                for i, b in enumerate(half.prompts):
                    for j, c in enumerate(half.cells):
                        if half.used[i, j]:
                            seen[c, b] += 1
                            assert half.first <= first[c, b]
                            assert half.starts[j] <= start[c, b]
    assert np.array_equal(seen, (start != NOTHING).astype(int))


def test_work_without_gaps_is_one_rectangle() -> None:
    start = np.repeat(np.arange(4)[:, None], 3, 1)
    first = np.full((4, 3), 5)
    (area,) = rectangles(start, first, 4, 6, 0.0)
    assert (area.first, area.cells, area.starts) == (5, (0, 1, 2, 3), (0, 1, 2, 3))
    assert area.used.all()
