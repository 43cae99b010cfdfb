"""Sizes that no model has are refused before anything is built, of the hub as of a folder."""

from __future__ import annotations

import json
import shutil

import hub_case
import pytest
from tiny import reconfigured
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import DialError
from refusal_dial.model.checkpoint import LIMITS, check_blueprint, check_folder
from refusal_dial.model.loading import EMBEDDED, identity, load_model

HUGE = [0, -1, 1001, 10_000_000, pytest.param(10**400, id="googols")]


@pytest.fixture
def folder(qwen_folder, tmp_path):
    return shutil.copytree(qwen_folder, tmp_path / "model")


def refused(name, says):
    """What the error says, and that nothing was built before it."""

    def built(*_, **__):
        raise AssertionError("a model was built")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TransformerBridge, "boot_transformers", built)
        with pytest.raises(DialError, match=says) as error:
            load_model(str(name), device="cpu")
    assert len(str(error.value)) < 500
    return str(error.value)


@pytest.mark.parametrize("n", HUGE)
@pytest.mark.parametrize("inside", [False, True])
def test_a_number_of_layers_that_no_model_has_is_refused_at_once(n, inside, folder):
    changes = {"num_hidden_layers": n}
    reconfigured(folder, **({"text_config": changes} if inside else changes))
    refused(folder, r"config\.json has num_hidden_layers .*expected 1 to 1000")


@pytest.mark.parametrize(
    ("key", "n"),
    [
        ("hidden_size", 0),
        ("hidden_size", 10**7),
        ("vocab_size", -1),
        ("vocab_size", 10**30),
        ("intermediate_size", 10**12),
        ("num_attention_heads", 10**6),
        ("num_key_value_heads", 10**9),
        ("head_dim", 10**6),
        ("max_position_embeddings", 10**12),
    ],
)
def test_so_is_any_other_size(key, n, folder):
    assert str(n) in refused(reconfigured(folder, **{key: n}), f"config.json has {key} -?[0-9]+")


@pytest.mark.parametrize(
    ("key", "n"),
    [("vocab_size", 10**7), ("intermediate_size", 10**7), ("hidden_size", 10**5)],
)
def test_more_numbers_than_the_weights_have_bits_are_refused_at_once(key, n, folder):
    line = refused(reconfigured(folder, **{key: n}), "asks for .* numbers or more")
    held = (folder / "model.safetensors").stat().st_size
    assert f"{key} {n}" in line
    assert f"its weights are {held} bytes: get its files again" in line


def test_half_a_download_is_not_taken_for_a_slip(folder):
    """A folder without all shards has few bits for what is asked, and its config.json is fine."""
    reconfigured(folder, vocab_size=10**7)
    with pytest.raises(DialError, match="numbers or more"):
        check_folder(folder, "x")
    index = {"weight_map": {"a": "model.safetensors", "b": "gone.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    check_folder(folder, "x")


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"num_hidden_layers": "many"}', "[" * 10**5])
def test_what_cannot_be_read_is_left_to_the_load(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    check_folder(tmp_path, "x")


def test_models_that_there_are_pass(folder, shared, tmp_path):
    for known in (folder, EMBEDDED, shared / "models" / "stories260K"):
        check_folder(known, "x")
    largest = {"hidden_size": 18432, "num_hidden_layers": 126, "intermediate_size": 73728}
    largest |= {"vocab_size": 262_144, "num_attention_heads": 128, "head_dim": 256}
    (tmp_path / "config.json").write_text(json.dumps(largest))
    check_blueprint(tmp_path / "config.json", "x")
    check_blueprint(tmp_path / "config.json", "x", held=2 * 10**11)
    for keys, (least, most) in LIMITS.items():
        assert least < most
        assert all(key == key.lower() for key in keys)


def test_rotated_positions_take_no_numbers_and_learned_ones_do(tmp_path):
    """A tiny model with a long context is no slip where nothing is stored of a position."""
    config = tmp_path / "config.json"
    tiny = {"hidden_size": 8, "vocab_size": 100, "max_position_embeddings": 131_072}
    config.write_text(json.dumps(tiny | {"rope_theta": 10_000.0}))
    check_blueprint(config, "x", held=10_000)
    config.write_text(json.dumps(tiny))
    with pytest.raises(DialError, match="max_position_embeddings 131072"):
        check_blueprint(config, "x", held=10_000)


# --- on the hub


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize(("key", "n"), [("num_hidden_layers", 10**7), ("vocab_size", 10**9)])
def test_a_hub_model_is_judged_by_its_config_before_anything_else_comes(
    online, key, n, folder, tmp_path, monkeypatch
):
    reconfigured(folder, **{key: n})
    cache = tmp_path / "hub"
    if not online:
        hub_case.lay(cache, "org/tiny", folder)
        hub_case.use(monkeypatch, cache)
        refused("org/tiny", f"model 'org/tiny': its config.json has {key} {n}, expected 1 to")
        return
    commits, refs = {hub_case.FIRST: folder}, {"main": hub_case.FIRST}
    with hub_case.served("org/tiny", commits, refs) as (address, asked):
        hub_case.use(monkeypatch, cache, address)
        refused("org/tiny", f"model 'org/tiny': its config.json has {key} {n}, expected 1 to")
    assert any(path.endswith("config.json") for path in asked)
    assert not any(path.endswith(".safetensors") for path in asked)


def test_sizes_that_only_together_are_absurd(folder, tmp_path, monkeypatch):
    hub_case.lay(tmp_path / "hub", "org/tiny", folder)
    hub_case.use(monkeypatch, tmp_path / "hub")
    assert identity(load_model("org/tiny", device="cpu")).n_layers == 3
    reconfigured(folder, hidden_size=10**6, vocab_size=10**8, max_position_embeddings=10**9)
    with pytest.raises(DialError, match="no model has so many: get its files again"):
        check_blueprint(folder / "config.json", "x")
