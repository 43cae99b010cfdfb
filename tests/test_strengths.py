"""Cells by strength: lengths, labels, and no hooks where nothing is added."""

from __future__ import annotations

import torch

from refusal_dial.directions.learning import Direction
from refusal_dial.studies.steering import UNSTEERED, strength_cells


def test_every_direction_at_every_strength_is_as_long():
    named = [
        ("learned", None, Direction(torch.eye(4)[0], 3.0)),
        ("random", 0, Direction(torch.eye(4)[1], 3.0)),
    ]
    cells = strength_cells(named, (-1.0, 0.0, 0.5), 8.0, 16.0, layer=2, site="resid_pre", pos=-1)
    assert [cell.labels["alpha"] for cell in cells] == [-8, 0, 4, -8, 4]
    assert [cell.labels["alpha_relative"] for cell in cells] == [-0.5, 0, 0.25, -0.5, 0.25]
    assert [cell.labels["direction"] for cell in cells] == ["learned"] * 3 + ["random"] * 2
    assert not cells[1].hooks
    rows = torch.randn(2, 3, 4)
    (_, hook) = cells[0].hooks[0]
    torch.testing.assert_close((hook(rows) - rows)[:, -1], torch.tensor([[-8.0, 0, 0, 0]] * 2))
    assert set(cells[0].labels) == set(UNSTEERED.labels)
