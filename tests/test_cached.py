"""Passes that remember what they read have the logits of passes that read it all again."""

from __future__ import annotations

import pytest
import torch
from architectures import CONFIGS, bridge, fresh, prompts
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_dial.common import hook_name
from refusal_dial.generate.decode import CachedBatch, Roomy, prefill, row_hooks, runner_of
from refusal_dial.hooks import ablate, patch, steer
from refusal_dial.model.tokens import Tokens, last_logits, tokenize

UNIT = torch.nn.functional.normalize(torch.arange(1.0, 33.0), dim=0)


def longer(tokens, new):
    """The prompts with a token more each."""
    ids = torch.cat([tokens.ids, torch.tensor(new)[:, None]], 1)
    return Tokens(ids, torch.cat([tokens.mask, torch.ones(len(new), 1, dtype=torch.long)], 1))


@given(
    texts=st.lists(st.text("ab \n", min_size=1, max_size=8), min_size=1, max_size=3),
    alpha=st.sampled_from([0.0, 3.0]),
    pos=st.sampled_from([-1, "all"]),
    token=st.integers(5, 200),
)
@settings(max_examples=20, deadline=None)
def test_the_prompt_and_a_token_after_it_have_the_logits_of_one_pass(
    qwen, texts, alpha, pos, token
):
    tokens = tokenize(qwen, texts)
    hooks = [steer(UNIT, alpha, layer=1, pos=pos)] if alpha else []
    rows, cells = torch.arange(len(texts)), torch.zeros(len(texts), dtype=torch.long)
    part = CachedBatch(tokens, rows, [hooks])
    runner = runner_of(qwen, tokens, part.grid)
    with torch.no_grad():
        mask, cache, logits = prefill(runner, part, rows, cells)
        torch.testing.assert_close(logits, last_logits(qwen, tokens, hooks), rtol=1e-4, atol=1e-4)
        new = torch.full((len(texts), 1), token)
        mask = torch.cat([mask, torch.ones_like(new)], 1)
        after = runner.logits(new, mask, cache, row_hooks(part.grid, cells, rows))
    whole = longer(tokens, [token] * len(texts))
    again = [steer(UNIT, alpha, layer=1, pos=(-2, -1) if pos == -1 else pos)] if alpha else []
    torch.testing.assert_close(after, last_logits(qwen, whole, again), rtol=1e-4, atol=1e-4)


def test_cells_share_what_stands_before_the_edit(qwen):
    """Rows of several cells, with one prompt read once, are the rows of each cell alone."""
    tokens = tokenize(qwen, ["a", "a longer one"])
    grid = [[], [steer(UNIT, 3.0, layer=1, pos=-1)], [steer(UNIT, -3.0, layer=0, pos=-1)]]
    prompts, cells = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 2, 0, 1, 2])
    part = CachedBatch(tokens, torch.arange(2), grid)
    with torch.no_grad():
        _, _, logits = prefill(runner_of(qwen, tokens, grid), part, prompts, cells)
    for c, cell in enumerate(grid):
        alone = last_logits(qwen, tokens, cell)
        torch.testing.assert_close(logits[cells == c], alone, rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(logits[cells == 0], logits[cells == 1])


SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z")


@pytest.mark.parametrize("architecture", CONFIGS)
def test_without_hook_points_every_site_is_edited_as_in_the_bridge(architecture, caplog):
    """By SDPA, wherever it fits: a soft cap does not, and a trial finds out what else."""
    model, tokens = bridge(architecture), prompts((6, 4, 2), seed=3)
    here = [site for site in SITES if hook_name(site, 1) in model.hook_dict]
    for site in here:
        unit = torch.nn.functional.normalize(torch.arange(1.0, 33.0), dim=0)
        one = patch(unit[:8], layer=1, site=site, head=1, pos=-1) if site == "z" else None
        grid = [[one or steer(unit, 4.0, layer=1, site=site, pos=-1)], [ablate(unit, layer=0)]]
        with caplog.at_level("INFO", "refusal_dial"):
            runner = runner_of(model, tokens, grid)
        assert (runner.alone is None) == (architecture == "Gemma2")
        part = CachedBatch(tokens, torch.arange(3), grid)
        rows, cells = torch.arange(6) % 3, torch.arange(6) // 3
        with torch.no_grad():
            _, _, logits = prefill(runner, part, rows, cells)
        for c, cell in enumerate(grid):
            plain = last_logits(model, tokens, cell)
            torch.testing.assert_close(logits[cells == c], plain, rtol=1e-4, atol=1e-4)
    assert ("its attention has a soft cap" in caplog.text) == (architecture == "Gemma2")


def test_what_decodes_is_the_bridge_where_hooks_are_not_edits_or_are_attached():
    model, tokens = fresh("Qwen2"), prompts((4, 3))
    own = [(hook_name("resid_pre", 1), lambda activation, hook: None)]
    assert runner_of(model, tokens, [[]]).alone is not None
    assert runner_of(model, tokens, [own]).alone is None
    with model.hooks(fwd_hooks=own):
        assert runner_of(model, tokens, [[]]).alone is None


def test_keys_grow_into_their_room_and_are_those_of_a_plain_cache():
    """Through additions, a choice of rows, and more tokens than there was room for."""
    from transformers.cache_utils import DynamicLayer

    g = torch.Generator().manual_seed(0)
    ours, plain = Roomy(2), DynamicLayer()
    for new, rows in ((3, None), (1, [2, 0]), (1, None), (1, None), (2, [1]), (1, None)):
        n = 3 if plain.keys is None else len(plain.keys)
        if rows is not None:
            for one in (ours, plain):
                one.batch_select_indices(torch.tensor(rows))
            n = len(rows)
        key, value = torch.randn(2, n, 2, new, 4, generator=g)
        for mine, other in zip(ours.update(key, value), plain.update(key, value), strict=True):
            assert torch.equal(mine, other)
    assert ours.get_seq_length() == 9
    held = ours.keys
    ours.update(key, value)
    assert ours.keys.data_ptr() == held.data_ptr()
