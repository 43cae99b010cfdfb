"""Directions: two groups of activations become one unit vector with its history.

    mean_diff   mean of one group minus mean of the other
    caa         the same over pairs that belong together: mean of the paired differences
    pca         the axis along which the paired differences are longest
    probe       the weights of a logistic regression that tells the groups apart
    top_bottom  mean_diff of the top-scored against the bottom-scored prompts

A `Direction` is frozen data, saved as safetensors with JSON metadata. The functions here are pure
arithmetic on activations already collected. All point from `negative` to `positive`, and all keep
as `norm` how far apart the two groups stand, so that alpha = norm moves one onto the other. They do
not know whether a direction does anything: that takes a sweep and its controls.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_dial.files import write_whole
from refusal_dial.operations import TOLERANCE
from refusal_dial.prompts import extremes
from refusal_dial.provenance import LONGEST, Provenance, as_text, from_told
from refusal_dial.types import DialError

__all__ = ["Direction", "Provenance"]
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ROUNDED = 0.01
"""How far from 1 the norm of a unit vector may be that was rounded to 16 bits."""


@dataclass(frozen=True, eq=False)
class Direction:
    """A unit vector, the length it had before it was normalised, and its provenance.

    `norm` is that of the raw difference, in residual-stream units: adding s raw differences, as CAA
    does, is `steer(direction, s * direction.norm, ...)`.
    """

    unit: Float[Tensor, " d_model"]
    norm: float
    provenance: Provenance = field(default_factory=lambda: Provenance(0, "resid_pre", -1))


def from_vector(vector: Float[Tensor, " d_model"], provenance: Provenance) -> Direction:
    """`unit = v / |v|` in float32 on the CPU, `norm = |v|`; computed in float64.

    Raises `DialError` for a vector that is zero or not finite, or 1e36 long or longer.
    """
    vector = vector.detach().cpu().double()
    norm = float(vector.norm())
    if not torch.isfinite(vector).all():
        raise DialError(f"the {provenance.method} direction holds NaN or infinite values")
    if norm >= LONGEST:
        raise DialError(
            f"the {provenance.method} direction is {norm:.1e} long: expected under 1e36"
        )
    if norm == 0:
        raise DialError(f"the {provenance.method} direction is zero: the two groups do not differ")
    return Direction((vector / norm).float(), norm, provenance)


def mean_diff(
    positive: Float[Tensor, "positive d_model"],
    negative: Float[Tensor, "negative d_model"],
    provenance: Provenance,
) -> Direction:
    """`v = mean(positive) - mean(negative)`: difference in means (Arditi et al. 2024; Marks and
    Tegmark 2023). Raises `DialError` for an empty group, or groups of unequal width."""
    _check_widths(positive, negative)
    if not len(positive) or not len(negative):
        raise DialError(f"mean difference of {len(positive)} and {len(negative)} activations")
    vector = positive.float().mean(0) - negative.float().mean(0)
    return from_vector(vector, replace(provenance, method="mean_diff"))


def caa(
    positive: Float[Tensor, "positive d_model"],
    negative: Float[Tensor, "negative d_model"],
    provenance: Provenance,
) -> Direction:
    """`v = mean_i (positive_i - negative_i)` over contrast pairs: contrastive activation addition
    (Rimsky et al. 2024), read at the answer's token. CAA's strength s is `alpha = s * norm`.

    Raises `DialError` where the two are not as many.
    """
    vector = _paired(positive, negative).mean(0)
    return from_vector(vector, replace(provenance, method="caa"))


def pca(
    positive: Float[Tensor, "positive d_model"],
    negative: Float[Tensor, "negative d_model"],
    provenance: Provenance,
) -> Direction:
    """`u = argmax_{|u| = 1} sum_i (d_i·u)^2`, `d_i = positive_i - negative_i`, not centred (RepE,
    Zou et al. 2023); `norm = mean_i d_i·u`, and u's sign is the one that makes it positive.

    Raises `DialError` where the two are not as many, or on average do not differ along u.
    """
    differences = _paired(positive, negative)
    unit = torch.linalg.svd(differences, full_matrices=False).Vh[0]
    vector = (differences @ unit).mean() * unit
    return from_vector(vector, replace(provenance, method="pca"))


def probe(
    positive: Float[Tensor, "positive d_model"],
    negative: Float[Tensor, "negative d_model"],
    provenance: Provenance,
    l2: float = 0.1,
) -> Direction:
    """`w = argmin mean log(1 + exp(-y (w·x + b))) + l2/2 |w|^2`: a logistic probe, y = ±1.

    x is centred and divided by one number, the root of its mean squared deviation a dimension, so
    that `l2` means the same for every model and no axis is preferred. u is w's own direction,
    `norm = (mean(positive) - mean(negative))·u`. Groups weigh equally, however many are in each.

    Raises `DialError` for an empty group, activations that are not finite, or an l2 of 0 or less.
    """
    from sklearn.linear_model import LogisticRegression

    _check_widths(positive, negative)
    if not len(positive) or not len(negative):
        raise DialError(f"a probe of {len(positive)} and {len(negative)} activations")
    if not l2 > 0:
        raise DialError(f"l2 must be over 0, not {l2}: groups of few prompts can always be told")
    x = torch.cat([positive, negative]).detach().cpu().double()
    if not bool(torch.isfinite(x).all()):
        raise DialError("the probe direction holds NaN or infinite values")
    gap = x[: len(positive)].mean(0) - x[len(positive) :].mean(0)
    x = x - x.mean(0)
    scale = x.pow(2).mean().sqrt()
    labels = [1] * len(positive) + [0] * len(negative)
    model = LogisticRegression(
        C=1 / (l2 * len(x)), class_weight="balanced", max_iter=1000, tol=1e-6
    )
    weights = model.fit((x / scale.clamp(min=1e-300)).numpy(), labels).coef_[0]
    w = torch.from_numpy(weights)
    unit = w / w.norm().clamp(min=1e-300)
    return from_vector((gap @ unit) * unit, replace(provenance, method="probe"))


def _check_widths(
    positive: Float[Tensor, "positive d_model"], negative: Float[Tensor, "negative d_model"]
) -> None:
    a, b = tuple(positive.shape), tuple(negative.shape)
    if len(a) != 2 or len(b) != 2 or a[1] != b[1]:
        raise DialError(
            f"activations of shapes {a} and {b}: expected a row a prompt, of one width, from one "
            "model and site"
        )


def _paired(
    positive: Float[Tensor, "positive d_model"], negative: Float[Tensor, "negative d_model"]
) -> Float[Tensor, "pair d_model"]:
    """The differences of pairs, in double precision."""
    _check_widths(positive, negative)
    if len(positive) != len(negative) or not len(positive):
        raise DialError(
            f"pairs of {len(positive)} and {len(negative)} activations: there must be as many of "
            "each, row i of one belonging to row i of the other"
        )
    return positive.detach().cpu().double() - negative.detach().cpu().double()


def top_bottom(
    activations: Float[Tensor, "prompt d_model"],
    scores: Sequence[float],
    provenance: Provenance,
    k: int | None = None,
    categories: Sequence[str] | None = None,
) -> Direction:
    """`v = mean(top k by score) - mean(bottom k by score)`, equally many of each.

    k defaults to a third of the prompts. With `categories`, top and bottom hold equally many of
    each, so that the direction cannot be a category's (see `prompts.extremes`).
    """
    k = max(1, len(scores) // 3) if k is None else k
    top, bottom = extremes(scores, k, categories)
    method = "top_bottom" if categories is None else "top_bottom_balanced"
    direction = mean_diff(activations[top], activations[bottom], provenance)
    return replace(direction, provenance=replace(direction.provenance, method=method))


def save(direction: Direction, path: str | Path) -> None:
    """Write one direction as safetensors: tensor `unit`, everything else as JSON metadata. Equal
    directions have equal bytes."""
    from safetensors.torch import save as serialise

    unit = direction.unit.contiguous()
    told = as_text(direction.norm, direction.provenance, _bytes(unit))
    write_whole(path, serialise({"unit": unit}, {"direction": told}))  # one key: order is random


def _bytes(unit: Tensor) -> bytes:
    return unit.detach().cpu().view(torch.uint8).numpy().tobytes()


def load(path: str | Path) -> Direction:
    """Read a direction written by `save`.

    Raises `DialError` for a file that is missing, is no safetensors, holds no direction, or was
    altered since `save` wrote it, and for a vector that is not of norm 1.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise DialError(f"no direction file {str(path)!r}: expected a .safetensors file")
    try:
        with safe_open(str(path), framework="pt") as file:
            told = json.loads((file.metadata() or {}).get("direction", "null"))
            unit = file.get_tensor("unit") if "unit" in file.keys() else None  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise DialError(f"{path} is not a direction file: {error}") from error
    if told is None or unit is None or unit.ndim != 1 or unit.dtype not in FLOATS:
        raise DialError(f"{path} holds no direction: expected one vector 'unit' with its metadata")
    norm, provenance = from_told(path, told, _bytes(unit) if unit.dtype == torch.float32 else None)
    if not bool(torch.isfinite(unit).all()):
        raise DialError(f"{path} holds NaN or infinite values: learn the direction again")
    length = float(unit.double().norm())
    if unit.dtype != torch.float32 and abs(length - 1) < ROUNDED:  # as 16 bits round a unit vector
        unit, length = (unit.double() / length).float(), 1.0
    if unit.dtype != torch.float32 or not abs(length - 1) <= TOLERANCE:
        raise DialError(
            f"{path} holds a vector of norm {length:.4g}: expected 1, so it is damaged or was "
            "written by hand (see `from_vector`)"
        )
    return Direction(unit, norm, provenance)
