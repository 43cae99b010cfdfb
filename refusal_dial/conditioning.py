"""Conditional steering beside always-on steering: detectors learned, calibrated, and laid out.

    detector: d = unit(mean(wanted) - mean(spared)) on the train part, threshold on validation

Three parts of every subset: train (directions), validation (threshold), test (everything that is
reported). Random detectors, calibrated in the same way, say what steering fewer prompts buys by
itself. This module builds cells. It does not run them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from refusal_dial.conditional import Detector, calibrate, steer_if
from refusal_dial.controls import random_directions
from refusal_dial.directions import Direction, mean_diff
from refusal_dial.flags import SteeringFlags
from refusal_dial.prompts import Prompt, holdout_split
from refusal_dial.steering import LABELS, alphas_at, steering_cells
from refusal_dial.study import Study
from refusal_dial.sweep import Cell

Parts = tuple[list[Prompt], list[Prompt], list[Prompt]]


def three_parts(prompts: Sequence[Prompt], seed: int) -> Parts:
    """(train, validation, test): a third each, with the same share of every category."""
    train, rest = holdout_split(prompts, seed, 2 / 3)
    validation, test = holdout_split(rest, seed, 1 / 2)
    return train, validation, test


def detectors(
    study: Study,
    learned: Sequence[Direction],
    wanted: Sequence[Prompt],
    spared: Sequence[Prompt],
    calibration: Sequence[Prompt],
    rate: float,
) -> list[Detector]:
    """For each learned direction's layer, the detector of `wanted` against `spared` prompts, which
    fires on at most `rate` of prompts like those of `calibration`."""
    found = []
    for direction in learned:
        at = replace(direction.provenance, prompt_ids=tuple(p.id for p in (*wanted, *spared)))
        rows = study.activations[study.layers.index(at.layer)]
        watch = mean_diff(rows[study.rows(wanted)], rows[study.rows(spared)], at)
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
        layer = direction.provenance.layer
        rows = study.activations[study.layers.index(layer)][study.rows(calibration)]
        named: list[tuple[str, int | None, Detector]] = [("conditional", None, detector)]
        for seed, one in enumerate(
            random_directions(detector.direction, flags.n_random, flags.seed)
        ):
            named.append(("random_detector", seed, calibrate(one, rows, detector.rate)))
        for name, number, one_of_them in named:
            for alpha, relative in alphas_at(study, flags, layer):
                hook = steer_if(
                    direction, alpha, one_of_them, layer=layer, pos=flags.pos, site=flags.site
                )
                values = (name, number, layer, flags.site, flags.pos, alpha, relative)
                cells.append(Cell(dict(zip(LABELS, values, strict=True)), [hook]))
    return cells


def parts_of(
    prompts: Sequence[Prompt], train: Sequence[Prompt], tuned: Sequence[Prompt]
) -> pd.Series[str]:
    """The `split` column: `train`, `validation`, or `holdout` for what is reported."""
    seen = {p.id: "train" for p in train} | {p.id: "validation" for p in tuned}
    return pd.Series([seen.get(prompt.id, "holdout") for prompt in prompts])
