"""The flags of every script, with their defaults and their help.

A script takes one of these frozen dataclasses. Those that many scripts share come first, then those
of each study. Nothing heavy is imported, so that `--help` never waits for torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from refusal_dial.cli.command_line import (
    CONFIG_FLAG,
    CONTROL_KINDS,
    address_of,
    alpha_of,
    alphas_of,
    argument,
    at_least,
    choice,
    controls_of,
    flag,
    formats_of,
    gpus_of,
    joined,
    layers_of,
    own_layers_of,
    parse_list,
    parse_number,
    parse_whole,
    pos_of,
    proportion,
    seed_of,
    share_of,
    turning_of,
)
from refusal_dial.common import ENGINES, FAR, UNITS, DialError, format_value

# --------------------------------------------------------------------------------------------------
# The names of the rules of selection, and each one's published limits. `--help` needs it.


RULES = ("refusal", "cosmic", "effect")


@dataclass(frozen=True)
class Limits:
    """Published limits: candidates from the last fifth of the layers, or that change harmless
    prompts by more than 0.1 nats, or after whose addition refusal is not likelier than not."""

    layers: float | None = 0.8
    kl: float | None = 0.1
    induce: float | None = 0.0

    def last_layer(self, n_layers: int) -> int:
        """Layers from this one on are discarded."""
        return n_layers if self.layers is None else int(n_layers * self.layers)


RULE_LIMITS = {
    "refusal": Limits(),
    "cosmic": Limits(induce=None),
    "effect": Limits(layers=None, kl=None, induce=None),
}
"""Each rule's own limits. `effect` has none but that a candidate can be measured at all."""


# --------------------------------------------------------------------------------------------------
# The flags that scripts share, with their defaults and their help.
#
# A script takes `StudyFlags` or `SteeringFlags` as they are, or adds its own in a subclass.


MODEL_HELP = "embedded, smollm2, a folder, a .gguf file, or a hub id (owner/name:FILE.gguf too)"

ALPHAS_HELP = "in --alpha-unit: a list such as -0.3,0,0.3, or START:STOP:COUNT"
AUTO_HELP = f"{ALPHAS_HELP}; auto: 13 steps of ±0.6 mean residual norms"
PROMPTS_HELP = "'embedded', a .jsonl, .csv or .tsv, a folder, xstest, or-bench, ... or owner/name"
ALPHA_UNIT: Any = flag(
    None,
    "what alpha 1 is as long as: residual (the mean residual norm there; the default), norm (the "
    "direction before it was normalised, as CAA has it), or absolute (residual-stream units)",
    choice(UNITS, "unit"),
)


def check_unit(alphas: Sequence[float], unit: str | None, name: str = "--alphas") -> None:
    """Raises `DialError` for alphas far beyond the default unit where no unit was given: published
    alphas are lengths, and as multiples of the residual norm they would leave nothing of it."""
    most = max(alphas, key=abs, default=0.0)
    if unit is None and abs(most) > FAR:
        raise DialError(
            f"{name}: expected alphas up to {FAR:g} mean residual norms, not {most:g}: give "
            "--alpha-unit absolute if it is a length in residual-stream units, as alphas are "
            "published, or --alpha-unit residual if it is meant so"
        )


class InUnit:
    """Flags with alphas, and the unit that they are in."""

    alphas: tuple[float, ...]
    alpha_unit: str | None

    def __post_init__(self) -> None:
        check_unit(self.alphas, self.alpha_unit)

    @property
    def unit(self) -> str:
        """The unit of alpha: as given, else the mean residual norm."""
        return self.alpha_unit or UNITS[0]


RELATIVE_ALPHAS = (-0.6, -0.5, -0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)

RISING_ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)

STEERABLE = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")  # d_model wide


SCORERS = ("refusal_score", "logit_diff")

BY_DEFAULT = ("random", "shuffled", "length")

EXECUTORS = ("local", "ray")

SWITCH = ("off", "on")

MACHINES = (
    *("dry_run", "preview", "executor", "ray_address", "workers"),
    *("cpus_per_worker", "gpus_per_worker"),
)
"""Flags that say where rows are computed, or whether; they do not depend on them."""

DRY_RUN: Any = flag(False, "print the grid with its time and memory; nothing is written")

DEVICE: Any = flag("auto", "auto, cpu, cuda, cuda:N or mps")

DTYPE: Any = flag(
    "auto",
    "auto, float32, bfloat16, float16, int8 (torchao), 8bit or 4bit (bitsandbytes)",
)

DEVICE_MAP: Any = flag(
    None, "auto: split a model larger than one device over all of them (accelerate)"
)

EXECUTOR: Any = flag(
    "local", "where batches are computed: local (here) or ray", choice(EXECUTORS, "executor")
)

RAY_ADDRESS: Any = flag(
    None, "HOST:PORT of a Ray head, or auto; default: Ray is started here", address_of
)

WORKERS: Any = flag(
    None,
    "Ray workers, at most; default: as many as there is room for",
    at_least(1, parse_whole),
)

CPUS_PER_WORKER: Any = flag(1, "CPUs that a Ray worker takes", at_least(1, parse_whole))

GPUS_PER_WORKER: Any = flag(
    None, "GPUs that a Ray worker takes; default: 1 where this process uses one", gpus_of
)

MAX_MISSING: Any = flag(0.05, "share of rows that may have no score; more end the run", proportion)

OUT: Any = flag(None, "the run folder itself; default runs/<experiment>/<id>")

PREVIEW: Any = flag(
    False, "print what one gradient estimates, and its error on a sample; nothing is written"
)


def _alphas_or_auto(value: Any) -> tuple[float, ...]:
    """`auto` is the default steps."""
    return RELATIVE_ALPHAS if value == "auto" else alphas_of(value)


def _threshold(value: Any) -> Any:
    """A number, or None for `auto`."""
    return None if value == "auto" else parse_number(value)


THRESHOLD: Any = flag(
    0.0,
    "a score over this counts as a refusal; auto: where half of the judged replies refuse",
    _threshold,
)


@dataclass(frozen=True)
class OpenFlags:
    """What a study is opened from: a model, prompts and a scorer."""

    model: str = flag("embedded", MODEL_HELP, joined)
    prompts: str = flag("embedded", PROMPTS_HELP)
    scorer: str = flag("refusal_score", "refusal_score or logit_diff", choice(SCORERS, "scorer"))
    refusal_tokens: str = flag(
        "auto",
        "auto, family, calibrated, replies, or a list of ids or words such as I,Sorry",
        joined,
    )
    threshold: float | None = THRESHOLD
    system: str | None = flag(None, "a system message before every prompt")
    plain: bool = flag(False, "read prompts as plain text, without a chat template")
    thinking: str = flag(
        "off",
        "on: the model thinks before it answers, where its chat template knows how; refusal is "
        "read after the think block",
        choice(SWITCH, "choice"),
    )
    thought_tokens: int = flag(
        512, "tokens of a thought, at most (--thinking on)", at_least(1, parse_whole)
    )
    seed: int = flag(0, "seed of the split, the random directions and the bootstrap", seed_of)
    device: str = DEVICE
    dtype: str = DTYPE
    device_map: str | None = DEVICE_MAP
    batch_size: int = flag(64, "prompts a batch", at_least(1, parse_whole))

    @property
    def thought(self) -> int:
        """Tokens that the model may think for; 0 where it is asked not to."""
        return self.thought_tokens if self.thinking == "on" else 0


@dataclass(frozen=True)
class StudyFlags(OpenFlags):
    """How a sweep over it is carried out, and a folder for the run."""

    engine: str = flag("auto", "auto (fast, exact) or plain", choice(ENGINES, "engine"))
    memory_gb: float | None = flag(
        None,
        "memory the engine may use; default: most of what is free",
        at_least(0.01, parse_number),
    )
    executor: str = EXECUTOR
    ray_address: str | None = RAY_ADDRESS
    workers: int | None = WORKERS
    cpus_per_worker: int = CPUS_PER_WORKER
    gpus_per_worker: float | None = GPUS_PER_WORKER
    max_missing: float = MAX_MISSING
    out: str | None = OUT
    dry_run: bool = DRY_RUN
    preview: bool = PREVIEW
    config: str | None = CONFIG_FLAG


@dataclass(frozen=True)
class SteeringFlags(StudyFlags, InUnit):
    """Where and how hard to steer, and against how many random directions."""

    layer: tuple[int, ...] = flag((20,), "a layer, a list such as 20,21,23, or all", layers_of)
    site: str = flag("resid_pre", f"one of {', '.join(STEERABLE)}", choice(STEERABLE, "site"))
    pos: int = flag(-1, "prompt position, from the end; -1 is the last token", pos_of)
    alphas: tuple[float, ...] = flag(
        RELATIVE_ALPHAS,
        f"{ALPHAS_HELP}; auto: 13 steps of ±0.6 mean residual norms",
        _alphas_or_auto,
    )
    alpha_unit: str | None = ALPHA_UNIT
    controls: tuple[str, ...] = flag(
        BY_DEFAULT, f"a list of {', '.join(CONTROL_KINDS)}; or none", controls_of
    )
    n_random: int = flag(20, "draws a layer of each random control", at_least(0, parse_whole))
    k: int | None = flag(
        None, "top and bottom prompts to learn from; default a third each", at_least(1, parse_whole)
    )


@dataclass(frozen=True)
class ConditionalFlags(SteeringFlags):
    """How often the detector may fire on what it should pass by."""

    controls: tuple[str, ...] = flag(
        (), f"of always-on steering: a list of {', '.join(CONTROL_KINDS)}; or none", controls_of
    )
    rate: float = flag(
        0.3, "rate of false positives on EDGE that the threshold is set for", share_of
    )
    alphas: tuple[float, ...] = flag(RISING_ALPHAS, AUTO_HELP, _alphas_or_auto)


@dataclass(frozen=True)
class PlotFlags:
    """Which run, and how its figures are left."""

    run: str = argument("a run folder, or an experiment's folder: its newest finished run")
    format: tuple[str, ...] = flag(
        ("html",), "png, pdf and svg besides .html, such as png,pdf", formats_of
    )
    out: str | None = flag(None, "the folder to write to, or the .html file; default the run's")


# --------------------------------------------------------------------------------------------------
# The flags of the patching experiments, with their defaults and their help.


WAYS: dict[str, tuple[str, ...]] = {
    "denoise": ("denoise",),
    "noise": ("noise",),
    "both": ("denoise", "noise"),
}


@dataclass(frozen=True)
class PatchingFlags(StudyFlags):
    """Which layers and pairs to patch, and which way round."""

    layer: tuple[int, ...] = flag((), "a layer, a list such as 20,21,23, or all", layers_of)
    way: str = flag(
        "denoise",
        "denoise (clean into corrupted), noise (corrupted into clean), or both",
        choice(tuple(WAYS), "way"),
    )
    gap: float = flag(
        1.0, "leave out pairs whose scores differ by less than this", at_least(0, parse_number)
    )
    n_pairs: int | None = flag(
        None, "matched pairs to use, drawn by seed; default all", at_least(1, parse_whole)
    )

    @property
    def ways(self) -> tuple[str, ...]:
        return WAYS[self.way]


# --------------------------------------------------------------------------------------------------
# The flags of direction selection, with their defaults and their help.


METHODS = ("mean_diff", "probe")

SELECTION_LAYOUTS = ("run", "refusal_direction")


def _positions(value: Any) -> tuple[int, ...]:
    if value == "template":
        return ()
    pos = tuple(sorted(parse_whole(part) for part in parse_list(value)))
    if not pos or pos[-1] >= 0 or len(set(pos)) < len(pos):
        raise DialError(
            f"expected positions from the end such as -5,-4,-1; not {format_value(value)}"
        )
    return pos


@dataclass(frozen=True)
class SelectionFlags(StudyFlags):
    """Which candidates, how they are measured, and by which rule one of them is chosen."""

    rule: str = flag(
        "refusal",
        "refusal (Arditi et al.), cosmic (no output is scored), or effect (any scorer)",
        choice(RULES, "rule"),
    )
    method: str = flag("mean_diff", "mean_diff or probe", choice(METHODS, "method"))
    positions: tuple[int, ...] = flag(
        (),
        "positions such as -5,-4,-1; default: what the template adds after the prompt",
        _positions,
    )
    site: str = flag("resid_pre", f"one of {', '.join(STEERABLE)}", choice(STEERABLE, "site"))
    n_train: int = flag(128, "prompts a group to learn from", at_least(2, parse_whole))
    n_val: int = flag(32, "prompts a group to choose on", at_least(2, parse_whole))
    n_test: int = flag(32, "prompts a group to report on", at_least(2, parse_whole))
    max_kl: float | None = flag(
        None, "drop candidates over this KL; default: the rule's own", at_least(0, parse_number)
    )
    min_induce: float | None = flag(
        None, "drop candidates that induce less; default: the rule's own", parse_number
    )
    layout: str = flag(
        "run",
        "run, or refusal_direction: that project's files too",
        choice(SELECTION_LAYOUTS, "layout"),
    )
    published: str | None = flag(
        None, "a refusal_direction folder: apply the rule to its evaluations, without a model"
    )

    @property
    def limits(self) -> Limits:
        """The rule's limits, with what was asked for in their place."""
        own = RULE_LIMITS[self.rule]
        own = own if self.max_kl is None else replace(own, kl=self.max_kl)
        return own if self.min_induce is None else replace(own, induce=self.min_induce)


# --------------------------------------------------------------------------------------------------
# The flags of the map of the dial, with their defaults and their help.


@dataclass(frozen=True)
class MapFlags(StudyFlags, InUnit):
    """Which places, how many permuted labels, and how the slope is checked against the dial."""

    layer: tuple[int, ...] = flag((), "a layer, a list such as 20,21,23, or all", layers_of)
    site: str = flag("resid_pre", f"one of {', '.join(STEERABLE)}", choice(STEERABLE, "site"))
    positions: tuple[int, ...] = flag(
        (),
        "positions such as -5,-4,-1; default: what the template adds after the prompt",
        _positions,
    )
    holdout: float = flag(0.5, "share of EDGE prompts held out", share_of)
    k: int | None = flag(
        None, "top and bottom prompts to learn from; default a third each", at_least(1, parse_whole)
    )
    n_permutations: int = flag(10_000, "times the labels are permuted", at_least(19, parse_whole))
    n_check: int = flag(
        200, "directions a layer that are turned for real", at_least(3, parse_whole)
    )
    n_prompts: int = flag(16, "held-out prompts that they are turned on", at_least(1, parse_whole))
    alphas: tuple[float, ...] = flag((0.1, 0.3, 0.6), ALPHAS_HELP, alphas_of)
    alpha_unit: str | None = ALPHA_UNIT


# --------------------------------------------------------------------------------------------------
# The flags of the experiments on replies, with their defaults and their help.


@dataclass(frozen=True)
class ReplyFlags(SteeringFlags):
    """How the model is to speak, and who judges what it says."""

    alphas: tuple[float, ...] = flag((-1.5, -0.6, -0.3, 0.0, 0.3, 0.6, 1.5), ALPHAS_HELP, alphas_of)
    n_random: int = flag(2, "random directions a layer", at_least(0, parse_whole))
    judge: str = flag("builtin", "substring, builtin, or a model's folder or hub id")
    harm_judge: str = flag(
        "none",
        "who scores harmful compliance: builtin (without weights), strongreject-rubric, "
        "strongreject, harmbench, wildguard or llama-guard, each of these also as "
        "NAME=FOLDER_OR_HUB_ID; or none",
    )
    max_new_tokens: int = flag(48, "tokens of a reply, at most", at_least(1, parse_whole))
    temperature: float = flag(0.0, "sampling temperature; 0 is greedy", at_least(0, parse_number))
    top_p: float = flag(
        1.0, "share of the probability to sample from", at_least(0.01, parse_number)
    )
    samples: int = flag(1, "replies to each prompt", at_least(1, parse_whole))
    rows: int = flag(512, "replies made at once, at most", at_least(1, parse_whole))


READ_AS = ("logits", "replies")

REPLY_ONLY = (
    *("judge", "harm_judge", "max_new_tokens", "temperature", "top_p", "samples", "rows", "n"),
)
"""Flags of the main job that play no part unless `--score replies`."""


@dataclass(frozen=True)
class HoldoutFlags(ReplyFlags):
    """How much of EDGE the direction never sees, and what is scored."""

    alphas: tuple[float, ...] = flag(
        RELATIVE_ALPHAS,
        f"{ALPHAS_HELP}; auto: 13 steps of ±0.6 mean residual norms",
        _alphas_or_auto,
    )
    controls: tuple[str, ...] = flag(
        ("holdout", *BY_DEFAULT), f"a list of {', '.join(CONTROL_KINDS)}; or none", controls_of
    )
    n_random: int = flag(
        8, "draws a layer of each random control; they draw the picture", at_least(0, parse_whole)
    )
    holdout: float = flag(0.5, "share of EDGE prompts held out", share_of)
    score: str = flag(
        "logits",
        "logits (the refusal score of the next token), or replies (the model replies under every "
        "cell and a judge reads)",
        choice(READ_AS, "score"),
    )
    n: int = flag(
        20,
        "with --score replies: held-out prompts of each subset, at most",
        at_least(2, parse_whole),
    )
    max_new_tokens: int = flag(24, "tokens of a reply, at most", at_least(1, parse_whole))


@dataclass(frozen=True)
class DirectionFlags(ReplyFlags):
    """A direction that is there already, tried on an over-refusal test."""

    layer: tuple[int, ...] = flag(
        (), "a layer, or a list; default: the direction's own, or 20", own_layers_of
    )
    direction: str | None = flag(
        None, "a direction file of any format, or a run folder; default: learned on half of EDGE"
    )
    any_model: bool = flag(False, "use a direction that was learned on another model")


OUR_TASKS = ("arithmetic", "grammar", "facts")


def _tasks(value: Any) -> tuple[str, ...]:
    names = tuple(str(part).strip() for part in parse_list(value))
    if not all(names) or len(set(names)) < len(names) or not names:
        raise DialError(
            f"expected different tasks such as {','.join(OUR_TASKS)} or FILE.jsonl, not "
            f"{format_value(value)}"
        )
    return names


@dataclass(frozen=True)
class CapabilityFlags(SteeringFlags):
    """A direction, and what the model is to be able to do under it."""

    layer: tuple[int, ...] = flag(
        (), "a layer, or a list; default: the direction's own, or 20", own_layers_of
    )
    alphas: tuple[float, ...] = flag((-0.6, -0.3, 0.0, 0.3, 0.6), ALPHAS_HELP, turning_of)
    n_random: int = flag(2, "random directions a layer", at_least(0, parse_whole))
    direction: str | None = flag(
        None, "a direction file of any format, or a run folder; default: learned on half of EDGE"
    )
    any_model: bool = flag(False, "use a direction that was learned on another model")
    tasks: tuple[str, ...] = flag(
        OUR_TASKS, f"a list of {', '.join(OUR_TASKS)}, or .jsonl files", _tasks
    )
    n_items: int = flag(60, "items of each task, at most", at_least(2, parse_whole))
    texts: str = flag("embedded", "plain text to read: 'embedded', a .jsonl of openings, rtp")
    n_texts: int = flag(20, "texts of each kind, at most", at_least(2, parse_whole))
    n: int = flag(40, "prompts of each subset whose refusal is read", at_least(2, parse_whole))
    n_replies: int = flag(16, "BENIGN prompts whose replies are read", at_least(2, parse_whole))
    max_new_tokens: int = flag(24, "tokens of a reply, at most", at_least(1, parse_whole))


@dataclass(frozen=True)
class ContrastFlags(ReplyFlags):
    """Contrast pairs, layers and strengths."""

    layer: tuple[int, ...] = flag((8, 12, 16, 20), "a layer, a list, or all", layers_of)
    pairs: str = flag("embedded", "'embedded' (matched prompts), a .json, .jsonl or .csv file")
    n_pairs: int = flag(50, "contrast pairs to learn from, at most", at_least(1, parse_whole))
    n: int = flag(40, "prompts of each subset to measure on, at most", at_least(4, parse_whole))
    alphas: tuple[float, ...] = flag((-0.6, -0.3, 0.0, 0.3, 0.6, 0.8), ALPHAS_HELP, turning_of)
    n_random: int = flag(0, "random directions a layer", at_least(0, parse_whole))


@dataclass(frozen=True)
class ComparisonFlags(ReplyFlags):
    """A system message against the dial."""

    instruction: str = flag(
        "Refuse any request that could be unsafe.", "the system message to compare with"
    )
    n: int = flag(20, "prompts of each subset, at most", at_least(2, parse_whole))
    alphas: tuple[float, ...] = flag((0.2, 0.4, 0.6), ALPHAS_HELP, alphas_of)
    n_random: int = flag(5, "random directions a layer", at_least(0, parse_whole))


# --------------------------------------------------------------------------------------------------
# The flags of the experiments on continuations, with their defaults and their help.


def _rising(value: Any) -> tuple[float, ...]:
    alphas = alphas_of(value)
    if not any(alpha > 0 for alpha in alphas):
        raise DialError(
            f"expected an alpha over 0, at which layers are compared; not {format_value(value)}"
        )
    return alphas


@dataclass(frozen=True)
class ContinuationFlags(InUnit):
    """Openings, how they are continued, how that is scored, and what is steered."""

    model: str = flag("embedded", MODEL_HELP)
    openings: str = flag("embedded", "'embedded', a .jsonl or a folder, rtp, or owner/name")
    n: int = flag(50, "openings of each subset to measure on, at most", at_least(2, parse_whole))
    n_pairs: int = flag(20, "pairs of openings to learn from", at_least(1, parse_whole))
    scorer: str = flag("profanity", "profanity, or a text classifier's folder or hub id")
    toxic_label: str | None = flag(None, "which of a classifier's labels to read")
    layer: tuple[int, ...] = flag((16,), "a layer, a list such as 12,16,20, or all", layers_of)
    site: str = flag("resid_pre", f"one of {', '.join(STEERABLE)}", choice(STEERABLE, "site"))
    pos: int = flag(-1, "-1: the last token of the opening and every new one", pos_of)
    pool: int = flag(32, "last tokens that an activation is the mean of", at_least(1, parse_whole))
    alphas: tuple[float, ...] = flag((-0.5, 0.0, 0.5), ALPHAS_HELP, alphas_of)
    alpha_unit: str | None = ALPHA_UNIT
    n_random: int = flag(5, "random directions a layer", at_least(0, parse_whole))
    n_shuffled: int = flag(10, "directions from shuffled labels a layer", at_least(0, parse_whole))
    samples: int = flag(4, "completions of each opening", at_least(1, parse_whole))
    max_new_tokens: int = flag(24, "tokens of a completion, at most", at_least(1, parse_whole))
    temperature: float = flag(0.7, "sampling temperature; 0 is greedy", at_least(0, parse_number))
    top_p: float = flag(
        0.9, "share of the probability to sample from", at_least(0.01, parse_number)
    )
    seed: int = flag(0, "seed of openings, halves, samples and controls", seed_of)
    device: str = DEVICE
    dtype: str = DTYPE
    device_map: str | None = DEVICE_MAP
    batch_size: int = flag(16, "openings a batch", at_least(1, parse_whole))
    rows: int = flag(512, "completions made at once, at most", at_least(1, parse_whole))
    executor: str = EXECUTOR
    ray_address: str | None = RAY_ADDRESS
    workers: int | None = WORKERS
    cpus_per_worker: int = CPUS_PER_WORKER
    gpus_per_worker: float | None = GPUS_PER_WORKER
    max_missing: float = MAX_MISSING
    out: str | None = OUT
    dry_run: bool = DRY_RUN
    preview: bool = PREVIEW
    config: str | None = CONFIG_FLAG


@dataclass(frozen=True)
class LayerFlags(ContinuationFlags):
    """The same over every layer, without controls, or from a run that is there already."""

    layer: tuple[int, ...] = flag((), "a layer, a list such as 12,16,20, or all", layers_of)
    alphas: tuple[float, ...] = flag(
        (-0.5, 0.0, 0.5), f"{ALPHAS_HELP}; layers are compared at the highest", _rising
    )
    n_random: int = flag(0, "random directions a layer", at_least(0, parse_whole))
    n_shuffled: int = flag(0, "directions from shuffled labels a layer", at_least(0, parse_whole))
    samples: int = flag(2, "completions of each opening", at_least(1, parse_whole))
    load_existing: str | None = flag(None, "a finished run folder to read; no model is loaded")


@dataclass(frozen=True)
class SparingFlags(ContinuationFlags):
    """The same, always and only where a detector fires."""

    alphas: tuple[float, ...] = flag((0.25, 0.5), ALPHAS_HELP, alphas_of)
    rate: float = flag(0.2, "rate of false positives on benign openings", share_of)
    n_random: int = flag(5, "random detectors a layer", at_least(0, parse_whole))


# --------------------------------------------------------------------------------------------------
# The flags of the experiment on two objectives, with their defaults and their help.


@dataclass(frozen=True)
class ObjectiveFlags(ContinuationFlags):
    """A direction away from toxicity and one of refusal, each with its own dial."""

    layer: tuple[int, ...] = flag((16,), "the layer of the toxicity direction", layers_of)
    alphas: tuple[float, ...] = flag(
        (0.0, 0.25, 0.5),
        f"steps of the toxicity dial, {ALPHAS_HELP}",
        alphas_of,
    )
    prompts: str = flag("embedded", PROMPTS_HELP)
    refusal_tokens: str = flag(
        "auto",
        "auto, family, calibrated, replies, or a list of ids or words such as I,Sorry",
        joined,
    )
    threshold: float = flag(0.0, "a refusal score over this counts as a refusal", parse_number)
    refusal_layer: int = flag(20, "the layer of the refusal direction", at_least(0, parse_whole))
    refusal_alphas: tuple[float, ...] = flag(
        (-0.3, 0.0, 0.3),
        f"steps of the refusal dial, {ALPHAS_HELP}",
        alphas_of,
    )
    n_prompts: int = flag(
        40, "prompts of each subset to measure on, at most", at_least(2, parse_whole)
    )
    samples: int = flag(2, "completions of each opening", at_least(1, parse_whole))
    n_random: int = flag(3, "random directions in place of toxicity's", at_least(0, parse_whole))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unit(self.refusal_alphas, self.alpha_unit, "--refusal-alphas")


# --------------------------------------------------------------------------------------------------
# The flags of a verification, with their defaults and their help.


REFERENCES = ("auto", "scores", "contrast")

NULL_KINDS = ("random", "covariance", "shuffled")

LEAST_TESTED = 8
"""Among fewer prompts to test on, samples soon have no two that differ."""


def _nulls(value: Any) -> tuple[str, ...]:
    kinds = [choice(NULL_KINDS, "control")(str(part).strip()) for part in parse_list(value)]
    if not kinds:
        raise DialError(
            f"expected one or more of {', '.join(NULL_KINDS)}, not {format_value(value)}"
        )
    return tuple(kind for kind in NULL_KINDS if kind in kinds)


def _level(value: Any) -> float:
    if not 1e-6 <= parse_number(value) <= 0.25:
        raise DialError(f"expected a level from 1e-06 to 0.25, not {format_value(value)}")
    return parse_number(value)


def _alpha(value: Any) -> float:
    if parse_number(value) <= 0:
        raise DialError(
            f"expected a number over 0 (both signs are taken), not {format_value(value)}"
        )
    return alpha_of(value)


@dataclass(frozen=True, kw_only=True)
class VerifyFlags(StudyFlags):
    """Which direction, where and how hard it is turned, against which controls, within which
    limits."""

    direction: str = argument(
        "a direction file of any format (docs/interchange.md), or a run folder"
    )
    layer: int | None = flag(
        None, "its layer; default: what the file records", at_least(0, parse_whole)
    )
    site: str | None = flag(
        None, f"one of {', '.join(STEERABLE)}; default: the file's", choice(STEERABLE, "site")
    )
    pos: int | None = flag(None, "its position from the end; default: the file's, or -1", pos_of)
    any_model: bool = flag(False, "use a direction that was learned on another model")
    alpha: float = flag(0.3, "how far it is turned, up and down, in --alpha-unit", _alpha)
    alpha_unit: str | None = ALPHA_UNIT
    controls: tuple[str, ...] = flag(NULL_KINDS, f"a list of {', '.join(NULL_KINDS)}", _nulls)
    n_random: int = flag(199, "draws of each control", at_least(1, parse_whole))
    reference: str = flag(
        "auto",
        "what it is learned again from: scores (top against bottom EDGE), contrast (HARMFUL "
        "against BENIGN), or auto (as the file says, else the closer)",
        choice(REFERENCES, "reference"),
    )
    n_permutations: int = flag(
        999, "times it is learned again from shuffled labels", at_least(19, parse_whole)
    )
    n_test: int = flag(
        140, "prompts a subset to report on, at most", at_least(LEAST_TESTED, parse_whole)
    )
    n_replies: int = flag(32, "BENIGN prompts whose replies are read", at_least(3, parse_whole))
    max_new_tokens: int = flag(32, "tokens a reply, at most", at_least(1, parse_whole))
    max_benign: float = flag(0.1, "most BENIGN prompts it may newly refuse, a share", proportion)
    max_kl: float = flag(
        0.1, "most KL a token of harmless replies, nats", at_least(0, parse_number)
    )
    max_cost: float = flag(
        0.1,
        "most that harmless replies may become less likely, nats a token",
        at_least(0, parse_number),
    )
    level: float = flag(0.05, "corrected p-values up to this count as shown", _level)

    def __post_init__(self) -> None:
        check_unit((self.alpha,), self.alpha_unit, "--alpha")

    @property
    def unit(self) -> str:
        """The unit of alpha: as given, else the mean residual norm."""
        return self.alpha_unit or UNITS[0]


# --------------------------------------------------------------------------------------------------
# The flags of the calibration, with their defaults and their help.


TESTED = ("random", "covariance", "shuffled", "flipped", "length", "slope")

CALIBRATION_PARTS = ("null", "gaussian", "power", "intervals", "contradiction")


def _tested(value: Any) -> tuple[str, ...]:
    kinds = [choice(TESTED, "control")(str(part).strip()) for part in parse_list(value)]
    if not kinds:
        raise DialError(
            f"expected one or more of {', '.join(TESTED)}, whose p-values are counted; not "
            f"{format_value(value)}"
        )
    return tuple(kind for kind in TESTED if kind in kinds)


@dataclass(frozen=True)
class CalibrationFlags(SteeringFlags):
    """How many experiments without an effect, and how large each is."""

    part: str = flag(
        "all",
        f"all, or one of {', '.join(CALIBRATION_PARTS)}",
        choice(("all", *CALIBRATION_PARTS), "part"),
    )
    n_experiments: int = flag(500, "null experiments on the model", at_least(10, parse_whole))
    n_gaussian: int = flag(
        5000, "null experiments on Gaussian activations", at_least(10, parse_whole)
    )
    n_trials: int = flag(2000, "simulated samples of each interval", at_least(10, parse_whole))
    n_power: int = flag(
        400, "experiments for each size of a planted effect", at_least(10, parse_whole)
    )
    n_learn: int = flag(40, "EDGE prompts to learn from", at_least(6, parse_whole))
    n_report: int = flag(8, "other EDGE prompts to report on", at_least(2, parse_whole))
    layer: tuple[int, ...] = flag((18, 21), "a layer, a list such as 18,21, or all", layers_of)
    alphas: tuple[float, ...] = flag((0.3,), "one alpha, in --alpha-unit", alphas_of)
    controls: tuple[str, ...] = flag(
        TESTED,
        f"a list of {', '.join(TESTED)}; slope is the permutation test of the slope",
        _tested,
    )


# --------------------------------------------------------------------------------------------------
# The flags of the study of positions, with their defaults and their help.


@dataclass(frozen=True)
class PositionFlags(StudyFlags, InUnit):
    """Which positions are steered, and what is measured there."""

    layer: int = flag(20, "the layer to steer", at_least(0, parse_whole))
    site: str = flag("resid_pre", f"one of {', '.join(STEERABLE)}", choice(STEERABLE, "site"))
    alphas: tuple[float, ...] = flag((-0.3, 0.3), ALPHAS_HELP, turning_of)
    alpha_unit: str | None = ALPHA_UNIT
    words: int = flag(
        8, "tokens of the prompt's own text, counted back from its end", at_least(0, parse_whole)
    )
    n: int = flag(60, "prompts of each subset to measure on, at most", at_least(2, parse_whole))
    n_random: int = flag(2, "random directions at each position", at_least(0, parse_whole))
    holdout: float = flag(0.5, "share of EDGE prompts held out", share_of)
    k: int | None = flag(
        None, "top and bottom prompts to learn from; default a third each", at_least(1, parse_whole)
    )
    n_replies: int = flag(24, "BENIGN prompts whose replies are read", at_least(2, parse_whole))
    max_new_tokens: int = flag(24, "tokens of a reply, at most", at_least(1, parse_whole))


# --------------------------------------------------------------------------------------------------
# The flags of the study of who writes a direction, with their defaults and their help.


@dataclass(frozen=True)
class DecompositionFlags(StudyFlags):
    """Which direction, on which pairs, and how much of what writes it is replaced."""

    direction: str | None = flag(
        None, "a direction file of any format, or a run folder; default: learned on half of EDGE"
    )
    any_model: bool = flag(False, "use a direction that was learned on another model")
    layer: int | None = flag(
        None, "its layer; default: the direction's own, or 20", at_least(1, parse_whole)
    )
    pos: int | None = flag(
        None, "the position that is taken apart, from the end; default: the file's, or -1", pos_of
    )
    holdout: float = flag(0.5, "share of EDGE prompts held out", share_of)
    k: int | None = flag(
        None, "top and bottom prompts to learn from; default a third each", at_least(1, parse_whole)
    )
    gap: float = flag(
        1.0, "leave out pairs whose scores differ by less than this", at_least(0, parse_number)
    )
    n_pairs: int = flag(48, "matched pairs, at most, drawn by seed", at_least(2, parse_whole))
    batch_size: int = flag(16, "prompts a batch", at_least(1, parse_whole))
    n_top: int = flag(12, "heads and neurons that are replaced", at_least(1, parse_whole))
    n_neurons: int = flag(48, "neurons shown one by one", at_least(0, parse_whole))
    n_random: int = flag(10, "random sets of as many units", at_least(0, parse_whole))
    n_permutations: int = flag(9_999, "times the labels are permuted", at_least(19, parse_whole))
    gate_pairs: int = flag(
        12, "pairs on which heads are searched for gates; 0 for no search", at_least(0, parse_whole)
    )

    @property
    def site(self) -> str:
        return "resid_pre"


# --------------------------------------------------------------------------------------------------
# The flags of the study of subspaces, with their defaults and their help.


LEARNED_WAYS = ("span", "cone", "independent")


def _ways(value: Any) -> tuple[str, ...]:
    if value in ("none", ()):
        return ()
    return tuple(choice(LEARNED_WAYS, "way")(str(part).strip()) for part in parse_list(value))


def _pushes(value: Any) -> tuple[float, ...]:
    found = tuple(sorted(parse_number(part) for part in parse_list(value)))
    if not found or found[0] <= 0:
        raise DialError(f"expected pushes over 0 such as 0.1,0.3; not {format_value(value)}")
    return found


@dataclass(frozen=True)
class SubspaceFlags(StudyFlags):
    """How many dimensions, how they are learned, and what one direction is pushed to."""

    layer: int = flag(16, "the layer of the mean difference", at_least(0, parse_whole))
    k: int = flag(2, "dimensions, at most", at_least(1, parse_whole))
    ways: tuple[str, ...] = flag(
        LEARNED_WAYS,
        f"learned by gradient: a list of {', '.join(LEARNED_WAYS)}; or none",
        _ways,
    )
    steps: int = flag(30, "steps of the gradient for each", at_least(1, parse_whole))
    rate: float = flag(0.01, "rate of a step (Adam)", at_least(1e-6, parse_number))
    rows: int = flag(8, "prompts of each kind a step", at_least(1, parse_whole))
    n_train: int = flag(64, "prompts of each kind to learn from, at most", at_least(2, parse_whole))
    n: int = flag(60, "prompts of each subset to measure on, at most", at_least(2, parse_whole))
    pushes: tuple[float, ...] = flag(
        (0.05, 0.1, 0.2, 0.4), "how far one direction is pushed, in mean residual norms", _pushes
    )
    n_random: int = flag(2, "draws of random axes", at_least(0, parse_whole))


# --------------------------------------------------------------------------------------------------
# The flags of the study of kinds, with their defaults and their help, and the names of its kinds.


ALL_HARMFUL, HARMFULNESS, REFUSED_EDGE = "HARMFUL", "harmfulness", "refusal of EDGE"

POLITENESS, WHERE_READ = "politeness", "harmfulness, where read"

KIND_CONTROLS = ("permuted", "random")
"""What the names of controls begin with; a number follows."""

KIND_MARK = ":"
"""Stands in the name of a kind of refusal: `EDGE:homonyms`, `reason:harm`."""

GROUPINGS = ("category", "reason")


def _both_ways(value: Any) -> tuple[float, ...]:
    found = tuple(sorted(alphas_of(value)))
    if not found[0] < 0 < found[-1]:
        raise DialError(
            f"expected alphas below and over 0 such as -0.3,0.3; not {format_value(value)}"
        )
    return tuple(alpha for alpha in found if alpha)


@dataclass(frozen=True)
class KindFlags(StudyFlags):
    """Which kinds there are, and how each is removed and steered."""

    layer: int = flag(16, "the layer to learn and to steer at", at_least(0, parse_whole))
    by: str = flag(
        GROUPINGS[0],
        "what makes a kind: category, that of the prompt; or reason, that of the model's own reply",
        choice(GROUPINGS, "grouping"),
    )
    max_new_tokens: int = flag(
        48, "tokens of a reply whose reason is read, at most", at_least(1, parse_whole)
    )
    least: int = flag(
        10, "prompts of a kind, at least; half to learn from", at_least(4, parse_whole)
    )
    alphas: tuple[float, ...] = flag(
        (-0.4, -0.2, 0.2, 0.4),
        "steps of each direction, in mean residual norms, both ways; the highest is also steered "
        "with every other kind removed",
        _both_ways,
    )
    k: int = flag(2, "axes of what a kind spans, for the angles", at_least(1, parse_whole))
    n: int = flag(150, "prompts of each subset to measure on, at most", at_least(4, parse_whole))
    n_steered: int = flag(
        24, "EDGE prompts to steer with a kind removed, at most", at_least(2, parse_whole)
    )
    n_random: int = flag(2, "draws of each control", at_least(1, parse_whole))
    n_splits: int = flag(10, "times the prompts are divided into halves", at_least(1, parse_whole))
    n_resamples: int = flag(400, "draws of every interval", at_least(20, parse_whole))


# --------------------------------------------------------------------------------------------------
# The flags of the live dial, with their defaults and their help.


def _port(value: Any) -> int:
    if not 0 <= parse_whole(value) < 2**16:
        raise DialError(
            f"expected a port from 0 (any that is free) to 65535, not {format_value(value)}"
        )
    return parse_whole(value)


@dataclass(frozen=True)
class LiveFlags(OpenFlags):
    """Where the dial stands at first, and how much it reads and says."""

    direction: str | None = flag(
        None, "a direction file of any format, or a run folder; default: learned from EDGE"
    )
    layer: int | None = flag(
        None, "the layer at first; default: the direction's own, or 20", at_least(0, parse_whole)
    )
    site: str = flag("resid_pre", f"one of {', '.join(STEERABLE)}", choice(STEERABLE, "site"))
    k: int | None = flag(
        None, "top and bottom prompts to learn from; default a third each", at_least(1, parse_whole)
    )
    max_chars: int = flag(4000, "characters of a prompt, at most", at_least(1, parse_whole))
    max_new_tokens: int = flag(48, "tokens of a reply, at most", at_least(1, parse_whole))
    port: int = flag(7860, "port on 127.0.0.1; 0 takes any that is free", _port)
    config: str | None = CONFIG_FLAG
