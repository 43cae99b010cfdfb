"""A worker: a model of its own on some machine, and the batches of a sweep that it is asked for.

What it must share with the process that asks is compared before the first batch: the versions of
the packages, the source of this one, the weights. This module does not know who places a worker, or
how it is reached (`executors`).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.model import identity, load_model
from refusal_dial.run import versions
from refusal_dial.types import DialError

log = logging.getLogger("refusal_dial")


@runtime_checkable
class Batches(Protocol):
    """The batches of a sweep on this model, in order, without the first `skip`. Has to pickle."""

    def __call__(self, model: TransformerBridge, *, skip: int) -> Iterator[pd.DataFrame]: ...


@dataclass(frozen=True, eq=False)
class Task:
    """What a worker needs to know: which model, and how batches are computed on it."""

    name: str
    revision: str | None
    device: str
    dtype: str
    device_map: str | None
    batches: Batches


class Worker:
    """What runs in an actor: a model of its own, and the batches that it is asked for."""

    def open(self, task: Task) -> dict[str, str]:
        """Load the model; what this worker is, to be compared with `about` of the driver."""
        log.setLevel(logging.INFO)
        self._model = load_model(
            task.name,
            task.device,
            task.dtype,
            device_map=task.device_map,
            revision=task.revision,
        )
        self._batches = task.batches
        return about(self._model)

    def batch(self, number: int) -> tuple[pd.DataFrame, list[str]]:
        """One batch, and what was logged meanwhile."""
        with _heard() as lines:
            return next(self._batches(self._model, skip=number)), lines


def about(model: TransformerBridge) -> dict[str, str]:
    """Versions of the packages, the source of this one, and the weights: what rows depend on."""
    who = identity(model)
    found = {name: version.split("+")[0] for name, version in versions().items()}
    found["refusal-dial"] += f", source {_source()}"
    weights = f"{who.revision} ({who.architecture}, {who.n_layers} layers, {who.dtype})"
    return {**found, "the weights": weights}


@cache
def _source() -> str:
    """A hash over this package's source, for one version may be many checkouts."""
    digest, folder = hashlib.sha256(), Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def _heard() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        yield lines
    finally:
        log.removeHandler(handler)


def check_same(here: Mapping[str, str], there: Mapping[str, str]) -> None:
    """Raises `DialError` for the first thing that a worker has otherwise than this process."""
    for name, mine in here.items():
        if there.get(name) != mine:
            raise DialError(
                f"a worker has {name} {there.get(name)} where this process has {mine}: rows of "
                "both would not belong together, so give every node the same"
            )
