"""The cells of a steering run, and the directions they are made of."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from refusal_dial.cli.command_line import CONTROL_KINDS
from refusal_dial.cli.flags import RELATIVE_ALPHAS, SteeringFlags
from refusal_dial.common import DialError
from refusal_dial.data.prompts import Prompt
from refusal_dial.directions.learning import Provenance, from_vector
from refusal_dial.model.tokens import Tokens
from refusal_dial.scoring.logits import RefusalTokens
from refusal_dial.studies.base import Study
from refusal_dial.studies.steering import (
    at_place,
    control_directions,
    learn,
    steering_cells,
    training,
)

N, D = 40, 32


@pytest.fixture
def planted(qwen):
    """A study whose activations hold a known direction, in proportion to the score."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(D, generator=generator), dim=0)
    scores = torch.randn(N, generator=generator).double()
    noise = torch.randn(2, N, D, generator=generator)
    activations = noise + 6 * scores.float()[None, :, None] * truth
    prompts = tuple(Prompt(f"p{i}", "text", "EDGE", category="abcd"[i % 4]) for i in range(N))
    empty = torch.zeros(N, 3, dtype=torch.long)
    study = Study(
        model=qwen,
        prompts=prompts,
        tokens=Tokens(empty, empty),
        refusal=RefusalTokens((3,), ("I",), "listed"),
        scorer=lambda logits: logits[:, 3],
        scores=scores.numpy(),
        layers=(0, 2),
        activations=activations,
    )
    return study, truth


def flags(**changes) -> SteeringFlags:
    return SteeringFlags(**{"layer": (0, 2), "n_random": 3, "seed": 5, **changes})


@pytest.mark.parametrize("balanced", [False, True])
def test_a_planted_direction_is_recovered_and_its_history_recorded(planted, balanced):
    study, truth = planted
    for layer, direction in zip(
        (0, 2), learn(study, flags(), study.prompts, balanced), strict=True
    ):
        assert float(direction.unit @ truth) > 0.95
        about = direction.provenance
        assert (about.layer, about.site, about.pos, about.seed) == (layer, "resid_pre", -1, 5)
        assert about.method == ("top_bottom_balanced" if balanced else "top_bottom")
        assert about.prompt_ids == tuple(p.id for p in study.prompts)
        assert about.model


def test_shuffled_scores_leave_little_of_the_difference(planted):
    """The control of the law above: the same groups sizes, labels that mean nothing."""
    study, _ = planted
    shuffled = np.random.default_rng(0).permutation(study.scores)
    real = learn(study, flags(), study.prompts)[0]
    blind = learn(replace(study, scores=shuffled), flags(), study.prompts)[0]
    assert blind.norm < 0.5 * real.norm


def test_only_the_given_prompts_are_learned_from(planted):
    study, _ = planted
    some = study.prompts[::2]
    poisoned = study.activations.clone()
    poisoned[:, 1::2] = 1e6
    other = replace(study, activations=poisoned)
    one, two = learn(study, flags(), some)[0], learn(other, flags(), some)[0]
    assert torch.equal(one.unit, two.unit)


def test_the_grid_is_baseline_learned_and_random_at_every_layer_and_alpha(planted):
    study, _ = planted
    asked = flags(alphas=(-2.0, 0.0, 3.0), alpha_unit="absolute", controls=("random",))
    cells = steering_cells(study, asked, learn(study, asked, study.prompts))
    assert len(cells) == 1 + 2 * (1 + 3) * 3
    assert cells[0].labels["direction"] == "baseline"
    assert list(cells[0].hooks) == []
    for cell in cells[1:]:
        layer, alpha = cell.labels["layer"], cell.labels["alpha"]
        assert len(cell.hooks) == (alpha != 0)
        if not cell.hooks:
            continue
        (name, edit) = cell.hooks[0]
        assert name == f"blocks.{layer}.hook_resid_pre"
        assert edit.pos == -1
        assert float(edit.operation.vector.norm()) == pytest.approx(abs(alpha), abs=1e-5)
    seeds = {
        (c.labels["layer"], c.labels["seed"]) for c in cells if c.labels["direction"] == "random"
    }
    assert seeds == {(layer, seed) for layer in (0, 2) for seed in range(3)}


def test_every_control_that_is_named_is_there_at_every_layer_and_alpha(planted):
    study, _ = planted
    kinds = {"random": 3, "covariance": 3, "shuffled": 3, "flipped": 1, "length": 1, "fold": 5}
    asked = flags(alphas=(-2.0, 3.0), alpha_unit="absolute", controls=CONTROL_KINDS)
    learned = learn(study, asked, study.prompts)
    cells = steering_cells(study, asked, learned, study.prompts)
    found = Counter((c.labels["direction"], c.labels["layer"]) for c in cells[1:])
    assert found == {(k, n): 2 * m for k, m in {**kinds, "learned": 1}.items() for n in (0, 2)}
    named = control_directions(study, asked, learned[0], study.prompts)
    assert {one.norm for _, _, one in named} == {learned[0].norm}
    assert {one.provenance.layer for _, _, one in named} == {0}


def test_draw_i_belongs_together_over_layers(planted):
    """Shuffled labels are the same at every layer, so a correction over layers may pair them."""
    study, _ = planted
    same = replace(study, activations=study.activations[:1].expand(2, -1, -1))
    learned = learn(same, flags(), same.prompts)
    for kind in ("random", "covariance", "shuffled"):
        asked = flags(controls=(kind,))
        one, two = (control_directions(same, asked, d, same.prompts) for d in learned)
        assert all(torch.equal(a.unit, b.unit) for (*_, a), (*_, b) in zip(one, two, strict=True))


@pytest.mark.parametrize("balanced", [False, True])
def test_shuffled_directions_lose_what_the_learned_one_has(planted, balanced):
    study, truth = planted
    asked = flags(controls=("shuffled",), n_random=20)
    (learned, _) = learn(study, asked, study.prompts, balanced)
    null = control_directions(study, asked, learned, study.prompts, balanced)
    cosines = torch.stack([one.unit for *_, one in null]) @ truth
    assert float(learned.unit @ truth) > float(cosines.abs().max())
    assert abs(float(cosines.mean())) < 0.5


def test_a_direction_from_a_file_has_the_controls_that_need_no_learning(planted):
    study, _ = planted
    asked = flags(controls=CONTROL_KINDS)
    (learned, _) = learn(study, asked, study.prompts)
    kinds = {kind for kind, *_ in control_directions(study, asked, learned, ())}
    assert kinds == {"random", "covariance", "flipped"}


def test_holdout_among_the_controls_holds_out(planted):
    study, _ = planted
    assert len(training(study, flags(controls=("holdout",)), 0.25)) == 30
    assert len(training(study, flags(controls=()))) == N


def test_alphas_are_what_steer_takes_whatever_their_unit(planted):
    study, _ = planted
    norm = study.residual_norm(2)
    learned = learn(study, flags(), study.prompts)[1]

    def labels(**changes):
        cells = steering_cells(study, flags(**changes, controls=()), [learned])[1:]
        return [(cell.labels["alpha"], cell.labels["alpha_relative"]) for cell in cells]

    assert [relative for _, relative in labels()] == list(RELATIVE_ALPHAS)
    for alpha, relative in labels():
        assert alpha == pytest.approx(relative * norm, rel=1e-3)
    assert (0.0, 0.0) in labels()
    given = labels(alphas=(-8.0, 8.0), alpha_unit="absolute")
    assert [alpha for alpha, _ in given] == [-8.0, 8.0]
    assert labels(alphas=(0.5,))[0][0] == pytest.approx(0.5 * norm, rel=1e-3)
    raw = labels(alphas=(0.5,), alpha_unit="norm")[0][0]
    assert raw == pytest.approx(0.5 * learned.norm, rel=1e-3)


def test_a_direction_from_a_file_is_placed_where_the_flags_say(planted):
    study, _ = planted
    known = from_vector(torch.ones(D), Provenance(9, "mlp_out", -3, model="elsewhere"))
    with pytest.raises(DialError, match=r"was learned on elsewhere .* or --any-model"):
        at_place(known, study, flags(), 2)
    here = at_place(known, study, flags(site="resid_post", pos=-2), 2, any_model=True).provenance
    assert (here.layer, here.site, here.pos, here.model) == (2, "resid_post", -2, "elsewhere")


def test_a_direction_of_another_width_is_refused(planted):
    study, _ = planted
    narrow = from_vector(torch.ones(7), Provenance(0, "resid_pre", -1, model="small"))
    with pytest.raises(
        DialError, match=r"is 7 wide \(learned on small\) and this model's .* is 32"
    ):
        at_place(narrow, study, flags(), 0)
