"""Patching obeys its laws, whatever the pairs, the place and the engine."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pairs_case
import pandas as pd
import pytest
import tiny
import torch

from refusal_dial.common import hook_name
from refusal_dial.hooks import patch
from refusal_dial.model.tokens import last_logits, tokenize
from refusal_dial.run.plan import Budget
from refusal_dial.studies import patching as exact
from refusal_dial.studies.pairs import Pairs
from refusal_dial.studies.patching import (
    LAST_ROLE,
    PATCH_COLUMNS,
    Patching,
    PatchPlan,
    Place,
    as_far,
    by_role,
    donors,
    last_k,
    lay_out,
    patched,
    unit_noise,
)

KEYS = ["way", "direction", "layer", "site", "role", "head", "neuron", "prompt_id"]


SAME = [("How do I rob a bank?", "How do I rob a bank?", "EDGE")]


EQUAL = [texts for texts in pairs_case.TEXTS if len(texts[0]) == len(texts[1])]


@pytest.fixture(scope="module")
def pairs(qwen) -> Pairs:
    return pairs_case.pairs(qwen)


@pytest.fixture(scope="module")
def everywhere(qwen, pairs) -> list[Place]:
    """Some of every kind of place."""
    blocks = lay_out(qwen, pairs, layers=(1,))
    heads = lay_out(qwen, pairs, sites=("z",), layers=(0,))[:2]
    heads += lay_out(qwen, pairs, sites=("z",), layers=(1,), roles=("phrase-1",))[2:]
    neurons = lay_out(qwen, pairs, sites=("mlp_post",), layers=(2,))[:2]
    spread = by_role(qwen, pairs, layers=(1,), roles=("start+2", "before-1", "phrase-2", "after+1"))
    return [*blocks, *heads, *neurons, *spread, *last_k(qwen, pairs, 3, layers=(2,))]


def run(model, pairs, places, *, way="denoise", **changes) -> pd.DataFrame:
    ways = ("denoise", "noise") if way == "both" else (way,)
    return patched(model, Patching(pairs, places, ways, **changes), pairs_case.scorer)


def at(frame: pd.DataFrame, **values: object) -> pd.DataFrame:
    for name, value in values.items():
        frame = frame[frame[name] == value]
    return frame


@pytest.fixture(scope="module")
def table(qwen, pairs, everywhere) -> pd.DataFrame:
    return run(qwen, pairs, everywhere, way="both")


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_patching_a_run_with_itself_changes_nothing(qwen, engine):
    pairs = pairs_case.pairs(qwen, SAME)
    roles = ("start+1", "before-2", "end-3", LAST_ROLE)
    places = [*lay_out(qwen, pairs, roles=roles), *lay_out(qwen, pairs, sites=("z",))]
    rows = run(qwen, pairs, places, way="both", budget=Budget(engine=engine))
    assert len(rows) > 100
    assert (rows["score"] == rows["corrupted"]).all()
    assert (rows["score"] == rows["clean"]).all()


def test_writing_a_runs_own_activation_by_a_hook_is_bit_equal(qwen, pairs):
    """The law above again, through the hooks themselves and not by leaving them out."""
    side = exact.PairRun.of(pairs, ["phrase-1", LAST_ROLE], 1)
    for site in ("resid_pre", "resid_mid", "attn_out", "mlp_out"):
        place = Place(1, site, (LAST_ROLE,))
        own = side.read(qwen, [place])
        hooks = exact._hooks(place, own, own.of(place), side.where[:, 1:])
        logits = last_logits(qwen, side.tokens, hooks)
        error = (logits - last_logits(qwen, side.tokens)).abs().max()
        assert error <= (1e-4 if site == "resid_mid" else 0)  # a difference and a sum


@pytest.mark.parametrize("way", ["denoise", "noise"])
def test_all_positions_of_the_first_layer_are_the_whole_run(qwen, way):
    pairs = pairs_case.pairs(qwen, EQUAL)
    for i in range(len(pairs)):
        one = pairs.chosen([i])
        rows = run(qwen, one, [Place(0, "resid_pre", one.roles())], way=way)
        effect = at(rows, direction="patch")["effect"].item()
        assert effect == pytest.approx(1.0 if way == "denoise" else 0.0, abs=1e-4)


@pytest.mark.parametrize("site", ["resid_mid", "resid_post"])
@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_the_end_of_the_stream_is_the_whole_run(qwen, pairs, site, engine):
    """Also what the last MLP reads, which hook_resid_mid alone would not carry to the output."""
    rows = run(
        qwen, pairs, [Place(2, site, (LAST_ROLE,))], way="both", budget=Budget(engine=engine)
    )
    patches = at(rows, direction="patch")
    wanted = np.where(patches["way"] == "denoise", patches["clean"], patches["corrupted"])
    assert patches["score"].to_numpy() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("architecture", ["Phi3", "Gemma2"])
def test_a_patched_stream_between_attention_and_mlp_is_what_both_go_on_with(architecture):
    model = tiny.bridge(architecture).requires_grad_(False).eval()
    model.tokenizer.padding_side = "left"
    pairs = pairs_case.pairs(model)
    place, side, other = (
        Place(1, "resid_mid", (LAST_ROLE,)),
        *(exact.PairRun.of(pairs, [LAST_ROLE], i) for i in (1, 0)),
    )
    own, far = side.read(model, [place]), other.read(model, [place]).of(place)
    seen = {}

    def keep(activation, hook=None, *, name):
        seen[name] = activation[:, -1]

    names = [hook_name(site, 1) for site in ("resid_mid", "mlp_out", "resid_post")]
    reading = [(name, partial(keep, name=name)) for name in names]
    last_logits(model, side.tokens, [*exact._hooks(place, own, far, side.where), *reading])
    mid, mlp, post = (seen[name] for name in names)
    assert torch.allclose(mid, far[:, 0], atol=1e-4)
    assert torch.allclose(post - mlp, far[:, 0], atol=1e-4)


def test_before_the_phrase_the_effect_is_exactly_zero(qwen, pairs):
    rows = run(qwen, pairs, by_role(qwen, pairs, layers=(1,)), way="both")
    shared = rows[rows["role"].str.startswith(("start", "before"))]
    own = np.where(shared["way"] == "denoise", shared["corrupted"], shared["clean"])
    still = shared["direction"].isin(["patch", "random"])
    assert (shared["score"].to_numpy() == own)[still].all()
    begun = shared["role"].str.startswith("start")  # the template is every prompt's
    assert (shared["score"].to_numpy() == own)[begun].all()
    assert (shared["score"].to_numpy() != own)[~still & ~begun].mean() > 0.9


def test_denoising_is_noising_of_the_pair_swapped(qwen, pairs, everywhere):
    swapped = replace(
        pairs,
        clean=pairs.corrupted,
        corrupted=pairs.clean,
        items=tuple(
            replace(
                pair,
                clean=pair.corrupted,
                corrupted=pair.clean,
                lengths=pair.lengths[::-1],
                roles={role: at[::-1] for role, at in pair.roles.items()},
            )
            for pair in pairs.items
        ),
    )
    denoised = run(qwen, pairs, everywhere).set_index(KEYS[1:])
    noised = run(qwen, swapped, everywhere, way="noise").set_index(KEYS[1:])
    assert len(noised) == len(denoised)
    difference = noised["score"].reindex(denoised.index) - denoised["score"]
    assert difference.abs().max() == 0
    assert (noised["effect"].reindex(denoised.index) + denoised["effect"]).to_numpy() == (
        pytest.approx(1, abs=1e-9)
    )


def test_both_engines_agree(qwen, pairs, everywhere, table):
    plain = run(qwen, pairs, everywhere[::2], budget=Budget(engine="plain")).set_index(KEYS)
    fast = table.set_index(KEYS).reindex(plain.index)
    numbers = ["score", "clean", "corrupted", "effect"]
    assert plain.drop(columns=numbers).equals(fast.drop(columns=numbers))
    assert (plain["score"] - fast["score"]).abs().max() < 1e-5


@pytest.mark.parametrize("size", [1, 4])
def test_rows_do_not_depend_on_the_batches_or_on_other_places(qwen, pairs, everywhere, table, size):
    places = everywhere if size == 4 else everywhere[7:11]
    many = Patching(pairs, places, ("denoise", "noise"), budget=Budget(batch_size=size))
    plan = PatchPlan(many, pairs_case.scorer)
    frames = [plan.compute(qwen, task) for task in plan.tasks]
    assert [len(frame) for frame in frames] == [task.rows for task in plan.tasks]
    scores = pd.concat(frames).set_index(KEYS)["score"]
    wanted = table.set_index(KEYS)["score"].reindex(scores.index)
    assert (scores - wanted).abs().max() < 1e-5
    pd.testing.assert_frame_equal(plan.compute(qwen, plan.tasks[-1]), frames[-1])


def test_the_values_of_a_batch_are_held_in_parts(qwen, pairs, everywhere, table, monkeypatch):
    monkeypatch.setattr(exact, "VALUES", 2 * 3 * 4 * 32 * len(pairs))
    parts = list(exact._parts(qwen, everywhere, len(pairs)))
    assert len(parts) > 3
    assert [place for part in parts for place in part] == everywhere
    scores = run(qwen, pairs, everywhere).set_index(KEYS)["score"]
    wanted = table.set_index(KEYS)["score"].reindex(scores.index)
    assert (scores - wanted).abs().max() < 1e-5


def test_columns_are_the_contract_and_every_row_is_there_once(pairs, table):
    assert list(table.columns) == PATCH_COLUMNS
    assert not table.duplicated(KEYS).any()
    assert set(table["subset"]) == {"EDGE", "BENIGN"}
    assert table["alpha"].isna().all()
    assert table["token"][table["role"] == LAST_ROLE].eq("\\n").all()
    lone = table["role"].str.contains(r"\.\.", regex=True)
    assert table["pos"][~lone].lt(0).all()
    assert table["pos"][lone].isna().all()
    gap = table["clean"] - table["corrupted"]
    assert ((table["score"] - table["corrupted"]) / gap).equals(table["effect"])


def test_a_pair_without_the_role_has_no_row(pairs, table):
    for role, part in table.groupby("role"):
        if ".." in role:
            continue
        have = {pair.id for pair in pairs.items if pair.where(role) is not None}
        assert set(at(part, direction="patch")["prompt_id"]) == have
        assert set(at(part, direction="random")["prompt_id"]) == have
        assert set(at(part, direction="same_class")["prompt_id"]) <= have
    assert at(table, role="phrase-2")["prompt_id"].nunique() < len(pairs)


def oracle(model, run_text, from_text, place, where) -> float:
    """One prompt at a time, without padding, by a function of TransformerLens's own kind."""
    name = hook_name("attn_out" if place.site == "resid_mid" else place.site, place.layer)
    reads = [name] if place.site != "resid_mid" else [name, hook_name("resid_pre", place.layer)]
    runs = [tokenize(model, [text]) for text in (run_text, from_text)]
    caches: list[dict[str, torch.Tensor]] = [{}, {}]
    for tokens, cache in zip(runs, caches, strict=True):
        hooks = [(r, lambda a, hook, r=r, cache=cache: cache.__setitem__(r, a)) for r in reads]
        last_logits(model, tokens, hooks)

    def write(activation, hook):
        out = activation.clone()
        index = (0, where[0])
        value = caches[1][name][0, where[1]]
        if place.site == "resid_mid":
            pre = reads[1]
            value = value + caches[1][pre][0, where[1]] - caches[0][pre][0, where[0]]
        if place.head is not None:
            index, value = (*index, place.head), value[place.head]
        if place.neuron is not None:
            index, value = (*index, place.neuron), value[place.neuron]
        out[index] = value
        return out

    return pairs_case.scorer(last_logits(model, runs[0], [(name, write)])).item()


def test_every_patch_is_that_of_its_pair_alone(qwen, pairs, everywhere, table):
    rng = np.random.default_rng(0)
    single = [place for place in everywhere if len(place.roles) == 1]
    checked = 0
    for i in rng.permutation(len(single)):
        place = single[i]
        pair = pairs.items[int(rng.integers(len(pairs)))]
        found = pair.where(place.role)
        if found is None:
            continue
        rows = at(table, way="denoise", direction="patch", prompt_id=pair.id, role=place.role)
        rows = at(rows, layer=place.layer, site=place.site)
        for name in ("head", "neuron"):
            mine = getattr(place, name)
            rows = rows[rows[name].isna()] if mine is None else at(rows, **{name: mine})
        want = oracle(qwen, pair.corrupted.text, pair.clean.text, place, found[::-1])
        assert rows["score"].item() == pytest.approx(want, abs=1e-4)
        assert rows["pos"].item() == found[1]
        checked += 1
    assert checked > 8


def test_several_positions_together_are_their_hooks_together(qwen, pairs, table):
    roles = ("end-3", "end-2", "end-1")
    rows = at(table, role="end-3..end-1", way="denoise", direction="patch")
    sides = [exact.PairRun.of(pairs, roles, side) for side in (1, 0)]
    value = sides[1].read(qwen, [Place(2, "resid_pre", roles)]).of(Place(2, "resid_pre", roles))
    hooks = [patch(value[:, i], layer=2, pos=i - 3) for i in range(3)]
    want = pairs_case.scorer(last_logits(qwen, sides[0].tokens, hooks))
    assert rows["score"].to_numpy() == pytest.approx(want.numpy(), abs=1e-5)
    alone = at(table, site="resid_pre", layer=2, role="end-1", way="denoise", direction="patch")
    assert abs(alone["score"].to_numpy() - rows["score"].to_numpy()).max() > 1e-3


def test_roles_at_different_places_in_different_pairs_can_be_patched_together(qwen, pairs):
    both = ("before-1", "phrase-1")
    rows = run(qwen, pairs, [Place(1, "resid_pre", both), Place(1, "resid_pre", both[1:])])
    together = at(rows, direction="patch", role="before-1..phrase-1").set_index("prompt_id")[
        "score"
    ]
    alone = at(rows, direction="patch", role="phrase-1").set_index("prompt_id")["score"]
    assert len(together) < len(alone)  # one pair has no word before its phrase
    assert (together - alone.reindex(together.index)).abs().max() < 1e-5  # before it: the same


def test_donors_are_another_prompt_of_the_same_class_each_once(pairs):
    for side in (0, 1):
        for roles in ([LAST_ROLE], ["phrase-2"]):
            found = donors(pairs, roles, side, seed=3)
            for i, j in enumerate(found):
                mine, has = pairs.items[i], pairs.items[i].where(roles[0]) is not None
                if j >= 0:
                    given = pairs.items[j]
                    assert i != j
                    assert has
                    assert given.where(roles[0]) is not None
                    subsets = [(p.clean, p.corrupted)[side].subset for p in (mine, given)]
                    assert subsets[0] == subsets[1]
            given = found[found >= 0]
            assert len(set(given)) == len(given)
            assert set(given) == set(np.flatnonzero(found >= 0))
    lone = pairs.chosen([0, 1, 4])  # the only BENIGN one
    assert donors(lone, [LAST_ROLE], 1, seed=0).tolist() == [1, 0, -1]
    assert (donors(lone, [LAST_ROLE], 0, seed=0) >= 0).all()
    orders = {tuple(donors(pairs, [LAST_ROLE], 0, seed)) for seed in range(9)}
    assert len(orders) > 1


def test_the_random_vector_is_as_far_as_the_value():
    generator = torch.Generator().manual_seed(0)
    own, value = torch.randn(2, 5, 3, 8, generator=generator)
    value[1] = own[1]
    unit = unit_noise(Place(1, "resid_pre", ("end-3", "end-2", "end-1")), 5, 8, seed=1)
    written = as_far(own, value, unit)
    assert torch.allclose((written - own).norm(dim=-1), (value - own).norm(dim=-1), atol=1e-5)
    assert torch.equal(written[1], own[1])
    assert (unit.norm(dim=-1) - 1).abs().max() < 1e-6
    half = as_far(own.bfloat16(), value.bfloat16(), unit)
    assert half.dtype == torch.bfloat16


def test_noise_belongs_to_its_place_and_seed():
    place = Place(1, "z", (LAST_ROLE,), head=2)
    drawn = unit_noise(place, 4, 8, seed=0)
    assert torch.equal(drawn, unit_noise(place, 4, 8, seed=0))
    others = [replace(place, layer=2), replace(place, head=1), replace(place, roles=("end-2",))]
    for other in (*[unit_noise(one, 4, 8, 0) for one in others], unit_noise(place, 4, 8, 1)):
        assert not torch.equal(drawn, other)
    assert set(
        unit_noise(Place(1, "mlp_post", (LAST_ROLE,), None, 3), 40, 1, 0).flatten().tolist()
    ) == {
        -1.0,
        1.0,
    }
