"""The flags that scripts share, with their defaults and their help.

A script takes `StudyFlags` or `SteeringFlags` as they are, or adds its own in a subclass. This
module reads text into values. It does not know what they do, and imports nothing heavy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from refusal_dial.cli import CONFIG, argument, flag
from refusal_dial.types import NAMED_POS, DialError, one_of, shown
from refusal_dial.values import listed, number, spelt, text, whole

RELATIVE_ALPHAS = (-0.6, -0.5, -0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
STEERABLE = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")  # d_model wide
UNITS = ("absolute", "residual")
SCORERS = ("refusal_score", "logit_diff")
ENGINES = ("auto", "plain")
CONTROLS = ("holdout", "random", "covariance", "shuffled", "flipped", "length", "folds")
BY_DEFAULT = ("random", "shuffled", "length")
FORMATS = ("html", "png", "pdf", "svg")
MOST = 10**6
EXECUTORS = ("local", "ray")
MACHINES = ("dry_run", "executor", "ray_address", "workers", "cpus_per_worker", "gpus_per_worker")
"""Flags that say where rows are computed, or whether; they do not depend on them."""
DRY_RUN: Any = flag(False, "print the grid with its time and memory; nothing is written")


def _choice(choices: tuple[str, ...], what: str) -> Any:
    def parse(value: Any) -> str:
        if value not in choices:
            raise one_of(value, choices, what)
        return str(value)

    return parse


def _joined(value: Any) -> str:
    """`I, Sorry`, `[I, Sorry]` -> `I,Sorry`."""
    typed = text(value).strip()
    if typed.startswith("[") and typed.endswith("]"):
        typed = typed[1:-1]
    return ",".join(part.strip(" '\"") for part in typed.split(","))


def _layers(value: Any) -> tuple[int, ...]:
    if value == "all":
        return ()
    layers = tuple(whole(part) for part in listed(value))
    if not layers or len(set(layers)) < len(layers):
        raise DialError(
            f"expected different layers such as 20 or 20,21,23, or all; not {shown(value)}"
        )
    return layers


def _alphas(value: Any) -> tuple[float, ...]:
    if value == "auto":
        return ()
    if isinstance(value, str) and value.count(":") == 2:
        return _evenly(value)
    alphas = tuple(number(part) + 0.0 for part in listed(value))  # 0.0 and not -0.0
    if not alphas or len(set(alphas)) < len(alphas):
        raise DialError(f"expected different numbers, at least one; not {shown(value)}")
    return tuple(sorted(alphas))


def _evenly(value: str) -> tuple[float, ...]:
    try:
        start, stop, count = (float(part) for part in value.split(":"))
    except ValueError as error:
        raise DialError(f"expected START:STOP:COUNT such as -6:6:13, not {shown(value)}") from error
    if not all(map(math.isfinite, (start, stop, count))) or count not in range(2, 10_001):
        raise DialError(
            f"expected START:STOP:COUNT with a count from 2 to 10000, not {shown(value)}"
        )
    step = (stop - start) / (count - 1)
    return _alphas([round(start + i * step, 10) for i in range(int(count))])


def _pos(value: Any) -> int:
    if value in NAMED_POS or not isinstance(value, int) or isinstance(value, bool) or value >= 0:
        raise DialError(
            f"expected a position counted from the end of the prompt such as -1, not {shown(value)}"
        )
    return value


def _formats(value: Any) -> tuple[str, ...]:
    formats = tuple(dict.fromkeys(map(str, listed(value))))
    for one in formats:
        if one not in FORMATS:
            raise one_of(one, FORMATS, "format")
    return formats


def at_least(least: int | float, kind: Any) -> Any:
    """A reader of numbers from `least` up; of whole ones, up to a million. They are counts, and
    what many times a million takes is neither memory nor a night."""

    def parse(value: Any) -> Any:
        if kind is whole and whole(value) > MOST:
            raise DialError(f"expected a number from {least} to {MOST}, not {shown(value)}")
        if kind(value) < least:
            raise DialError(f"expected a number from {least} up, not {shown(value)}")
        return kind(value)

    return parse


def _address(value: Any) -> str:
    host, _, port = text(value).rpartition(":")
    if value != "auto" and not (_is_host(host) and 0 < (spelt(port) or 0) < 2**16):
        raise DialError(
            f"expected HOST:PORT of a Ray head such as 10.0.0.1:6379, not {shown(value)}"
        )
    return text(value)


def _is_host(name: str) -> bool:
    """Whether a network could be asked for this name: no empty label, none over 63 letters."""
    try:
        return bool(name.encode("idna")) and not set(name) & set("/ ")
    except UnicodeError:
        return False


def _gpus(value: Any) -> float:
    share = number(value)
    if share < 0 or (share > 1 and share != int(share)):
        raise DialError(f"expected a number of GPUs such as 0, 0.5, 1 or 2, not {shown(value)}")
    return share


def _controls(value: Any) -> tuple[str, ...]:
    if value == "none":
        return ()
    kinds = tuple(_choice(CONTROLS, "control")(str(part).strip()) for part in listed(value))
    return tuple(kind for kind in CONTROLS if kind in kinds)


def _share(value: Any) -> float:
    if not 0 < number(value) < 1:
        raise DialError(f"expected a share between 0 and 1, not {shown(value)}")
    return number(value)


def proportion(value: Any) -> float:
    """A number from 0 to 1."""
    if not 0 <= number(value) <= 1:
        raise DialError(f"expected a number from 0 to 1, not {shown(value)}")
    return number(value)


def seed_of(value: Any) -> int:
    """A seed that every generator takes."""
    if not 0 <= whole(value) < 2**32:
        raise DialError(f"expected a seed from 0 to {2**32 - 1}, not {shown(value)}")
    return whole(value)


@dataclass(frozen=True)
class OpenFlags:
    """What a study is opened from: a model, prompts and a scorer."""

    model: str = flag("embedded", "'embedded', a local folder, or a hub id", _joined)
    prompts: str = flag("embedded", "'embedded', a .jsonl or .csv, a folder, xstest, or owner/name")
    scorer: str = flag("refusal_score", "refusal_score or logit_diff", _choice(SCORERS, "scorer"))
    refusal_tokens: str = flag(
        "auto", "auto, family, calibrated, or a list of ids or words such as I,Sorry", _joined
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

    engine: str = flag("auto", "auto (fast, exact) or plain", _choice(ENGINES, "engine"))
    memory_gb: float | None = flag(
        None, "memory the engine may use; default: most of what is free", at_least(0.01, number)
    )
    executor: str = flag(
        "local", "where batches are computed: local (here) or ray", _choice(EXECUTORS, "executor")
    )
    ray_address: str | None = flag(
        None, "HOST:PORT of a Ray head, or auto; default: Ray is started here", _address
    )
    workers: int | None = flag(
        None, "Ray workers, at most; default: as many as there is room for", at_least(1, whole)
    )
    cpus_per_worker: int = flag(1, "CPUs that a Ray worker takes", at_least(1, whole))
    gpus_per_worker: float | None = flag(
        None, "GPUs that a Ray worker takes; default: 1 where this process uses one", _gpus
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

    layer: tuple[int, ...] = flag((20,), "a layer, a list such as 20,21,23, or all", _layers)
    site: str = flag("resid_pre", f"one of {', '.join(STEERABLE)}", _choice(STEERABLE, "site"))
    pos: int = flag(-1, "prompt position, from the end; -1 is the last token", _pos)
    alphas: tuple[float, ...] = flag(
        (), "a list such as -8,0,8, START:STOP:COUNT, or auto: ±0.6 mean residual norms", _alphas
    )
    alpha_unit: str = flag(
        "absolute", "absolute, or residual: multiples of the mean norm", _choice(UNITS, "unit")
    )
    controls: tuple[str, ...] = flag(
        BY_DEFAULT, f"a list of {', '.join(CONTROLS)}; or none", _controls
    )
    n_random: int = flag(20, "draws a layer of each random control", at_least(0, whole))
    k: int | None = flag(
        None, "top and bottom prompts to learn from; default a third each", at_least(1, whole)
    )


@dataclass(frozen=True)
class HoldoutFlags(SteeringFlags):
    """How much of EDGE the direction never sees."""

    controls: tuple[str, ...] = flag(
        ("holdout", *BY_DEFAULT), f"a list of {', '.join(CONTROLS)}; or none", _controls
    )
    holdout: float = flag(0.5, "share of EDGE prompts held out", _share)


@dataclass(frozen=True)
class PlotFlags:
    """Which run, and how its figures are left."""

    run: str = argument("a run folder, or an experiment's folder: its newest finished run")
    format: tuple[str, ...] = flag(
        ("html",), "png, pdf and svg besides .html, such as png,pdf", _formats
    )
    out: str | None = flag(None, "the folder to write to, or the .html file; default the run's")
