"""The flags that scripts share, with their defaults and their help.

A script takes `StudyFlags` or `SteeringFlags` as they are, or adds its own in a subclass. This
module reads text into values. It does not know what they do, and imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from refusal_dial.cli import CONFIG, argument, flag
from refusal_dial.readers import (
    CONTROLS,
    address_of,
    alphas_or_auto,
    at_least,
    choice,
    controls_of,
    formats_of,
    gpus_of,
    joined,
    layers_of,
    pos_of,
    proportion,
    seed_of,
    share_of,
)
from refusal_dial.values import number, whole

RELATIVE_ALPHAS = (-0.6, -0.5, -0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
RISING_ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
STEERABLE = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")  # d_model wide
UNITS = ("absolute", "residual")
SCORERS = ("refusal_score", "logit_diff")
ENGINES = ("auto", "plain")
BY_DEFAULT = ("random", "shuffled", "length")
EXECUTORS = ("local", "ray")
MACHINES = ("dry_run", "executor", "ray_address", "workers", "cpus_per_worker", "gpus_per_worker")
"""Flags that say where rows are computed, or whether; they do not depend on them."""
DRY_RUN: Any = flag(False, "print the grid with its time and memory; nothing is written")


@dataclass(frozen=True)
class OpenFlags:
    """What a study is opened from: a model, prompts and a scorer."""

    model: str = flag("embedded", "'embedded', a local folder, or a hub id", joined)
    prompts: str = flag("embedded", "'embedded', a .jsonl or .csv, a folder, xstest, or owner/name")
    scorer: str = flag("refusal_score", "refusal_score or logit_diff", choice(SCORERS, "scorer"))
    refusal_tokens: str = flag(
        "auto", "auto, family, calibrated, or a list of ids or words such as I,Sorry", joined
    )
    threshold: float = flag(0.0, "a score over this counts as a refusal")
    system: str | None = flag(None, "a system message before every prompt")
    plain: bool = flag(False, "read prompts as plain text, without a chat template")
    seed: int = flag(0, "seed of the split, the random directions and the bootstrap", seed_of)
    device: str = flag("auto", "auto, cpu, cuda, cuda:N or mps")
    dtype: str = flag("auto", "auto, float32, bfloat16 or float16")
    device_map: str | None = flag(
        None, "auto: split a model larger than one device over all of them (accelerate)"
    )
    batch_size: int = flag(64, "prompts a batch", at_least(1, whole))


@dataclass(frozen=True)
class StudyFlags(OpenFlags):
    """How a sweep over it is carried out, and a folder for the run."""

    engine: str = flag("auto", "auto (fast, exact) or plain", choice(ENGINES, "engine"))
    memory_gb: float | None = flag(
        None, "memory the engine may use; default: most of what is free", at_least(0.01, number)
    )
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
class SteeringFlags(StudyFlags):
    """Where and how hard to steer, and against how many random directions."""

    layer: tuple[int, ...] = flag((20,), "a layer, a list such as 20,21,23, or all", layers_of)
    site: str = flag("resid_pre", f"one of {', '.join(STEERABLE)}", choice(STEERABLE, "site"))
    pos: int = flag(-1, "prompt position, from the end; -1 is the last token", pos_of)
    alphas: tuple[float, ...] = flag(
        (),
        "a list such as -8,0,8, START:STOP:COUNT, or auto: ±0.6 mean residual norms",
        alphas_or_auto,
    )
    alpha_unit: str = flag(
        "absolute", "absolute, or residual: multiples of the mean norm", choice(UNITS, "unit")
    )
    controls: tuple[str, ...] = flag(
        BY_DEFAULT, f"a list of {', '.join(CONTROLS)}; or none", controls_of
    )
    n_random: int = flag(20, "draws a layer of each random control", at_least(0, whole))
    k: int | None = flag(
        None, "top and bottom prompts to learn from; default a third each", at_least(1, whole)
    )


@dataclass(frozen=True)
class HoldoutFlags(SteeringFlags):
    """How much of EDGE the direction never sees."""

    controls: tuple[str, ...] = flag(
        ("holdout", *BY_DEFAULT), f"a list of {', '.join(CONTROLS)}; or none", controls_of
    )
    holdout: float = flag(0.5, "share of EDGE prompts held out", share_of)


@dataclass(frozen=True)
class ConditionalFlags(SteeringFlags):
    """How often the detector may fire on what it should pass by."""

    controls: tuple[str, ...] = flag(
        (), f"of always-on steering: a list of {', '.join(CONTROLS)}; or none", controls_of
    )
    rate: float = flag(
        0.3, "rate of false positives on EDGE that the threshold is set for", share_of
    )
    alphas: tuple[float, ...] = flag(
        RISING_ALPHAS,
        "a list such as 0.1,0.3,0.5, or START:STOP:COUNT; auto: ±0.6 mean residual norms",
        alphas_or_auto,
    )
    alpha_unit: str = flag(
        "residual", "absolute, or residual: multiples of the mean norm", choice(UNITS, "unit")
    )


@dataclass(frozen=True)
class PlotFlags:
    """Which run, and how its figures are left."""

    run: str = argument("a run folder, or an experiment's folder: its newest finished run")
    format: tuple[str, ...] = flag(
        ("html",), "png, pdf and svg besides .html, such as png,pdf", formats_of
    )
    out: str | None = flag(None, "the folder to write to, or the .html file; default the run's")
