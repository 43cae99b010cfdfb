"""Directions: two groups of activations become one unit vector with its history.

    mean_diff   mean of one group minus mean of the other
    caa         the same over pairs that belong together: mean of the paired differences
    pca         the axis along which the paired differences are longest
    probe       the weights of a logistic regression that tells the groups apart
    top_bottom  mean_diff of the top-scored against the bottom-scored prompts

A `Direction` is frozen data, saved as safetensors with JSON metadata. All point from `negative` to
`positive`, and all keep as `norm` how far apart the two groups stand, so that alpha = norm moves
one onto the other. Whether a direction does anything takes a sweep and its controls.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_dial.common import SITES, DialError, format_value, write_whole
from refusal_dial.data.prompts import extremes

# --------------------------------------------------------------------------------------------------
# Where a direction was read and from what, as its file tells it.
#
#     digest = H(metadata, bytes of the vector)    H = BLAKE2b
#
# Metadata is one line of JSON with sorted keys, so that equal directions have equal files. The
# digest is in it: a byte that changed since, in the vector or in its metadata, is found. A
# file without one, written by hand or before there were digests, is taken as it is. Metadata
# is checked to be of its kind; whether it is true is not known here.


FORMAT = "refusal_dial direction 1"

LARGEST_NORM = 1e36


@dataclass(frozen=True)
class Provenance:
    """Where a direction was read, and from what. `pool` tokens ending at `pos` were averaged."""

    layer: int
    site: str
    pos: int
    method: str = ""
    model: str = ""
    revision: str = ""
    seed: int | None = None
    prompt_ids: tuple[str, ...] = ()
    data_hash: str = ""
    pool: int = 1


def as_text(norm: float, provenance: Provenance, vector: bytes) -> str:
    """The metadata of a direction whose unit vector has these bytes."""
    about = {"format": FORMAT, "norm": norm, **asdict(provenance)}
    return json.dumps(about | {"digest": _digest(about, vector)}, sort_keys=True)


def _digest(about: dict[str, Any], vector: bytes) -> str:
    recorded = json.dumps({k: v for k, v in about.items() if k != "digest"}, sort_keys=True)
    return hashlib.blake2b(recorded.encode() + b"\0" + vector, digest_size=16).hexdigest()


def from_recorded(
    path: str | Path, recorded: Any, vector: bytes | None
) -> tuple[float, Provenance]:
    """What metadata says: norm and provenance. Without `vector`, its digest is not asked.

    Raises `DialError` for metadata of another version, a field that is missing, unknown or not of
    its kind, and a digest that does not fit.
    """
    if not isinstance(recorded, dict) or recorded.get("format") != FORMAT:
        raise DialError(f"{path} has metadata of another version: expected {FORMAT!r}")
    about = {name: value for name, value in recorded.items() if name != "format"}
    for name, (holds, expected) in RECORDED.items():
        if name in NEEDED and name not in about:
            raise DialError(f"{path} has metadata of another version: {name!r} is missing")
        if name in about and not holds(about[name]):
            raise DialError(
                f"{path}: {name!r} of its metadata must be {expected}, not "
                f"{format_value(about[name], 60)}"
            )
    unknown = sorted(set(about) - set(RECORDED))
    if unknown:
        raise DialError(
            f"{path} has metadata of another version: unknown field {format_value(unknown[0], 60)}"
        )
    known = about.pop("digest", None)
    if known is not None and vector is not None and known != _digest(recorded, vector):
        raise DialError(f"{path} was altered since it was written: learn the direction again")
    norm = float(about.pop("norm"))
    return norm, Provenance(**{**about, "prompt_ids": tuple(about["prompt_ids"])})


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_length(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < LARGEST_NORM
    )


NEEDED = ("norm", "layer", "site", "pos", "prompt_ids")

RECORDED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "norm": (_is_length, "a finite number from 0 up"),
    "layer": (lambda value: _is_whole(value) and value >= 0, "a whole number from 0 up"),
    "site": (lambda value: value in SITES, f"one of {', '.join(SITES)}"),
    "pos": (_is_whole, "a whole number"),
    "method": (_is_text, "text"),
    "model": (_is_text, "text"),
    "revision": (_is_text, "text"),
    "seed": (lambda value: value is None or _is_whole(value), "a whole number or null"),
    "prompt_ids": (
        lambda value: isinstance(value, list) and all(map(_is_text, value)),
        "a list of texts",
    ),
    "data_hash": (_is_text, "text"),
    "digest": (_is_text, "text"),
    "pool": (lambda value: _is_whole(value) and value >= 1, "a whole number from 1 up"),
}
"""What the metadata of a direction holds: whether a value will do, and what is expected."""


# --------------------------------------------------------------------------------------------------
# Learning, saving, loading.


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

UNIT_TOLERANCE = 0.01
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

    def __repr__(self) -> str:
        """One line: where it was read, from what, its width and its length."""
        at = self.provenance
        model = f", {at.model}" if at.model else ""
        return (
            f"Direction({at.method or 'given'}, layer {at.layer} {at.site} pos {at.pos}, "
            f"d_model {len(self.unit)}, norm {self.norm:.4g}{model})"
        )


def from_vector(vector: Float[Tensor, " d_model"], provenance: Provenance) -> Direction:
    """`unit = v / |v|` in float32 on the CPU, `norm = |v|`; computed in float64.

    Raises `DialError` for a vector that is zero or not finite, or 1e36 long or longer.
    """
    vector = vector.detach().cpu().double()
    norm = float(vector.norm())
    if not torch.isfinite(vector).all():
        raise DialError(f"the {provenance.method} direction holds NaN or infinite values")
    if norm >= LARGEST_NORM:
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
        raise DialError(f"l2 must be over 0, not {l2}: few prompts can always be separated")
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
    recorded = as_text(direction.norm, direction.provenance, _bytes(unit))
    write_whole(
        path, serialise({"unit": unit}, {"direction": recorded})
    )  # one key: order is random


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
            recorded = json.loads((file.metadata() or {}).get("direction", "null"))
            unit = file.get_tensor("unit") if "unit" in file.keys() else None  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise DialError(f"{path} is not a direction file: {error}") from error
    if recorded is None or unit is None or unit.ndim != 1 or unit.dtype not in FLOATS:
        raise DialError(f"{path} holds no direction: expected one vector 'unit' with its metadata")
    norm, provenance = from_recorded(
        path, recorded, _bytes(unit) if unit.dtype == torch.float32 else None
    )
    if not bool(torch.isfinite(unit).all()):
        raise DialError(f"{path} holds NaN or infinite values: learn the direction again")
    length = float(unit.double().norm())
    if (
        unit.dtype != torch.float32 and abs(length - 1) < UNIT_TOLERANCE
    ):  # as 16 bits round a unit vector
        unit, length = (unit.double() / length).float(), 1.0
    if unit.dtype != torch.float32 or not abs(length - 1) <= TOLERANCE:
        raise DialError(
            f"{path} holds a vector of norm {length:.4g}: expected 1, so it is damaged or was "
            "written by hand (see `from_vector`)"
        )
    return Direction(unit, norm, provenance)


# --------------------------------------------------------------------------------------------------
# Subspaces: how much of what several directions span do others span too.
#
#     overlap = |A^T B|_F^2 / min(k, m)
#
# A and B are orthonormal bases of the two spans. 0 for orthogonal ones, 1 where the smaller lies in
# the larger; for two single directions it is the squared cosine. Two random directions in d
# dimensions have 1 / d on average. Arithmetic only: what an overlap does to behaviour takes a
# sweep.


def basis(directions: Float[Tensor, "k d_model"]) -> Float[Tensor, "d_model rank"]:
    """An orthonormal basis of what the directions span, float64.

    Raises `DialError` for no directions, or ones that are zero or not finite.
    """
    wide = directions.double().cpu()
    if not len(wide) or not bool(torch.isfinite(wide).all()) or not bool(wide.any()):
        raise DialError(f"{len(wide)} directions span nothing: they are none, zero or not finite")
    _, sizes, vectors = torch.linalg.svd(wide, full_matrices=False)
    return vectors[sizes > sizes[0] * 1e-6].T


def overlap(a: Float[Tensor, "k d_model"], b: Float[Tensor, "m d_model"]) -> float:
    """`|A^T B|_F^2 / min(k, m)`: the mean squared cosine of the principal angles (Bjorck and Golub
    1973)."""
    first, second = basis(a), basis(b)
    shared = (first.T @ second).square().sum()
    return float(shared / min(first.shape[1], second.shape[1]))


# --------------------------------------------------------------------------------------------------
# The norm of a unit vector.


TOLERANCE = 1e-3
"""How far from 1 the norm of a unit vector may be."""


# --------------------------------------------------------------------------------------------------
# Controls: directions that should not work, to set beside one that does.
#
# Every control has the unit length, norm, layer, site and position of the learned direction, so
# that at the same alpha it is added at the same place and is as long. What each rules out:
#
# - `random`: any push of that length. Activations are far from isotropic, so most random vectors
#   point where the model hardly looks; to beat them is the least that can be asked.
# - `covariance`: any push along the ways in which these activations differ. A mean difference of
#   labels that mean nothing is, for many prompts, such a vector: the fair null in closed form.
# - `shuffled`: the same way of learning, from labels that mean nothing. The exact null.
# - `flipped`: the sign does not matter.
# - an unrelated contrast: any difference that prompts have, such as their length, would do.
# - folds: the direction depends on the prompts it happened to be learned from.
#
# Direction i is drawn from a generator of its own: asking for more leaves the first ones as they
# were, and draw i belongs together over layers. What any of them does is not known here.


Learn = Callable[[Sequence[float]], Direction]
"""Labels or scores, one a prompt in a fixed order, to the direction learned from them."""


def norm_matched(direction: Direction, like: Direction, method: str, seed: int | None) -> Direction:
    """The unit vector of `direction` with the norm, layer, site and position of `like`."""
    about = replace(like.provenance, method=method, seed=seed, prompt_ids=(), data_hash="")
    return Direction(direction.unit, like.norm, about)


def random_directions(like: Direction, n: int, seed: int) -> list[Direction]:
    """n independent unit vectors, uniform on the sphere: `u = g / |g|, g ~ N(0, I)`."""
    drawn = []
    for i in range(n):
        vector = torch.randn(like.unit.shape[0], generator=_generator(seed, i))
        isotropic = Direction(vector / vector.norm(), like.norm, like.provenance)
        drawn.append(norm_matched(isotropic, like, "random", i))
    return drawn


def covariance_directions(
    like: Direction, activations: Float[Tensor, "prompt d_model"], n: int, seed: int
) -> list[Direction]:
    """n independent unit vectors with the covariance C of the activations: `u = g / |g|`,
    `g ~ N(0, C)`, drawn as `(A - mean)' w, w ~ N(0, I)`, a weight a prompt.

    The weights of draw i are the same at every layer. Raises `DialError` for fewer than two
    prompts, or activations that do not differ.
    """
    if len(activations) < 2:
        raise DialError(
            f"a covariance takes at least two prompts, and these are {len(activations)}"
        )
    centred = (activations - activations.mean(0)).double().cpu()
    drawn = []
    for i in range(n):
        weights = torch.randn(len(centred), generator=_generator(seed, i, 1), dtype=torch.float64)
        about = replace(like.provenance, method="covariance")
        drawn.append(norm_matched(from_vector(weights @ centred, about), like, "covariance", i))
    return drawn


def shuffled_directions(
    like: Direction,
    learn: Learn,
    labels: Sequence[float],
    n: int,
    seed: int,
    within: Sequence[str] | None = None,
) -> list[Direction]:
    """n directions learned in the same way from the same prompts with their labels permuted,
    within each group of `within` where that is given. The deal of draw i is the same at every
    layer."""
    names = [""] * len(labels) if within is None else list(within)
    groups = [[i for i, name in enumerate(names) if name == one] for one in dict.fromkeys(names)]
    drawn = []
    for i in range(n):
        generator = _generator(seed, i)
        permuted = [float(label) for label in labels]
        for members in groups:
            order = torch.randperm(len(members), generator=generator).tolist()
            for label, place in zip([labels[m] for m in members], order, strict=True):
                permuted[members[place]] = float(label)
        drawn.append(norm_matched(learn(permuted), like, "shuffled", i))
    return drawn


def flipped_direction(like: Direction) -> Direction:
    """`-u`: at alpha it does what the learned direction does at -alpha."""
    return norm_matched(replace(like, unit=-like.unit), like, "flipped", None)


def unrelated_direction(
    like: Direction, learn: Learn, values: Sequence[float], name: str
) -> Direction:
    """The direction learned in the same way from a contrast that should not matter, such as the
    length of the prompts. It is one direction, not a null: it has no p-value, and it may hold some
    of the behaviour, as far as the contrast does."""
    return norm_matched(learn([float(value) for value in values]), like, name, None)


def fold_numbers(groups: Sequence[str], k: int, seed: int) -> list[int]:
    """Which of k folds each prompt is in, the same share of every group in each.

    Groups are taken round in a seeded order, so that folds differ by at most one prompt.
    Raises `DialError` for fewer than two folds, or more than there are prompts.
    """
    if not 2 <= k <= len(groups):
        raise DialError(f"expected from 2 to {len(groups)} folds of {len(groups)} prompts, not {k}")
    order = torch.randperm(len(groups), generator=_generator(seed, 0)).tolist()
    permuted = sorted(order, key=lambda i: groups[i])  # stable: seeded within a group
    folds = [0] * len(groups)
    for number, i in enumerate(permuted):
        folds[i] = number % k
    return folds


def fold_directions(
    like: Direction, learn: Callable[[Sequence[int]], Direction], folds: Sequence[int]
) -> list[Direction]:
    """For each fold, the direction learned without its prompts: `learn` takes the indices of those
    that are left. Scored on its own fold alone each prompt has a direction that never saw it."""
    drawn = []
    for fold in range(max(folds) + 1):
        rest = [i for i, number in enumerate(folds) if number != fold]
        drawn.append(norm_matched(learn(rest), like, "fold", fold))
    return drawn


def _generator(seed: int, i: int, stream: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed((stream << 56) + seed * 1_000_003 + i)
