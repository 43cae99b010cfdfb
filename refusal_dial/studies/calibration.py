"""Calibration: the statistics applied to cases whose answer is known.

Experiments without an effect (on a model, and on Gaussian activations) whose p-values must be
uniform; samples whose truth is known, which intervals must cover; and the same run twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats
from scipy import stats as laws
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.cells import Cell
from refusal_dial.cli.flags import CALIBRATION_PARTS, CalibrationFlags, ContinuationFlags
from refusal_dial.common import DialError, DryRun
from refusal_dial.data.prompts import Prompt, extremes, of_subset
from refusal_dial.directions.learning import (
    Direction,
    Provenance,
    covariance_directions,
    flipped_direction,
    mean_diff,
    random_directions,
    shuffled_directions,
    top_bottom,
)
from refusal_dial.engine.score import score_grid
from refusal_dial.generate.decode import decoding_of
from refusal_dial.run.job import Close, begin, carry_out, check_asked
from refusal_dial.run.plan import Budget, Grid, Parts, Plan, Task, batches
from refusal_dial.stats.intervals import LEVEL, Floats, auc, mean_interval, rate_interval, shares
from refusal_dial.stats.p_values import (
    contrast_weights,
    holm,
    max_t_p,
    rank_p,
    sign_flip_p,
    slope_test,
)
from refusal_dial.stats.summary import CORRECTED, NULLS, RANKED, compared
from refusal_dial.studies.base import Study, load_study, study_settings
from refusal_dial.studies.continuation import (
    Conducted,
    ContinuationPlan,
    continuation_cells,
    continuation_settings,
    load_continuations,
    opening_rows,
    per_prompt,
)
from refusal_dial.studies.steering import label_tests, learn, slope_gradients, steering_cells

# --------------------------------------------------------------------------------------------------
# Experiments without an effect on a model: the steering pipeline, given scores that mean nothing.
#
# Every prompt is given a random number in place of its score. From the EDGE prompts to learn from,
# the direction is learned as ever, top of these numbers minus bottom; its controls are those of the
# steering scripts; all are added while the model reads other EDGE prompts, whose true refusal score
# is what moves. The p-values are those that a steering run reports. `SIZE` experiments share a
# split of the prompts, so that their cells are replayed on one recording; each has its own numbers.


NULLS_A_BATCH = 10

SINGLE_CONTROLS = ("flipped", "length")

SLOPE_TESTS = {
    "slope": "p",
    "slope, corrected": "p_corrected",
    "slope, smallest": "p_two_sided",
    "slope, unit length": "p_unit",
    "slope, unit length, corrected": "p_corrected_unit",
}
"""Each test of the slope and its column in `slope_test`'s table, at the first place; of `corrected`
and `smallest` the smallest over places, with and without the max-T correction."""

CALIBRATED_PERMUTATIONS = 999  # an experiment: p is as uniform among these as among 10,000


def null_tests(flags: CalibrationFlags) -> list[str]:
    """The tests of one experiment, in order: a row each."""
    found = [
        name
        for kind in NULLS
        if kind in flags.controls
        for name in (kind, f"{kind}, corrected", f"{kind}, smallest")
    ]
    found += [kind for kind in SINGLE_CONTROLS if kind in flags.controls]
    return found + (list(SLOPE_TESTS) if "slope" in flags.controls else [])


def check_enough(study: Study, flags: CalibrationFlags) -> None:
    """Raises `DialError` where there are fewer EDGE prompts than the two parts take, or fewer in
    the first than `--k` takes of its two ends."""
    n = len(of_subset(study.prompts, "EDGE"))
    if n < flags.n_learn + flags.n_report:
        raise DialError(
            f"{flags.n_learn} prompts to learn from and {flags.n_report} to report on are more "
            f"than the {n} EDGE prompts"
        )
    if flags.k is not None and 2 * flags.k > flags.n_learn:
        raise DialError(
            f"--k {flags.k}: the top and the bottom of {flags.n_learn} prompts hold "
            f"{flags.n_learn // 2} each at most"
        )


@dataclass(frozen=True, eq=False)
class NullPlan:
    """n experiments on a model, `NULLS_A_BATCH` a task."""

    study: Study
    flags: CalibrationFlags
    n: int

    @property
    def tasks(self) -> list[Task]:
        return experiment_tasks(self.n, NULLS_A_BATCH, len(null_tests(self.flags)))

    @property
    def grid(self) -> Grid:
        return Grid({"experiments": self.n}, 1, {"p-values of": null_tests(self.flags)})

    def compute(self, model: TransformerBridge, task: Task) -> pd.DataFrame:
        """Raises `DialError` where there are fewer EDGE prompts than the two parts take."""
        study, flags = replace(self.study, model=model), self.flags
        check_enough(study, flags)
        # 1. A split of the EDGE prompts that these experiments share, drawn by their number.
        edge = of_subset(study.prompts, "EDGE")
        order = np.random.default_rng([flags.seed, task.prompts.start]).permutation(len(edge))
        train = [edge[i] for i in order[: flags.n_learn]]
        report = [edge[i] for i in order[flags.n_learn :][: flags.n_report]]
        # 2. The cells of all of them, on one recording, and the gradients of what is reported on.
        grids = [null_cells(study, flags, i, train) for i in task.prompts]
        scores = score_grid(
            model,
            study.tokens.chosen(study.rows(report)).on(model),
            [cell.hooks for cells in grids for cell in cells],
            study.scorer,
            engine=flags.engine,
            memory_gb=flags.memory_gb,
        ).numpy()
        # 3. The p-values of each.
        parts = np.split(scores, np.cumsum([len(cells) for cells in grids])[:-1])
        rows = [p_values(*one) for one in zip(task.prompts, grids, parts, strict=True)]
        if "slope" in flags.controls:
            gradient = slope_gradients(study, learn(study, flags, train), report)
            for i, mine in zip(task.prompts, rows, strict=True):
                blind, own = null_study(study, flags, i)
                tests = label_tests(
                    blind, own, learn(blind, own, train), gradient, CALIBRATED_PERMUTATIONS
                )
                mine += slope_rows(i, tests)
        return pd.DataFrame([row for some in rows for row in some])

    def shrink(self, prompts: int, cells: int) -> NullPlan:
        return replace(self, n=prompts)

    def memory(self, model: TransformerBridge) -> float:
        return Budget(memory_gb=self.flags.memory_gb).memory(model)


def experiment_tasks(n: int, size: int, rows: int) -> list[Task]:
    """n experiments of so many rows each, `size` a task."""
    return [Task(rows * len(some), some) for some in batches(n, size)]


def null_cells(
    study: Study, flags: CalibrationFlags, i: int, train: Sequence[Prompt]
) -> list[Cell]:
    """The cells of experiment i, with the direction of its own meaningless numbers."""
    blind, own = null_study(study, flags, i)
    return steering_cells(blind, own, learn(blind, own, train), train)


def null_study(study: Study, flags: CalibrationFlags, i: int) -> tuple[Study, CalibrationFlags]:
    """The study with numbers that mean nothing as its scores, and the flags, of experiment i."""
    found = np.random.default_rng([flags.seed, i, 1]).normal(size=len(study.prompts))
    return replace(study, scores=found), replace(flags, seed=flags.seed + i)


def slope_rows(i: int, tests: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of experiment i by the test of the slope (see `SLOPE_TESTS`)."""
    row, slope = {"seed": i, "draws": int(tests["n"].iloc[0])}, float(tests["slope"].iloc[0])
    found = []
    for name, column in SLOPE_TESTS.items():
        over_places = name.endswith(("corrected", "smallest"))
        p = float(tests[column].min() if over_places else tests[column].iloc[0])
        found.append({"direction": name, "score": slope, "p_value": p} | row)
    return found


def p_values(i: int, cells: Sequence[Cell], scores: NDArray[np.float64]) -> list[dict[str, Any]]:
    """The rows of experiment i, by the columns of a steering run's summary.

    Of each kind of null the p at the first layer; `kind, corrected`: the smallest of all cells'
    corrected p-values; `kind, smallest`: the smallest of their p-values, which nothing corrects. Of
    a control that is one direction, the rank among one.
    """
    table = compared(pd.DataFrame([dict(cell.labels) for cell in cells]), scores)
    learned = table[table["direction"] == "learned"]
    effect, rows = float(learned["shift"].iloc[0]), []
    for kind in NULLS:
        draws = int(table.loc[table["direction"] == kind, "seed"].nunique())
        if draws:
            ranks = learned[RANKED[kind]]
            rows.append((kind, draws, ranks.iloc[0]))
            rows.append((f"{kind}, corrected", draws, learned[CORRECTED[kind]].min()))
            rows.append((f"{kind}, smallest", draws, ranks.min()))
    for kind in SINGLE_CONTROLS:
        one = table.loc[table["direction"] == kind, "shift"]
        if len(one):
            rows.append((kind, 1, rank_p(effect, one.iloc[:1])))
    return [
        {"direction": kind, "seed": i, "score": effect, "draws": n, "p_value": float(p)}
        for kind, n, p in rows
    ]


# --------------------------------------------------------------------------------------------------
# Experiments without an effect on Gaussian activations: the controls, and no model.
#
#     x = C z,  z ~ N(0, I),  C C' with eigenvalues 1/1, 1/2, 1/3, ...
#     score(x) = log(1 + exp(r·x)),  r = C g,  g ~ N(0, I)
#
# Activations differ far more along some axes than along others, and the score reads them where they
# differ, as a model does. Two layers share half of their z, so that their p-values are tied. Labels
# are half 1 and half 0 and mean nothing. Directions and controls are made by the functions that the
# steering scripts use, and what a direction does is the mean change of score on other prompts.


GAUSSIAN_WIDTH, GAUSSIAN_LAYERS = 32, 2

GAUSSIANS_A_BATCH = 50

GAUSSIAN_KINDS = ("random", "covariance", "shuffled")

GAUSSIAN_ROWS = 3 * len(GAUSSIAN_KINDS) + 1 + len(SLOPE_TESTS)  # an experiment


@dataclass(frozen=True)
class GaussianPlan:
    """n experiments on Gaussian activations, `GAUSSIANS_A_BATCH` a task. No model is asked."""

    n: int
    n_learn: int
    n_report: int
    draws: int
    seed: int

    @property
    def tasks(self) -> list[Task]:
        return experiment_tasks(self.n, GAUSSIANS_A_BATCH, GAUSSIAN_ROWS)

    @property
    def grid(self) -> Grid:
        return Grid({"experiments": self.n}, 1, {"p-values of": (*GAUSSIAN_KINDS, "slope")})

    def compute(self, model: Any, task: Task) -> pd.DataFrame:
        rows = [
            experiment(i, self.n_learn, self.n_report, self.draws, self.seed) for i in task.prompts
        ]
        return pd.DataFrame([row for some in rows for row in some])

    def shrink(self, prompts: int, cells: int) -> GaussianPlan:
        return replace(self, n=prompts)

    def memory(self, model: Any) -> float:
        return 0.0


def experiment(i: int, n_learn: int, n_report: int, draws: int, seed: int) -> list[dict[str, Any]]:
    """One experiment: a row per kind of control, with its p-value."""
    rng = np.random.default_rng([seed, i])
    scale = 1 / np.sqrt(np.arange(1, GAUSSIAN_WIDTH + 1))
    n = n_learn + n_report
    own, common = (
        rng.normal(size=(GAUSSIAN_LAYERS, n, GAUSSIAN_WIDTH)),
        rng.normal(size=(n, GAUSSIAN_WIDTH)),
    )
    x = (own + common) / np.sqrt(2) * scale
    labels = rng.permutation(np.arange(n_learn) % 2).astype(float).tolist()
    readout = rng.normal(size=(GAUSSIAN_LAYERS, GAUSSIAN_WIDTH)) * scale
    layers, gradients = [], []
    for layer in range(GAUSSIAN_LAYERS):
        named = _named(torch.from_numpy(x[layer, :n_learn]).float(), labels, draws, seed + i)
        units = {kind: torch.stack([d.unit for d in some]).numpy() for kind, some in named.items()}
        before = x[layer, n_learn:] @ readout[layer]
        layers.append({k: _moved(before, u @ readout[layer]) for k, u in units.items()})
        gradients.append(_gradient(before, readout[layer]))
    positive = np.array(labels) > 0.5
    ends = (np.flatnonzero(side).tolist() for side in (positive, ~positive))
    weights = contrast_weights(n_learn, *ends)
    tests = gaussian_slopes(x[:, :n_learn], np.stack(gradients), weights, seed + i)
    return rows_of(i, layers) + slope_rows(i, tests)


def _gradient(before: Floats, readout: Floats) -> Floats:
    """The mean over prompts of d score / d x."""
    return special.expit(before).mean() * readout


def gaussian_slopes(
    activations: Floats, gradients: Floats, weights: Floats, seed: int
) -> pd.DataFrame:
    """The permutation test of the slope, on activations "layer prompt width"."""
    projections = np.einsum("lnd,ld->ln", activations, gradients)
    grams = activations @ activations.transpose(0, 2, 1)
    return slope_test(projections, grams, weights, CALIBRATED_PERMUTATIONS, seed)


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


def _moved(before: Floats, push: Floats) -> Floats:
    """The mean change of score under each push."""
    return (np.logaddexp(0, before + push[:, None]) - np.logaddexp(0, before)).mean(1)


def rows_of(i: int, layers: list[dict[str, Floats]]) -> list[dict[str, Any]]:
    """The p-values of experiment i, from what every direction did at each layer.

    Of each kind of null the rank at the first layer; `kind, corrected`: the smallest of the layers'
    corrected p-values; `kind, smallest`: the smallest of their ranks, which nothing corrects.
    """
    effects = np.array([layer["learned"][0] for layer in layers])
    rows = []
    for kind in [k for k in GAUSSIAN_KINDS if k in layers[0]]:
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


# --------------------------------------------------------------------------------------------------
# How often is a planted effect found? Three tests side by side, by its size and by prompts.
#
#     x = C z + rho' sd y r / |r|,   y ~ N(0, 1) the score that is learned from
#
# on one layer as above; `rho` is the correlation of y with the activation along the readout, sd the
# deviation of activations there, rho' = rho / sqrt(1 - rho^2). The direction is the top third of n
# prompts by y minus the bottom third, measured on n others. Beside the permutation test of the
# slope stands what was reported before it: the rank of the effect at one alpha among 20 draws of
# shuffled labels, and among 20 random directions. What a test finds at rho > 0 counts only where it
# finds no more than 5% at rho = 0.


POWER_SIZES = (20, 50, 130)

POWER_RHOS = (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8)

POWER_DRAWS = 20

POWER_TESTS = ("slope", "slope, unit length", "shuffled", "random")

POWERS_A_BATCH = 50


@dataclass(frozen=True)
class PowerPlan:
    """`n` experiments at every size and every planted effect. No model is asked."""

    n: int
    seed: int

    @property
    def tasks(self) -> list[Task]:
        """`part` is the number of the pair (prompts, rho) in `planted`."""
        return [
            Task(len(POWER_TESTS) * len(some), some, part=part)
            for part in range(len(self.planted))
            for some in batches(self.n, POWERS_A_BATCH)
        ]

    @property
    def planted(self) -> list[tuple[int, float]]:
        """(prompts, rho)."""
        return [(n, rho) for n in POWER_SIZES for rho in POWER_RHOS]

    @property
    def grid(self) -> Grid:
        axes: dict[str, Sequence[Any]] = {"prompts": POWER_SIZES, "rho": POWER_RHOS}
        axes["p-values of"] = POWER_TESTS
        return Grid({"experiments": self.n}, len(self.planted), axes)

    def compute(self, model: Any, task: Task) -> pd.DataFrame:
        n, rho = self.planted[task.part]
        rows = [planted_effect(i, n, rho, self.seed) for i in task.prompts]
        return pd.DataFrame([row for some in rows for row in some])

    def shrink(self, prompts: int, cells: int) -> PowerPlan:
        return replace(self, n=prompts)

    def memory(self, model: Any) -> float:
        return 0.0


def planted_effect(i: int, n: int, rho: float, seed: int) -> list[dict[str, Any]]:
    """Experiment i of this size and this planted effect: a row per test. Numbers are those of the
    same experiment without the effect."""
    rng = np.random.default_rng([seed, n, i])
    scale = 1 / np.sqrt(np.arange(1, GAUSSIAN_WIDTH + 1))
    x, y = rng.normal(size=(2 * n, GAUSSIAN_WIDTH)) * scale, rng.normal(size=2 * n)
    readout = rng.normal(size=GAUSSIAN_WIDTH) * scale
    along = readout / np.linalg.norm(readout)
    deviation = np.sqrt((along**2 * scale**2).sum())
    x += rho / np.sqrt(1 - rho**2) * deviation * y[:, None] * along
    # 1. What was reported before: the effect at one alpha among draws.
    k = n // 3
    learn = partial(_top_bottom, torch.from_numpy(x[:n]).float(), k)
    learned, before = learn(y[:n].tolist()), x[n:] @ readout
    drawn = {
        "shuffled": shuffled_directions(learned, learn, y[:n].tolist(), POWER_DRAWS, seed + i),
        "random": random_directions(learned, POWER_DRAWS, seed + i),
    }
    own, *null = (
        _moved(before, torch.stack([one.unit for one in some]).double().numpy() @ readout)
        for some in ([learned], *drawn.values())
    )
    effect = float(own[0])
    found = {
        kind: (POWER_DRAWS, rank_p(effect, draws)) for kind, draws in zip(drawn, null, strict=True)
    }
    # 2. The permutation test of the slope.
    weights = contrast_weights(n, *extremes(y[:n].tolist(), k))
    gradient = _gradient(before, readout)
    row = gaussian_slopes(x[None, :n], gradient[None], weights, seed + i).iloc[0]
    found |= {name: (int(row["n"]), row[SLOPE_TESTS[name]]) for name in POWER_TESTS[:2]}
    about = {"seed": i, "prompts": n, "rho": rho, "score": effect}
    return [
        {"direction": name, **about, "draws": found[name][0], "p_value": float(found[name][1])}
        for name in POWER_TESTS
    ]


def _top_bottom(activations: torch.Tensor, k: int, scores: Sequence[float]) -> Direction:
    return top_bottom(activations, scores, Provenance(0, "resid_pre", -1), k=k)


def powers(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per number of prompts, planted effect and test: `power`, the share of p <= 0.05, with
    Wilson's interval."""
    found = []
    keys = ["prompts", "rho", "direction"]
    for values, part in rows.groupby(keys, sort=False):
        hits = part["p_value"].to_numpy(float) <= UNIFORM_LEVEL + 1e-12
        low, high = rate_interval(hits)[0]
        record = dict(zip(keys, values, strict=True))
        found.append(record | {"trials": len(hits), "power": hits.mean(), "lo": low, "hi": high})
    return pd.DataFrame(found)


# --------------------------------------------------------------------------------------------------
# Are p-values of experiments without an effect uniform, as they must be?
#
#     P(p <= a) = floor(a (draws + 1)) / (draws + 1)
#
# for a rank among `draws` exchangeable controls. Such a p has few values, so before the
# Kolmogorov-Smirnov test each is spread over its own step, `p - V / (draws + 1)`, V uniform on [0,
# 1): if ranks are fair that is uniform exactly.


UNIFORM_LEVEL = 0.05

LEAST_KS = 0.01

MOST_UNDER = 0.065

UNIFORMITY_FIGURES = ["n", "expected", "under", "under_lo", "under_hi", "ks", "ks_p", "uniform"]


def p_value_spread(p_values: ArrayLike, draws: ArrayLike, seed: int = 0) -> NDArray[np.float64]:
    """Each rank p-value at a random place within its own step."""
    p, n = np.asarray(p_values, dtype=float), np.asarray(draws, dtype=float)
    return p - np.random.default_rng(seed).random(p.shape) / (n + 1)


def uniformity(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """A row per kind of `direction`, from `p_value` and `draws` of every experiment.

    `expected` and `under`: the share of p <= 0.05 that a fair null has, and that these have with
    Wilson's interval; `ks` and `ks_p`: the largest distance from the uniform distribution, and how
    likely one as large is by chance; `uniform`: ks_p > 0.01 and under <= 0.065.
    """
    found = []
    for kind, part in rows.groupby("direction", sort=False):
        p, draws = part["p_value"].to_numpy(float), part["draws"].to_numpy(float)
        hits = p <= UNIFORM_LEVEL + 1e-12
        low, high = rate_interval(hits)[0]
        test = stats.kstest(p_value_spread(p, draws, seed), "uniform")
        expected = float((np.floor(UNIFORM_LEVEL * (draws + 1) + 1e-9) / (draws + 1)).mean())
        fair = test.pvalue > LEAST_KS and hits.mean() <= MOST_UNDER
        figures = (len(p), expected, hits.mean(), low, high, test.statistic, test.pvalue, fair)
        found.append({"direction": kind, **dict(zip(UNIFORMITY_FIGURES, figures, strict=True))})
    return pd.DataFrame(found)


# --------------------------------------------------------------------------------------------------
# Intervals that no run reports: paired differences of rates, two sets of prompts, the AUC, slopes.
# Their coverage is counted below; those of means and rates are in `stats.intervals`.


def rate_difference_interval(hits: ArrayLike, base: ArrayLike, *, level: float = LEVEL) -> Floats:
    """Interval for a paired difference of rates, `mean(hits - base)` of each row, `-> row 2`.

    With `b` prompts hit only under the cell and `c` only at base, `p = (b + 1) / (n + 2)` and
    `q = (c + 1) / (n + 2)`: `p - q ± z sqrt((p + q - (p - q)^2) / (n + 2))`, within [-1, 1] (Bonett
    and Price 2012). Where no prompt changes it still says how rare a change may be.
    """
    rows, other = shares(hits), shares(base)
    difference = rows - other
    n = difference.shape[1]
    if n == 0:
        return np.full((len(rows), 2), np.nan)
    bad = np.isnan(difference).any(1)
    p = ((difference > 0).sum(1) + 1) / (n + 2)
    q = ((difference < 0).sum(1) + 1) / (n + 2)
    half = stats.norm.ppf((1 + level) / 2) * np.sqrt((p + q - (p - q) ** 2) / (n + 2))
    interval = np.stack([np.maximum(-1, p - q - half), np.minimum(1, p - q + half)], 1)
    interval[bad] = np.nan
    return interval


def gap_interval(one: ArrayLike, other: ArrayLike, *, level: float = LEVEL) -> Floats:
    """Welch's interval, of 2, for `mean(one) - mean(other)` of two sets of different prompts.

    `d ± t_df sqrt(v1 + v2)`, `v = s^2 / n`, and
    `df = (v1 + v2)^2 / (v1^2 / (n1 - 1) + v2^2 / (n2 - 1))` (Welch 1947).

    It covers where a bootstrap of two small skewed sets does not; the misses then fall on one side.
    NaN where a set has fewer than two prompts or holds NaN; where no set varies, the interval of
    the difference.
    """
    a, b = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    if min(len(a), len(b)) < 2 or not np.isfinite([*a, *b]).all():
        return np.full(2, np.nan)
    if (a == a[0]).all() and (b == b[0]).all():
        return np.full(2, a[0] - b[0])
    v1, v2 = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    df = (v1 + v2) ** 2 / (v1**2 / (len(a) - 1) + v2**2 / (len(b) - 1))
    half = stats.t.ppf((1 + level) / 2, df) * np.sqrt(v1 + v2)
    return a.mean() - b.mean() + np.array([-half, half])


def auc_interval(positive: ArrayLike, negative: ArrayLike, *, level: float = LEVEL) -> Floats:
    """Interval, of 2, for an AUC, on the log-odds scale:

    `logit(auc) ± z sqrt(V) / (auc (1 - auc))`,
    `V = var(P(a > negative)) / n1 + var(P(positive > b)) / n2`

    (DeLong et al. 1988; Qin and Hotilovac 2008), each variance over the prompts of one set. Where
    the two sets do not overlap V is 0 and says nothing: then all `t` that Newcombe's score interval
    holds, so that perfect separation is not certainty (2006, method 5).
    """
    a, b = np.asarray(positive, dtype=float), np.asarray(negative, dtype=float)
    found, z = auc(a, b), float(stats.norm.ppf((1 + level) / 2))
    if np.isnan(found):
        return np.full(2, np.nan)
    if 0 < found < 1 and min(len(a), len(b)) > 1:
        spread = _placed(a, b).var(ddof=1) / len(a) + _placed(b, a).var(ddof=1) / len(b)
        if spread > 0:
            half = z * np.sqrt(spread) / (found * (1 - found))
            middle = special.logit(found)
            return special.expit(np.array([middle - half, middle + half]))
    return _newcombe(found, len(a), len(b), z)


def _placed(values: Floats, others: Floats) -> Floats:
    """Of each value the share of the others that it is above, ties by half."""
    ranked = np.sort(others)
    sides = [np.searchsorted(ranked, values, side) for side in ("left", "right")]
    return (sides[0] + sides[1]) / (2 * len(others))


def _newcombe(found: float, n1: int, n2: int, z: float) -> Floats:
    """All t with `|found - t| <= z sqrt(V(t))`, `m = (n1 + n2) / 2 - 1`,
    `V(t) = t (1 - t) (1 + m (1 - t) / (2 - t) + m t / (1 + t)) / (n1 n2)`."""
    m = (n1 + n2) / 2 - 1

    def over(t: float) -> float:
        spread = t * (1 - t) * (1 + m * (1 - t) / (2 - t) + m * t / (1 + t)) / (n1 * n2)
        return (found - t) ** 2 - z * z * spread

    low = 0.0 if found == 0 else optimize.brentq(over, 0, min(found, 1 - 1e-9))
    high = 1.0 if found == 1 else optimize.brentq(over, max(found, 1e-9), 1)
    return np.array([low, high])


def fitted_slopes(scores: ArrayLike, alphas: ArrayLike) -> Floats:
    """Each prompt's least-squares slope of score against alpha, `alpha prompt -> prompt`.

    Every prompt is scored at every alpha, so the slope of the mean is the mean of the slopes, and
    `mean_interval(fitted_slopes(...))` is its interval with the prompt as unit.
    Raises `DialError` for fewer than two different alphas.
    """
    x = np.asarray(alphas, dtype=float)
    centred = x - x.mean()
    if not centred.any():
        raise DialError(f"a slope takes at least two different alphas, not {x.tolist()}")
    return centred @ np.asarray(scores, dtype=float) / (centred @ centred)


def slope_interval(x: ArrayLike, y: ArrayLike, *, level: float = LEVEL) -> Floats:
    """Interval, of 2, for the least-squares slope b of y on x over prompts:

    `b ± t_(n-2) sqrt(sum (dx e / (1 - h))^2) / sum dx^2`, `h = 1/n + dx^2 / sum dx^2`

    with dx = x - mean(x) and residuals e: the HC3 error, which holds where the noise depends on x
    (MacKinnon and White 1985; Long and Ervin 2000). NaN for fewer than three prompts, values that
    are not finite, or a constant x.
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(a) < 3 or not np.isfinite([*a, *b]).all() or (a == a[0]).all():
        return np.full(2, np.nan)
    dx, dy = a - a.mean(), b - b.mean()
    total = dx @ dx
    slope = dx @ dy / total
    rest = np.maximum(1 - 1 / len(a) - dx * dx / total, 1e-12)  # 0: a prompt that decides alone
    error = np.sqrt((((dy - slope * dx) * dx / rest) ** 2).sum()) / total
    half = stats.t.ppf((1 + level) / 2, len(a) - 2) * error
    return np.array([slope - half, slope + half])


# --------------------------------------------------------------------------------------------------
# How often does a nominal 95% interval hold the truth? Counted on samples whose truth is known.
#
# Each case draws many samples of n prompts from a law, takes the interval that the toolkit would
# report for each, and counts. `choice` is no law but a way of working: ten cells that all do
# nothing are looked at and the one that did most is reported, on the same prompts or on others.


SIZES = (20, 50, 200)

TRIALS = 250  # of a batch

CELLS_A_BATCH = 10

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
    return mean_interval([fitted_slopes(one, alphas) for one in scores], seed=_seed(rng)), 1.5


def _choice(others: bool) -> Sample:
    """The best of ten cells that do nothing: chosen on half of the prompts and reported on the
    other half, or chosen and reported on the same ones."""

    def sample(rng: np.random.Generator, trials: int, n: int) -> tuple[Floats, Any]:
        found = rng.normal(size=(trials, CELLS_A_BATCH, n))
        chosen_on = rng.normal(size=(trials, CELLS_A_BATCH, n)) if others else found
        best = chosen_on.mean(2).argmax(1)
        return mean_interval(found[np.arange(trials), best], seed=_seed(rng)), 0.0

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


@dataclass(frozen=True)
class CoveragePlan:
    """Every interval at every number of prompts, on `n_trials` samples: a row for `TRIALS` of
    them. No model is asked."""

    n_trials: int
    seed: int

    @property
    def tasks(self) -> list[Task]:
        """`part` is the number of the case and the number of prompts in `counted`."""
        return [
            Task(1, trials, part=part)
            for part in range(len(self.counted))
            for trials in batches(self.n_trials, TRIALS)
        ]

    @property
    def counted(self) -> list[tuple[Case, int]]:
        """(case, number of prompts)."""
        return [(case, n) for case in CASES for n in SIZES]

    @property
    def grid(self) -> Grid:
        laws = list(dict.fromkeys(f"{case.interval}: {case.law}" for case in CASES))
        axes: dict[str, Sequence[Any]] = {"intervals": laws, "prompts": SIZES}
        return Grid({"samples": self.n_trials}, len(laws) * len(SIZES), axes)

    def compute(self, model: Any, task: Task) -> pd.DataFrame:
        case, n = self.counted[task.part]
        number = task.part * len(batches(self.n_trials, TRIALS)) + task.prompts.start // TRIALS
        return pd.DataFrame([count_covered(case, n, len(task.prompts), self.seed, number)])

    def shrink(self, prompts: int, cells: int) -> CoveragePlan:
        return replace(self, n_trials=prompts)

    def memory(self, model: Any) -> float:
        return 0.0


def count_covered(case: Case, n: int, trials: int, seed: int, number: int) -> dict[str, Any]:
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


# --------------------------------------------------------------------------------------------------
# Do two runs of the same thing agree? Their intervals side by side, and alpha 0 beside baseline.
#
# Made for a published case: two write-ups of one toxicity study, 50 + 50 openings, in which benign
# completions score .006 and .816, neither with an interval, and alpha 0 differs from the baseline
# in one of them (configs/phi4_mini_toxicity.yaml). Sampling anew moves a mean within its interval;
# two intervals apart mean that the two runs did not measure the same thing. And adding 0 times a
# vector changes nothing, so any difference of alpha 0 from the baseline is a fault of the run,
# however small beside its interval.


REPEATED_CELL = ["subset", "direction", "strength"]


def runs_side_by_side(one: pd.DataFrame, other: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """A row per subset and cell: both means with their intervals over prompts, whether those
    `interval_overlap`, and the paired difference of the runs with its interval and p-value,
    `p_holm` corrected over all rows.

    Raises `DialError` where the two do not have the same prompts under the same cells.
    """
    keys = [*REPEATED_CELL, "prompt_id"]
    means = [per_prompt(rows).set_index(keys)["score"] for rows in (one, other)]
    if not means[0].index.sort_values().equals(means[1].index.sort_values()):
        raise DialError("the two runs have other prompts or cells: there is nothing to compare")
    both = pd.DataFrame({"one": means[0], "other": means[1].reindex(means[0].index)}).reset_index()
    found = []
    for cell, part in both.groupby(REPEATED_CELL, sort=False):
        values = part[["one", "other"]].to_numpy(float).T
        intervals = mean_interval(np.vstack([values, values[1:] - values[:1]]), seed=seed)
        record = dict(zip(REPEATED_CELL, cell, strict=True)) | {"n": len(part)}
        for name, value, (low, high) in zip(("one", "other"), values, intervals, strict=False):
            record |= {name: value.mean(), f"{name}_lo": low, f"{name}_hi": high}
        record["overlap"] = bool(interval_overlap(intervals[0], intervals[1]))
        record["difference"] = (values[1] - values[0]).mean()
        record |= {"diff_lo": intervals[2, 0], "diff_hi": intervals[2, 1]}
        record["p_paired"] = float(sign_flip_p(values[1] - values[0], seed)[0])
        found.append(record)
    table = pd.DataFrame(found)
    return table.assign(p_holm=holm(table["p_paired"]))


def interval_overlap(one: Any, other: Any) -> bool:
    """Whether two intervals have a value in common."""
    return bool(max(one[0], other[0]) <= min(one[1], other[1]))


def off_baseline(rows: pd.DataFrame) -> dict[str, float]:
    """For each subset, the mean score at alpha 0 minus that of the baseline, where any prompt has
    another score under the two; so {} for a run that keeps them the same."""
    means = per_prompt(rows)
    found = {}
    for subset, part in means.groupby("subset", sort=False):
        base = part[part["direction"] == "baseline"].set_index("prompt_id")["score"]
        zero = part[(part["direction"] == "learned") & (part["strength"] == 0)]
        apart = zero.set_index("prompt_id")["score"] - base
        if (apart != 0).any():
            found[str(subset)] = float(apart.mean())
    return found


def published(figures: Sequence[Any], n: int) -> pd.DataFrame:
    """The figures that two write-ups both give, `run 1, WHAT` and `run 2, WHAT`, each with the
    interval of a mean of n values from 0 to 1, and whether the two overlap.

    Wilson's: no set of values from 0 to 1 with that mean varies more than hits do.
    """
    known = {figure.what: float(figure.value) for figure in figures}
    found = []
    for what, value in known.items():
        name = what.removeprefix("run 1, ")
        if name == what or f"run 2, {name}" not in known:
            continue
        pair = value, known[f"run 2, {name}"]
        intervals = [rate_interval(np.full(n, mean))[0] for mean in pair]
        record: dict[str, Any] = {"what": name, "one": pair[0], "other": pair[1]}
        for side, (low, high) in zip(("one", "other"), intervals, strict=True):
            record |= {f"{side}_lo": low, f"{side}_hi": high}
        found.append(record | {"overlap": interval_overlap(*intervals)})
    return pd.DataFrame(found)


def runs_of(rows: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
    """The rows of each run, and of one that was put together wrongly: the cells of the first and
    the baseline of the second, as where a baseline is sampled apart from alpha 0."""
    one, other = (part.drop(columns="run") for _, part in rows.groupby("run", sort=False))
    base = other[other["direction"] == "baseline"]
    mixed = pd.concat([base, one[one["direction"] != "baseline"]], ignore_index=True)
    return {"one": one, "other": other, "mixed": mixed}


def run_agreement(rows: pd.DataFrame, seed: int = 0) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table of two runs beside one another, and which of them, and of one put together wrongly,
    have an alpha 0 that is not the baseline."""
    runs = runs_of(rows)
    table = runs_side_by_side(runs["one"], runs["other"], seed)
    off = {name: off_baseline(run) for name, run in runs.items()}
    return table, {"overlap": bool(table["overlap"].all()), "off_baseline": off}


# --------------------------------------------------------------------------------------------------
# A calibration carried out: each part into a run of its own, resumed where it stopped.
#
# What is simulated, and what it came to, is for the other modules.


RUNS = 2


def conduct_calibration(flags: CalibrationFlags) -> dict[str, Conducted]:
    """The run and the summary of each part that `--part` names. With `--out` each has a folder of
    its name in there."""
    parts = CALIBRATION_PARTS if flags.part == "all" else (flags.part,)
    each = {
        part: replace(flags, part=part, out=None if flags.out is None else f"{flags.out}/{part}")
        for part in parts
    }
    for one in each.values():
        check_asked(one)
    study = load_study(each[parts[0]], flags.layer or None, flags.site, flags.pos)
    found = {}
    for part, one in each.items():
        with suppress(DryRun):
            if part == "contradiction":
                found[part] = conduct_contradiction(one)
                continue
            plan, close = _planned(part, study, one)
            run = begin(f"calibrate_{part}", study_settings(study, one), one)
            found[part] = carry_out(run, study, plan, close, one)
    return found


def _planned(part: str, study: Study, flags: CalibrationFlags) -> tuple[Plan, Close]:
    """What a part computes, and what its rows add up to."""
    match part:
        case "null":
            check_enough(study, flags)  # before a folder is made for it
            return NullPlan(study, flags, flags.n_experiments), _uniform
        case "gaussian":
            sizes = (flags.n_learn, flags.n_report, flags.n_random)
            return GaussianPlan(flags.n_gaussian, *sizes, flags.seed), _uniform
        case "power":
            return PowerPlan(flags.n_power, flags.seed), _powers
        case _:
            return CoveragePlan(flags.n_trials, flags.seed), _covered


def _uniform(rows: pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Any]]:
    summary = uniformity(rows)
    return summary, {"uniform": dict(zip(summary["direction"], summary["uniform"], strict=True))}


def _powers(rows: pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Any]]:
    summary = powers(rows)
    null = summary[summary["rho"] == 0].groupby("direction", sort=False)["power"].max()
    return summary, {"without an effect": null.to_dict()}


def _covered(rows: pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Any]]:
    summary = covered(rows)
    return summary, {"kept": int(summary["kept"].sum()), "of": len(summary)}


def conduct_contradiction(flags: CalibrationFlags) -> Conducted:
    """What the same openings are continued with twice, with other random numbers: 50 challenging
    and 50 benign ones, or as many as are held out, a sample each, alpha -1, 0 and 1, as in the
    published study."""
    asked = ContinuationFlags(
        samples=1,
        n_random=0,
        n_shuffled=0,
        model=flags.model,
        seed=flags.seed,
        device=flags.device,
        dtype=flags.dtype,
        device_map=flags.device_map,
        out=flags.out,
        dry_run=flags.dry_run,
    )
    openings = load_continuations(asked)
    settings = continuation_settings(openings, asked) | {"part": flags.part, "runs": RUNS}
    run = begin("calibrate_contradiction", settings, flags)
    cells, rows = continuation_cells(openings, asked), opening_rows(openings, asked.seed)
    once = ContinuationPlan(
        openings.tokens, rows, cells, openings.scorer, decoding_of(asked), asked.batch_size
    )
    runs = [
        SeededPlan(replace(once, decoding=replace(once.decoding, seed=flags.seed + number)))
        for number in range(RUNS)
    ]
    plan = Parts(runs, once.grid)
    return carry_out(run, openings, plan, partial(run_agreement, seed=flags.seed), flags)


@dataclass(frozen=True, eq=False)
class SeededPlan:
    """The rows of a plan with the column `run`, which names the seed of its samples."""

    plan: ContinuationPlan

    @property
    def tasks(self) -> list[Task]:
        return self.plan.tasks

    @property
    def grid(self) -> Grid:
        return self.plan.grid

    def compute(self, model: TransformerBridge, task: Task) -> pd.DataFrame:
        name = f"sampling seed {self.plan.decoding.seed}"
        return self.plan.compute(model, task).assign(run=name)

    def shrink(self, prompts: int, cells: int) -> SeededPlan:
        return replace(self, plan=self.plan.shrink(prompts, cells))

    def memory(self, model: TransformerBridge) -> float:
        return self.plan.memory(model)
