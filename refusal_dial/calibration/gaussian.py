"""Experiments without an effect on Gaussian activations: the controls, and no model.

    x = C z,  z ~ N(0, I),  C C' with eigenvalues 1/1, 1/2, 1/3, ...
    score(x) = log(1 + exp(r·x)),  r = C g,  g ~ N(0, I)

Activations differ far more along some axes than along others, and the score reads them where they
differ, as a model does. Two layers share half of their z, so that their p-values are tied. Labels
are half 1 and half 0 and mean nothing. Directions and controls are made by the functions that the
steering scripts use, and what a direction does is the mean change of score on other prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from refusal_dial.controls import (
    covariance_directions,
    flipped_direction,
    random_directions,
    shuffled_directions,
)
from refusal_dial.directions import Direction, Provenance, mean_diff
from refusal_dial.stats import max_t_p, rank_p

WIDTH, LAYERS = 32, 2
SIZE = 50
KINDS = ("random", "covariance", "shuffled")
ROWS = 3 * len(KINDS) + 1  # an experiment
Values = NDArray[np.float64]


def gaussian_batches(
    model: Any, *, n: int, n_learn: int, n_report: int, draws: int, seed: int, skip: int = 0
) -> Iterator[pd.DataFrame]:
    """Frames of `SIZE` experiments each, `rows_of` them. No model is asked."""
    for start in range(skip * SIZE, n, SIZE):
        numbers = range(start, min(start + SIZE, n))
        some = [row for i in numbers for row in experiment(i, n_learn, n_report, draws, seed)]
        yield pd.DataFrame(some)


def experiment(i: int, n_learn: int, n_report: int, draws: int, seed: int) -> list[dict[str, Any]]:
    """One experiment: a row per kind of control, with its p-value."""
    rng = np.random.default_rng([seed, i])
    scale = 1 / np.sqrt(np.arange(1, WIDTH + 1))
    n = n_learn + n_report
    own, common = rng.normal(size=(LAYERS, n, WIDTH)), rng.normal(size=(n, WIDTH))
    x = (own + common) / np.sqrt(2) * scale
    labels = rng.permutation(np.arange(n_learn) % 2).astype(float).tolist()
    readout = rng.normal(size=(LAYERS, WIDTH)) * scale
    layers = []
    for layer in range(LAYERS):
        named = _named(torch.from_numpy(x[layer, :n_learn]).float(), labels, draws, seed + i)
        units = {kind: torch.stack([d.unit for d in some]).numpy() for kind, some in named.items()}
        before = x[layer, n_learn:] @ readout[layer]
        layers.append({k: _moved(before, u @ readout[layer]) for k, u in units.items()})
    return rows_of(i, layers)


def _named(
    learned_from: torch.Tensor, labels: list[float], draws: int, seed: int
) -> dict[str, list[Direction]]:
    learn = partial(_learn, learned_from)
    learned = learn(labels)
    return {
        "learned": [learned],
        "random": random_directions(learned, draws, seed),
        "covariance": covariance_directions(learned, learned_from, draws, seed),
        "shuffled": shuffled_directions(learned, learn, labels, draws, seed),
        "flipped": [flipped_direction(learned)],
    }


def _learn(activations: torch.Tensor, labels: Any) -> Direction:
    positive = torch.tensor(labels) > 0.5
    about = Provenance(0, "resid_pre", -1)
    return mean_diff(activations[positive], activations[~positive], about)


def _moved(before: Values, push: Values) -> Values:
    """The mean change of score under each push."""
    return (np.logaddexp(0, before + push[:, None]) - np.logaddexp(0, before)).mean(1)


def rows_of(i: int, layers: list[dict[str, Values]]) -> list[dict[str, Any]]:
    """The p-values of experiment i, from what every direction did at each layer.

    Of each kind of null the rank at the first layer; `kind, corrected`: the smallest of the layers'
    corrected p-values; `kind, smallest`: the smallest of their ranks, which nothing corrects.
    """
    effects = np.array([layer["learned"][0] for layer in layers])
    rows = []
    for kind in [k for k in KINDS if k in layers[0]]:
        null = np.stack([layer[kind] for layer in layers], 1)
        ranks = [rank_p(float(e), null[:, c]) for c, e in enumerate(effects)]
        found = {kind: ranks[0], f"{kind}, corrected": max_t_p(effects, null).min()}
        found[f"{kind}, smallest"] = min(ranks)
        rows += [(name, len(null), p) for name, p in found.items()]
    if "flipped" in layers[0]:
        rows.append(("flipped", 1, rank_p(float(effects[0]), layers[0]["flipped"])))
    return [
        {"direction": name, "seed": i, "score": float(effects[0]), "draws": n, "p_value": float(p)}
        for name, n, p in rows
    ]
