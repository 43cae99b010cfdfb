"""A grid that does not fit is refused before anything runs, by both engines, generation and plain
TransformerLens alike; one that fits is not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import CONFIGS, bridge
from grids import TOKENS, UNIT, add_one, logprob, mixed_grid, plain
from unchecked import unchecked

from refusal_dial.common import DialError, Hook, hook_name
from refusal_dial.engine.score import check_grid, score_grid, shape_of
from refusal_dial.generate.decode import Decoding, follow, generate, stream
from refusal_dial.hooks import ablate, clamp, patch, steer
from refusal_dial.model.loading import sites_in

ONE = {"layer": 1, "pos": -1}
MISFITS: list[tuple[Callable[[], Hook], str]] = [
    (
        lambda: patch(torch.ones(1), site="mlp_post", neuron=-1, **ONE),
        "neuron -1 is out of range: mlp_post of layer 1 has neurons 0 to 47",
    ),
    (
        lambda: patch(torch.ones(1), site="mlp_post", neuron=48, **ONE),
        "neuron 48 is out of range: mlp_post of layer 1 has neurons 0 to 47",
    ),
    (
        lambda: patch(torch.ones(8), site="z", head=4, **ONE),
        "head 4 is out of range: z of layer 1 has heads 0 to 3",
    ),
    (lambda: patch(torch.ones(8), site="z", head=-1, **ONE), "head -1 is out of range"),
    (
        lambda: patch(torch.ones(32), site="z", head=0, **ONE),
        "z of layer 1: expected a vector of width 8, not 32",
    ),
    (
        lambda: patch(torch.ones(32), site="mlp_post", **ONE),
        "expected a vector of width 48, not 32",
    ),
    (
        lambda: patch(torch.ones(2), site="mlp_post", neuron=0, **ONE),
        "expected a vector of width 1, not 2",
    ),
    (lambda: steer(torch.ones(1), 1.0, layer=1), "expected a vector of width 32, not 1"),
    (lambda: ablate(torch.ones(1), layer=1), "expected a vector of width 32, not 1"),
    (lambda: clamp(torch.ones(1), 0.0, layer=1), "expected a vector of width 32, not 1"),
    (lambda: patch(torch.ones(33), layer=1), "expected a vector of width 32, not 33"),
    (
        lambda: steer(UNIT, torch.ones(2), layer=1),
        "expected one vector or alpha, or one for each of 3 prompts: (2, 32)",
    ),
    (lambda: patch(torch.ones(1, 32), layer=1), "one for each of 3 prompts: (1, 32)"),
    (
        lambda: patch(torch.ones(3, 2, 32), layer=1, pos=(-1, -2, -3)),
        "expected a vector for each of the 3 positions of pos: (3, 2, 32)",
    ),
    (
        lambda: steer(UNIT, 1.0, layer=1, pos=torch.tensor([-1, -2])),
        "pos holds 2 positions for 3 prompts",
    ),
    (
        lambda: steer(UNIT, 1.0, layer=1, pos=torch.tensor([-1, -2, -99])),
        "position -99 is outside a prompt of 6 tokens",
    ),
    (
        lambda: steer(UNIT, 1.0, layer=1, pos=torch.tensor([-1, 6, -2])),
        "position 6 is outside a prompt of 6 tokens",
    ),
]
RUNS: dict[str, Callable[[Any, Hook], object]] = {
    "auto": lambda model, hook: score_grid(model, TOKENS, [[], [hook]], logprob),
    "plain": lambda model, hook: score_grid(model, TOKENS, [[hook]], logprob, engine="plain"),
    "generate": lambda model, hook: generate(model, TOKENS, [[], [hook]], Decoding(2)),
    "follow": lambda model, hook: next(follow(model, TOKENS, [hook], [[1], [2], [3]])),
    "TransformerLens": lambda model, hook: plain(model, TOKENS, [hook]),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize(("make", "message"), MISFITS)
def test_what_does_not_fit_is_named_wherever_it_runs(
    make: Callable[[], Hook], message: str, run: Callable[[Any, Hook], object]
) -> None:
    with pytest.raises(DialError, match=re.escape(message)):
        run(bridge("Qwen2"), make())


def test_a_stream_asks_too() -> None:
    hook = patch(torch.ones(32), site="z", head=0, **ONE)  # type: ignore[arg-type]
    with pytest.raises(DialError, match="expected a vector of width 8"):
        next(stream(bridge("Qwen2"), TOKENS.rows(0, 1), [hook], 2))


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_predicted_shapes_are_those_that_hooks_see(architecture: str) -> None:
    model, seen = bridge(architecture), {}

    def keep(site: str) -> Callable[[torch.Tensor, object], None]:
        return lambda activation, hook: seen.update({site: tuple(activation.shape)})

    sites = sites_in(model)
    plain(model, TOKENS, [(hook_name(site, 1), keep(site)) for site in sites])
    assert seen == {site: shape_of(model, TOKENS, site) for site in sites}


def test_what_fits_is_let_through() -> None:
    rows = torch.tensor([-1, -6, 5])
    fitting = [
        patch(torch.ones(1), site="mlp_post", neuron=47, **ONE),  # type: ignore[arg-type]
        patch(torch.ones(8), site="z", head=3, **ONE),  # type: ignore[arg-type]
        patch(torch.ones(3, 2, 32), layer=1, pos=(-1, -2)),
        patch(torch.ones(3, 1, 32), layer=1, pos=rows),
        steer(UNIT, torch.ones(3), layer=1, pos=rows),
        (hook_name("resid_pre", 1), add_one),
        ("blocks.1.attn.hook_q", steer(torch.ones(1), 1.0, layer=1)[1]),  # at a place of one's own
    ]
    check_grid(bridge("Qwen2"), TOKENS, [*mixed_grid(), *([hook] for hook in fitting)])
    check_grid(bridge("Qwen2"), TOKENS, [tuple(fitting)])


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([steer(UNIT, 1.0, layer=1)], "cell 1 of the grid is a hook, and a cell is a list of"),
        ([[], steer(UNIT, 1.0, layer=1)], "cell 2 of the grid is a hook"),
        (steer(UNIT, 1.0, layer=1), "cell 1 of the grid is a str"),
        ([None], "cell 1 of the grid is a NoneType"),
        (
            [[[steer(UNIT, 1.0, layer=1)]]],
            r"cell 1 of the grid holds a list, .* join lists .* by \+",
        ),
        ([["blocks.1.hook_resid_pre"]], "cell 1 of the grid holds a str"),
        ([[add_one]], r"cell 1 of the grid holds a function, .* a pair \(name, function\)"),
    ],
)
def test_a_grid_is_a_list_of_lists_of_hooks(grid: Any, message: str) -> None:
    with pytest.raises(DialError, match=message):
        unchecked("engine/score").check_grid(bridge("Qwen2"), TOKENS, grid)


@pytest.mark.parametrize("prompts", [TOKENS.ids, ["Hi"], "Hi"])
def test_ids_without_their_mask_are_no_tokens(prompts: Any) -> None:
    with pytest.raises(DialError, match=r"expected Tokens .* as tokenize\(model, prompts\) gives"):
        unchecked("engine/score").check_grid(bridge("Qwen2"), prompts, [[]])
