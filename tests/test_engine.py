"""score_grid: one law (the engine is the plain forward pass under hooks), and what it does where
that cannot be had."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from architectures import CONFIGS, MIXTURES, bridge, fresh, prompts
from grids import TOKENS, UNIT, add_one, logprob, messages, mixed_grid, plain
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import DialError, Hook, hook_name
from refusal_dial.engine import replay
from refusal_dial.engine.score import residual_grid, score_grid
from refusal_dial.hooks import ablate, ablate_subspace, affine, clamp, patch, rotate, steer
from refusal_dial.model.loading import load_model, sites_in
from refusal_dial.model.tokens import Tokens
from refusal_dial.scoring.logits import LogitDiff

LAW = settings(
    max_examples=5,  # for each of the architectures
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def logits_of(
    model: TransformerBridge, tokens: Tokens, grid: Sequence[Sequence[Hook]], **how: Any
) -> list[Tensor]:
    """What the scorer is given, cell by cell, through the engine."""
    seen: list[Tensor] = []

    def scorer(logits: Tensor) -> Tensor:
        seen.append(logits)
        return torch.full((len(logits),), len(seen) - 1.0, dtype=torch.float64)

    rows = score_grid(model, tokens, grid, scorer, **how)
    return [seen[int(row[0])] for row in rows]


def sites(model: TransformerBridge) -> list[str]:
    return list(sites_in(model))


@st.composite
def hooks(draw: st.DrawFn, model: TransformerBridge, tokens: Tokens) -> Hook:
    """Any edit: add, ablate, clamp, rotate or patch, at any site, layer, head, neuron, position."""
    batch, length = tokens.ids.shape
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    site = draw(st.sampled_from(sites(model)))
    layer = draw(st.integers(0, len(model.blocks) - 1))
    position = st.integers(-length, -1)
    pos = draw(
        st.one_of(
            st.just(-1),
            position,
            st.lists(position, min_size=1, max_size=4, unique=True).map(tuple),
            st.tuples(position, position).map(lambda p: slice(min(p), max(p))),
            st.sampled_from(["all", "prompt", "last_prompt", "generated"]),
            st.lists(position, min_size=batch, max_size=batch).map(torch.tensor),
        )
    )
    where: dict[str, Any] = {"layer": layer, "site": site, "pos": pos}
    width = 32
    if site == "z":
        where["head"], width = draw(st.integers(0, 3)), 8
    if site == "mlp_post":
        where["neuron"], width = draw(st.integers(0, 40)), 1
    rows = draw(st.sampled_from([(), (batch,)]))
    value = torch.randn(*rows, width, generator=generator)
    if width < 32:
        return patch(value, **where)
    unit = value / value.norm(dim=-1, keepdim=True)
    alpha: Any = draw(st.sampled_from([-3.0, 0.5, 4.0]))
    if rows:
        alpha = torch.tensor(
            draw(st.lists(st.sampled_from([0.0, 2.0]), min_size=batch, max_size=batch))
        )
    kinds = [
        lambda: steer(unit, alpha, **where),
        lambda: patch(value, **where),
        lambda: ablate(unit if unit.ndim == 1 else unit[0], **where),
        lambda: clamp(unit if unit.ndim == 1 else unit[0], 1.5, **where),
        lambda: rotate(unit, 40.0, **where),
    ]
    return draw(st.sampled_from(kinds))()


@st.composite
def grids(draw: st.DrawFn, model: TransformerBridge) -> tuple[Tokens, list[list[Hook]]]:
    """Prompts of mixed lengths, and cells: none, one or several edits, or a user's own function."""
    lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=3).map(tuple))
    if max(lengths) == 1:  # read as a decoding step by some positions
        lengths = (*lengths, 2)
    tokens = prompts(lengths, draw(st.integers(0, 9)))
    one = hooks(model, tokens)
    cells = draw(st.lists(st.lists(one, max_size=3), min_size=2, max_size=4))
    if draw(st.booleans()):
        cells.append([(hook_name("resid_pre", 1), add_one), *cells[0]])
    if draw(st.booleans()):  # many cells at one place, which run stacked
        cells += [[draw(one)]] * 2
    return tokens, cells


def agrees(model: TransformerBridge, tokens: Tokens, grid: list[list[Hook]]) -> None:
    for cell, logits in zip(grid, logits_of(model, tokens, grid), strict=True):
        expected = plain(model, tokens, cell)
        torch.testing.assert_close(
            logits, expected, atol=1e-4, rtol=0, msg=lambda m, c=cell: f"{c}: {m}"
        )
        torch.testing.assert_close(logprob(logits), logprob(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_engine_is_the_plain_forward_pass(
    architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = bridge(architecture)

    @LAW
    @given(grids(model))
    def law(drawn: tuple[Tokens, list[list[Hook]]]) -> None:
        agrees(model, *drawn)

    with caplog.at_level(logging.INFO, "refusal_dial"):
        law()
    messages = [record.message for record in caplog.records]
    assert all("hook of one's own" in message for message in messages), messages


def stream_into(
    model: TransformerBridge, tokens: Tokens, cell: Sequence[Hook], layer: int
) -> Tensor:
    """The residual stream entering a layer at the last token, by TransformerLens itself."""
    seen: list[Tensor] = []
    name = hook_name("resid_pre", layer)
    plain(model, tokens, [*cell, (name, lambda activation, hook: seen.append(activation[:, -1]))])
    return seen[0]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_what_enters_a_layer_is_that_of_the_plain_forward_pass(architecture: str) -> None:
    model = bridge(architecture)

    @LAW
    @given(grids(model), st.integers(0, len(model.blocks) - 1))
    def law(drawn: tuple[Tokens, list[list[Hook]]], layer: int) -> None:
        tokens, grid = drawn
        seen: list[Tensor] = []

        def reader(stream: Tensor) -> Tensor:
            seen.append(stream)
            return torch.full((len(stream),), len(seen) - 1.0, dtype=torch.float64)

        rows = residual_grid(model, tokens, grid, reader, layer=layer)
        for cell, row in zip(grid, rows, strict=True):
            expected = stream_into(model, tokens, cell, layer)
            torch.testing.assert_close(seen[int(row[0])], expected, atol=1e-4, rtol=1e-4)

    law()


def test_a_layer_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(DialError, match="layer 9 is out of range: this model has layers 0 to 2"):
        residual_grid(bridge("Qwen2"), TOKENS, [[]], lambda stream: stream[:, 0], layer=9)


@pytest.mark.parametrize("site", ["resid_pre", "attn_out"])
def test_edits_of_subspaces_are_the_plain_forward_pass_under_all_their_hooks(site: str) -> None:
    """At one place, and at every layer; two of a kind, so that they run stacked."""
    model = bridge("Qwen2")
    generator = torch.Generator().manual_seed(5)
    units = torch.nn.functional.normalize(torch.randn(3, 32, generator=generator), dim=-1)
    mean = torch.randn(32, generator=generator)
    places: list[dict[str, Any]] = [{"layer": 1, "site": site, "pos": pos} for pos in (-1, "all")]
    grid = [[], *(ablate_subspace(units[:k], **at) for at in places for k in (1, 2, 3))]
    grid += [affine(units[:k], mean, **at) for at in places for k in (1, 3)]
    grid += [[hook for n in range(3) for hook in ablate_subspace(units, layer=n, site=site)]]
    grid += [[rotate(one, 30.0, **at)] for at in places for one in units]
    agrees(model, TOKENS, grid)
    assert len({round(float(logits[0, 7]), 5) for logits in logits_of(model, TOKENS, grid)}) > 12


def real_grid(model: TransformerBridge) -> list[list[Hook]]:
    generator = torch.Generator().manual_seed(0)
    layers = len(model.blocks)
    v = torch.nn.functional.normalize(
        torch.randn(int(model.cfg.d_model), generator=generator), dim=0
    )
    z = torch.randn(int(model.cfg.d_head), generator=generator)
    middle = layers // 2
    return [
        [],
        *([steer(v, 3.0, layer=layer, pos=-1)] for layer in (0, middle, layers - 1)),
        *([patch(v, layer=1, site=site, pos=(-3, -2))] for site in ("attn_out", "mlp_out")),
        [patch(z, layer=middle, site="z", head=1, pos=-1)],
        [ablate(v, layer=layer) for layer in range(layers)],
    ]


def check_real(model: TransformerBridge, caplog: pytest.LogCaptureFixture) -> None:
    ids = torch.randint(
        3, int(model.cfg.d_vocab), (3, 9), generator=torch.Generator().manual_seed(1)
    )
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    with caplog.at_level(logging.INFO, "refusal_dial"):
        agrees(model, Tokens(ids, mask), real_grid(model))
    assert not [r for r in caplog.records if "plain" in r.message]


def test_stories260k(shared: Any, caplog: pytest.LogCaptureFixture) -> None:
    if not (shared / "models" / "stories260K").is_dir():
        pytest.skip("stories260K is not in the shared models")
    check_real(load_model(str(shared / "models" / "stories260K"), device="cpu"), caplog)


def test_the_embedded_model(embedded: TransformerBridge, caplog: pytest.LogCaptureFixture) -> None:
    check_real(embedded, caplog)


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"])
def test_an_edit_that_changes_nothing_scores_as_the_unsteered_cell_bit_for_bit(
    engine: str, site: str
) -> None:
    model = bridge("Qwen2")
    grid = [
        [],
        [steer(UNIT, 0.0, layer=1, site=site)],
        [steer(UNIT, 0.0, layer=0, site=site, pos=-1), steer(UNIT, 0.0, layer=2, site=site)],
        [steer(UNIT, 2.0, layer=1, site=site, pos=-5)],
    ]
    scores = score_grid(model, TOKENS, grid, logprob, engine=engine)
    assert torch.equal(scores[1], scores[0])
    assert torch.equal(scores[2], scores[0])
    assert scores[3, 0] != scores[0, 0]
    assert scores[3, 1] == scores[0, 1]  # that position is padding in the short prompt


def test_an_unknown_engine_is_named_with_the_choices() -> None:
    with pytest.raises(DialError, match="unknown engine 'plane': did you mean 'plain'"):
        score_grid(bridge("Qwen2"), TOKENS, [[]], logprob, engine="plane")


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (steer(UNIT, 1.0, layer=9), "layer 9 is out of range: this model has layers 0 to 2"),
        (steer(UNIT, 1.0, layer=0, pos=-7), "position -7 is outside a prompt of 6 tokens"),
    ],
)
@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_hooks_that_do_not_fit_the_prompts_or_the_model(
    hook: Hook, message: str, engine: str
) -> None:
    with pytest.raises(DialError, match=message):
        score_grid(bridge("Qwen2"), TOKENS, [[hook]], logprob, engine=engine)


def test_a_site_the_architecture_lacks() -> None:
    with pytest.raises(DialError, match="has no site 'resid_mid'"):
        score_grid(
            bridge("GPTNeoX"), TOKENS, [[steer(UNIT, 1.0, layer=0, site="resid_mid")]], logprob
        )


def test_no_cells() -> None:
    assert score_grid(bridge("Qwen2"), TOKENS, [], logprob).shape == (0, 3)


def test_the_log_says_once_what_runs_plain(caplog: pytest.LogCaptureFixture) -> None:
    model = fresh("Qwen2")
    cell: list[Hook] = [(hook_name("resid_pre", 1), add_one)]
    with caplog.at_level(logging.INFO, "refusal_dial"):
        for _ in range(2):
            scores = score_grid(model, TOKENS, [cell, cell, []], logprob)
    expected = logprob(plain(model, TOKENS, cell))
    torch.testing.assert_close(scores[0], expected, atol=1e-5, rtol=0)
    assert len(messages(caplog)) == 1
    assert "a hook of one's own at blocks.1.hook_resid_pre" in messages(caplog)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scorer_that_reads_few_tokens_has_the_scores_of_all_logits(dtype: torch.dtype) -> None:
    """Of these tokens alone is unembedded, also where SDPA records the trunk."""
    model, scorer = fresh("Llama").to(dtype), LogitDiff((40, 41), (50,))
    grid = [[], *([steer(UNIT, a, layer=1, pos=-1)] for a in (2.0, -9.0))]
    engine = score_grid(model, TOKENS, grid, scorer)
    expected = torch.stack([scorer(plain(model, TOKENS, cell)) for cell in grid])
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(engine, expected, atol=tolerance, rtol=0)
    assert (engine - engine[0]).abs().max() > 3 * tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_number_formats(dtype: torch.dtype) -> None:
    model, grid = fresh("Qwen2").to(dtype), mixed_grid()
    engine = score_grid(model, TOKENS, grid, logprob)
    expected = torch.stack([logprob(plain(model, TOKENS, cell)) for cell in grid])
    tolerance = 0.1 if dtype == torch.bfloat16 else 0.02
    torch.testing.assert_close(engine, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    "architecture", [name for name in CONFIGS if name not in ("Olmo2", *MIXTURES)]
)
def test_in_half_precision_a_grid_without_patches_is_recorded_by_sdpa(
    architecture: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Scores are the plain ones within rounding; with a patch the trunk is the bridge's own, so
    that a patch of the run with itself is the unsteered score, bit for bit. (The bridge of OLMo2
    cannot be cast to half precision; of mixtures see test_mixtures.)"""
    model, recorded = fresh(architecture).to(torch.bfloat16), list[bool]()
    _, kept = model.run_with_cache(TOKENS.ids, attention_mask=TOKENS.mask)
    unsteered = patch(kept[hook_name("resid_pre", 1)][:, -1], layer=1, pos=-1)
    record = replay.record_run

    def watched(*args: Any) -> Any:
        recorded.append(args[-1] is not None)
        return record(*args)

    monkeypatch.setattr(replay, "record_run", watched)
    grid = [[], *([steer(UNIT, a, layer=n, pos=-1)] for a in (1.0, 2.0) for n in (0, 1))]
    with caplog.at_level(logging.INFO, "refusal_dial"):
        scores = score_grid(model, TOKENS, grid, logprob)
    expected = torch.stack([logprob(plain(model, TOKENS, cell)) for cell in grid])
    torch.testing.assert_close(scores, expected, atol=0.15, rtol=0)
    capped = architecture == "Gemma2"  # SDPA knows no soft cap
    assert recorded == [not capped]
    assert messages(caplog) == []
    again = score_grid(model, TOKENS, [[], [unsteered]], logprob)
    assert torch.equal(again[0], again[1])
    assert recorded[1:] == [False]


def test_a_single_token_is_read_as_a_decoding_step() -> None:
    model, one = bridge("Qwen2"), prompts((1, 1))
    grid = [[], [steer(UNIT, 2.0, layer=1, pos="last_prompt")], [steer(UNIT, 2.0, layer=1, pos=-1)]]
    scores = score_grid(model, one, grid, logprob)
    expected = torch.stack([logprob(plain(model, one, cell)) for cell in grid])
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    assert torch.equal(scores[1], scores[0])
