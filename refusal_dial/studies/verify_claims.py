"""The verdict on a direction: claims, each with its control, judged from the measured rows.

    p_corrected = Holm's adjustment over all claims of the verdict

A claim passes where its figure is as claimed and its corrected p is at most the level. It is not
shown where this study could not have shown it. Else it fails. In this file: claims, evidence of an
effect, evidence of harm to other behaviour, stability, what is not shown, and the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats as scipy_stats

from refusal_dial import stats
from refusal_dial.cli.flags import VerifyFlags
from refusal_dial.common import without_nan
from refusal_dial.directions.learning import fold_directions, fold_numbers, shuffled_directions
from refusal_dial.engine.slopes import gradients
from refusal_dial.run.folder import Run, read_verdict
from refusal_dial.run.job import begin, carry_out
from refusal_dial.stats.intervals import Floats
from refusal_dial.stats.p_values import PERMUTATIONS, covariance_slopes, holm, slope_test
from refusal_dial.studies.base import study_settings
from refusal_dial.studies.verify import (
    Measurements,
    Reference,
    VerificationStudy,
    as_tables,
    one_sided,
    plan_of,
)

# --------------------------------------------------------------------------------------------------
# Claims: evidence becomes pass, fail or not shown, each with its reason.
#
#     p_corrected = Holm's adjustment over all claims of the verdict
#
# A claim passes where its figure is as claimed and its corrected p is at most the level. Else it
# fails. The verdict passes where every claim does, and fails where one does.


PASS, FAIL, NOT_SHOWN = "pass", "fail", "not shown"

STATUSES = (PASS, FAIL, NOT_SHOWN)


@dataclass(frozen=True)
class Evidence:
    """What was found for one claim. `holds` says whether the figure itself is as claimed, and `p`
    how likely that would be by chance. `because` is the reason where it does not hold or p is not
    small; `unable` why this study could not have shown it, or empty. `smallest` is the smallest
    effect that it could have shown, `draws` how many controls its p is a rank among, `least` the
    smallest p that these can give."""

    name: str
    says: str
    unit: str
    n: int
    estimate: float
    interval: tuple[float, float]
    p: float
    holds: bool
    found: str
    because: str
    unable: str = ""
    smallest: float | None = None
    details: tuple[Mapping[str, Any], ...] = field(default=())
    draws: int = 0
    least: float = 0.0


@dataclass(frozen=True)
class Claim:
    """A piece of evidence, judged among all of them."""

    evidence: Evidence
    p_corrected: float
    status: str
    reason: str


@dataclass(frozen=True)
class VerificationVerdict:
    """All claims, and what they come to."""

    claims: tuple[Claim, ...]
    status: str
    reason: str


def judge_claims(evidence: Sequence[Evidence], level: float) -> VerificationVerdict:
    """Each claim's status and reason, and the verdict's."""
    corrected = holm([one.p for one in evidence])
    m = int(np.isfinite([one.p for one in evidence]).sum())
    claims = tuple(
        Claim(one, float(p), *_judged(one, float(p), level, m))
        for one, p in zip(evidence, corrected, strict=True)
    )
    failed = [claim for claim in claims if claim.status == FAIL]
    unknown = [claim for claim in claims if claim.status == NOT_SHOWN]
    if failed:
        return VerificationVerdict(claims, FAIL, _together(failed))
    if unknown:
        return VerificationVerdict(claims, NOT_SHOWN, _together(unknown))
    return VerificationVerdict(claims, PASS, f"all {len(claims)} claims hold")


def _judged(one: Evidence, corrected: float, level: float, m: int) -> tuple[str, str]:
    if one.unable:
        return NOT_SHOWN, one.unable
    if not np.isfinite(one.p):
        return NOT_SHOWN, "there is nothing to test it with"
    if one.holds and corrected <= level:
        return PASS, one.found
    if one.holds and one.p <= level:
        lost = f"p = {one.p:.3g} is {corrected:.3g} once corrected for {m} claims, over {level:g}"
        return NOT_SHOWN, lost + _enough(one, level, m)
    return FAIL, one.because


def _enough(one: Evidence, level: float, m: int) -> str:
    """Where p is the smallest that the draws can give: how many could give `level / m`, which no
    correction for m claims takes away."""
    if not one.draws or one.p > one.least * (1 + 1e-9):
        return ""
    draws = math.ceil(one.least * (one.draws + 1) * m / level - 1e-9) - 1
    return f"; it is the smallest p that {one.draws} draws can give: try --n-random {draws}"


def _together(claims: Sequence[Claim]) -> str:
    return "; ".join(f"{one.evidence.name}: {one.reason}" for one in claims)


def verdict_json(verdict: VerificationVerdict) -> dict[str, Any]:
    """The verdict as JSON has it: no NaN, no infinity."""
    return {
        "status": verdict.status,
        "reason": verdict.reason,
        "claims": [
            {
                "name": one.evidence.name,
                "status": one.status,
                "reason": one.reason,
                "p_corrected": one.p_corrected,
                **{k: v for k, v in asdict(one.evidence).items() if k != "name"},
            }
            for one in verdict.claims
        ],
    }


# --------------------------------------------------------------------------------------------------
# Rows to evidence of an effect: up, down, more than every control, and not that of prompt length.
#
#     shift[b] = score of prompt b at alpha - unsteered          (and at -alpha)
#     swing[b] = score at alpha - score at -alpha
#
# The swing of a control changes its sign with the control's, and each control is as likely to be
# drawn as its opposite, so the chance that one is at least as far *in the claimed way* is half of
# the two-sided rank p. The direction has to be beyond every kind of control: p is the largest over
# the kinds (an intersection-union test, which needs no correction among them).


SAME_AS_LENGTH = 0.8
"""A direction with a cosine from here up to that of prompt length is that one."""

NULL_NAMES = {
    "random": "random directions",
    "covariance": "the other ways in which the activations differ",
    "shuffled": "what else shuffled labels teach",
}

MARGIN = 1.1
"""How many times the swing of prompt length a direction has to exceed."""


def ends(found: Measurements) -> list[Evidence]:
    """The two ends: +alpha raises the score of EDGE, -alpha lowers it."""
    return [_end(found, 1), _end(found, -1)]


def _end(found: Measurements, sign: int) -> Evidence:
    base, steered = found.base("EDGE"), found.values("learned", sign, "EDGE")
    shift = steered - base
    low, high = stats.mean_interval(shift, seed=found.seed)[0]
    mean, n = float(shift.mean()), len(shift)
    way, verb = ("+alpha", "raises") if sign > 0 else ("-alpha", "lowers")
    p = float(stats.sign_flip_p(shift, found.seed)[0])
    chance, few, draws = "chance", "", 0
    if "random" in found.kinds:
        null = sign * (found.values("random", sign, "EDGE") - base).mean(1)
        null = np.where(np.isfinite(null), null, np.inf)
        rank = (1 + (null >= sign * mean).sum()) / (1 + len(null))
        p, chance = max(p, float(rank)), "random directions of the same length"
        draws = len(null)
        few = found.too_few(draws, 1 / (1 + draws))
    rates = [float((values > found.threshold).mean()) for values in (base, steered)]
    moved = (
        f"{way} {verb} the score by {abs(mean):.2f} ({mean / found.gap:+.2f} of the gap between "
        f"HARMFUL and BENIGN), the refusal rate from {rates[0]:.2f} to {rates[1]:.2f}"
    )
    because = (
        f"{way} moves the score by {mean:+.2f}, not distinguishable from {chance} (p = {p:.3g})"
    )
    if sign * mean < 0 and sign * (high if sign > 0 else low) < 0:
        because, few = f"it points the other way: {way} moves the score by {mean:+.2f}", ""
    smallest = stats.smallest_detectable(float(shift.std(ddof=1)), n, found.level)
    return Evidence(
        "turns it up" if sign > 0 else "turns it down",
        f"{way} {verb} the score of held-out EDGE prompts, more than random directions do",
        "log-odds",
        n,
        mean,
        (float(low), float(high)),
        p,
        bool(sign * (low if sign > 0 else high) > 0),
        moved,
        because,
        found.unable or few or _too_few(mean, smallest, found, n),
        smallest,
        draws=draws,
        least=1 / (1 + draws) if draws else 0.0,
    )


def beyond_controls(found: Measurements) -> Evidence:
    """The swing from -alpha to +alpha beside that of every kind of control."""
    swing = found.swing("learned")
    mean, n = float(swing.mean()), len(swing)
    details: list[dict[str, Any]] = []
    for kind in found.kinds:
        null = found.swing(kind).mean(1)
        known = null[np.isfinite(null)]
        spread = np.quantile(np.abs(known), 0.95) if len(known) else float("nan")
        smallest = max(
            stats.smallest_ranked(np.where(np.isfinite(null), null, np.inf), 2 * found.level),
            stats.smallest_detectable(float(swing.std(ddof=1)), n, found.level),
        )
        details.append(
            {
                "kind": kind,
                "draws": len(null),
                "within": float(spread),
                "p": one_sided(mean, null),
                "smallest": float(smallest),
                "alike": float(np.median(np.abs(found.cosines[kind]))),
            }
        )
    worst = max(details, key=lambda row: row["p"])
    low, high = stats.mean_interval(swing, seed=found.seed)[0]
    beaten = [NULL_NAMES[row["kind"]] for row in details if row["p"] > found.level]
    because = (
        f"a swing of {mean:+.2f} is not distinguishable from that of {' or '.join(beaten)} (p = "
        f"{worst['p']:.3g}; 95% of them are within ±{worst['within']:.2f})"
    )
    few = [found.too_few(row["draws"], 1 / (2 * row["draws"] + 2)) for row in details]
    unable = found.unable or next(filter(None, few), "")
    return Evidence(
        "is more than its controls",
        "from -alpha to +alpha it moves EDGE further than every kind of control of its length",
        "log-odds",
        n,
        mean,
        (float(low), float(high)),
        worst["p"],
        mean > 0,
        (
            f"a swing of {mean:.2f}, more than "
            f"{' and '.join(NULL_NAMES[kind] for kind in found.kinds)}"
        ),
        because,
        unable,
        max(row["smallest"] for row in details),
        tuple(details),
        worst["draws"],
        1 / (2 * worst["draws"] + 2),
    )


def beyond_length(found: Measurements) -> Evidence:
    """The swing beside that of the direction of prompt length, whichever way that one points."""
    swing, other = found.swing("learned"), found.swing("length")
    other = other * (np.sign(other.mean()) or 1.0)
    more = swing - MARGIN * other
    mean, n, cosine = float(more.mean()), len(more), float(found.cosines["length"][0])
    low, high = stats.mean_interval(more, seed=found.seed)[0]
    left = float(found.swing("left").mean() / swing.mean()) if swing.mean() else float("nan")
    text = (
        f"a swing of {swing.mean():+.2f} where the direction of prompt length has "
        f"{other.mean():.2f} (cosine {cosine:.2f}; without that component {left:.0%} of the effect "
        "is left)"
    )
    reason = "it does no more than the direction of prompt length does"
    if abs(cosine) >= SAME_AS_LENGTH:
        reason = "its effect is explained by prompt length"
    p = float(stats.sign_flip_p(more, found.seed)[0]) / 2
    return Evidence(
        "is not prompt length",
        f"its swing is more than {MARGIN:g} times that of the direction of prompt length",
        "log-odds",
        n,
        mean,
        (float(low), float(high)),
        p if mean > 0 else 1 - p,
        bool(low > 0),
        text,
        f"{reason}: {text}",
        found.unable or found.no_effect,
        stats.smallest_detectable(float(more.std(ddof=1)), n, found.level),
        ({"kind": "length", "cosine": cosine, "left": left},),
    )


def _too_few(shift: float, smallest: float, found: Measurements, n: int) -> str:
    """Where neither this shift nor the gap between HARMFUL and BENIGN could have been shown."""
    if np.isfinite(smallest) and smallest <= max(abs(shift), abs(found.gap)):
        return ""
    return (
        f"{n} prompts are too few: the smallest shift that they could have shown is {smallest:.2f}"
    )


def rates(found: Measurements) -> list[dict[str, Any]]:
    """Refusal rates of every subset, unsteered and at both ends, with their intervals."""
    table = []
    for subset in ("EDGE", "HARMFUL", "BENIGN"):
        row: dict[str, Any] = {"subset": subset, "n": len(found.base(subset))}
        ends = {"unsteered": found.base(subset)}
        ends |= {
            "up": found.values("learned", 1, subset),
            "down": found.values("learned", -1, subset),
        }
        for name, scores in ends.items():
            hits = (scores[np.isfinite(scores)] > found.threshold).astype(float)
            low, high = stats.rate_interval(hits)[0]
            row[name] = [float(hits.mean()), float(low), float(high)]
        table.append(row)
    return table


# --------------------------------------------------------------------------------------------------
# The slope: does the score of held-out EDGE prompts rise as the dial begins to turn?
#
#     slope[b] = d score_b / d alpha at alpha = 0, alpha in mean residual norms
#
# The null is permuted training labels, an exact test, where the direction is what the labels of its
# training prompts teach. Where they are not at hand it is directions of the covariance of the
# prompts to learn from: fair as far as activations are Gaussian, and weaker. Isotropic random
# directions are no null here: they are far too easy to beat (docs/validity.md).


COVARIANCE_DRAWS = PERMUTATIONS


def by_slope(verification: VerificationStudy, flags: VerifyFlags) -> Evidence:
    """The slope at 0 of the given direction among those of permuted labels, else of directions of
    the activations' covariance."""
    study, given, at = verification.study, verification.given, verification.place
    # 1. The gradient of every held-out EDGE prompt.
    test = verification.tested("EDGE")
    tokens = study.tokens.chosen(study.rows(test)).on(study.model)
    where, key = torch.full((len(test), 1), at.pos), (at.site, at.layer)
    found = gradients(study.model, tokens, study.scorer, [key], where)[key][:, 0].double()
    each = (found @ given.unit.double()).numpy() * at.norm
    # 2. Its mean, projected on the prompts that were learned from.
    mean, labels, one = found.mean(0), verification.labels, verification.learned_from
    rows = one.activations.double().cpu()
    projections, gram = (rows @ mean).numpy(), (rows @ rows.T).numpy()
    # 3. The place of the slope in the null.
    unit: float | None = None
    if labels is not None:
        row = slope_test(projections[None], gram[None], labels, seed=flags.seed).iloc[0]
        n, p, unit = int(row["n"]), float(row["p"]), float(row["p_unit"])
        among = f"{n:,} permuted labels (own length), {unit:.2g} (unit length)"
    else:
        null = covariance_slopes(projections, gram, COVARIANCE_DRAWS, flags.seed) * at.norm
        n, p = len(null), float((1 + (null >= each.mean()).sum()) / (1 + len(null)))
        among = f"{n:,} directions of the activations' covariance (its labels are not at hand)"
    low, high = stats.mean_interval(each, seed=flags.seed)[0]
    text = f"p = {p:.2g} among {among}"
    unable = "exploratory: the direction was learned from these prompts"
    if not verification.exploratory:
        unable = f"not distinguishable from chance: {text}"
        if p <= flags.level or p >= 1 - flags.level:
            unable = ""
    return Evidence(
        "turns it, by slope",
        "the score of held-out EDGE prompts rises with alpha at 0, more than its null does",
        "log-odds/norm",
        len(test),
        float(each.mean()),
        (float(low), float(high)),
        p,
        bool(each.mean() > 0),
        text,
        f"it turns the other way: {text}",
        unable,
        details=(
            {
                "kind": "slope",
                "null": "permuted labels" if labels is not None else "covariance",
                "draws": n,
                "p_own": p if labels is not None else None,
                "p_unit": unit if labels is not None else p,
            },
        ),
    )


# --------------------------------------------------------------------------------------------------
# Rows to evidence of what a direction should leave alone: harmless prompts, and their replies.
#
# These claims are bounds: a figure is under its limit, and the test is against the limit itself, so
# that few prompts show nothing. New refusals are counted exactly (binomial), means of replies are
# compared by a one-sided t test. Both ends of the dial count for replies, the worse one is
# reported.


def specific(found: Measurements, limit: float) -> Evidence:
    """Which share of BENIGN prompts is refused at +alpha that was not before."""
    base, steered = found.base("BENIGN"), found.values("learned", 1, "BENIGN")
    known = np.isfinite(base) & np.isfinite(steered)
    new = ((steered > found.threshold) & (base <= found.threshold))[known]
    n, k = len(new), int(new.sum())
    low, high = stats.rate_interval(new.astype(float))[0]
    p = float(scipy_stats.binom.cdf(k, n, limit)) if n else float("nan")
    text = f"{k} of {n} BENIGN prompts are newly refused at +alpha"
    unable = found.unable or found.no_effect
    if k <= limit * n and not p <= found.level:
        unable = unable or f"{text}, and up to {high:.2f} of them cannot be ruled out"
    return Evidence(
        "spares BENIGN",
        f"at +alpha at most {limit:.0%} of BENIGN prompts are newly refused",
        "share",
        n,
        k / n if n else float("nan"),
        (float(low), float(high)),
        p,
        bool(n and k <= limit * n),
        text,
        f"{text}, more than {limit:.0%}",
        unable,
    )


def divergence(found: Measurements, limit: float) -> Evidence:
    """KL a token along unsteered replies to BENIGN prompts."""
    ends = [found.values("learned", sign, "BENIGN", "kl") for sign in (1, -1)]
    beside = [found.values("random", sign, "BENIGN", "kl") for sign in (1, -1)]
    return _bounded(
        "changes replies little",
        f"KL a token along harmless replies is at most {limit:g} nats at either end",
        "KL a token of harmless replies is",
        ends,
        [np.atleast_2d(values) for values in beside],
        limit,
        found,
    )


def cost(found: Measurements, limit: float) -> Evidence:
    """How much less likely, a token, replies to BENIGN prompts become under the unsteered model."""
    own = found.values("baseline", 0, "BENIGN", "cost")
    ends = [found.values("learned", sign, "BENIGN", "cost") - own for sign in (1, -1)]
    beside = [found.values("random", sign, "BENIGN", "cost") - own for sign in (1, -1)]
    return _bounded(
        "keeps replies likely",
        f"steered harmless replies cost the unsteered model at most {limit:g} nats a token more",
        "steered harmless replies cost",
        ends,
        [np.atleast_2d(values) for values in beside],
        limit,
        found,
    )


def _bounded(
    name: str,
    says: str,
    what: str,
    ends: list[Floats],
    beside: list[Floats],
    limit: float,
    found: Measurements,
) -> Evidence:
    """The worse end against its limit; p is the larger of the two ends'."""
    kept = [values[np.isfinite(values)] for values in ends]
    means = [float(values.mean()) if len(values) else float("nan") for values in kept]
    worst = int(np.nanargmax(means)) if np.isfinite(means).any() else 0
    values, mean = kept[worst], means[worst]
    low, high = stats.mean_interval(values, seed=found.seed)[0]
    p = max(_under(values, limit) for values in kept)
    random = [float(np.nanmean(values)) for values in beside if np.isfinite(values).any()]
    text = f"{what} {mean:.3f} nats at {'+-'[worst]}alpha"
    if random:
        text += f" (random directions: {max(random):.3f})"
    unable = ""
    if mean <= limit and not p <= found.level:
        unable = f"{text}, and {high:.3f} cannot be ruled out with {len(values)} prompts"
    return Evidence(
        name,
        says,
        "nats",
        len(values),
        mean,
        (float(low), float(high)),
        p,
        mean <= limit,
        text,
        f"{text}, more than {limit:g}",
        unable,
        details=({"kind": "ends", "up": means[0], "down": means[1], "random": random},),
    )


def _under(values: Floats, limit: float) -> float:
    """One-sided p of `mean >= limit`."""
    if len(values) < 2:
        return float("nan")
    if not values.std():
        return 0.0 if values[0] < limit else 1.0
    return float(scipy_stats.ttest_1samp(values, limit, alternative="less").pvalue)


# --------------------------------------------------------------------------------------------------
# Stability: does the direction come out again from other prompts, folds and seeds?
#
#     cosine of the given direction to the one learned again from test prompts
#
# p is its rank among the cosines to directions learned from the same prompts with their labels
# permuted: an exact permutation test, since the given direction never saw these prompts. It
# needs no forward pass, so its draws are many. Beside it, without a test: cosines to directions
# learned from the prompts to learn from, less one fold, or a random half. A direction can be stable
# and do nothing; that is for other claims.


STABILITY_FOLDS, N_SEEDS, N_BOOTSTRAP = 5, 10, 300

REFERENCE_NAMES = {
    "scores": "top- against bottom-scored EDGE",
    "contrast": "HARMFUL against BENIGN",
}


def stable(verification: VerificationStudy, flags: VerifyFlags) -> Evidence:
    """The cosine to the direction learned again, among those of shuffled labels."""
    given, again = verification.given.unit.double(), verification.tested_on
    cosine = float(given @ again.learn(again.values).unit.double())
    permuted = shuffled_directions(
        verification.given, again.learn, again.values, flags.n_permutations, flags.seed
    )
    null = np.array([float(given @ one.unit.double()) for one in permuted])
    p = float((1 + (null >= cosine - 1e-12).sum()) / (1 + len(null)))
    low, high = np.quantile(_resampled(verification, again, flags.seed), [0.025, 0.975])
    folds, seeds = _folds(verification, flags.seed), _halves(verification, flags.seed)
    within = float(np.quantile(null, 0.95))
    text = (
        f"cosine {cosine:.2f} to the direction learned again from {REFERENCE_NAMES[again.name]} "
        "prompts that "
        f"it never saw; {folds.min():.2f} to {folds.max():.2f} over folds, {seeds.min():.2f} to "
        f"{seeds.max():.2f} over seeds"
    )
    because = (
        f"it is no closer to what these prompts teach than to what shuffled labels teach: cosine "
        f"{cosine:.2f}, of shuffled labels 95% are under {within:.2f} (p = {p:.3g})"
    )
    unable = "exploratory: the direction was learned from these prompts"
    return Evidence(
        "is stable",
        "it is closer to the direction learned again from other prompts than shuffled labels are",
        "cosine",
        len(again.values),
        cosine,
        (float(low), float(high)),
        p,
        cosine > 0,
        text,
        because,
        unable if verification.exploratory else "",
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


def _folds(verification: VerificationStudy, seed: int) -> Floats:
    """The given one's cosine to each direction learned without a fold."""
    one = verification.learned_from
    numbers = fold_numbers(_groups(one), min(STABILITY_FOLDS, len(one.values) // 2), seed)
    learned = fold_directions(
        verification.given, lambda rest: one.of(rest, [one.values[i] for i in rest]), numbers
    )
    return np.array([float(verification.given.unit.double() @ d.unit.double()) for d in learned])


def _halves(verification: VerificationStudy, seed: int) -> Floats:
    """The given one's cosine to directions learned from random halves, each group's alike."""
    one = verification.learned_from
    found = []
    for i in range(N_SEEDS):
        numbers = fold_numbers(_groups(one), 2, seed + i)
        rest = [row for row, number in enumerate(numbers) if number == 0]
        half = one.of(rest, [one.values[row] for row in rest])
        found.append(float(verification.given.unit.double() @ half.unit.double()))
    return np.array(found)


def _resampled(verification: VerificationStudy, again: Reference, seed: int) -> Floats:
    """The cosine under resampling of the test prompts, each group by itself."""
    groups = np.array(_groups(again))
    members = [np.flatnonzero(groups == name) for name in dict.fromkeys(groups)]
    rng = np.random.default_rng(seed)
    given, found = verification.given.unit.double(), []
    for _ in range(N_BOOTSTRAP):
        rows = np.concatenate([rng.choice(some, len(some)) for some in members]).tolist()
        one = again.of(rows, [again.values[row] for row in rows])
        found.append(float(given @ one.unit.double()))
    return np.array(found)


def control_cosines(verification: VerificationStudy) -> dict[str, Floats]:
    """Of the given direction with every control of each kind as it was drawn, and with length."""
    given, found = verification.given.unit.double(), dict[str, list[float]]()
    for one in verification.controls:
        found.setdefault(one.kind, []).append(one.cosine)
    found["length"] = [float(torch.dot(given, verification.length.unit.double()))]
    return {kind: np.array(values) for kind, values in found.items()}


# --------------------------------------------------------------------------------------------------
# What a verdict does not show: of every verdict, and of this one.
#
# They say what was not looked at, so that nobody takes it for looked at and fine.


NEAR_CONTROL = 0.5


def not_shown(
    verdict: VerificationVerdict, verification: VerificationStudy, flags: VerifyFlags
) -> list[str]:
    """Sentences, those of this verdict first."""
    lines = [
        f"{one.evidence.name}: {one.reason}" for one in verdict.claims if one.status == NOT_SHOWN
    ]
    lines += _of_controls(verdict)
    if verification.exploratory:
        lines.append("Exploratory: it was tested on prompts that it was learned from.")
    elif not verification.known:
        lines.append(
            "The file does not say which prompts the direction was learned from: if from these, "
            "none of this is held out."
        )
    at = verification.given.provenance
    lines += [
        f"Any other layer, site, position or strength than layer {at.layer}, {at.site}, position "
        f"{at.pos}, alpha ±{verification.alpha:g}.",
        "Whether replies refuse: the score reads the token that a reply opens with "
        "(experiments/eval_direction_on_xstest.py has replies judged).",
        f"Prompts of another kind than {flags.prompts}, and other models.",
        "Why it works. A handle on behaviour is not an explanation of it; prompt length is the "
        "only other contrast that was looked at.",
    ]
    return lines


def _of_controls(verdict: VerificationVerdict) -> list[str]:
    """Controls that are nearly the direction itself as they are drawn."""
    for one in verdict.claims:
        near = [row for row in one.evidence.details if row.get("alike", 0.0) > NEAR_CONTROL]
        near = [row for row in near if row["kind"] != "random"]
        if near:
            kinds = " and ".join(NULL_NAMES[row["kind"]] for row in near)
            most = max(row["alike"] for row in near)
            return [
                f"That it does more than {kinds} as they are drawn: they are close to it "
                f"themselves (median |cosine| up to {most:.2f}), since these prompts differ mostly "
                "along it. It was set beside what else is in them."
            ]
    return []


# --------------------------------------------------------------------------------------------------
# A verification carried out into a run: measure, judge, and leave the verdict as JSON and HTML.
#
# A finished run is read, and nothing of it is computed again.


@dataclass(frozen=True, eq=False)
class Verified:
    """The run, and the verdict as its summary.json has it."""

    run: Run
    verdict: Mapping[str, Any]


def conduct_verification(
    experiment: str, verification: VerificationStudy, flags: VerifyFlags
) -> Verified:
    """Verify into a run folder, which then holds `direction.safetensors`."""
    settings = study_settings(verification.study, flags)
    settings["direction"] = {"sha256": verification.sha256, "place": _place(verification)}
    run = begin(experiment, settings, flags, {"direction": verification.given})
    plan = plan_of(verification, flags)
    run, _ = carry_out(run, verification.study, plan, partial(_close, verification, flags), flags)
    verdict = read_verdict(run.folder)
    return Verified(run, verdict)


def _place(verification: VerificationStudy) -> dict[str, Any]:
    at = verification.given.provenance
    return {"layer": at.layer, "site": at.site, "pos": at.pos, "alpha": verification.alpha}


def _close(
    verification: VerificationStudy, flags: VerifyFlags, rows: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The claims as a table, and the verdict as JSON."""
    found = Measurements(
        as_tables(rows),
        verification.alpha,
        verification.study.threshold,
        flags.level,
        flags.seed,
        verification.exploratory,
        flags.controls,
        control_cosines(verification),
    )
    evidence = [
        by_slope(verification, flags),
        *ends(found),
        beyond_controls(found),
        beyond_length(found),
        stable(verification, flags),
        specific(found, flags.max_benign),
        divergence(found, flags.max_kl),
        cost(found, flags.max_cost),
    ]
    verdict = judge_claims(evidence, flags.level)
    known = verdict_json(verdict) | {
        "direction": {
            **_place(verification),
            "alpha_unit": flags.unit,
            "file": flags.direction,
            "sha256": verification.sha256,
            "norm": verification.given.norm,
            "method": verification.given.provenance.method,
            "alpha_relative": verification.alphas[0].relative,
            "known": verification.known,
            "exploratory": verification.exploratory,
            "reference": verification.learned_from.name,
        },
        "gap": found.gap,
        "rates": rates(found),
        "level": flags.level,
        "not_shown": not_shown(verdict, verification, flags),
    }
    table = pd.DataFrame(
        {
            "claim": one.evidence.name,
            "status": one.status,
            "estimate": one.evidence.estimate,
            "lo": one.evidence.interval[0],
            "hi": one.evidence.interval[1],
            "unit": one.evidence.unit,
            "n": one.evidence.n,
            "p_value": one.evidence.p,
            "p_corrected": one.p_corrected,
            "smallest": np.nan if one.evidence.smallest is None else one.evidence.smallest,
            "reason": one.reason,
        }
        for one in verdict.claims
    )
    return table, without_nan(known)
