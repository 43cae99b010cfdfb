"""The permutation test of a slope: exact, uniform without an effect, and powerful with one."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, kstest

from refusal_dial.common import DialError
from refusal_dial.directions.learning import Provenance, covariance_directions, from_vector
from refusal_dial.stats.p_values import (
    contrast_weights,
    count_permutations,
    covariance_slopes,
    permuted_weights,
    slope_test,
)


def place(activations, gradient):
    return activations @ gradient, activations @ activations.T


def outcome(activations, gradients, top, bottom, **more):
    pairs = [place(a, g) for a, g in zip(activations, gradients, strict=True)]
    projections, grams = (np.stack(parts) for parts in zip(*pairs, strict=True))
    weights = contrast_weights(activations.shape[1], top, bottom)
    return slope_test(projections, grams, weights, **more)


def test_the_statistics_are_those_of_the_directions_themselves():
    rng = np.random.default_rng(0)
    a, g = rng.normal(size=(3, 12, 7)), rng.normal(size=(3, 7))
    table = outcome(a, g, [0, 1, 2], [3, 4, 5], n=50)
    for i in range(3):
        v = a[i, :3].mean(0) - a[i, 3:6].mean(0)
        assert table["slope"][i] == pytest.approx(v @ g[i])
        assert table["slope_unit"][i] == pytest.approx(v @ g[i] / np.linalg.norm(v))


def test_few_labels_are_enumerated_and_the_p_is_their_share():
    rng = np.random.default_rng(1)
    a, g = rng.normal(size=(1, 6, 4)), rng.normal(size=(1, 4))
    weights = contrast_weights(6, [0, 1], [2, 3])
    found, complete = permuted_weights(weights)
    assert complete
    assert len(found) == len({tuple(row) for row in found}) == comb(6, 2) * comb(4, 2)
    assert count_permutations(weights) == len(found)
    slopes = found @ (a[0] @ g[0])
    table = outcome(a, g, [0, 1], [2, 3])
    assert table["n"][0] == len(found)
    assert table["p"][0] == pytest.approx((slopes >= slopes[0] - 1e-12).mean())


def test_labels_stay_within_their_group():
    weights = contrast_weights(8, [0, 4], [1, 5])
    groups = list("aaaabbbb")
    assert count_permutations(weights, groups) == (4 * 3) ** 2
    for found in (
        permuted_weights(weights, groups=groups)[0],
        permuted_weights(weights, 50, 0, groups)[0],
    ):
        for part in (slice(0, 4), slice(4, 8)):
            np.testing.assert_array_equal(
                np.sort(found[:, part], 1), np.sort(np.tile(weights[part], (len(found), 1)), 1)
            )


def test_drawn_labels_are_those_of_shuffled_weights():
    """Kept as bytes, they are the same draws as of the weights themselves."""
    weights = contrast_weights(40, range(5), range(30, 38))
    found, complete = permuted_weights(weights, 60, 3)
    assert not complete
    plain = np.random.default_rng(3).permuted(np.tile(weights, (60, 1)), axis=1)
    np.testing.assert_array_equal(found, plain)


def experiment(seed, effect=0.0, n=20, layers=3, width=16):
    """p-values of one experiment on Gaussian activations, with a planted effect of this size."""
    rng = np.random.default_rng([7, seed])
    scale = 1 / np.sqrt(np.arange(1, width + 1))
    a = rng.normal(size=(layers, n, width)) * scale
    g = rng.normal(size=(layers, width)) * scale
    score = rng.normal(size=n)
    a += effect * score[None, :, None] * (g / np.linalg.norm(g, axis=1, keepdims=True))[:, None]
    order = np.argsort(score)
    return outcome(a, g, order[-(n // 3) :].tolist(), order[: n // 3].tolist(), n=199, seed=seed)


@pytest.fixture(scope="module")
def null():
    return [experiment(seed) for seed in range(400)]


@pytest.mark.parametrize("column", ["p", "p_unit", "p_two_sided", "p_two_sided_unit"])
def test_without_an_effect_p_is_uniform(null, column):
    values = [table[column][0] for table in null]
    assert kstest(values, "uniform").pvalue > 0.01
    assert np.mean(np.array(values) <= 0.05) < 0.09


@pytest.mark.parametrize("column", ["p_corrected", "p_corrected_unit"])
def test_the_smallest_corrected_p_is_uniform_over_places(null, column):
    smallest = [table[column].min() for table in null]
    assert kstest(smallest, "uniform").pvalue > 0.01
    raw = [table["p_two_sided"].min() for table in null]
    assert np.mean(np.array(raw) <= 0.05) > 0.1  # what nothing corrects is not


def test_a_planted_effect_is_found_and_a_larger_one_more_often():
    power = [
        np.mean([experiment(1000 + seed, effect)["p"][0] <= 0.05 for seed in range(60)])
        for effect in (0.0, 0.3, 1.0)
    ]
    assert power[0] < 0.2
    assert power[0] < power[1] < power[2]
    assert power[2] > 0.9


def test_a_place_without_differences_is_left_out_with_its_reason():
    rng = np.random.default_rng(3)
    a, g = rng.normal(size=(2, 12, 5)), rng.normal(size=(2, 5))
    a[0] = a[0, :1]  # every prompt is the same there
    table = outcome(a, g, [0, 1, 2], [3, 4, 5], n=99)
    assert table["reason"][0] == "every permuted direction has the same slope here"
    assert np.isnan(table["p"][0])
    assert np.isnan(table["p_corrected"][0])
    assert np.isnan(table["p_unit"][0])
    assert np.isnan(table["p_corrected_unit"][0])
    assert table["reason"][1] == ""
    alone = outcome(a[1:], g[1:], [0, 1, 2], [3, 4, 5], n=99)
    assert table["p_corrected"][1] == alone["p_corrected"][0]
    assert table["p_corrected_unit"][1] == alone["p_corrected_unit"][0]


def test_covariance_slopes_are_those_of_the_directions_that_the_controls_draw():
    rng = np.random.default_rng(4)
    a, g = rng.normal(size=(15, 6)) * [3, 1, 1, 1, 0.1, 0.1] + 5, rng.normal(size=6)
    ours = covariance_slopes(a @ g, a @ a.T, 2000)
    about = Provenance(0, "resid_pre", -1)
    like = from_vector(torch.ones(6), about)
    drawn = covariance_directions(like, torch.tensor(a), 2000, 0)
    theirs = [float(one.unit.double().numpy() @ g) for one in drawn]
    assert ks_2samp(ours, theirs).pvalue > 0.01
    assert np.abs(ours).max() <= np.linalg.norm(g) + 1e-9


def test_what_does_not_fit_is_refused():
    with pytest.raises(DialError, match="need Gram matrices"):
        slope_test(np.zeros((1, 4)), np.zeros((1, 3, 3)), np.ones(4))
    with pytest.raises(DialError, match="labels of both kinds"):
        slope_test(np.zeros((1, 4)), np.zeros((1, 4, 4)), np.ones(4))
