"""Stability: does the direction come out again from other prompts, folds and seeds?

    cosine of the given direction to the one learned again from test prompts

p is its rank among the cosines to directions learned from the same prompts with their labels dealt
out anew: an exact permutation test, since the given direction never saw these prompts. It needs no
forward pass, so its draws are many. Beside it, without a test: cosines to directions learned from
the prompts to learn from, less one fold, or a random half. A direction can be stable and do
nothing; that is for other claims.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from refusal_dial.controls import fold_directions, fold_numbers, shuffled_directions
from refusal_dial.verify.claims import Evidence
from refusal_dial.verify.flags import VerifyFlags
from refusal_dial.verify.opened import Opened, Reference

Values = NDArray[np.float64]
N_FOLDS, N_SEEDS, N_BOOTSTRAP = 5, 10, 300
SAID = {"scores": "top- against bottom-scored EDGE", "contrast": "HARMFUL against BENIGN"}


def stable(opened: Opened, flags: VerifyFlags) -> Evidence:
    """The cosine to the direction learned again, among those of shuffled labels."""
    given, again = opened.given.unit.double(), opened.tested_on
    cosine = float(given @ again.learn(again.values).unit.double())
    dealt = shuffled_directions(
        opened.given, again.learn, again.values, flags.n_permutations, flags.seed
    )
    null = np.array([float(given @ one.unit.double()) for one in dealt])
    p = float((1 + (null >= cosine - 1e-12).sum()) / (1 + len(null)))
    low, high = np.quantile(_resampled(opened, again, flags.seed), [0.025, 0.975])
    folds, seeds = _folds(opened, flags.seed), _halves(opened, flags.seed)
    within = float(np.quantile(null, 0.95))
    said = (
        f"cosine {cosine:.2f} to the direction learned again from {SAID[again.name]} prompts that "
        f"it never saw; {folds.min():.2f} to {folds.max():.2f} over folds, {seeds.min():.2f} to "
        f"{seeds.max():.2f} over seeds"
    )
    because = (
        f"it is no closer to what these prompts teach than to what shuffled labels teach: cosine "
        f"{cosine:.2f}, of shuffled labels 95% are under {within:.2f} (p = {p:.3g})"
    )
    unable = "exploratory: the direction was learned from these prompts"
    return Evidence(
        "comes out again",
        "it is closer to the direction learned again from other prompts than shuffled labels are",
        "cosine",
        len(again.values),
        cosine,
        (float(low), float(high)),
        p,
        cosine > 0,
        said,
        because,
        unable if opened.exploratory else "",
        within,
        (
            {"kind": "folds", "cosines": folds.tolist()},
            {"kind": "seeds", "cosines": seeds.tolist()},
            {"kind": "reference", "name": again.name},
        ),
    )


def _groups(reference: Reference) -> list[str]:
    if reference.name == "scores":
        return [""] * len(reference.values)
    return [str(value) for value in reference.values]


def _folds(opened: Opened, seed: int) -> Values:
    """The given one's cosine to each direction learned without a fold."""
    one = opened.learned_from
    numbers = fold_numbers(_groups(one), min(N_FOLDS, len(one.values) // 2), seed)
    learned = fold_directions(
        opened.given, lambda rest: one.of(rest, [one.values[i] for i in rest]), numbers
    )
    return np.array([float(opened.given.unit.double() @ d.unit.double()) for d in learned])


def _halves(opened: Opened, seed: int) -> Values:
    """The given one's cosine to directions learned from random halves, each group's alike."""
    one = opened.learned_from
    found = []
    for i in range(N_SEEDS):
        numbers = fold_numbers(_groups(one), 2, seed + i)
        rest = [row for row, number in enumerate(numbers) if number == 0]
        half = one.of(rest, [one.values[row] for row in rest])
        found.append(float(opened.given.unit.double() @ half.unit.double()))
    return np.array(found)


def _resampled(opened: Opened, again: Reference, seed: int) -> Values:
    """The cosine under resampling of the test prompts, each group by itself."""
    groups = np.array(_groups(again))
    members = [np.flatnonzero(groups == name) for name in dict.fromkeys(groups)]
    rng = np.random.default_rng(seed)
    given, found = opened.given.unit.double(), []
    for _ in range(N_BOOTSTRAP):
        rows = np.concatenate([rng.choice(some, len(some)) for some in members]).tolist()
        one = again.of(rows, [again.values[row] for row in rows])
        found.append(float(given @ one.unit.double()))
    return np.array(found)


def cosines(opened: Opened) -> dict[str, Values]:
    """Of the given direction with every control of each kind as it was drawn, and with length."""
    given, found = opened.given.unit.double(), dict[str, list[float]]()
    for one in opened.controls:
        found.setdefault(one.kind, []).append(one.cosine)
    found["length"] = [float(torch.dot(given, opened.length.unit.double()))]
    return {kind: np.array(values) for kind, values in found.items()}
