"""Random directions: uniform on the sphere, seeded one by one, alike in everything else."""

from __future__ import annotations

import pytest
import torch

from refusal_dial.controls import random_directions
from refusal_dial.directions import Direction, Provenance

D = 128


def like(d=D):
    where = Provenance(
        layer=12,
        site="resid_post",
        pos=-2,
        method="top_bottom",
        model="m",
        revision="r",
        seed=5,
        prompt_ids=("a", "b"),
        data_hash="h",
    )
    unit = torch.zeros(d)
    unit[0] = 1.0
    return Direction(unit, 7.5, where)


def matrix(n, seed, d=D):
    return torch.stack([control.unit for control in random_directions(like(d), n, seed)])


def test_a_control_has_unit_length_and_the_norm_and_place_of_the_learned_one():
    for i, control in enumerate(random_directions(like(), 5, seed=3)):
        assert float(control.unit.norm()) == pytest.approx(1.0, abs=1e-6)
        assert control.unit.shape == (D,)
        assert control.unit.dtype == torch.float32
        assert control.norm == 7.5
        about = control.provenance
        assert (about.layer, about.site, about.pos) == (12, "resid_post", -2)
        assert (about.model, about.revision) == ("m", "r")
        assert (about.method, about.seed) == ("random", i)
        assert (about.prompt_ids, about.data_hash) == ((), "")  # it was learned from nothing


def test_more_directions_leave_the_first_ones_as_they_were():
    assert torch.equal(matrix(20, seed=1)[:7], matrix(7, seed=1))
    assert random_directions(like(), 0, seed=1) == []


def test_the_same_seed_draws_the_same_whatever_was_drawn_before():
    first = matrix(5, seed=1)
    torch.manual_seed(99)
    torch.randn(1000)
    state = torch.get_rng_state()
    assert torch.equal(matrix(5, seed=1), first)
    assert torch.equal(torch.get_rng_state(), state)  # and leaves the global generator alone


def test_the_learned_vector_does_not_steer_the_draw():
    other = Direction(torch.ones(D) / D**0.5, 1.0, like().provenance)
    drawn = torch.stack([control.unit for control in random_directions(other, 5, seed=1)])
    assert torch.equal(drawn, matrix(5, seed=1))


def test_directions_and_seeds_are_independent():
    every = torch.cat([matrix(20, seed) for seed in (0, 1, 2, 3, 2**32 - 1)])
    cosines = every @ every.T
    off = cosines[~torch.eye(len(every), dtype=bool)]
    assert off.abs().max() < 6 / D**0.5  # no pair is the same, none the reverse
    assert float(off.mean()) == pytest.approx(0.0, abs=3e-3)
    assert float(off.var() * D) == pytest.approx(1.0, abs=0.1)


def test_they_are_isotropic():
    n, d = 2000, 16
    drawn = matrix(n, 0, d)
    assert drawn.mean(0).norm() < 3 / n**0.5
    covariance = drawn.T @ drawn / n * d
    assert torch.linalg.matrix_norm(covariance - torch.eye(d), ord=2) < 0.4
    # the fourth moment of one coordinate, 3 / (d (d + 2)), tells a sphere from a cube
    assert float((drawn**4).mean()) == pytest.approx(3 / (d * (d + 2)), rel=0.05)
