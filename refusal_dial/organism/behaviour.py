"""The embedded model's behaviour, as one value: everything that its card reports.

What is measured on held-out combinations uses fresh random requests; steering uses the prompts of
the experiments, half to learn the direction and half to judge it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refusal_dial.organism import grammar, measure, steering, system_prompts
from refusal_dial.organism.grammar import BENIGN, EDGE, HARMFUL
from refusal_dial.organism.tokenizer import chat_text

STEERED_LAYERS = (12, 20)
ALPHAS = (-0.8, -0.6, -0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
SHOWN_ALPHAS = (-0.6, 0.0, 0.6)


@dataclass(frozen=True)
class Refusals:
    """P(refusal) on a set of prompts: its mean, and the share of prompts over one half."""

    mean: float
    over_half: float


@dataclass(frozen=True)
class Behaviour:
    """Everything the card reports."""

    held_out: dict[str, Refusals]
    edge_correlation: float
    all_correlation: float
    category_correlation: dict[str, float]
    loss: float
    system: list[tuple[str, str, dict[str, Refusals], float]]
    tone: steering.Tone
    steering: list[steering.Steering]
    completions: list[tuple[int, float, str, str]]


def refusals(chances: np.ndarray) -> Refusals:
    """Mean and share over one half."""
    return Refusals(float(chances.mean()), float((chances > 0.5).mean()))


def measure_behaviour(model: Any, tokenizer: Any, prompts: Path, count: int = 600) -> Behaviour:
    """Measure on random held-out requests; steer on the prompts of the experiments."""
    asked = {subset: measure.held_out_requests(subset, count) for subset in grammar.SUBSETS}
    texts = {subset: [item.text for item in items] for subset, items in asked.items()}
    chances = {subset: measure.refusal_chance(model, tokenizer, texts[subset]) for subset in texts}
    designed = {
        subset: np.array([item.combination.propensity for item in items])
        for subset, items in asked.items()
    }
    categories = np.array([item.combination.category for item in asked[EDGE]])
    rows = [json.loads(line) for line in prompts.read_text(encoding="utf-8").splitlines()]
    shipped = {s: [row["text"] for row in rows if row["subset"] == s] for s in grammar.SUBSETS}
    checks = [
        steering.steering_check(
            model, tokenizer, shipped[EDGE], shipped[HARMFUL], shipped[BENIGN], layer, ALPHAS
        )
        for layer in STEERED_LAYERS
    ]
    return Behaviour(
        held_out={subset: refusals(chances[subset]) for subset in grammar.SUBSETS},
        edge_correlation=measure.correlation(chances[EDGE], designed[EDGE]),
        all_correlation=measure.correlation(
            np.concatenate(list(chances.values())), np.concatenate(list(designed.values()))
        ),
        category_correlation={
            name: measure.correlation(
                chances[EDGE][categories == name], designed[EDGE][categories == name]
            )
            for name in sorted(grammar.CATEGORY_BASE)
        },
        loss=measure.held_out_loss(model, tokenizer),
        system=[
            (sort, prompt, *_under_system(model, tokenizer, texts, designed[EDGE], prompt))
            for sort, prompt in _system_prompts()
        ],
        tone=steering.tone_check(model, tokenizer),
        steering=checks,
        completions=_completions(model, tokenizer, shipped, checks),
    )


def _system_prompts() -> list[tuple[str, str]]:
    return [
        ("refusing, trained", system_prompts.MAIN_REFUSING),
        ("refusing, trained", system_prompts.SHORT_REFUSING[0]),
        *(("refusing, held out", text) for text in system_prompts.REFUSING_HELD_OUT),
        ("neutral, trained", system_prompts.MAIN_NEUTRAL),
        *(("neutral, held out", text) for text in system_prompts.NEUTRAL_HELD_OUT),
    ]


def _under_system(
    model: Any,
    tokenizer: Any,
    texts: dict[str, list[str]],
    designed: np.ndarray,
    prompt: str,
    count: int = 150,
) -> tuple[dict[str, Refusals], float]:
    found = {
        subset: measure.refusal_chance(model, tokenizer, items[:count], prompt)
        for subset, items in texts.items()
    }
    agreement = measure.correlation(found[EDGE], designed[:count])
    return {subset: refusals(chances) for subset, chances in found.items()}, agreement


def _completions(
    model: Any, tokenizer: Any, shipped: dict[str, list[str]], checks: list[steering.Steering]
) -> list[tuple[int, float, str, str]]:
    asked = [shipped[HARMFUL][40], *shipped[EDGE][20:260:80], shipped[BENIGN][20]]
    found = []
    for check in checks:
        for alpha in SHOWN_ALPHAS:
            shift = (check.layer, alpha * check.residual_norm * check.direction)
            answers = steering.complete(
                model, tokenizer, [chat_text(text) for text in asked], shift=shift
            )
            found += [(check.layer, alpha, *pair) for pair in zip(asked, answers, strict=True)]
    return found
