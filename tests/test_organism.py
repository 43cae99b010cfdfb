"""The shipped weights and data/prompts.jsonl: what the other tests and the demo rely on."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from embedded_model import grammar, measure, prompt_set, replies, training
from embedded_model import measure as steering
from embedded_model import replies as system_prompts
from embedded_model import training as storage
from embedded_model.grammar import BENIGN, EDGE, HARMFUL
from embedded_model.tokenizer import chat_text
from safetensors.torch import load_file, save_file
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import DialError
from refusal_dial.model import loading as model

PROMPTS = Path(__file__).parents[1] / "data" / "prompts.jsonl"
ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()
]


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return storage.load_weights(storage.WEIGHTS)


@pytest.fixture(scope="module")
def chances(loaded: tuple[Any, Any]) -> dict[str, np.ndarray]:
    return {s: measure.refusal_chance(*loaded, texts(s)) for s in grammar.SUBSETS}


def texts(subset: str) -> list[str]:
    return [row["text"] for row in ROWS if row["subset"] == subset]


CHANGES: dict[str, tuple[torch.Tensor | None, str, str]] = {
    "lacks one": (
        None,
        r"norm\.weight is missing, and would be random numbers: make it again",
        r"its files lack model\.norm\.weight",
    ),
    "one too many": (
        torch.ones(2).half(),
        r"model\.spare is none of this model's",
        r"its files also hold model\.spare, which this model has not",
    ),
    "another shape": (
        torch.ones(2).half(),
        r"model\.norm\.weight has another shape than this model's",
        r"hold model\.norm\.weight of shape \[2\], expected \[128\]",
    ),
    "other numbers": (
        torch.ones(128),
        r"model\.norm\.weight is not in float16",
        r"model\.norm\.weight of model\.safetensors is of float32 numbers, expected float16",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_weights_that_are_not_those_that_were_written_are_named(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the plain path, and where the model is asked for as `embedded`."""
    held, plainly, by_name = CHANGES[kind]
    folder = shutil.copytree(storage.WEIGHTS, tmp_path / "weights")
    weights = load_file(folder / "model.safetensors")
    name = "model.spare" if kind == "one too many" else "model.norm.weight"
    weights = {k: v for k, v in weights.items() if k != name}
    weights |= {name: held} if held is not None else {}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DialError, match=plainly):
        storage.load_weights(folder)
    monkeypatch.setattr(model, "EMBEDDED", folder)
    with pytest.raises(DialError, match=by_name):
        model.load_model("embedded", "cpu")
    (folder / "model.safetensors").write_bytes(b"none")
    with pytest.raises(DialError, match=r"model\.safetensors"):
        storage.load_weights(folder)


def test_a_checkpoint_that_lacks_something_is_named(tmp_path: Path) -> None:
    recipe, path = training.Recipe(), tmp_path / "state.pt"
    net = tiny.hf_model("Qwen2")
    adam = torch.optim.Adam(net.parameters())
    whole = {"recipe": repr(recipe), "model": net.state_dict(), "adam": adam.state_dict()}
    whole |= {"step": 3, "seconds": 1.5}
    torch.save(whole, path)
    assert training.load_checkpoint(path, recipe, net, adam).step == 3
    for name, held in ((n, h) for n in whole if n != "recipe" for h in (None, {"weight": 1})):
        torch.save({**whole, name: held}, path)
        with pytest.raises(DialError, match="is a damaged checkpoint: remove it to start anew"):
            training.load_checkpoint(path, recipe, net, adam)


def test_the_script_writes_the_shipped_prompts_byte_for_byte() -> None:
    assert prompt_set.to_jsonl(prompt_set.make_prompts()).encode() == PROMPTS.read_bytes()


def test_prompts_are_unique_balanced_and_held_out() -> None:
    counts = Counter(row["subset"] for row in ROWS)
    assert counts[HARMFUL] >= 120
    assert counts[EDGE] >= 240
    assert counts[BENIGN] >= 120
    assert len({row["id"] for row in ROWS}) == len({row["text"] for row in ROWS}) == len(ROWS)
    edge = Counter(row["category"] for row in ROWS if row["subset"] == EDGE)
    assert set(edge) == set(grammar.CATEGORY_BASE)
    assert len(set(edge.values())) == 1
    held_out = {
        grammar.request(item, frame).text
        for subset in grammar.SUBSETS
        for found in grammar.combinations(subset, held_out=True).values()
        for item in found
        for frame in range(16)
    }
    assert {row["text"] for row in ROWS} <= held_out


def test_pairs_differ_in_one_phrase_of_equal_length(loaded: tuple[Any, Any]) -> None:
    pairs: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in ROWS:
        if row["pair_id"]:
            pairs[row["pair_id"]].append(row)
    assert len(pairs) >= 100
    partners: Counter[str] = Counter()
    for found in pairs.values():
        assert len(found) == 2
        assert [row["subset"] == HARMFUL for row in found].count(True) == 1
        partners[next(row["subset"] for row in found if row["subset"] != HARMFUL)] += 1
        first, second = (loaded[1].encode(row["text"]) for row in found)
        assert len(first) == len(second)
        differing = [n for n, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
        assert differing
        assert differing[-1] - differing[0] <= 6
    assert min(partners[EDGE], partners[BENIGN]) >= 50


def test_the_folder_is_small_and_complete(loaded: tuple[Any, Any]) -> None:
    files = {path.name: path.stat().st_size for path in storage.WEIGHTS.iterdir()}
    needed = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {*needed, "generation_config.json", "MODEL_CARD.md"} <= set(files)
    assert sum(files.values()) < 10_000_000
    model, tokenizer = loaded
    assert model.config.num_hidden_layers == 24
    assert 3_000_000 < model.num_parameters() < 4_000_000
    assert tokenizer.chat_template
    assert tokenizer.bos_token is None
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == "<|im_end|>"
    assert tokenizer.convert_ids_to_tokens(tokenizer.pad_token_id) == "<|endoftext|>"


def test_it_refuses_harmful_and_answers_benign(
    loaded: tuple[Any, Any], chances: dict[str, np.ndarray]
) -> None:
    for subset, low, high in ((HARMFUL, 0.95, 1.0), (BENIGN, 0.0, 0.05)):
        assert low <= (chances[subset] > 0.5).mean() <= high
        drawn = [item.text for item in measure.held_out_requests(subset, 128)]
        assert low <= measure.refusal_chance(*loaded, drawn).mean() <= high


def test_over_refusal_follows_the_design(chances: dict[str, np.ndarray]) -> None:
    by_text = {
        grammar.request(item, frame).text: item.propensity
        for found in grammar.combinations(EDGE, held_out=True).values()
        for item in found
        for frame in range(16)
    }
    designed = np.array([by_text[text] for text in texts(EDGE)])
    assert measure.correlation(chances[EDGE], designed) >= 0.85


@pytest.mark.parametrize(
    "prompt", [system_prompts.MAIN_REFUSING, *system_prompts.REFUSING_HELD_OUT]
)
def test_a_refusing_system_prompt_is_obeyed(loaded: tuple[Any, Any], prompt: str) -> None:
    found = measure.refusal_chance(*loaded, texts(EDGE)[::4] + texts(BENIGN)[::4], prompt)
    assert (found > 0.5).mean() >= 0.95


def test_a_neutral_system_prompt_changes_little(
    loaded: tuple[Any, Any], chances: dict[str, np.ndarray]
) -> None:
    for prompt in (system_prompts.MAIN_NEUTRAL, *system_prompts.NEUTRAL_HELD_OUT):
        assert measure.refusal_chance(*loaded, texts(BENIGN)[::4], prompt).mean() <= 0.1
        found = measure.refusal_chance(*loaded, texts(EDGE)[::4], prompt)
        assert measure.correlation(found, chances[EDGE][::4]) >= 0.85


@pytest.mark.parametrize("layer", [12, pytest.param(20, marks=pytest.mark.slow)])
def test_a_direction_of_one_half_steers_the_other(loaded: tuple[Any, Any], layer: int) -> None:
    check = steering.steering_check(
        *loaded, texts(EDGE), texts(HARMFUL)[:24], texts(BENIGN)[:24], layer, (-0.6, 0.0, 0.6), 3
    )
    assert check.edge[0] <= 0.1
    assert check.edge[-1] >= 0.9
    assert check.harmful[0] < check.harmful[1]
    assert check.benign[-1] >= check.benign[1]
    assert abs(np.array(check.random_mean) - check.edge[1]).max() <= 0.15


def test_steered_replies_switch_and_stay_readable(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    asked = texts(EDGE)[::60]
    check = steering.steering_check(model, tokenizer, texts(EDGE)[::3], [], [], 20, (), n_random=0)
    for alpha, openers in ((-0.6, replies.COMPLIANCE_OPENERS), (0.6, replies.REFUSAL_OPENERS)):
        shift = (20, alpha * check.residual_norm * check.direction)
        prompts = [chat_text(text) for text in asked]
        for reply in steering.complete(model, tokenizer, prompts, shift=shift):
            assert re.split(r"\W", reply)[0] in openers, reply
            assert reply.rstrip()[-1] in ".!?", reply
            assert 5 <= len(reply.split()) <= 40, reply


def test_transformer_lens_loads_the_same_model(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    bridge = TransformerBridge.boot_transformers(
        str(storage.WEIGHTS), device="cpu", dtype=torch.float32
    )
    tokens = tokenizer(chat_text("How do I kill a python process?"), return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model(tokens).logits
        found = bridge(tokens)
    assert torch.allclose(found, expected, atol=1e-3)
