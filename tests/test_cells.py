"""Cells: one builder, one unit of alpha, and no hooks where nothing is added."""

from __future__ import annotations

import logging
import runpy
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

from refusal_dial.cells import (
    BASELINE,
    SteeringPlace,
    alphas_in,
    cells_at,
    labelled,
    numbered,
    steer_where,
    turned,
)
from refusal_dial.cli.flags import InUnit, SteeringFlags, VerifyFlags
from refusal_dial.common import DialError
from refusal_dial.directions import Direction, Provenance
from refusal_dial.hooks import Detector

ROOT = Path(__file__).parents[1]
PLACE = SteeringPlace(2, "resid_pre", -1, 16.0)
LEARNED = Direction(torch.eye(4)[0], 3.0, Provenance(2, "resid_pre", -1))
OTHER = Direction(torch.eye(4)[1], 3.0, Provenance(2, "resid_pre", -1))


def test_every_direction_at_every_alpha_is_as_long():
    alphas = alphas_in((-0.5, 0.0, 0.25), "residual", PLACE.norm, LEARNED)
    cells = cells_at([("learned", None, LEARNED)], alphas, PLACE)
    cells += cells_at(numbered("random", [OTHER]), turned(alphas), PLACE)
    assert [cell.labels["alpha"] for cell in cells] == [-8, 0, 4, -8, 4]
    assert [cell.labels["alpha_relative"] for cell in cells] == [-0.5, 0, 0.25, -0.5, 0.25]
    assert [cell.labels["direction"] for cell in cells] == ["learned"] * 3 + ["random"] * 2
    assert not cells[1].hooks
    rows = torch.randn(2, 3, 4)
    for cell, alpha in zip(cells, (-8.0, None, 4.0), strict=False):
        if alpha is not None:
            ((_, hook),) = cell.hooks
            wanted = torch.tensor([[alpha, 0, 0, 0]] * 2)
            torch.testing.assert_close((hook(rows) - rows)[:, -1], wanted)
    assert set(cells[0].labels) == set(BASELINE.labels)


@pytest.mark.parametrize(
    ("unit", "absolute", "relative"),
    [("residual", 32.0, 2.0), ("norm", 6.0, 0.375), ("absolute", 2.0, 0.125)],
)
def test_a_unit_is_how_long_alpha_1_is(unit, absolute, relative):
    (one,) = alphas_in((2.0,), unit, PLACE.norm, LEARNED)
    assert (one.given, one.absolute, one.relative) == (2.0, absolute, relative)


def test_an_absolute_alpha_is_taken_as_it_is():
    (one,) = alphas_in((9.72134567,), "absolute", PLACE.norm, LEARNED)
    assert one.absolute == 9.72134567
    (other,) = alphas_in((9.72134567,), "norm", PLACE.norm, LEARNED)
    assert other.absolute == 29.16


def test_a_detector_gates_the_same_vector():
    detector = Detector(LEARNED, 0.0, 0.1, 20)
    alphas = alphas_in((0.25,), "residual", PLACE.norm, LEARNED)
    (gated,) = cells_at([("conditional", None, LEARNED)], alphas, PLACE, steer_where(detector))
    ((_, hook),) = gated.hooks
    rows = torch.tensor([[[1.0, 0, 0, 0]], [[-1.0, 0, 0, 0]]])
    moved = (hook(rows) - rows)[:, -1, 0]
    assert moved.tolist() == [4.0, 0.0]


def test_a_label_is_added_and_the_hooks_stay():
    (cell,) = cells_at(
        [("learned", None, LEARNED)], alphas_in((1.0,), "absolute", 16.0, LEARNED), PLACE
    )
    assert labelled(cell, system="x").labels == {**cell.labels, "system": "x"}
    assert labelled(cell, system="x").hooks is cell.hooks


# --- far alphas


def test_an_alpha_that_drowns_the_activation_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "refusal_dial"):
        alphas_in((-1.5, 0.0, 1.5), "residual", PLACE.norm, LEARNED)
        assert caplog.text == ""
        alphas_in((-10.0, 40.0), "absolute", PLACE.norm, LEARNED)
    assert "alpha 40 (absolute) adds 2.5 mean residual norms, over 1.5" in caplog.text


@pytest.mark.parametrize("unit", ["absolute", "residual", "norm"])
def test_published_alphas_in_no_unit_are_refused_in_one_line(unit):
    published = (-10.0, -2.0, 0.0, 6.0)
    with pytest.raises(DialError) as error:
        SteeringFlags(alphas=published)
    message = str(error.value)
    assert "--alphas: expected alphas up to 1.5 mean residual norms, not -10: " in message
    assert "--alpha-unit absolute" in message
    assert "--alpha-unit residual" in message
    assert "\n" not in message
    assert SteeringFlags(alphas=published, alpha_unit=unit).unit == unit


def test_a_verification_is_asked_for_its_unit_too():
    with pytest.raises(DialError, match="--alpha: expected alphas up to"):
        VerifyFlags(direction="x", alpha=9.0)


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.py")), ids=lambda p: p.stem)
def test_residual_norms_are_the_unit_of_every_script(path):
    flags = get_type_hints(runpy.run_path(str(path))["main"])["flags"]
    if issubclass(flags, InUnit):
        assert flags().unit == "residual"
        assert max(map(abs, flags().alphas), default=0) <= 1.5
