"""Steering: learn a direction per layer, and lay out the cells that turn it up and down.

The cells are the baseline, the learned direction at every alpha, and its controls at the same
layer, site, position and alphas; for conditional steering the same behind a detector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64
from torch import Tensor

from refusal_dial.cells import (
    BASELINE,
    Cell,
    Named,
    SteeringPlace,
    alphas_in,
    cells_at,
    numbered,
    steer_where,
    turned,
)
from refusal_dial.cli.flags import SteeringFlags
from refusal_dial.common import without_nan
from refusal_dial.data.prompts import Prompt, data_hash, extremes, holdout_split, of_subset
from refusal_dial.directions.files import check_fits, direction_at
from refusal_dial.directions.learning import (
    Direction,
    Provenance,
    covariance_directions,
    flipped_direction,
    fold_directions,
    fold_numbers,
    mean_diff,
    random_directions,
    shuffled_directions,
    top_bottom,
    unrelated_direction,
)
from refusal_dial.engine.recording import SitePlace
from refusal_dial.engine.slopes import mean_gradients
from refusal_dial.hooks import Detector, calibrate
from refusal_dial.run.folder import Run
from refusal_dial.run.job import begin, carry_out, files_by_layer
from refusal_dial.run.plan import Budget, SweepPlan
from refusal_dial.stats.p_values import PERMUTATIONS, contrast_weights, slope_test
from refusal_dial.stats.summary import ROW_KEYS, SHIFT_INTERVAL, summarise, verdict
from refusal_dial.studies.base import Study, provenance_of, study_settings

SCORE_ORDER = [*ROW_KEYS, "score", "alpha_relative"]


# --------------------------------------------------------------------------------------------------
# Directions, and their controls.


LEARNED_AGAIN = ("shuffled", "length", "folds")  # takes the prompts that were learned from

N_FOLDS = 5

DEFAULT_LAYER = 20
"""Where no file and no flag says which."""


def learn(
    study: Study, flags: SteeringFlags, prompts: Sequence[Prompt], balanced: bool = False
) -> list[Direction]:
    """For each layer, the top-scored of `prompts` minus the bottom-scored (see `top_bottom`).

    `balanced` takes equally many of each category into top and bottom.
    """
    about = replace(provenance_of(study, prompts, flags), pos=flags.pos)
    scores = [float(score) for score in study.scores[study.rows(prompts)]]
    places = [replace(about, layer=layer) for layer in study.layers]
    return [learn_at(study, one, flags.k, prompts, balanced, scores) for one in places]


def learn_at(
    study: Study,
    about: Provenance,
    k: int | None,
    prompts: Sequence[Prompt],
    balanced: bool,
    scores: Sequence[float],
) -> Direction:
    """The direction of one layer, learned from these prompts as if they had these scores."""
    return top_bottom(
        study.activations[study.layers.index(about.layer)][study.rows(prompts)],
        scores,
        about,
        k=k,
        categories=[prompt.category for prompt in prompts] if balanced else None,
    )


def training(study: Study, flags: SteeringFlags, share: float = 0.5) -> list[Prompt]:
    """The EDGE prompts to learn from: with `holdout` among the controls all but this share of every
    category, else all of them."""
    edge = of_subset(study.prompts, "EDGE")
    return holdout_split(edge, flags.seed, share)[0] if "holdout" in flags.controls else edge


def control_directions(
    study: Study,
    flags: SteeringFlags,
    learned: Direction,
    prompts: Sequence[Prompt],
    balanced: bool = False,
) -> list[Named]:
    """(kind, seed, direction) of every control that `--controls` names, at the learned one's layer.

    `prompts` are those it was learned from; without them, as for a direction from a file, there is
    nothing to learn another from, and the covariance is that of all prompts.
    """
    layer = learned.provenance.layer
    of = study.rows(prompts or study.prompts)
    scores = [float(score) for score in study.scores[of]]
    again = partial(learn_at, study, learned.provenance, flags.k, prompts, balanced)
    kinds = [kind for kind in flags.controls if prompts or kind not in LEARNED_AGAIN]
    found: list[Named] = []
    if "random" in kinds:
        found += numbered("random", random_directions(learned, flags.n_random, flags.seed))
    if "covariance" in kinds:
        rows = study.activations[study.layers.index(layer)][of]
        drawn = covariance_directions(learned, rows, flags.n_random, flags.seed)
        found += numbered("covariance", drawn)
    if "shuffled" in kinds:
        within = [prompt.category for prompt in prompts] if balanced else None
        drawn = shuffled_directions(learned, again, scores, flags.n_random, flags.seed, within)
        found += numbered("shuffled", drawn)
    if "flipped" in kinds:
        found.append(("flipped", None, flipped_direction(learned)))
    if "length" in kinds:
        lengths = [float(n) for n in study.tokens.mask.sum(1)[of]]
        found.append(("length", None, unrelated_direction(learned, again, lengths, "length")))
    if "folds" in kinds:
        folds = fold_numbers([prompt.category for prompt in prompts], N_FOLDS, flags.seed)

        def without(rest: Sequence[int]) -> Direction:
            some, known = [prompts[i] for i in rest], [scores[i] for i in rest]
            return learn_at(study, learned.provenance, flags.k, some, balanced, known)

        found += numbered("fold", fold_directions(learned, without, folds))
    return found


def at_place(
    direction: Direction,
    study: Study,
    flags: SteeringFlags,
    layer: int,
    any_model: bool = False,
) -> Direction:
    """A direction from a file, to be used at this layer, site and position of this model, if it is
    one of this model (see `check_fits`)."""
    check_fits(direction, study.model, any_model)
    here = replace(direction.provenance, layer=layer, site=flags.site, pos=flags.pos)
    return replace(direction, provenance=here)


def learned_from(direction: Direction, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Those of `prompts` that the direction was learned from: they are not held out."""
    ids = set(direction.provenance.prompt_ids)
    mine = [prompt for prompt in prompts if prompt.id in ids]
    same = bool(mine) and data_hash(mine) == direction.provenance.data_hash
    return mine if same else []


def layers_to_use(where: str | None, layers: Sequence[int], site: str) -> tuple[int, ...]:
    """The layers asked for, else that of the direction in a file or run folder, else 20.

    Raises `DialError` for a file that lacks one of them, before any model is loaded.
    """
    if where is None:
        return tuple(layers) or (DEFAULT_LAYER,)
    return tuple(direction_at(where, at, site).provenance.layer for at in layers or (None,))


def used_directions(
    study: Study, flags: SteeringFlags, where: str | None, any_model: bool
) -> tuple[list[Direction], list[Prompt]]:
    """(a direction for each of the study's layers, the prompts that it was learned from): those of
    a file or run folder, each layer's own where it has several, or learned on half of EDGE where
    none is given."""
    if where is None:
        train, _ = holdout_split(of_subset(study.prompts, "EDGE"), flags.seed)
        return learn(study, flags, train), train
    given = [direction_at(where, layer, flags.site) for layer in study.layers]
    used = [at_place(one, study, flags, one.provenance.layer, any_model) for one in given]
    return used, learned_from(given[0], study.prompts)


def place_of(study: Study, flags: SteeringFlags, layer: int) -> SteeringPlace:
    """Where the flags steer at a layer."""
    return SteeringPlace(layer, flags.site, flags.pos, study.residual_norm(layer))


def steering_cells(
    study: Study,
    flags: SteeringFlags,
    learned: Sequence[Direction],
    prompts: Sequence[Prompt] = (),
    balanced: bool = False,
) -> list[Cell]:
    """The baseline, then for each learned direction itself and its controls, each at every alpha.
    `prompts` are those that it was learned from."""
    cells = [BASELINE]
    for direction in learned:
        place = place_of(study, flags, direction.provenance.layer)
        alphas = alphas_in(flags.alphas, flags.unit, place.norm, direction)
        named: list[Named] = [("learned", None, direction)]
        named += control_directions(study, flags, direction, prompts, balanced)
        cells += cells_at(named, alphas, place)
    return cells


def cells_beside_random(
    study: Study, flags: SteeringFlags, learned: Sequence[Direction]
) -> list[Cell]:
    """The unsteered model, then for each learned direction itself at every alpha, and `--n-random`
    random ones at every alpha but 0."""
    cells = [BASELINE]
    for direction in learned:
        place = place_of(study, flags, direction.provenance.layer)
        alphas = alphas_in(flags.alphas, flags.unit, place.norm, direction)
        controls = numbered("random", random_directions(direction, flags.n_random, flags.seed))
        cells += cells_at([("learned", None, direction)], alphas, place)
        cells += cells_at(controls, turned(alphas), place)
    return cells


# --------------------------------------------------------------------------------------------------
# Conditional steering beside always-on steering: detectors learned, calibrated, and laid out.
#
#     detector: d = unit(mean(wanted) - mean(others)) on the train part, threshold on validation
#
# Three parts of every subset: train (directions), validation (threshold), test (everything that is
# reported). Random detectors, calibrated in the same way, say what steering fewer prompts buys by
# itself.


ThreeParts = tuple[list[Prompt], list[Prompt], list[Prompt]]


def three_parts(prompts: Sequence[Prompt], seed: int) -> ThreeParts:
    """(train, validation, test): a third each, with the same share of every category."""
    train, rest = holdout_split(prompts, seed, 2 / 3)
    validation, test = holdout_split(rest, seed, 1 / 2)
    return train, validation, test


def detectors(
    study: Study,
    learned: Sequence[Direction],
    wanted: Sequence[Prompt],
    others: Sequence[Prompt],
    calibration: Sequence[Prompt],
    rate: float,
) -> list[Detector]:
    """For each learned direction's layer, the detector of `wanted` against `others` prompts, which
    fires on at most `rate` of prompts like those of `calibration`."""
    found = []
    for direction in learned:
        at = replace(direction.provenance, prompt_ids=tuple(p.id for p in (*wanted, *others)))
        rows = study.activations[study.layers.index(at.layer)]
        watch = mean_diff(rows[study.rows(wanted)], rows[study.rows(others)], at)
        found.append(calibrate(watch, rows[study.rows(calibration)], rate))
    return found


def conditional_cells(
    study: Study,
    flags: SteeringFlags,
    learned: Sequence[Direction],
    watching: Sequence[Detector],
    calibration: Sequence[Prompt],
) -> list[Cell]:
    """The baseline; then for each layer and alpha always-on steering (`learned`), the same behind
    the detector (`conditional`), and behind `--n-random` random ones (`random_detector`)."""
    cells = steering_cells(study, flags, learned)
    for direction, detector in zip(learned, watching, strict=True):
        place = place_of(study, flags, direction.provenance.layer)
        alphas = alphas_in(flags.alphas, flags.unit, place.norm, direction)
        rows = study.activations[study.layers.index(place.layer)][study.rows(calibration)]
        drawn = random_directions(detector.direction, flags.n_random, flags.seed)
        gates: list[tuple[str, int | None, Detector]] = [("conditional", None, detector)]
        gates += [
            ("random_detector", seed, calibrate(one, rows, detector.rate))
            for seed, one in enumerate(drawn)
        ]
        for kind, number, gate in gates:
            cells += cells_at([(kind, number, direction)], alphas, place, steer_where(gate))
    return cells


def parts_of(
    prompts: Sequence[Prompt], train: Sequence[Prompt], tuned: Sequence[Prompt]
) -> pd.Series[str]:
    """The `split` column: `train`, `validation`, or `holdout` for what is reported."""
    seen = {p.id: "train" for p in train} | {p.id: "validation" for p in tuned}
    return pd.Series([seen.get(prompt.id, "holdout") for prompt in prompts])


# --------------------------------------------------------------------------------------------------
# The primary test: does the direction that these labels teach turn the score of held-out prompts?
#
#     slope = mean over held-out prompts of d score / d alpha at alpha = 0
#
# against the slopes of directions from 10,000 permutations of the training labels (see
# `stats.p_values`). The directions at finite alphas beside it are pictures.


NOTHING_HELD_OUT = "every EDGE prompt was learned from: hold some out (--controls holdout)"

NO_CONTRAST = "the direction is not what the scores of its prompts teach: no labels to permute"


def slope_tests(
    study: Study, flags: SteeringFlags, learned: Sequence[Direction], held_out: Sequence[Prompt]
) -> pd.DataFrame:
    """A row per learned direction: `layer` and the columns of `slope_test`, corrected for all of
    them. No p, and the `reason`, where nothing is held out, or a direction is not the contrast of
    scores that these activations teach: then there are no labels to permute."""
    places = [one for one in learned if held_out and _is_contrast(study, flags, one)]
    found = pd.DataFrame({"layer": [one.provenance.layer for one in learned]})
    if not places:
        none = NO_CONTRAST if held_out else NOTHING_HELD_OUT
        return found.assign(p=np.nan, p_unit=np.nan, reason=none)
    tests = label_tests(study, flags, places, slope_gradients(study, places, held_out))
    found = found.merge(tests, on="layer", how="left")
    return found.assign(reason=found["reason"].fillna(NO_CONTRAST))


def slope_gradients(
    study: Study, learned: Sequence[Direction], held_out: Sequence[Prompt]
) -> dict[SitePlace, Float64[Tensor, "1 d_model"]]:
    """The mean gradient at the place of every direction, from one backward pass over the held-out
    prompts."""
    keys = [(one.provenance.site, one.provenance.layer) for one in learned]
    tokens = study.tokens.chosen(study.rows(held_out)).on(study.model)
    (pos,) = {one.provenance.pos for one in learned}
    return mean_gradients(study.model, tokens, study.scorer, keys, (pos,))


def label_tests(
    study: Study,
    flags: SteeringFlags,
    learned: Sequence[Direction],
    gradient: Mapping[SitePlace, Float64[Tensor, "1 d_model"]],
    n: int = PERMUTATIONS,
) -> pd.DataFrame:
    """`slope_tests` where the gradient is known: the labels of the training prompts, permuted."""
    # 1. What each training prompt would add to the slope, and how alike prompts are.
    keys = [(one.provenance.site, one.provenance.layer) for one in learned]
    train = _trained_on(study, learned[0])
    rows = study.rows(train)
    some = [study.activations[study.layers.index(layer)][rows].double() for _, layer in keys]
    projections = [(a @ gradient[key][0]).numpy() for a, key in zip(some, keys, strict=True)]
    grams = [(a @ a.T).numpy() for a in some]
    # 2. The labels, permuted; within categories where the choice was balanced.
    balanced = learned[0].provenance.method.endswith("balanced")
    categories = [prompt.category for prompt in train] if balanced else None
    top, bottom = _extremes(study, flags, train, categories)
    weights = contrast_weights(len(train), top, bottom)
    table = slope_test(np.stack(projections), np.stack(grams), weights, n, flags.seed, categories)
    table.insert(0, "layer", [layer for _, layer in keys])
    return table


def _extremes(
    study: Study, flags: SteeringFlags, train: Sequence[Prompt], categories: Sequence[str] | None
) -> tuple[list[int], list[int]]:
    scores = [float(score) for score in study.scores[study.rows(train)]]
    k = max(1, len(scores) // 3) if flags.k is None else flags.k
    return extremes(scores, k, categories)


def _trained_on(study: Study, direction: Direction) -> list[Prompt]:
    ids = set(direction.provenance.prompt_ids)
    return [prompt for prompt in study.prompts if prompt.id in ids]


def _is_contrast(study: Study, flags: SteeringFlags, direction: Direction) -> bool:
    """Whether the direction is what the scores of its prompts teach here."""
    about, train = direction.provenance, _trained_on(study, direction)
    if not about.method.startswith("top_bottom") or about.layer not in study.layers or not train:
        return False
    scores = [float(score) for score in study.scores[study.rows(train)]]
    balanced = about.method.endswith("balanced")
    again = learn_at(study, about, flags.k, train, balanced, scores)
    return bool(again.unit @ direction.unit > 1 - 1e-3)


def with_slopes(summary: pd.DataFrame, tests: pd.DataFrame) -> pd.DataFrame:
    """The summary with `p_slope` and `p_slope_unit`, for the learned direction on held-out EDGE
    prompts, before the interval of the shift, which is the newest and last."""
    summary = summary.assign(p_slope=np.nan, p_slope_unit=np.nan)
    for row in tests.to_dict("records"):
        mine = (summary["direction"] == "learned") & (summary["layer"] == row["layer"])
        mine &= (summary["subset"] == "EDGE") & (summary["split"] == "holdout")
        summary.loc[mine, ["p_slope", "p_slope_unit"]] = row["p"], row["p_unit"]
    rest = [name for name in summary if name not in SHIFT_INTERVAL]
    return summary[[*rest, *SHIFT_INTERVAL]]


# --------------------------------------------------------------------------------------------------
# The run.


def conduct(
    experiment: str,
    study: Study,
    flags: SteeringFlags,
    rows: pd.DataFrame,
    cells: Sequence[Cell],
    learned: Sequence[Direction] = (),
) -> tuple[Run, pd.DataFrame]:
    """Sweep the cells over the study's prompts into a run folder; the run and its summary.

    A finished run named by `--out` is read, not computed again.
    """
    files = {"direction": learned[0]} if len(learned) == 1 else files_by_layer(learned)
    settings = study_settings(study, flags)
    run = begin(experiment, settings, flags, files)
    budget = Budget(flags.batch_size, flags.engine, flags.memory_gb)

    def close(scores: pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Any]]:
        summary = summarise(scores, study.threshold, flags.seed)
        found = {"threshold": study.threshold, "verdict": verdict(summary)}
        held = rows[(rows["subset"] == "EDGE") & (rows["split"] == "holdout")]["prompt_id"]
        held_out = [prompt for prompt in study.prompts if prompt.id in set(held)]
        tests = slope_tests(study, flags, learned, held_out)
        found["slope"] = without_nan(tests.to_dict("records"))
        if study.rounding is not None:
            found["rounding"] = asdict(study.rounding)
        summary = with_slopes(summary, tests)
        return summary, found | {"alpha_unit": flags.unit}

    plan = SweepPlan(study.tokens, rows, cells, study.scorer, budget, SCORE_ORDER)
    return carry_out(run, study, plan, close, flags)
