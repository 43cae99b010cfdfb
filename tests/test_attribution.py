"""The gradient predicts small patches exactly, and says the same as TransformerLens's own."""

from __future__ import annotations

import pairs_case
import pandas as pd
import pytest
import tiny
import torch
from transformer_lens.tools.analysis.attribution_patching import attribution_patch

from refusal_dial.studies import patching
from refusal_dial.studies.pairs import unpadded
from refusal_dial.studies.patching import (
    LAST_ROLE,
    PATCH_COLUMNS,
    PairRun,
    Patching,
    Place,
    last_k,
    lay_out,
    patched,
    role_gradients,
    strongest,
)

KEYS = ["way", "layer", "site", "role", "head", "neuron", "prompt_id"]


def layout(model, pairs) -> list[Place]:
    roles = ("before-1", "phrase-1", "after+1", LAST_ROLE)
    blocks = lay_out(model, pairs, layers=(0, 2), roles=roles)
    heads = lay_out(model, pairs, sites=("z",), layers=(0, 2))
    neurons = lay_out(model, pairs, sites=("mlp_post",), layers=(1,))[:4]
    post = lay_out(model, pairs, sites=("resid_post",), layers=(1,))
    return [*blocks, *heads, *neurons, *post, *last_k(model, pairs, 3, layers=(1,))[-1:]]


def attributed(model, pairs, places, ways=("denoise", "noise")) -> pd.DataFrame:
    frames = patching.attributed(model, Patching(pairs, places, ways), pairs_case.scorer)
    return pd.concat(frames, ignore_index=True)


def nearly_the_same(architecture: str):
    """A model in which "r" is almost "d", and pairs that differ in that letter."""
    model = tiny.bridge(architecture).requires_grad_(False).eval()
    model.tokenizer.padding_side = "left"
    r, d = (model.tokenizer.encode(letter)[0] for letter in "rd")
    weight = model.original_model.get_input_embeddings().weight
    noise = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(0))
    weight[r] = weight[d] + 0.02 * weight[d].norm() * noise / noise.norm()
    return model, pairs_case.pairs(
        model, [("How to rob it?", "How to dob it?", "EDGE"), ("Get a rug", "Get a dug", "BENIGN")]
    )


@pytest.mark.parametrize("architecture", ["Qwen2", "GPTNeoX", "Gemma2"])
def test_small_patches_are_predicted(architecture):
    model, pairs = nearly_the_same(architecture)
    places = layout(model, pairs)
    exact = patched(model, Patching(pairs, places, ("denoise", "noise")), pairs_case.scorer)
    exact = exact[exact["direction"] == "patch"].set_index(KEYS)
    guess = attributed(model, pairs, places).set_index(KEYS).reindex(exact.index)
    own = exact["corrupted"].where(exact.index.get_level_values("way") == "denoise", exact["clean"])
    moved, predicted = exact["score"] - own, guess["score"] - own
    assert moved.abs().max() > 3e-4
    assert (moved - predicted).abs().max() < 0.07 * moved.abs().max()
    begun = exact.index.get_level_values("role") == "before-1"
    assert (predicted[begun] == 0).all()


def test_it_agrees_with_transformer_lens_on_heads_and_mlps():
    model = tiny.bridge("Qwen2").requires_grad_(False).eval()
    model.tokenizer.padding_side = "left"
    pairs = pairs_case.pairs(model).chosen([0])
    places = [*lay_out(model, pairs, sites=("mlp_out",), roles=("phrase-1", LAST_ROLE))]
    places += lay_out(model, pairs, sites=("z",), roles=("phrase-1", LAST_ROLE))
    mine = attributed(model, pairs, places, ("denoise",))
    for parameter in model.original_model.parameters():
        parameter.requires_grad_(True)
    clean, corrupted = (torch.tensor(unpadded(t)) for t in (pairs.clean, pairs.corrupted))
    theirs = attribution_patch(
        model, clean, corrupted, lambda logits: pairs_case.scorer(logits[:, -1]).sum()
    ).node_scores
    kinds = {"mlp_out": "mlp_out", "z": "attn_head_out"}
    wanted = {
        (node.kind, node.layer, node.position, node.head): score for node, score in theirs.items()
    }
    length = clean.shape[1]
    assert len(mine) == len(places)
    for _, row in mine.iterrows():
        head = None if pd.isna(row["head"]) else int(row["head"])
        key = (kinds[row["site"]], row["layer"], row["pos"] + length, head)
        assert row["score"] - row["corrupted"] == pytest.approx(wanted[key], abs=1e-4)


def test_rows_are_those_of_patching_without_controls(qwen):
    pairs = pairs_case.pairs(qwen)
    places = layout(qwen, pairs)
    guess = attributed(qwen, pairs, places)
    assert list(guess.columns) == PATCH_COLUMNS
    assert set(guess["direction"]) == {"attribution"}
    exact = patched(qwen, Patching(pairs, places, ("denoise", "noise")), pairs_case.scorer)
    exact = exact[exact["direction"] == "patch"]
    same = [*KEYS, "pos", "subset", "split", "token", "clean", "corrupted"]
    pd.testing.assert_frame_equal(
        guess[same].sort_values(KEYS).reset_index(drop=True),
        exact[same].sort_values(KEYS).reset_index(drop=True),
    )


def test_gradients_leave_the_model_as_it_was(qwen):
    pairs = pairs_case.pairs(qwen)
    side = PairRun.of(pairs, [LAST_ROLE], 1)
    weights = list(qwen.original_model.parameters())
    before = [weight.requires_grad for weight in weights]
    rows = role_gradients(qwen, side, [Place(1, "z", (LAST_ROLE,), head=1)], pairs_case.scorer)
    assert rows.of(Place(1, "z", (LAST_ROLE,), head=1)).shape == (6, 1, 8)
    assert [weight.requires_grad for weight in weights] == before
    assert all(weight.grad is None for weight in weights)


def test_the_strongest_places_keep_their_order():
    places = [Place(layer, "z", (LAST_ROLE,), head=head) for layer in (0, 1) for head in (0, 1)]
    effects = {(0, 0): 0.1, (0, 1): -0.7, (1, 0): 0.02, (1, 1): 0.5}
    rows = [
        {
            "way": way,
            "layer": p.layer,
            "site": "z",
            "role": LAST_ROLE,
            "head": p.head,
            "neuron": None,
        }
        | {"effect": effect if way == "denoise" else 1 - effect}
        for p in places
        for way in ("denoise", "noise")
        for effect in (effects[p.layer, p.head] - 0.3, effects[p.layer, p.head] + 0.3)
    ]
    frame = pd.DataFrame(rows).astype({"head": "Int64", "neuron": "Int64"})
    assert strongest(frame, places, 2) == [places[1], places[3]]
    assert strongest(frame, places, 9) == places
