"""How alike directions are that were learned from few prompts, beside how alike they could be.

    d(A, h)        mean of A's positive prompts of half h, minus that of its negative ones
    cosine(A, B)   mean over splits of cos(d(A, 1), d(B, 2)) and cos(d(A, 2), d(B, 1))
    ceiling(A, B)  sqrt(cosine(A, A) cosine(B, B))

The two halves share no prompt: directions of the same negative prompts are alike by that alone. The
ceiling is what noise leaves, two directions of the same kind (the correction for attenuation of
Spearman 1904 divides by it). Intervals are those of the Bayesian bootstrap over prompts (Rubin
1981): every prompt a weight from Exp(1). Reweighting adds noise, and so lowers every cosine; so the
spread is taken from the draws and the middle from the prompts as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refusal_dial.stats.intervals import LEVEL, Floats, expanded
from refusal_dial.stats.p_values import N_PERMUTATIONS, contrast_weights

Places = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Contrast:
    """Two groups of prompts, as rows of `activations`, `prompt d_model`. Contrasts that are
    compared have the same prompts in the same order, read where it may be."""

    activations: Floats
    positive: Places
    negative: Places


@dataclass(frozen=True, eq=False)
class Alike:
    """A value for every two contrasts and the ends of its interval, `contrast contrast`. On the
    diagonal stand two halves of one."""

    value: Floats
    lo: Floats
    hi: Floats

    @property
    def ceiling(self) -> Floats:
        """`sqrt(cosine(A, A) cosine(B, B))`, 0 where halves of one are not alike at all."""
        own = np.sqrt(np.maximum(0.0, np.diag(self.value)))
        return np.outer(own, own)


def first_halves(contrasts: Sequence[Contrast], n_splits: int, seed: int) -> NDArray[np.bool_]:
    """`split prompt`: who is in the first half. Prompts that are in the same groups of the same
    contrasts are divided evenly; one that is left over goes either way."""
    n = len(contrasts[0].activations)
    pattern = np.zeros((n, 2 * len(contrasts)), dtype=np.int8)
    for i, one in enumerate(contrasts):
        pattern[one.positive, 2 * i] = 1
        pattern[one.negative, 2 * i + 1] = 1
    _, group = np.unique(pattern, axis=0, return_inverse=True)
    rng = np.random.default_rng(seed)
    found = np.zeros((n_splits, n), dtype=bool)
    for half in found:
        for name in range(group.max() + 1):
            members = rng.permutation(np.flatnonzero(group == name))
            half[members[: (len(members) + int(rng.integers(2))) // 2]] = True
    return found


def split_cosines(
    contrasts: Sequence[Contrast], n_splits: int = 10, n_resamples: int = 400, seed: int = 0
) -> Alike:
    """The cosine of every two contrasts, of halves that share no prompt, with its interval."""
    n = len(contrasts[0].activations)
    weights = np.random.default_rng(seed).exponential(size=(1 + n_resamples, n))
    weights[0] = 1.0
    drawn = np.zeros((len(contrasts), len(contrasts), len(weights)))
    for half in first_halves(contrasts, n_splits, seed):
        one, other = (
            np.stack([_unit(contrast, weights * side) for contrast in contrasts])
            for side in (half, ~half)
        )
        cosines = np.einsum("ird,jrd->ijr", one, other, optimize=True)
        drawn += (cosines + cosines.transpose(1, 0, 2)) / (2 * n_splits)
    value = drawn[..., 0]
    lo, hi = np.full_like(value, np.nan), np.full_like(value, np.nan)
    sizes = [min(len(one.positive), len(one.negative)) for one in contrasts]
    for i, j in np.ndindex(*value.shape):
        lo[i, j], hi[i, j] = _around(float(value[i, j]), drawn[i, j, 1:], min(sizes[i], sizes[j]))
    return Alike(value, lo, hi)


def _unit(contrast: Contrast, weights: Floats) -> NDArray[np.float32]:
    """The direction of every draw of weights, `draw d_model`."""
    means = []
    for rows in (contrast.positive, contrast.negative):
        share = weights[:, rows] / weights[:, rows].sum(1, keepdims=True)
        means.append(share @ contrast.activations[rows])
    apart = means[0] - means[1]
    return (apart / np.linalg.norm(apart, axis=1, keepdims=True)).astype(np.float32)


def _around(value: float, draws: Floats, n: int) -> tuple[float, float]:
    """The spread of the draws about their middle, moved to the value."""
    if n < 2 or not len(draws) or not np.isfinite(draws).all():
        return float("nan"), float("nan")
    level = expanded(LEVEL, n)
    ends = np.quantile(draws - np.median(draws), [(1 - level) / 2, (1 + level) / 2])
    lo, hi = np.clip(value + ends, -1.0, 1.0)
    return float(lo), float(hi)


def split_angles(
    contrasts: Sequence[Contrast], k: int, n_splits: int = 10, seed: int = 0
) -> Floats:
    """The principal angles, in degrees, between what two contrasts span, `angle contrast
    contrast`, the smallest first, mean over splits: of halves that share no prompt (Bjorck and
    Golub 1973). A contrast's span has as axes the k along which its positive prompts lie furthest
    from the mean of its negative ones."""
    found = np.zeros((k, len(contrasts), len(contrasts)))
    for half in first_halves(contrasts, n_splits, seed):
        one, other = (
            [_axes(contrast, side, k) for contrast in contrasts] for side in (half, ~half)
        )
        for i, j in np.ndindex(*found.shape[1:]):
            for a, b in ((one[i], other[j]), (one[j], other[i])):
                sizes = np.full(k, np.nan)  # a half of fewer prompts spans less
                sizes[: min(len(a), len(b))] = np.linalg.svd(a @ b.T, compute_uv=False)
                found[:, i, j] += np.degrees(np.arccos(np.clip(sizes, 0, 1)))
    return found / (2 * n_splits)


def _axes(contrast: Contrast, side: NDArray[np.bool_], k: int) -> Floats:
    positive, negative = (rows[side[rows]] for rows in (contrast.positive, contrast.negative))
    rows = contrast.activations[positive] - contrast.activations[negative].mean(0)
    return np.asarray(np.linalg.svd(rows, full_matrices=False)[2][:k], dtype=float)


def apart_p(
    one: Floats, other: Floats, n_permutations: int = N_PERMUTATIONS, seed: int = 0
) -> float:
    """`p = (1 + #{|mean difference of permuted groups| >= |mean difference|}) / (1 + n)`: are two
    groups of activations, `prompt d_model`, apart at all? Exact where the prompts of one might as
    well be of the other."""
    rows = np.concatenate([one, other])
    rows = rows - rows.mean(0)
    gram = rows @ rows.T
    weights = contrast_weights(len(rows), range(len(one)), range(len(one), len(rows)))
    drawn = np.random.default_rng(seed).permuted(np.tile(weights, (n_permutations, 1)), axis=1)
    every = np.concatenate([weights[None], drawn])
    size = ((every @ gram) * every).sum(1)
    return float((size >= size[0] * (1 - 1e-12)).mean())


def share_of_draws(part: Floats, whole: Floats, n: int) -> tuple[float, float, float]:
    """`part / whole` at the first draw, and the ends of its percentile interval over the others:
    both are sums over the same resampled prompts, of which there are n. NaN where the whole is not
    clearly over 0: there is nothing to have a share of."""
    level = expanded(LEVEL, max(2, n))
    tails = [(1 - level) / 2, (1 + level) / 2]
    if n < 2 or not np.quantile(whole[1:], tails[0]) > 0 or not whole[0] > 0:
        return float("nan"), float("nan"), float("nan")
    share = part / whole
    lo, hi = np.quantile(share[1:], tails)
    return float(share[0]), float(lo), float(hi)


def prompt_draws(n: int, n_resamples: int, seed: int) -> Floats:
    """Weights of n prompts that sum to 1, `draw prompt`: as they are, then resampled with
    replacement."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples)
    return np.concatenate([np.ones((1, n)), counts]) / n
