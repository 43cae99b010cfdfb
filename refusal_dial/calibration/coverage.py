"""How often does a nominal 95% interval hold the truth? Counted on samples whose truth is known.

Each case draws many samples of n prompts from a law, takes the interval that the toolkit would
report for each, and counts. `choice` is no law but a way of working: ten cells that all do nothing
are looked at and the one that did most is reported, on the same prompts or on others. Knows
intervals and laws; no model is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats as laws

from refusal_dial.stats import (
    auc_interval,
    gap_interval,
    mean_interval,
    rate_difference_interval,
    rate_interval,
    slope_interval,
    slopes,
)

SIZES = (20, 50, 200)
TRIALS = 250  # of a batch
CELLS = 10
Floats = NDArray[np.float64]
Sample = Callable[[np.random.Generator, int, int], tuple[Floats, Any]]
"""(generator, trials, n) to the intervals, `trial 2`, and the truth: one, or one a trial."""


@dataclass(frozen=True)
class Case:
    """One kind of interval on samples of one law."""

    interval: str
    law: str
    sample: Sample


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _mean(law: Any) -> Sample:
    def sample(rng: np.random.Generator, trials: int, n: int) -> tuple[Floats, Any]:
        rows = law.rvs((trials, n), random_state=rng)
        return mean_interval(rows, seed=_seed(rng)), law.mean()

    return sample


def _humps(rng: np.random.Generator, trials: int, n: int) -> tuple[Floats, Any]:
    """Scores of prompts of which 30% are refused: two humps."""
    refused = rng.random((trials, n)) < 0.3
    rows = np.where(refused, 4.0, -4.0) + rng.normal(size=(trials, n))
    return mean_interval(rows, seed=_seed(rng)), -1.6


def _paired(rng: np.random.Generator, trials: int, n: int) -> tuple[Floats, Any]:
    """Scores under a cell and unsteered, correlated, the shift skewed over prompts."""
    base = 2 * rng.normal(size=(trials, n))
    cell = base + rng.gamma(3.0, 0.5, (trials, n))
    return mean_interval(cell - base, seed=_seed(rng)), 1.5


def _rate(low: float, high: float) -> Sample:
    """A truth a trial, uniform from low to high: at one alone, coverage jumps with the rate."""

    def sample(rng: np.random.Generator, trials: int, n: int) -> tuple[Floats, Any]:
        rate = rng.uniform(low, high, trials)
        return rate_interval(rng.random((trials, n)) < rate[:, None]), rate

    return sample


def _rate_difference(rise: float, fall: float) -> Sample:
    """Prompts that are newly refused, and prompts that no longer are."""

    def sample(rng: np.random.Generator, trials: int, n: int) -> tuple[Floats, Any]:
        which = rng.random((trials, n))
        after = which < rise
        before = (which >= rise) & (which < rise + fall)
        kept = which >= 0.5 + (rise + fall) / 2
        return rate_difference_interval(after | kept, before | kept), rise - fall

    return sample


def _gap(law: Any, other: Any) -> Sample:
    def sample(rng: np.random.Generator, trials: int, n: int) -> tuple[Floats, Any]:
        one, two = (some.rvs((trials, n), random_state=rng) for some in (law, other))
        pairs = zip(one, two, strict=True)
        found = [gap_interval(a, b) for a, b in pairs]
        return np.array(found), law.mean() - other.mean()

    return sample


def _auc(truth: float) -> Sample:
    def sample(rng: np.random.Generator, trials: int, n: int) -> tuple[Floats, Any]:
        apart = np.sqrt(2) * laws.norm.ppf(truth)
        one, two = rng.normal(apart, 1, (trials, n)), rng.normal(0, 1, (trials, n))
        return np.array([auc_interval(a, b) for a, b in zip(one, two, strict=True)]), truth

    return sample


def _slope(uneven: bool) -> Sample:
    """Over prompts: y = x / 2 + noise, which grows with |x| where it is uneven."""

    def sample(rng: np.random.Generator, trials: int, n: int) -> tuple[Floats, Any]:
        x = rng.normal(size=(trials, n))
        noise = rng.normal(size=(trials, n)) * (np.sqrt(0.5 + x**2 / 2) if uneven else 1)
        y = x / 2 + noise
        found = [slope_interval(a, b) for a, b in zip(x, y, strict=True)]
        return np.array(found), 0.5

    return sample


def _dial(rng: np.random.Generator, trials: int, n: int) -> tuple[Floats, Any]:
    """The slope of the mean score over five alphas, every prompt with a slope of its own."""
    alphas = np.linspace(-2, 2, 5)
    own = rng.gamma(3.0, 0.5, (trials, n))
    noise = rng.normal(size=(trials, 5, n)) + 2 * rng.normal(size=(trials, 1, n))
    scores = own[:, None] * alphas[:, None] + noise
    return mean_interval([slopes(one, alphas) for one in scores], seed=_seed(rng)), 1.5


def _choice(others: bool) -> Sample:
    """The best of ten cells that do nothing: chosen on half of the prompts and reported on the
    other half, or chosen and reported on the same ones."""

    def sample(rng: np.random.Generator, trials: int, n: int) -> tuple[Floats, Any]:
        shown = rng.normal(size=(trials, CELLS, n))
        chosen_on = rng.normal(size=(trials, CELLS, n)) if others else shown
        best = chosen_on.mean(2).argmax(1)
        return mean_interval(shown[np.arange(trials), best], seed=_seed(rng)), 0.0

    return sample


CASES = (
    Case("mean", "normal", _mean(laws.norm())),
    Case("mean", "uniform", _mean(laws.uniform())),
    Case("mean", "two humps", _humps),
    Case("mean", "exponential", _mean(laws.expon())),
    Case("paired difference", "skewed", _paired),
    Case("rate", "0 to 0.1", _rate(0.0, 0.1)),
    Case("rate", "0.1 to 0.9", _rate(0.1, 0.9)),
    Case("rate", "0.9 to 1", _rate(0.9, 1.0)),
    Case("rate difference", "nothing changes", _rate_difference(0.0, 0.0)),
    Case("rate difference", "up 0.05, down 0.02", _rate_difference(0.05, 0.02)),
    Case("rate difference", "up 0.3, down 0.1", _rate_difference(0.3, 0.1)),
    Case("difference of two sets", "normal", _gap(laws.norm(1), laws.norm(0, 2))),
    Case("difference of two sets", "exponential", _gap(laws.expon(scale=2), laws.expon())),
    Case("AUC", "0.5", _auc(0.5)),
    Case("AUC", "0.75", _auc(0.75)),
    Case("AUC", "0.95", _auc(0.95)),
    Case("slope over prompts", "even noise", _slope(False)),
    Case("slope over prompts", "uneven noise", _slope(True)),
    Case("slope of the dial", "skewed", _dial),
    Case("choice of the best of ten", "reported on other prompts", _choice(True)),
    Case("choice of the best of ten", "reported on the same", _choice(False)),
)


def plan(n_trials: int) -> list[tuple[Case, int, int]]:
    """(case, n, trials) of each batch, in order: a row each."""
    return [
        (case, n, min(TRIALS, n_trials - start))
        for case in CASES
        for n in SIZES
        for start in range(0, n_trials, TRIALS)
    ]


def coverage_batches(
    model: Any, *, n_trials: int, seed: int, skip: int = 0
) -> Iterator[pd.DataFrame]:
    """A frame of one row per batch, without the first `skip`. No model is asked."""
    for number, (case, n, trials) in enumerate(plan(n_trials)):
        if number >= skip:
            yield pd.DataFrame([counted(case, n, trials, seed, number)])


def counted(case: Case, n: int, trials: int, seed: int, number: int) -> dict[str, Any]:
    """How many intervals hold the truth, and how many are wholly below or above it."""
    found, truth = case.sample(np.random.default_rng([seed, number]), trials, n)
    below, above = (found[:, 1] < truth).sum(), (found[:, 0] > truth).sum()
    return {
        "interval": case.interval,
        "law": case.law,
        "n": n,
        "trials": trials,
        "below": int(below),
        "above": int(above),
        "width": float((found[:, 1] - found[:, 0]).mean()),
        "score": float(1 - (below + above) / trials),
    }


def covered(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per interval, law and n: `coverage`, its Wilson interval, the shares of intervals
    `below` and `above` the truth, and whether `coverage` is from 0.93 to 0.97."""
    found = []
    for keys, part in rows.groupby(["interval", "law", "n"], sort=False):
        trials = int(part["trials"].sum())
        missed = [int(part[side].sum()) for side in ("below", "above")]
        held = trials - sum(missed)
        low, high = rate_interval(np.arange(trials) < held)[0]
        record = dict(zip(["interval", "law", "n"], keys, strict=True)) | {"trials": trials}
        record |= {"coverage": held / trials, "lo": low, "hi": high}
        record |= {"below": missed[0] / trials, "above": missed[1] / trials}
        width = float(np.average(part["width"], weights=part["trials"]))
        found.append(record | {"width": width, "kept": 0.93 <= held / trials <= 0.97})
    return pd.DataFrame(found)
