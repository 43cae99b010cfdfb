"""Sampling: the nucleus, as often as it is likely; numbers that are the row's own."""

from __future__ import annotations

import pytest
import torch
from architectures import prompts

from refusal_dial.common import DialError
from refusal_dial.generate.decode import Decoding, choose, draws


def test_numbers_belong_to_the_prompt_and_the_sample() -> None:
    decoding = Decoding(5, temperature=1.0, samples=2, seed=4)
    found = draws(prompts((3, 3, 3)), decoding, ["a", "b", "a"])
    assert found is not None
    assert found.shape == (3, 2, 5)
    assert torch.equal(found[0], found[2])
    assert len(found[:2].unique()) == 20
    alone = draws(prompts((2,)), decoding, ["b"])
    assert alone is not None
    assert torch.equal(alone[0], found[1])
    assert draws(prompts((2,)), Decoding(5), None) is None


def test_tokens_are_drawn_from_the_nucleus_as_often_as_they_are_likely():
    p = torch.tensor([0.1, 0.5, 0.3, 0.1])
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    rows = p.log().expand(1000, 4)
    for top_p, expected in [(1.0, p), (0.8, torch.tensor([0, 0.625, 0.375, 0]))]:
        chosen = choose(rows, Decoding(1, temperature=1.0, top_p=top_p), u)
        share = torch.bincount(chosen, minlength=4) / 1000
        torch.testing.assert_close(share, expected, atol=2e-3, rtol=0)
    cold = choose(rows, Decoding(1, temperature=0.01), u)
    assert (cold == 1).all()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_is_the_one_that_a_sort_of_all_tokens_gives(
    temperature: float, top_p: float, dtype: torch.dtype
) -> None:
    """Peaked and nearly flat rows, of more tokens than are put in order first; in bfloat16 most of
    them have equals. None is so flat that a sum of equal shares is `top_p` but for rounding."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 5000, generator=g) * torch.linspace(0.1, 8, 60)[:, None]
    logits = logits.to(dtype)
    u = torch.rand(60, generator=g, dtype=torch.float64)
    p, order = (logits.double() / temperature).softmax(-1).sort(descending=True, stable=True)
    total = p.cumsum(-1)
    last = (total < top_p).sum(-1, keepdim=True).clamp(max=4999)
    aim = u[:, None] * total.gather(1, last)
    place = (total <= aim).sum(-1, keepdim=True).clamp(max=4999)
    found = choose(logits, Decoding(1, temperature=temperature, top_p=top_p), u)
    assert torch.equal(found, order.gather(1, place)[:, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more, not 0"),
        ({"temperature": -1.0}, r"temperature must be 0 \(greedy\) or more, not -1.0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"top_p": 0.0}, "top_p must be over 0 and at most 1, not 0.0"),
        ({"samples": 2}, "greedy decoding has one sample: give a temperature for several"),
    ],
)
def test_bad_decoding(changes, message):
    with pytest.raises(DialError, match=message):
        Decoding(**changes)
