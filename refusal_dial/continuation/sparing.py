"""Steering only the openings on which a detector fires, beside steering them all.

    detector: d = unit(mean(h | CHALLENGING) - mean(h | BENIGN)) at the last token

of the openings to learn from; every other benign one of them sets the threshold, and the rest teach
the detector. It is asked at the last token of an opening and again at each new token. Random
detectors of the same rate say what steering fewer texts buys by itself. This module builds cells.
"""

from __future__ import annotations

from dataclasses import replace

from refusal_dial.conditional import Detector, calibrate, steer_if
from refusal_dial.continuation.cells import turned
from refusal_dial.continuation.flags import SparingFlags
from refusal_dial.continuation.opened import Opened
from refusal_dial.controls import random_directions
from refusal_dial.directions import mean_diff
from refusal_dial.strengths import UNSTEERED
from refusal_dial.sweep import Cell


def detectors_at(opened: Opened, flags: SparingFlags, layer: int) -> list[Detector]:
    """The detector of a layer, then `--n-random` random ones, each set to the same rate."""
    i = opened.layers.index(layer)
    last = opened.last[i]
    half = len(last) // 2
    benign, challenging = last[:half], last[half:]
    watch = mean_diff(challenging, benign[::2], opened.learned[i].provenance)
    directions = [watch, *random_directions(watch, flags.n_random, flags.seed)]
    return [calibrate(one, benign[1::2], flags.rate) for one in directions]


def sparing_cells(opened: Opened, flags: SparingFlags) -> list[Cell]:
    """The baseline; then for each layer and step always-on steering (`learned`), the same behind
    the detector (`conditional`), and behind random ones (`random_detector`)."""
    cells = [UNSTEERED]
    for layer, learned in zip(opened.layers, opened.learned, strict=True):
        always = turned(opened, flags, layer, [("learned", None, learned)])
        cells += always
        for number, detector in enumerate(detectors_at(opened, flags, layer)):
            kind = ("conditional", None) if number == 0 else ("random_detector", number - 1)
            for cell in always:
                about = dict(zip(("direction", "seed"), kind, strict=True))
                alpha = float(cell.labels["alpha"])
                hook = steer_if(
                    learned, alpha, detector, layer=layer, pos=flags.pos, site=flags.site
                )
                gated = replace(cell, labels={**cell.labels, **about}, hooks=[hook])
                cells.append(gated if alpha else replace(gated, hooks=()))
    return cells
