"""Controls: each has the law it claims, seeded one by one, as long as the learned one."""

from __future__ import annotations

import pytest
import torch

from refusal_dial.common import DialError
from refusal_dial.directions.learning import (
    Direction,
    Provenance,
    covariance_directions,
    flipped_direction,
    fold_directions,
    fold_numbers,
    mean_diff,
    norm_matched,
    random_directions,
    shuffled_directions,
    top_bottom,
    unrelated_direction,
)

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


# --- the other kinds


N = 60


@pytest.fixture(scope="module")
def activations():
    """Far from isotropic, as activations are: a few ways of varying hold most of the variance."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, 24, generator=generator) * torch.logspace(1, -2, 24) + 5.0


@pytest.fixture(scope="module")
def learned(activations):
    return top_bottom(activations, scores(), Provenance(12, "resid_post", -2, model="m"))


def scores():
    return torch.randn(N, generator=torch.Generator().manual_seed(1)).tolist()


def learn_from(activations):
    return lambda labels: top_bottom(activations, labels, Provenance(3, "mlp_out", -7))


def every_kind(learned, activations):
    learn = learn_from(activations)
    folds = fold_numbers(["a", "b"] * (N // 2), 5, 0)
    lengths = [float(i) for i in range(N)]

    def refit(rows):
        return top_bottom(
            activations[list(rows)], [scores()[i] for i in rows], Provenance(0, "", 0)
        )

    return {
        "random": random_directions(learned, 3, 1),
        "covariance": covariance_directions(learned, activations, 3, 1),
        "shuffled": shuffled_directions(learned, learn, scores(), 3, 1),
        "flipped": [flipped_direction(learned)],
        "length": [unrelated_direction(learned, learn, lengths, "length")],
        "fold": fold_directions(learned, refit, folds),
    }


def test_every_control_has_the_norm_and_the_place_of_the_learned_direction(learned, activations):
    for kind, drawn in every_kind(learned, activations).items():
        for i, control in enumerate(drawn):
            assert float(control.unit.norm()) == pytest.approx(1.0, abs=1e-6)
            assert control.norm == learned.norm
            about = control.provenance
            assert (about.layer, about.site, about.pos) == (12, "resid_post", -2)
            assert (about.method, about.model, about.prompt_ids) == (kind, "m", ())
            assert about.seed == (None if kind in ("flipped", "length") else i)


def test_a_direction_from_elsewhere_can_be_matched(learned):
    elsewhere = Direction(torch.ones(24) / 24**0.5, 0.1, Provenance(1, "attn_out", -1))
    here = norm_matched(elsewhere, learned, "other_layer", 4)
    assert torch.equal(here.unit, elsewhere.unit)
    assert (here.norm, here.provenance.layer) == (learned.norm, 12)
    assert (here.provenance.method, here.provenance.seed) == ("other_layer", 4)


def test_more_draws_leave_the_first_ones_as_they_were(learned, activations):
    many = covariance_directions(learned, activations, 9, 1)
    few = covariance_directions(learned, activations, 4, 1)
    assert all(torch.equal(a.unit, b.unit) for a, b in zip(few, many, strict=False))
    learn = learn_from(activations)
    many = shuffled_directions(learned, learn, scores(), 9, 1)
    few = shuffled_directions(learned, learn, scores(), 4, 1)
    assert all(torch.equal(a.unit, b.unit) for a, b in zip(few, many, strict=False))
    assert len({tuple(control.unit.tolist()) for control in many}) == 9


def test_covariance_draws_have_the_covariance_of_the_activations(learned):
    """Where every way of varying is as strong, they are isotropic; where one is far stronger, they
    lie along it; and a way in which activations do not vary is never drawn."""
    generator = torch.Generator().manual_seed(2)
    even = torch.randn(1000, 8, generator=generator)
    drawn = torch.stack([c.unit for c in covariance_directions(learned, even, 500, 0)])
    covariance = drawn.T @ drawn / len(drawn) * 8
    assert torch.linalg.matrix_norm(covariance - torch.eye(8), ord=2) < 0.5
    steep = even * torch.tensor([20.0, *[1.0] * 6, 0.0])
    drawn = torch.stack([c.unit for c in covariance_directions(learned, steep, 100, 0)])
    assert float((drawn[:, 0] ** 2).mean()) > 0.8
    assert float(drawn[:, 7].abs().max()) < 1e-6


def test_a_draw_has_the_same_weights_at_every_layer(learned, activations):
    turned = activations @ torch.linalg.qr(torch.randn(24, 24)).Q
    one = covariance_directions(learned, activations, 2, 5)
    two = covariance_directions(learned, turned, 2, 5)
    for a, b in zip(one, two, strict=True):  # the same weights, so the same u, turned
        projected = (activations - activations.mean(0)) @ a.unit
        assert torch.allclose(projected, (turned - turned.mean(0)) @ b.unit, atol=1e-3)


def test_activations_that_do_not_differ_have_no_covariance(learned):
    with pytest.raises(DialError, match="the covariance direction is zero"):
        covariance_directions(learned, torch.ones(5, 24), 1, 0)
    with pytest.raises(DialError, match="takes at least two prompts, and these are 1"):
        covariance_directions(learned, torch.ones(1, 24), 1, 0)


def test_a_shuffle_deals_out_the_same_labels(learned):
    seen = []

    def learn(labels):
        seen.append(labels)
        return learned

    labels = [float(i) for i in range(12)]
    shuffled_directions(learned, learn, labels, 200, 0)
    assert all(sorted(permuted) == labels for permuted in seen)
    places = torch.tensor(seen)
    assert (places == torch.tensor(labels)).float().mean() == pytest.approx(1 / 12, abs=0.03)
    assert float((places.mean(0) - 5.5).abs().max()) < 1.0


def test_a_shuffle_within_groups_keeps_every_groups_labels(learned):
    groups, labels = ["a", "b", "b", "a", "b", "c"], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    seen = []
    shuffled_directions(
        learned, lambda permuted: seen.append(permuted) or learned, labels, 50, 3, within=groups
    )
    for permuted in seen:
        for name in "abc":
            mine = [i for i, group in enumerate(groups) if group == name]
            assert sorted(permuted[i] for i in mine) == sorted(labels[i] for i in mine)
    assert len({tuple(permuted) for permuted in seen}) == 2 * 6


def test_shuffled_labels_lose_a_planted_direction_and_the_true_ones_find_it():
    generator = torch.Generator().manual_seed(3)
    truth = torch.zeros(24)
    truth[5] = 1.0
    labels = [1.0] * 30 + [0.0] * 30
    rows = torch.randn(60, 24, generator=generator) + 4 * torch.tensor(labels)[:, None] * truth

    def learn(permuted):
        top = torch.tensor(permuted) > 0.5
        return mean_diff(rows[top], rows[~top], Provenance(0, "resid_pre", -1))

    real = learn(labels)
    assert float(real.unit @ truth) > 0.9
    null = [float(c.unit @ truth) for c in shuffled_directions(real, learn, labels, 40, 0)]
    assert abs(sum(null) / 40) < 0.25


def test_flipped_is_the_same_line_the_other_way(learned):
    assert torch.equal(flipped_direction(learned).unit, -learned.unit)
    assert torch.equal(flipped_direction(flipped_direction(learned)).unit, learned.unit)


@pytest.mark.parametrize("k", [2, 5, 60])
def test_folds_part_the_prompts_evenly_over_groups(k):
    groups = ["a"] * 20 + ["b"] * 30 + ["c"] * 10
    folds = fold_numbers(groups, k, 7)
    assert set(folds) == set(range(k))
    counts = [folds.count(fold) for fold in range(k)]
    assert max(counts) - min(counts) <= 1
    for name, total in (("a", 20), ("b", 30), ("c", 10)):
        mine = [fold for fold, group in zip(folds, groups, strict=True) if group == name]
        assert all(abs(mine.count(fold) - total / k) < 1 for fold in range(k))
    assert folds != fold_numbers(groups, k, 8)
    with pytest.raises(DialError, match="expected from 2 to 3 folds of 3 prompts, not 4"):
        fold_numbers(["a"] * 3, 4, 0)


def test_a_folds_direction_never_saw_its_prompts(learned):
    folds, seen = fold_numbers(["a"] * 10, 5, 0), []
    fold_directions(learned, lambda rows: seen.append(set(rows)) or learned, folds)
    for fold, rows in enumerate(seen):
        assert rows == {i for i in range(10) if folds[i] != fold}
