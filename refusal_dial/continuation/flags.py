"""The flags of the experiments on continuations, with their defaults and their help.

This module reads text into values. It does not know what they do, and imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from refusal_dial.cli import CONFIG, flag
from refusal_dial.flags import DRY_RUN, EXECUTORS, STEERABLE
from refusal_dial.readers import (
    address_of,
    alphas_of,
    at_least,
    choice,
    gpus_of,
    layers_of,
    pos_of,
    proportion,
    seed_of,
    share_of,
)
from refusal_dial.types import DialError, shown
from refusal_dial.values import number, whole

UNITS = ("distance", "norm", "residual", "absolute")


def _rising(value: Any) -> tuple[float, ...]:
    alphas = alphas_of(value)
    if not any(alpha > 0 for alpha in alphas):
        raise DialError(
            f"expected an alpha over 0, at which layers are compared; not {shown(value)}"
        )
    return alphas


@dataclass(frozen=True)
class ContinuationFlags:
    """Openings, how they are continued, how that is scored, and what is steered."""

    model: str = flag("embedded", "'embedded', a local folder, or a hub id")
    openings: str = flag("embedded", "'embedded', a .jsonl or a folder, rtp, or owner/name")
    n: int = flag(50, "openings of each subset to measure on, at most", at_least(2, whole))
    n_pairs: int = flag(20, "pairs of openings to learn from", at_least(1, whole))
    scorer: str = flag("profanity", "profanity, or a text classifier's folder or hub id")
    toxic_label: str | None = flag(None, "which of a classifier's labels to read")
    layer: tuple[int, ...] = flag((16,), "a layer, a list such as 12,16,20, or all", layers_of)
    site: str = flag("resid_pre", f"one of {', '.join(STEERABLE)}", choice(STEERABLE, "site"))
    pos: int = flag(-1, "-1: the last token of the opening and every new one", pos_of)
    pool: int = flag(32, "last tokens that an activation is the mean of", at_least(1, whole))
    alphas: tuple[float, ...] = flag((-1.0, 0.0, 1.0), "a list, or START:STOP:COUNT", alphas_of)
    alpha_unit: str = flag(
        "distance",
        "what alpha 1 is as long as: distance (of the two class means at the last token), norm "
        "(of the pooled difference), residual (mean norm), or absolute",
        choice(UNITS, "unit"),
    )
    n_random: int = flag(5, "random directions a layer", at_least(0, whole))
    n_shuffled: int = flag(10, "directions from shuffled labels a layer", at_least(0, whole))
    samples: int = flag(4, "completions of each opening", at_least(1, whole))
    max_new_tokens: int = flag(24, "tokens of a completion, at most", at_least(1, whole))
    temperature: float = flag(0.7, "sampling temperature; 0 is greedy", at_least(0, number))
    top_p: float = flag(0.9, "share of the probability to sample from", at_least(0.01, number))
    seed: int = flag(0, "seed of openings, halves, samples and controls", seed_of)
    device: str = flag("auto", "auto, cpu, cuda, cuda:N or mps")
    dtype: str = flag("auto", "auto, float32, bfloat16 or float16")
    device_map: str | None = flag(
        None, "auto: split a model larger than one device over all of them (accelerate)"
    )
    batch_size: int = flag(16, "openings a batch", at_least(1, whole))
    rows: int = flag(512, "completions made at once, at most", at_least(1, whole))
    executor: str = flag(
        "local", "where batches are computed: local (here) or ray", choice(EXECUTORS, "executor")
    )
    ray_address: str | None = flag(
        None, "HOST:PORT of a Ray head, or auto; default: Ray is started here", address_of
    )
    workers: int | None = flag(
        None, "Ray workers, at most; default: as many as there is room for", at_least(1, whole)
    )
    cpus_per_worker: int = flag(1, "CPUs that a Ray worker takes", at_least(1, whole))
    gpus_per_worker: float | None = flag(
        None, "GPUs that a Ray worker takes; default: 1 where this process uses one", gpus_of
    )
    max_missing: float = flag(
        0.05, "share of rows that may have no score; more end the run", proportion
    )
    out: str | None = flag(None, "the run folder itself; default runs/<experiment>/<id>")
    dry_run: bool = DRY_RUN
    config: str | None = CONFIG


@dataclass(frozen=True)
class LayerFlags(ContinuationFlags):
    """The same over every layer, without controls, or from a run that is there already."""

    layer: tuple[int, ...] = flag((), "a layer, a list such as 12,16,20, or all", layers_of)
    alphas: tuple[float, ...] = flag(
        (-1.0, 0.0, 1.0), "a list, or START:STOP:COUNT; layers are compared at the highest", _rising
    )
    n_random: int = flag(0, "random directions a layer", at_least(0, whole))
    n_shuffled: int = flag(0, "directions from shuffled labels a layer", at_least(0, whole))
    samples: int = flag(2, "completions of each opening", at_least(1, whole))
    load_existing: str | None = flag(None, "a finished run folder to read; no model is loaded")


@dataclass(frozen=True)
class SparingFlags(ContinuationFlags):
    """The same, always and only where a detector fires."""

    alphas: tuple[float, ...] = flag((0.5, 1.0), "a list, or START:STOP:COUNT", alphas_of)
    rate: float = flag(0.2, "rate of false positives on benign openings", share_of)
    n_random: int = flag(5, "random detectors a layer", at_least(0, whole))
