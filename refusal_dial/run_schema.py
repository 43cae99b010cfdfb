"""What the files of a run may hold: which settings, columns and keys are of which kind.

Only names that the package knows are checked, and only where they are there: an experiment adds its
own, and a run of an older version lacks some. Every fault is a `DialError` that names the file, the
name and the value. This module knows parsed values. It reads no files, and it does not know which
columns a figure needs (see `run_reading.read_table`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refusal_dial.types import DialError, shown

TEXTS = {"direction", "site", "prompt_id", "subset", "split", "category", "system", "label"}
TEXTS |= {"way", "role", "token", "stop", "completion", "reason"}
WHOLE = {"seed", "layer", "pos", "head", "neuron", "sample"}
NATURAL = WHOLE - {"pos"}
NUMBERS = {"score", "effect", "alpha_relative", "n", "score_mean", "score_lo", "score_hi"}
NUMBERS |= {"refusal_rate", "rate_lo", "rate_hi", "p_value", "shift"}
AXES = {"alpha", "strength"}  # of a figure that needs one, no row is without it

CELL = ("direction", "seed", "layer", "site", "pos", "alpha", "subset", "split")
SCORES = (*CELL, "prompt_id", "score")
RATES = ("refusal_rate", "rate_lo", "rate_hi")
SUMMARY = (*CELL, "n", "score_mean", "score_lo", "score_hi", *RATES, "p_value")

Kinds = Mapping[str, tuple[type, ...]]
TEXT, LIST, OBJECT, NUMBER, NONE = (str,), (list,), (dict,), (int, float), (type(None),)
CONFIG: Kinds = {"experiment": TEXT, "settings": OBJECT, "versions": OBJECT, "command": TEXT}
SETTINGS: Kinds = {
    "model": OBJECT,
    "data": OBJECT,
    "refusal_tokens": OBJECT,
    "layer": (*LIST, int, *NONE),
    "alphas": (*LIST, *NONE),
    "threshold": (*NUMBER, *NONE),
    "seed": (int,),
    "n_random": (int,),
}
VERDICT: Kinds = {
    "left_out": OBJECT,
    "sha256": OBJECT,
    "threshold": (*NUMBER, *NONE),
    "judge": OBJECT,
}
LEFT_OUT: Kinds = {"rows": (int,), "of": (int,), "reasons": OBJECT}
WORDS = {str: "text", list: "a list", dict: "an object", int: "a number", type(None): "null"}


def check_config(path: Path, config: Any) -> dict[str, Any]:
    """The parsed config.json, if it is one. Raises `DialError` where it is not."""
    if not isinstance(config, dict) or not isinstance(config.get("settings"), dict):
        raise DialError(f"{path} is not a run's config: it has no settings")
    if "experiment" not in config:
        raise DialError(f"{path} is not a run's config: it has no experiment")
    _check_kinds(path, config, CONFIG)
    _check_kinds(path, config["settings"], SETTINGS, "settings.")
    model = config["settings"].get("model", {"name": ""})
    if not isinstance(model.get("name"), str):
        raise DialError(f"{path}: settings.model has no name: expected an object with the model's")
    return config


def check_verdict(path: Path, verdict: Any) -> dict[str, Any]:
    """The parsed summary.json, if it is one. Raises `DialError` where it is not."""
    if not isinstance(verdict, dict):
        raise DialError(f"{path} is no summary: expected an object, not {shown(verdict, 40)}")
    _check_kinds(path, verdict, VERDICT)
    if "left_out" in verdict:
        for name in LEFT_OUT:
            if name not in verdict["left_out"]:
                raise DialError(f"{path}: left_out has no {name}")
        _check_kinds(path, verdict["left_out"], LEFT_OUT, "left_out.")
    return verdict


def check_columns(path: Path, experiment: str, frame: pd.DataFrame, needed: Sequence[str]) -> None:
    """Raises `DialError` where a table lacks a column that is needed."""
    for column in needed:
        if column not in frame:
            raise DialError(
                f"{path} has no column {column!r}: it is of {experiment}, and this takes a run of "
                "another experiment (see --help)"
            )


def check_table(
    path: Path, columns: Sequence[str], frame: pd.DataFrame, needed: Sequence[str] = ()
) -> None:
    """Raises `DialError` where a table's columns or values are not what a run writes: a column
    twice, no rows, letters or infinity for a number, a negative layer or seed, a row without the
    alpha that is `needed`."""
    twice = [name for name in dict.fromkeys(columns) if columns.count(name) > 1]
    if twice:
        raise DialError(f"{path} names the column {twice[0]!r} twice")
    if frame.empty:
        raise DialError(f"{path} holds no rows: run the experiment to its end first")
    for name in columns:
        if name in NATURAL and bool((frame[name] < 0).any()):
            raise DialError(f"{path}, column {name!r}: {frame[name].min()} is less than 0")
        if name not in NUMBERS | AXES:
            continue
        if not pd.api.types.is_numeric_dtype(frame[name]):
            odd = frame[name][pd.to_numeric(frame[name], errors="coerce").isna()].dropna()
            said = repr(odd.iloc[0]) if len(odd) else f"{frame[name].dtype} values"
            raise DialError(f"{path}, column {name!r}: expected numbers, not {said}")
        values = frame[name].to_numpy(dtype=float, na_value=np.nan)
        if np.isinf(values).any():
            raise DialError(f"{path}, column {name!r}: a number is infinite")
        if name in AXES.intersection(needed) and np.isnan(values).any():
            raise DialError(f"{path}, column {name!r}: a row has no number")


def _check_kinds(path: Path, found: Mapping[str, Any], kinds: Kinds, inside: str = "") -> None:
    for name, allowed in kinds.items():
        value = found.get(name)
        if name in found and (not isinstance(value, allowed) or isinstance(value, bool)):
            wanted = " or ".join(WORDS[kind] for kind in allowed if kind in WORDS)
            raise DialError(f"{path}: {inside}{name} is {shown(value, 40)}: expected {wanted}")
