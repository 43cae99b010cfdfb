"""Rows of a patching experiment: one per pair and cell, the public columns first.

Takes scores and names and returns a frame. It computes nothing but the effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from refusal_dial.patching.pairs import Pairs, token_labels
from refusal_dial.patching.places import Place

CONTROLS = ("same_class", "random")
COLUMNS = ["direction", "seed", "layer", "site", "pos", "alpha", "prompt_id", "subset", "split"]
COLUMNS += ["score", "way", "role", "head", "neuron", "clean", "corrupted", "effect", "token"]


def tidy(
    batch: Pairs,
    roles: Sequence[str],
    where: Int[Tensor, "batch role"],
    way: str,
    cells: Sequence[tuple[Place, str, NDArray[np.bool_]]],
    scores: NDArray[np.float64],
    clean: NDArray[np.float64],
    corrupted: NDArray[np.float64],
    seed: int,
) -> pd.DataFrame:
    """Scores "cell pair" as rows, cell by cell, for the pairs that each cell has.

    A cell is named by its place and its direction; `where` says where the roles stand in the runs
    that were patched.
    """
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS[:-1]}
    positions = where.numpy()
    ids = np.array([pair.id for pair in batch.items], dtype=object)
    subsets = np.array([pair.corrupted.subset for pair in batch.items], dtype=object)
    gap = clean - corrupted
    for (place, direction, present), score in zip(cells, scores, strict=True):
        index = np.flatnonzero(present)
        alone = len(place.roles) == 1
        pos = positions[index, roles.index(place.role)].tolist() if alone else [None] * len(index)
        each = {
            "pos": pos,
            "prompt_id": ids[index],
            "subset": subsets[index],
            "score": score[index],
            "clean": clean[index],
            "corrupted": corrupted[index],
            "effect": _share(score[index] - corrupted[index], gap[index]),
        }
        same = {
            "direction": direction,
            "seed": seed if direction in CONTROLS else None,
            "layer": place.layer,
            "site": place.site,
            "alpha": None,
            "split": "holdout",
            "way": way,
            "role": place.role,
            "head": place.head,
            "neuron": place.neuron,
        }
        for name in COLUMNS[:-1]:
            columns[name] += list(each[name]) if name in each else [same[name]] * len(index)
    kinds = dict.fromkeys(("seed", "layer", "pos", "head", "neuron"), "Int64") | {"alpha": "float"}
    return pd.DataFrame({k: pd.Series(v, dtype=kinds.get(k)) for k, v in columns.items()})


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN where there is nothing to share."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole != 0)


def labelled(frame: pd.DataFrame, pairs: Pairs, tokenizer: Any) -> pd.DataFrame:
    """The rows with `token`, the text of their role's token where all pairs share it."""
    names = [role for role in frame["role"].unique() if ".." not in role]
    texts = token_labels(pairs, names, tokenizer)
    return frame.assign(token=frame["role"].map(texts).fillna(""))
