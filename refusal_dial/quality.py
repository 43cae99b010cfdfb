"""Is what the model says still language? Repetition, and the price of a reply.

    coherence = (1 - r) exp(-max(0, n - n0))

r is the share of the reply's trigrams of tokens that occurred in it before; n the mean negative
log-likelihood a token (nats), the end token counted, that the unsteered model gives the reply; n0
what it gives its own replies. 1 for the model's own, near 0 for loops, shuffled words and, since a
reply that stops in the middle is an unlikely place to stop, for text that is cut. An empty reply
has coherence 0.

This is a measure of fluency as the unsteered model sees it. It does not know whether a reply is
true, helpful, or an answer to the question. Arithmetic only: n comes from `likelihood`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refusal_dial.types import DialError

NGRAM = 3
LOOPS = 0.5


def repeated(ids: Sequence[int], n: int = NGRAM) -> float:
    """The share of a reply's n-grams that stood in it before: 0 for none, near 1 for a loop.

    0 where the reply is shorter than n.
    """
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def degenerate(ids: Sequence[int], stop: str) -> str:
    """Why a reply is no reply: "empty", "loop" (over half of its trigrams are repeats), "endless"
    (it never ended), or "" where it is one."""
    if not ids:
        return "empty"
    if repeated(ids) > LOOPS:
        return "loop"
    return "endless" if stop == "length" else ""


def coherence(repeats: ArrayLike, cost: ArrayLike, own_cost: float) -> NDArray[np.float64]:
    """`(1 - r) exp(-max(0, n - n0))` in [0, 1]; r is `repeats`, n `cost`, n0 `own_cost`.

    A cost of NaN is that of an empty reply, and its coherence 0. Raises `DialError` for an
    `own_cost` that is not a finite number.
    """
    if not np.isfinite(own_cost):
        raise DialError(f"own_cost must be a finite number of nats, not {own_cost}")
    n = np.nan_to_num(np.asarray(cost, dtype=float), nan=np.inf)
    return (1 - np.asarray(repeats, dtype=float)) * np.exp(-np.maximum(n - own_cost, 0))
