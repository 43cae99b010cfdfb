"""Subspaces: how much of what several directions span do others span too.

    overlap = |A^T B|_F^2 / min(k, m)

A and B are orthonormal bases of the two spans. 0 for orthogonal ones, 1 where the smaller lies in
the larger; for two single directions it is the squared cosine. Two random directions in d
dimensions have 1 / d on average. Arithmetic only: what an overlap does to behaviour takes a sweep.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_dial.types import DialError


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
