"""Laws of conditional steering: who is steered, who is left bit-equal, and what a rate promises."""

from __future__ import annotations

import architectures
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refusal_dial.common import DialError
from refusal_dial.directions.learning import Provenance, from_vector
from refusal_dial.engine.replay import edited, restricted
from refusal_dial.engine.score import score_grid
from refusal_dial.hooks import AddIf, Detector, calibrate, steer, steer_if
from refusal_dial.model.tokens import last_logits

D, LAYER = 16, 3


def unit(seed: int = 0, width: int = D) -> torch.Tensor:
    vector = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()


def detector(threshold: float, seed: int = 1, width: int = D, layer: int = LAYER) -> Detector:
    direction = from_vector(unit(seed, width), Provenance(layer, "resid_pre", -1))
    return Detector(direction, threshold, 0.1, 20)


def activation(batch: int = 5, length: int = 6) -> torch.Tensor:
    return torch.randn(batch, length, D, generator=torch.Generator().manual_seed(2))


@given(st.floats(-3, 3), st.floats(-20, 20))
def test_what_fires_is_steered_and_the_rest_is_bit_equal(threshold, alpha):
    h, watch = activation(), detector(threshold)
    _, edit = steer_if(unit(), alpha, watch, layer=LAYER, pos="all")
    _, always = steer(unit(), alpha, layer=LAYER)
    fired = h @ watch.direction.unit > threshold
    out = edit(h)
    assert torch.equal(out[~fired], h[~fired])
    assert torch.equal(out[fired], always(h)[fired])


def test_a_threshold_below_everything_is_steer_and_above_everything_is_nothing():
    h = activation()
    _, always = steer(unit(), 3.0, layer=LAYER, pos=-1)
    assert torch.equal(steer_if(unit(), 3.0, detector(-99.0), layer=LAYER)[1](h), always(h))
    assert torch.equal(steer_if(unit(), 3.0, detector(99.0), layer=LAYER)[1](h), h)


def test_a_row_decides_for_itself_whatever_stands_beside_it():
    h = activation()
    _, edit = steer_if(unit(), 3.0, detector(0.0), layer=LAYER, pos="all")
    together = edit(h)
    for row in range(len(h)):
        assert torch.equal(edit(h[row : row + 1])[0], together[row])


@pytest.mark.parametrize(
    ("pos", "prompt", "step"),
    [
        ("last_prompt", {5}, set()),
        ("generated", set(), {0}),
        (-1, {5}, {0}),
        ("all", {*range(6)}, {0}),
    ],
)
def test_it_decides_at_the_prompt_or_at_each_generated_token(pos, prompt, step):
    _, edit = steer_if(unit(), 9.0, detector(-99.0), layer=LAYER, pos=pos)
    h, one = activation(), activation(length=1)
    assert {int(i) for i in (edit(h) != h).any(-1).any(0).nonzero()} == prompt
    assert {int(i) for i in (edit(one) != one).any(-1).any(0).nonzero()} == step


def test_the_decision_does_not_depend_on_the_number_format_of_the_vector():
    h = activation().bfloat16()
    watch = detector(0.0)
    _, edit = steer_if(unit(), 50.0, watch, layer=LAYER, pos="all")
    changed = (edit(h) != h).any(-1)
    assert edit(h).dtype == torch.bfloat16
    assert torch.equal(changed, h.float() @ watch.direction.unit > 0)


def test_stacked_and_restricted_it_stays_the_same_formula():
    h, rows = activation(4), torch.tensor([0, 2, 3])
    each = torch.stack([unit(i) for i in range(4)])
    some = AddIf(each, unit(9), 0.2)
    assert torch.equal(restricted(some, rows)(h[rows]), some(h)[rows])
    operations = [AddIf(unit(i), unit(9), 0.2) for i in range(3)]
    stacked = edited(operations, h[None].expand(3, *h.shape), torch.arange(4))
    for got, operation in zip(stacked, operations, strict=True):
        torch.testing.assert_close(got, operation(h), atol=1e-6, rtol=0)


@pytest.mark.parametrize("architecture", ["Qwen2", "Phi3"])
def test_the_engine_replays_it_as_a_forward_pass_would(architecture):
    model, tokens = architectures.bridge(architecture), architectures.prompts((9, 7, 9, 5))
    seen = {}
    reading = ("blocks.1.hook_resid_pre", lambda a, hook: seen.__setitem__("h", a[:, -1].clone()))
    last_logits(model, tokens, [reading])
    r = unit(3, 32)
    middle = float((seen["h"] @ unit(1, 32)).sort().values[1:3].mean())
    watch = detector(middle, 1, 32, layer=1)
    grid = [[], [steer_if(r, 8.0, watch, layer=1)], [steer_if(r, -5.0, watch, layer=1, pos="all")]]
    grid.append([steer(r, 2.0, layer=0), steer_if(r, 8.0, watch, layer=1, pos="all")])

    def scorer(logits):
        return logits[:, 5].double()

    fast = score_grid(model, tokens, grid, scorer)
    plain = score_grid(model, tokens, grid, scorer, engine="plain")
    torch.testing.assert_close(fast, plain, atol=1e-3, rtol=1e-4)
    fired = watch.fires(seen["h"])
    assert fired.sum() == 2
    assert torch.equal(fast[0, ~fired], fast[1, ~fired])
    assert (fast[0, fired] != fast[1, fired]).all()


def test_an_alpha_a_row_steers_where_a_detector_elsewhere_fired():
    h = activation()
    fired = detector(0.0).fires(h[:, -1])
    out = steer(unit(), 4.0 * fired.float(), layer=7, pos=-1)[1](h)
    assert torch.equal(out[~fired], h[~fired])
    assert (out[fired, -1] != h[fired, -1]).any(-1).all()
    assert 0 < fired.sum() < len(fired)


@given(st.integers(0, 1000), st.sampled_from([0.05, 0.1, 0.25, 0.5]), st.integers(20, 60))
def test_no_more_than_the_stated_share_of_the_prompts_it_was_calibrated_on_fires(seed, rate, n):
    negatives = torch.randn(n, D, generator=torch.Generator().manual_seed(seed))
    found = calibrate(from_vector(unit(), Provenance(LAYER, "resid_pre", -1)), negatives, rate)
    assert found.fires(negatives).float().mean() <= rate
    assert (found.n, found.rate) == (n, rate)


def test_the_rate_holds_on_prompts_it_never_saw_and_is_not_far_below():
    generator = torch.Generator().manual_seed(0)
    direction = from_vector(unit(), Provenance(LAYER, "resid_pre", -1))
    rates = []
    for _ in range(400):
        found = calibrate(direction, torch.randn(39, D, generator=generator), 0.1)
        rates.append(float(found.fires(torch.randn(500, D, generator=generator)).float().mean()))
    mean = sum(rates) / len(rates)
    assert 0.085 < mean < 0.107  # exactly 4/40 in expectation; the standard error is 0.0024


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: calibrated(12, 0.05),
            "takes at least 19 prompts to calibrate on, and these are 12",
        ),
        (lambda: calibrated(99, 1.0), "must be between 0 and 1, not 1.0"),
        (lambda: calibrated(99, 0.1, float("nan")), "NaN or infinite"),
        (
            lambda: steer_if(unit(), 1.0, detector(0.0), layer=4),
            "reads resid_pre of layer 3 and this steers resid_pre of layer 4: steer there",
        ),
        (
            lambda: steer_if(unit(), 1.0, detector(0.0), layer=3, site="mlp_out"),
            "steers mlp_out of layer 3",
        ),
        (lambda: steer_if(unit(), float("inf"), detector(0.0), layer=3), "finite, not inf"),
        (lambda: steer_if(unit() * 2, 1.0, detector(0.0), layer=3), "norm 2"),
        (lambda: steer_if(unit(), 1.0, detector(0.0), layer=3, pos="last"), "unknown pos 'last'"),
    ],
)
def test_errors_give_the_value_and_what_was_expected(make, message):
    with pytest.raises(DialError) as error:
        make()
    assert message in str(error.value)


def calibrated(n: int, rate: float, value: float = 1.0) -> Detector:
    direction = from_vector(unit(), Provenance(LAYER, "resid_pre", -1))
    return calibrate(direction, torch.full((n, D), value), rate)
