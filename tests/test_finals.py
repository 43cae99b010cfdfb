"""Final residuals: unembedded where a cell changed a prompt, recorded elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refusal_dial.engine.replay import Finals, Rectangle


def finals() -> Finals:
    """Three cells on two prompts: one changes both, one changes none, one the second."""
    found = Finals(torch.empty(0), cells=3, batch=2, d_model=4)
    found.keep_recorded(torch.tensor([1, 0]), torch.tensor([[2.0, 2.0], [1.0, 1.0]]))
    found.changed[:] = [[True, True], [False, False], [False, True]]
    residual = torch.arange(16.0).reshape(2, 2, 4)  # prompt, cell, width
    used = np.array([[True, False], [True, True]])
    found.keep(torch.arange(2), Rectangle(0, (0, 1), (0, 2), (0, 0), used), residual)
    return found


def unembed(residual: torch.Tensor) -> torch.Tensor:
    return residual[:, :2] * 10


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_each_cell_has_its_own_rows_and_the_recorded_ones_elsewhere(rows):
    both, none, second = finals().logits(unembed, rows)
    assert both.tolist() == [[0.0, 10.0], [80.0, 90.0]]
    assert none is None
    assert second.tolist() == [[1.0, 1.0], [120.0, 130.0]]


def test_what_does_not_fit_is_unembedded_in_smaller_parts():
    seen: list[int] = []

    def scarce(residual: torch.Tensor) -> torch.Tensor:
        seen.append(len(residual))
        if len(residual) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return unembed(residual)

    both, none, second = finals().logits(scarce, 100)
    assert both.tolist() == [[0.0, 10.0], [80.0, 90.0]]
    assert none is None
    assert second.tolist() == [[1.0, 1.0], [120.0, 130.0]]
    assert seen[0] == 3


def test_one_row_that_does_not_fit_is_an_error():
    def nothing_fits(residual: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        list(finals().logits(nothing_fits, 100))
