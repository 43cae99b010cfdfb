"""A grid gives the same rows whatever the batch, the memory and the neighbours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import CONFIGS, bridge
from grids import TOKENS, UNIT, logprob, mixed_grid, plain
from torch import Tensor

from refusal_dial.common import hook_name
from refusal_dial.engine import replay as replay_grid
from refusal_dial.engine.score import score_grid
from refusal_dial.hooks import ablate, patch, steer
from refusal_dial.scoring.logits import LogitDiff


def test_rows_that_are_unchanged_are_skipped_one_by_one() -> None:
    model = bridge("Llama")
    _, cache = model.run_with_cache(TOKENS.ids, attention_mask=TOKENS.mask)
    same = cache[hook_name("resid_pre", 2)][:, -2].clone()
    mixed = same.clone()
    mixed[2] += 1.0
    unsteered, patched = score_grid(model, TOKENS, [[], [patch(mixed, layer=2, pos=-2)]], logprob)
    assert torch.equal(patched[:2], unsteered[:2])
    assert (patched[2] - unsteered[2]).abs() > 1e-3
    steered = score_grid(
        model, TOKENS, [[], [steer(UNIT, torch.tensor([0.0, 2.0, 0.0]), layer=1)]], logprob
    )
    assert torch.equal(steered[0] == steered[1], torch.tensor([True, False, True]))


@pytest.mark.parametrize("architecture", ["Qwen2", "Gemma2", "GPT2"])
def test_rows_do_not_depend_on_the_batch_or_on_the_memory(architecture: str) -> None:
    model, grid = bridge(architecture), mixed_grid()
    whole = score_grid(model, TOKENS, grid, logprob)
    tiny = score_grid(model, TOKENS, grid, logprob, memory_gb=1e-6)
    torch.testing.assert_close(tiny, whole, atol=1e-5, rtol=0)
    for row in range(len(TOKENS)):
        alone = score_grid(model, TOKENS.rows(row, row + 1), grid[:10], logprob)
        torch.testing.assert_close(alone[:, 0], whole[:10, row], atol=1e-5, rtol=0)
    for c in range(0, len(grid), 3):
        alone = score_grid(model, TOKENS, [grid[c]], logprob)
        torch.testing.assert_close(alone[0], whole[c], atol=1e-5, rtol=0)


class Scarce:
    """A device on which nothing wider than `limit` rows fits."""

    def __init__(self, function: Any, rows: Any, limit: int) -> None:
        self.function, self.rows, self.limit, self.refused = function, rows, limit, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.rows(*args, **kwargs) > self.limit:
            self.refused += 1
            raise torch.OutOfMemoryError("out of memory")
        return self.function(*args, **kwargs)


def test_out_of_memory_halves_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, grid = bridge("Qwen2"), mixed_grid()
    whole = score_grid(model, TOKENS, grid, logprob)
    stream = replay_grid.Stream.run
    scarce = [
        Scarce(stream, lambda s: len(s.rectangle.cells) * len(s.rectangle.prompts), 2),
        Scarce(replay_grid.record_run, lambda model, tokens, *_: len(tokens), 1),
        Scarce(replay_grid.Unhooked.logits, lambda self, residual: len(residual), 3),
    ]
    monkeypatch.setattr(replay_grid.Stream, "run", lambda self: scarce[0](self))
    monkeypatch.setattr(replay_grid, "record_run", scarce[1])
    monkeypatch.setattr(
        replay_grid.Unhooked, "logits", lambda self, residual: scarce[2](self, residual)
    )
    torch.testing.assert_close(score_grid(model, TOKENS, grid, logprob), whole, atol=1e-5, rtol=0)
    assert [one.refused > 0 for one in scarce] == [True] * 3


def test_out_of_memory_for_a_single_branch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_fits = Scarce(None, lambda self: 1, 0)
    monkeypatch.setattr(replay_grid.Stream, "run", lambda self: nothing_fits(self))
    with pytest.raises(torch.OutOfMemoryError):
        score_grid(bridge("Qwen2"), TOKENS, mixed_grid(), logprob)


def test_the_scorer_sees_the_whole_batch_in_order() -> None:
    own = torch.tensor([3, 11, 20])  # a token of its own for each prompt

    def scorer(logits: Tensor) -> Tensor:
        return logits.double()[torch.arange(3), own]

    model, grid = bridge("Qwen2"), mixed_grid()
    auto = score_grid(model, TOKENS, grid, scorer, memory_gb=1e-6)
    expected = torch.stack([scorer(plain(model, TOKENS, cell)) for cell in grid])
    torch.testing.assert_close(auto, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_scorer_that_says_what_it_reads_is_given_no_more(architecture: str) -> None:
    model, seen = bridge(architecture), []
    grid = [
        [],
        [steer(UNIT, 2.0, layer=1)],
        [patch(UNIT, layer=1, pos=-3)],
        [ablate(UNIT, layer=0)],
    ]

    class Watched(LogitDiff):
        def read(self, columns: Tensor) -> Tensor:
            seen.append(columns.shape[-1])
            return super().read(columns)

    scorer = Watched((7, 3), (5, 40, 11))
    scores = score_grid(model, TOKENS, grid, scorer)
    assert set(seen) == {5}
    expected = torch.stack([scorer(plain(model, TOKENS, cell)) for cell in grid])
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)
    again = score_grid(model, TOKENS, [[], [steer(UNIT, 0.0, layer=1)]], scorer)
    assert torch.equal(again[0], again[1])
