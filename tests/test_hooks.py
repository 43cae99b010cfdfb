"""Laws of hooks: what an edit does to the rows it names, and that it touches nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from unchecked import unchecked

from refusal_dial.common import DialError
from refusal_dial.common import positions as indices
from refusal_dial.directions.learning import Provenance, from_vector
from refusal_dial.hooks import (
    Edit,
    ablate,
    ablate_everywhere,
    ablate_subspace,
    affine,
    axes,
    clamp,
    patch,
    rotate,
    steer,
)
from refusal_dial.model.activations import collect_positions
from refusal_dial.model.tokens import tokenize

D = 16
LAYER = {"layer": 3}


def unit(seed: int = 0) -> torch.Tensor:
    vector = torch.randn(D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return vector / vector.norm()


def activation(batch: int = 3, length: int = 6, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, D, generator=generator, dtype=torch.float64)


POSITIONS = st.one_of(
    st.sampled_from(["all", "prompt", "last_prompt", "generated"]),
    st.integers(-6, 5),
    st.sets(st.integers(-6, -1), min_size=1).map(lambda s: tuple(sorted(s))),
    st.slices(6),
)


@given(POSITIONS, st.floats(-50, 50))
def test_steer_there_and_back_is_identity(pos, alpha):
    h, r = activation(), unit()
    _, there = steer(r, alpha, pos=pos, **LAYER)
    _, back = steer(r, -alpha, pos=pos, **LAYER)
    torch.testing.assert_close(back(there(h)), h, atol=1e-5, rtol=1e-5)


@given(POSITIONS)
def test_unselected_positions_are_bit_equal_and_the_input_is_untouched(pos):
    h = activation()
    before = h.clone()
    _, edit = steer(unit(), 4.0, pos=pos, **LAYER)
    out = edit(h)
    assert torch.equal(h, before)
    chosen = indices(pos, 6)
    others = [i for i in range(6) if i not in chosen]
    assert torch.equal(out[:, others], h[:, others])
    if chosen:
        assert (out[:, chosen] != h[:, chosen]).any(-1).all()


def test_steer_moves_the_component_by_alpha_and_nothing_else():
    h, r = activation(), unit()
    _, edit = steer(r, 2.5, **LAYER)
    moved = edit(h) - h
    torch.testing.assert_close(moved @ r, torch.full((3, 6), 2.5, dtype=h.dtype), atol=1e-6, rtol=0)
    assert (moved - (moved @ r)[..., None] * r).abs().max() < 1e-6


def test_zero_alpha_changes_no_bit():
    h = activation()
    _, edit = steer(unit(), 0.0, **LAYER)
    assert torch.equal(edit(h), h)


@given(POSITIONS)
def test_ablate_is_idempotent_and_leaves_nothing_along_the_direction(pos):
    h, r = activation(), unit()
    _, edit = ablate(r, pos=pos, **LAYER)
    once = edit(h)
    torch.testing.assert_close(edit(once), once, atol=1e-6, rtol=0)
    chosen = indices(pos, 6)
    assert (once[:, chosen] @ r).abs().sum() < 1e-5


def test_clamp_sets_the_component_and_clamp_to_zero_is_ablate():
    h, r = activation(), unit()
    clamped = clamp(r, 1.5, **LAYER)[1](h)
    torch.testing.assert_close(
        clamped @ r, torch.full((3, 6), 1.5, dtype=h.dtype), atol=1e-6, rtol=0
    )
    assert torch.equal(clamp(r, 0.0, **LAYER)[1](h), ablate(r, **LAYER)[1](h)) or torch.allclose(
        clamp(r, 0.0, **LAYER)[1](h), ablate(r, **LAYER)[1](h), atol=1e-6
    )


def applied(hooks, h):
    for _, edit in hooks:
        h = edit(h)
    return h


def several(k: int = 3, seed: int = 7) -> torch.Tensor:
    """Directions of one model: no two orthogonal."""
    return torch.stack([unit(seed + i) for i in range(k)])


@given(POSITIONS, st.integers(1, 4))
def test_a_subspace_ablated_leaves_nothing_of_any_direction_and_the_rest_as_it_was(pos, k):
    h, span = activation(), several(k)
    once = applied(ablate_subspace(span, pos=pos, **LAYER), h)
    torch.testing.assert_close(
        applied(ablate_subspace(span, pos=pos, **LAYER), once), once, atol=1e-6, rtol=0
    )
    chosen = indices(pos, 6)
    assert (once[:, chosen] @ span.T).abs().sum() < 1e-5
    across = torch.linalg.svd(span).Vh[k:]  # orthogonal to all of them
    torch.testing.assert_close(once @ across.T, h @ across.T, atol=1e-5, rtol=0)


def test_a_subspace_of_one_direction_is_ablate_and_directions_that_repeat_are_one():
    h, r = activation(), unit()
    alone = ablate(r, **LAYER)[1](h)
    assert torch.equal(applied(ablate_subspace([r], **LAYER), h), alone)
    again = ablate_subspace([r, -r, from_vector(r, Provenance(3, "resid_pre", -1))], **LAYER)
    assert len(again) == 1
    torch.testing.assert_close(applied(again, h), alone, atol=1e-5, rtol=0)


def test_a_subspace_is_the_same_whatever_spans_it():
    h, span = activation(), several(3)
    mixed = torch.nn.functional.normalize(torch.randn(3, 3).double() @ span, dim=-1)
    torch.testing.assert_close(
        applied(ablate_subspace(span, **LAYER), h),
        applied(ablate_subspace(mixed, **LAYER), h),
        atol=1e-4,
        rtol=0,
    )
    gram = torch.stack(axes(span)) @ torch.stack(axes(span)).T
    torch.testing.assert_close(gram, torch.eye(3), atol=1e-5, rtol=0)


def test_steering_along_each_direction_is_steering_along_their_sum():
    h, span = activation(), several(3)
    each = applied([steer(r, a, **LAYER) for r, a in zip(span, (1.0, -2.0, 0.5), strict=True)], h)
    total = from_vector(span[0] - 2 * span[1] + 0.5 * span[2], Provenance(3, "resid_pre", -1))
    whole = steer(total, total.norm, **LAYER)[1](h)
    torch.testing.assert_close(each, whole, atol=1e-5, rtol=0)


@given(st.integers(1, 4))
def test_affine_moves_the_part_in_the_span_to_the_means_and_leaves_the_rest(k):
    h, span, mean = activation(), several(k), activation(seed=9)[0, 0]
    hooks = affine(span, mean, **LAYER)
    moved = applied(hooks, h)
    torch.testing.assert_close(moved @ span.T, (mean @ span.T).expand(3, 6, k), atol=1e-5, rtol=0)
    torch.testing.assert_close(applied(hooks, moved), moved, atol=1e-5, rtol=0)
    across = torch.linalg.svd(span).Vh[k:]
    torch.testing.assert_close(moved @ across.T, h @ across.T, atol=1e-5, rtol=0)


def test_affine_of_one_direction_is_clamp_at_the_mean_and_at_no_mean_ablation():
    h, r, mean = activation(), unit(), activation(seed=9)[0, 0]
    torch.testing.assert_close(
        applied(affine([r], mean, **LAYER), h),
        clamp(r, float(mean @ r), **LAYER)[1](h),
        atol=1e-6,
        rtol=0,
    )
    torch.testing.assert_close(
        applied(affine([r], torch.zeros(D), **LAYER), h), ablate(r, **LAYER)[1](h)
    )


@given(POSITIONS, st.floats(-180, 180))
def test_a_turn_keeps_the_norm_and_moves_in_the_plane_of_the_row_and_the_direction(pos, degrees):
    h, r = activation(), unit()
    out = rotate(r, degrees, pos=pos, **LAYER)[1](h)
    torch.testing.assert_close(out.norm(dim=-1), h.norm(dim=-1), atol=1e-5, rtol=1e-5)
    across = h - (h @ r)[..., None] * r
    kept = torch.cosine_similarity(out - (out @ r)[..., None] * r, across, dim=-1)
    left = (out - (out @ r)[..., None] * r).norm(dim=-1)
    assert bool((kept[left > 1e-3] > 1 - 1e-5).all())


def test_a_turn_is_by_its_angle_and_stops_at_the_direction():
    h, r = activation(), unit()
    before = torch.rad2deg(torch.arccos(h @ r / h.norm(dim=-1)))
    for degrees in (-200.0, -30.0, 0.0, 10.0, 170.0, 1e4):
        after = rotate(r, degrees, **LAYER)[1](h)
        angle = torch.rad2deg(torch.arccos((after @ r / h.norm(dim=-1)).clamp(-1, 1)))
        expected = (before - degrees).clamp(0, 180)
        torch.testing.assert_close(angle, expected, atol=0.01, rtol=0)
    torch.testing.assert_close(
        rotate(r, 180.0, **LAYER)[1](h), h.norm(dim=-1)[..., None] * r, atol=1e-5, rtol=0
    )


@given(st.floats(-20, 20))
def test_a_turn_there_and_back_is_the_identity_and_no_turn_changes_no_bit(degrees):
    h, r = activation(), unit()
    there = rotate(r, degrees, **LAYER)[1](h)
    torch.testing.assert_close(rotate(r, -degrees, **LAYER)[1](there), h, atol=1e-5, rtol=1e-5)
    assert torch.equal(rotate(r, 0.0, **LAYER)[1](h), h)


def test_a_row_without_a_plane_stays_as_it_is():
    """Zeros have no direction, and what lies along r already turns no further."""
    r = unit().float()
    rows = torch.stack([torch.zeros(D), 3 * r])[:, None]
    out = rotate(r, 50.0, **LAYER)[1](rows)
    torch.testing.assert_close(out, rows)


@given(POSITIONS)
def test_patching_an_activation_with_itself_changes_no_bit(pos):
    h = activation()
    chosen = indices(pos, 6)
    _, edit = patch(h[:, chosen], pos=pos, **LAYER)
    assert torch.equal(edit(h), h)


def test_patch_takes_one_vector_or_one_a_row():
    h = activation()
    one, each = torch.randn(D).double(), torch.randn(3, D).double()
    assert torch.equal(patch(one, pos=-1, **LAYER)[1](h)[:, -1], one.expand(3, D))
    assert torch.equal(patch(each, pos=-2, **LAYER)[1](h)[:, -2], each)


def test_a_tensor_of_positions_edits_one_position_in_each_row():
    h, where = activation(), torch.tensor([-1, -3, 0])
    out = patch(torch.zeros(3, D), pos=where, **LAYER)[1](h)
    for row, pos in enumerate(where.tolist()):
        assert (out[row, pos] == 0).all()
        kept = [i for i in range(6) if i != pos % 6]
        assert torch.equal(out[row, kept], h[row, kept])


def test_each_row_may_have_its_own_alpha_and_direction():
    h = activation()
    alphas, units = torch.tensor([0.0, 1.0, -2.0]), torch.stack([unit(i) for i in range(3)])
    out = steer(units, alphas, pos=-1, **LAYER)[1](h)
    for row in range(3):
        alone = steer(units[row], float(alphas[row]), pos=-1, **LAYER)[1](h[row : row + 1])
        torch.testing.assert_close(out[row], alone[0], atol=1e-6, rtol=0)
    assert torch.equal(out[0], h[0])


def test_head_and_neuron_edits_touch_only_their_unit():
    z = torch.randn(2, 5, 4, 8)
    out = patch(torch.zeros(8), site="z", head=2, pos=-1, **LAYER)[1](z)
    assert (out[:, -1, 2] == 0).all()
    assert torch.equal(out[:, :, [0, 1, 3]], z[:, :, [0, 1, 3]])
    assert torch.equal(out[:, :-1], z[:, :-1])
    post = torch.randn(2, 5, 12)
    out = patch(torch.zeros(1), site="mlp_post", neuron=7, pos=(-1, -3), **LAYER)[1](post)
    assert (out[:, [-1, -3], 7] == 0).all()
    assert (out != post).sum() == 2 * 2


def test_edits_keep_the_activation_dtype():
    h = activation().to(torch.bfloat16)
    for _, edit in (
        steer(unit(), 3.0, **LAYER),
        ablate(unit(), **LAYER),
        clamp(unit(), 1.0, **LAYER),
        rotate(unit(), 30.0, **LAYER),
        patch(torch.zeros(D), **LAYER),
    ):
        assert edit(h).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("pos", "prompt", "step"),
    [
        ("all", {0, 1, 2, 3, 4, 5}, {0}),
        ("prompt", {0, 1, 2, 3, 4, 5}, set()),
        ("last_prompt", {5}, set()),
        ("generated", set(), {0}),
        (-1, {5}, {0}),
        (-3, {3}, set()),
        (0, {0}, set()),
        ((-1, -2), {4, 5}, {0}),
        (slice(-3, None), {3, 4, 5}, set()),
        (slice(None), {0, 1, 2, 3, 4, 5}, {0}),
    ],
)
def test_what_pos_means_in_a_prompt_and_in_a_cached_decoding_step(pos, prompt, step):
    edit = steer(unit(), 9.0, pos=pos, **LAYER)[1]
    h = activation(length=6)
    assert {int(i) for i in (edit(h) != h).any(-1).any(0).nonzero()} == prompt
    one = activation(length=1)
    assert {int(i) for i in (edit(one) != one).any(-1).any(0).nonzero()} == step


def test_pos_means_that_under_real_cached_decoding(qwen):
    """The hook sees the prompt, then one token a call; compared with uncached forward passes."""
    tokens = torch.randint(3, 200, (1, 9), generator=torch.Generator().manual_seed(0))
    r = torch.nn.functional.normalize(torch.randn(32), dim=0)
    for pos, edited_uncached in ((-1, (7, 8)), ("last_prompt", (7,)), ("generated", (8,))):
        prompt, new = tokens[:, :8], tokens[:, 8:]
        with torch.no_grad(), qwen.hooks(fwd_hooks=[steer(r, 5.0, layer=1, pos=pos)]):
            _, cache = qwen(prompt, return_type="logits_and_cache", use_cache=True)
            cached = qwen(new, past_key_values=cache)[:, -1]
        with torch.no_grad():
            hook = steer(r, 5.0, layer=1, pos=edited_uncached)
            uncached = qwen.run_with_hooks(tokens, fwd_hooks=[hook])[:, -1]
        torch.testing.assert_close(cached, uncached, atol=1e-4, rtol=1e-4)


def test_hooks_run_in_plain_transformerlens_and_compose_by_plus(qwen):
    tokens = torch.randint(3, 200, (2, 7))
    direction = from_vector(torch.randn(32), Provenance(1, "resid_pre", -1))
    seen = {}

    def keep(activation, hook):
        seen["h"] = activation

    hooks = [steer(direction, 8.0, layer=1, pos=-1)] + [ablate(direction, layer=2)]  # noqa: RUF005
    with torch.no_grad():
        plain = qwen.run_with_hooks(tokens)
        steered = qwen.run_with_hooks(tokens, fwd_hooks=[*hooks, ("blocks.2.hook_resid_pre", keep)])
    assert (seen["h"] @ direction.unit).abs().max() < 1e-3
    assert not torch.allclose(plain[:, -1], steered[:, -1])
    torch.testing.assert_close(
        qwen.run_with_hooks(tokens, fwd_hooks=[steer(direction, 8.0, layer=1, pos=-1)])[:, :-1],
        plain[:, :-1],
    )


def test_gradients_flow_to_an_added_vector():
    v = torch.zeros(D, requires_grad=True)
    steer(unit(), 1.0, **LAYER)[1](activation().float() + v).sum().backward()
    assert v.grad is not None
    assert torch.isfinite(v.grad).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: steer(unit(), float("nan"), **LAYER), "alpha must be finite, not nan"),
        (lambda: steer(unit() * 3, 1.0, **LAYER), "norm 3: divide it by its norm"),
        (lambda: steer(unit() * float("nan"), 1.0, **LAYER), "NaN or infinite"),
        (lambda: steer(unit(), 1.0, layer=1, site="resid_per"), "did you mean 'resid_pre'"),
        (lambda: steer(unit(), 1.0, layer=-1), "whole number from 0 up, not -1"),
        (lambda: steer(unit(), 1.0, layer=True), "not True"),
        (lambda: steer(unit(), 1.0, layer=1, pos="last"), "unknown pos 'last'"),
        (lambda: steer(unit(), 1.0, layer=1, pos=(-1, -1)), "names a position twice"),
        (lambda: steer(unit(), 1.0, layer=1, pos=()), "at least one"),
        (lambda: steer(unit(), 1.0, layer=1, pos=1.5), "not 1.5"),
        (lambda: patch(unit(), site="z", **LAYER), "site 'z' needs head="),
        (lambda: patch(unit(), head=1, **LAYER), "only it does"),
        (lambda: patch(unit(), neuron=1, **LAYER), "neuron= is for site 'mlp_post'"),
        (lambda: clamp(unit(), float("inf"), **LAYER), "must be finite, not inf"),
        (lambda: rotate(unit(), float("nan"), **LAYER), "degrees must be finite, not nan"),
        (lambda: rotate(unit() * 3, 1.0, **LAYER), "norm 3: divide it by its norm"),
        (lambda: ablate_subspace([], **LAYER), "at least one: 0 of shapes none"),
        (lambda: ablate_subspace([unit(), unit()[:4]], **LAYER), "norm"),
        (lambda: ablate_subspace([unit(), torch.eye(4)[0]], **LAYER), "of one width"),
        (lambda: ablate_subspace([unit() * 2], **LAYER), "norm 2: divide it by its norm"),
        (lambda: affine([unit()], torch.ones(3), **LAYER), "of width 16, not of shape (3,)"),
        (lambda: affine([unit()], torch.full((D,), torch.nan), **LAYER), "with NaN or infinite"),
        (lambda: patch(unit(), site="z", head=True, **LAYER), "head must be a whole number"),
        (lambda: steer(unit(), 1.0, pos=torch.tensor([-1.0]), **LAYER), "an integer tensor"),
        (lambda: steer(unit(), 1.0, pos=torch.tensor([True]), **LAYER), "an integer tensor"),
        (lambda: steer(unit(), 1.0, pos=np.array([-1, -2]), **LAYER), "an integer tensor"),
        (lambda: steer(unit(), 1.0, pos=torch.tensor(-1), **LAYER), "one position a row, not"),
        (lambda: steer(unit(), 1.0, pos=torch.tensor([[-1]]), **LAYER), "of shape (1, 1)"),
    ],
)
def test_errors_give_the_value_and_what_was_expected(make, message):
    with pytest.raises(DialError) as error:
        make()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda h: h.steer(unit(), "3", **LAYER),
            "alpha must be a number, or one a prompt, not '3'",
        ),
        (
            lambda h: h.steer(unit(), None, **LAYER),
            "alpha must be a number, or one a prompt, not None",
        ),
        (lambda h: h.clamp(unit(), "3", **LAYER), "value must be a number"),
        (lambda h: h.clamp(unit(), torch.ones(2), **LAYER), "value must be one number, not tensor"),
        (lambda h: h.rotate(unit(), "3", **LAYER), "degrees must be a number"),
        (
            lambda h: h.rotate(unit(), torch.ones(2), **LAYER),
            "degrees must be one number, not tensor",
        ),
        (lambda h: h.ablate_subspace(None, **LAYER), "expected a list of directions, not None"),
        (lambda h: h.steer(unit().numpy(), 1.0, **LAYER), "a torch tensor, not ndarray"),
        (lambda h: h.patch(unit().numpy(), **LAYER), "a patched value must be a torch tensor"),
        (lambda h: h.patch(torch.tensor(1.0), **LAYER), "a vector or several, not shape ()"),
        (lambda h: h.patch(unit(), site="mlp_post", neuron=1.5, **LAYER), "whole number from 0"),
    ],
)
def test_values_of_the_wrong_kind_are_named(monkeypatch, make, message):
    hooks, operations = unchecked("hooks"), unchecked("hooks")
    for name in ("numbers_of", "scaled", "unit_of", "vectors"):
        monkeypatch.setattr(hooks, name, getattr(operations, name))
    with pytest.raises(DialError) as error:
        make(hooks)
    assert message in str(error.value)


def test_an_edit_that_does_not_fit_says_so_in_plain_transformerlens(qwen):
    ids = torch.randint(3, 200, (2, 7))
    for hook, message in (
        (steer(torch.ones(1), 1.0, layer=1), "resid_pre of layer 1: expected a vector of width 32"),
        (patch(torch.ones(1), layer=1, site="mlp_post", neuron=-1), "neuron -1 is out of range"),
        (steer(torch.ones(1), 1.0, layer=1, pos=torch.tensor([-1, -8])), "position -8 is outside"),
    ):
        with pytest.raises(DialError, match=message):
            qwen.run_with_hooks(ids, fwd_hooks=[hook])


def test_a_position_outside_the_prompt_says_what_is_inside():
    _, edit = steer(unit(), 1.0, pos=-9, **LAYER)
    with pytest.raises(DialError, match="position -9 is outside a prompt of 6 tokens: valid"):
        edit(activation())


def test_an_edit_reads_as_what_it_does():
    name, edit = steer(unit(), 8.0, layer=20, pos=-1)
    assert name == "blocks.20.hook_resid_pre"
    assert isinstance(edit, Edit)
    assert (edit.layer, edit.site, edit.pos) == (20, "resid_pre", -1)
    assert repr(edit) == "add@resid_pre[layer=20, pos=-1]"


def test_ablated_everywhere_nothing_is_left_in_the_stream_at_any_layer(qwen):
    tokens = tokenize(qwen, ["Hi there", "No"])
    r = torch.randn(32, generator=torch.Generator().manual_seed(3))
    r = r / r.norm()
    hooks = ablate_everywhere(r, 3)
    assert len(hooks) == len({name for name, _ in hooks}) == 9
    for site in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"):
        left = collect_positions(qwen, tokens, [0, 1, 2], (-2, -1), site=site, hooks=hooks)[0]
        plain = collect_positions(qwen, tokens, [0, 1, 2], (-2, -1), site=site)[0]
        assert (left @ r).abs().max() < 1e-4 * left.norm(dim=-1).max()
        assert (plain @ r).abs().min() > 0.001


def test_numpys_integers_are_layers_and_positions():
    unit = torch.nn.functional.normalize(torch.ones(4), dim=0)
    typed = steer(unit, 2.0, layer=np.int64(3), pos=np.int64(-1))
    plain = steer(unit, 2.0, layer=3, pos=-1)
    assert typed[0] == plain[0]
    assert type(typed[1].layer) is int
    rows = torch.randn(2, 5, 4)
    assert torch.equal(typed[1](rows), plain[1](rows))
    several = steer(unit, 2.0, layer=3, pos=(np.int32(-2), np.int64(-1)))
    assert torch.equal(several[1](rows), steer(unit, 2.0, layer=3, pos=(-2, -1))[1](rows))
