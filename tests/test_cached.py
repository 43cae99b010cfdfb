"""Passes that remember what they read have the logits of passes that read it all again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_dial.generate.decode import CachedBatch, forward, prefill, row_hooks, runner_of
from refusal_dial.hooks import steer
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
    runner = runner_of(qwen, part.grid)
    with torch.no_grad():
        mask, cache, logits = prefill(qwen, runner, part, rows, cells)
        torch.testing.assert_close(logits, last_logits(qwen, tokens, hooks), rtol=1e-4, atol=1e-4)
        new = torch.full((len(texts), 1), token)
        mask = torch.cat([mask, torch.ones_like(new)], 1)
        with qwen.hooks(fwd_hooks=row_hooks(part.grid, cells, rows)):
            after = forward(runner, new, mask, cache)
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
        _, _, logits = prefill(qwen, runner_of(qwen, grid), part, prompts, cells)
    for c, cell in enumerate(grid):
        alone = last_logits(qwen, tokens, cell)
        torch.testing.assert_close(logits[cells == c], alone, rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(logits[cells == 0], logits[cells == 1])
