"""A model's folder: every byte that decides is in its id, and what is not there is found."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from script_case import load

from refusal_dial.cli import command_line as cli
from refusal_dial.common import DialError
from refusal_dial.model import checkpoint
from refusal_dial.model.checkpoint import (
    check_numbers,
    check_whole,
    configured,
    folder_revision,
    missing_shards,
    parameters,
)
from refusal_dial.model.loading import identity, load_model


@pytest.fixture
def folder(qwen_folder, tmp_path):
    return shutil.copytree(qwen_folder, tmp_path / "model")


# --- which model it is


@pytest.mark.slow
@given(data=st.data())
def test_any_byte_of_any_deciding_file_changes_the_revision(data, tmp_path_factory):
    """Blocks small enough that a file has several: none of them is left out, nor their order."""
    folder = tmp_path_factory.mktemp("f")
    names = ["config.json", "model.safetensors", "merges.txt", "vocab.txt", "tokenizer.model"]
    names += ["chat_template.jinja", "additional_chat_templates/tool.jinja", "modeling_x.py"]
    content = data.draw(st.binary(min_size=1, max_size=64))
    (folder / "additional_chat_templates").mkdir()
    for name in names:
        (folder / name).write_bytes(content)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoint, "HASH_BLOCK", 16)
        before = folder_revision(folder)
        path = folder / data.draw(st.sampled_from(names))
        at = data.draw(st.integers(0, len(content) - 1))
        changed = bytearray(content)
        changed[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(changed)
        os.utime(path, ns=(1, 1))  # a clock too coarse to tell two writes
        assert folder_revision(folder) != before
        path.write_bytes(content)
        os.utime(path, ns=(2, 2))
        assert folder_revision(folder) == before
        (folder / "README.md").write_bytes(content)
        assert folder_revision(folder) == before
        path.rename(path.with_name(f"other{path.suffix}"))
        assert folder_revision(folder) != before


def test_a_weight_in_the_middle_and_a_chat_template_make_another_model(folder):
    before = identity(load_model(str(folder), device="cpu")).revision
    assert before == folder_revision(folder)
    (folder / "chat_template.jinja").write_text(tiny.THINKING)
    other = identity(load_model(str(folder), device="cpu")).revision
    assert other != before


def test_files_that_stand_as_they_were_are_read_once(folder, monkeypatch):
    first = folder_revision(folder)
    monkeypatch.setattr(checkpoint, "ThreadPoolExecutor", None)
    assert folder_revision(folder) == first


# --- what is not there


def test_weights_that_the_files_lack_are_an_error_and_no_random_numbers(folder):
    tiny.reconfigured(folder, num_hidden_layers=5, layer_types=["full_attention"] * 5)
    with pytest.raises(
        DialError, match=r"its files lack model\.layers\.3\..* more, .* random"
    ) as one:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(one.value)
    assert len(str(one.value)) < 600


def test_one_missing_weight_is_named(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DialError, match=r"its files lack model\.norm\.weight, which"):
        load_model(str(folder), device="cpu")


def test_a_weight_of_another_shape_is_named_with_both_shapes(folder):
    weights = load_file(folder / "model.safetensors")
    changed = weights | {"model.norm.weight": torch.ones(7)}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    says = (
        r"its files hold model\.norm\.weight of shape \[7\], expected \[32\], get the files again"
    )
    with pytest.raises(DialError, match=says):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("dtype", "held"), [("float32", None), ("float16", "float32"), (None, "float32")]
)
def test_every_tensor_is_of_the_numbers_that_config_json_says(dtype, held, folder):
    tiny.reconfigured(folder, dtype=dtype)
    if held is None:
        check_numbers(folder, "m")
        weights = load_file(folder / "model.safetensors")
        for other, dtype in ((torch.int8, "I8"), (torch.float64, "float64"), (torch.bool, "BOOL")):
            changed = weights | {"model.norm.weight": torch.ones(32).to(other)}
            save_file(changed, folder / "model.safetensors", {"format": "pt"})
            says = f"model.norm.weight of model.safetensors is of {dtype} numbers, expected float32"
            with pytest.raises(DialError, match=says):
                check_numbers(folder, "m")
        (folder / "model.safetensors").write_bytes(b"none")
        held = "Error while deserializing|model.safetensors"
    with pytest.raises(DialError, match=held):
        check_numbers(folder, "m")


def test_a_weight_too_many_is_refused_where_the_files_must_be_exactly_the_models():
    report = {"missing_keys": set(), "mismatched_keys": set(), "unexpected_keys": {"b", "a"}}
    check_whole("m", report)
    with pytest.raises(DialError, match="its files also hold a, b, which this model has not"):
        check_whole("m", report, exactly=True)


def a_pad_token_that_was_added(folder):
    """What `add_special_tokens` does, and no `resize_token_embeddings`."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    return r"the token '\[PAD\]' of id 259"


def a_tokenizer_of_another_model(folder):
    about = json.loads((folder / "tokenizer.json").read_text())
    about["model"]["vocab"] = {t: i + 1000 * (i > 2) for t, i in about["model"]["vocab"].items()}
    (folder / "tokenizer.json").write_text(json.dumps(about))
    return "of id 1258"


@pytest.mark.parametrize("change", [a_pad_token_that_was_added, a_tokenizer_of_another_model])
def test_tokens_that_the_weights_do_not_embed_are_refused_at_load(change, tmp_path):
    config = tiny.transformers.Qwen2Config(**{**tiny.SMALL, "vocab_size": 259})
    tiny.transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    load_model(str(tmp_path), device="cpu")
    says = rf"{change(tmp_path)}, and its weights embed the ids 0 to 258: give the tokenizer"
    with pytest.raises(DialError, match=says) as error:
        load_model(str(tmp_path), device="cpu")
    assert "\n" not in str(error.value)


def test_a_tied_unembedding_and_spare_weights_are_no_error(tmp_path):
    config = tiny.transformers.Qwen2Config(**tiny.SMALL, tie_word_embeddings=True)
    tiny.transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in weights
    save_file(weights | {"spare": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    load_model(str(tmp_path), device="cpu")


def test_half_a_download_is_told_by_its_index(folder):
    assert missing_shards(folder) == []
    index = folder / "model.safetensors.index.json"
    shards = {"a": "model.safetensors", "b": "two.safetensors", "c": "two.safetensors"}
    index.write_text(json.dumps({"weight_map": shards}))
    assert missing_shards(folder) == ["two.safetensors"]
    for text in ("{", "[]", "{}", '{"weight_map": 3}'):
        index.write_text(text)
        with pytest.raises(DialError, match="is no index of weights: get it again"):
            missing_shards(folder)


# --- how large it is


def test_parameters_are_counted_from_headers_and_from_the_configuration(folder, tmp_path):
    own = sum(p.numel() for p in tiny.hf_model("Qwen2").parameters())
    assert parameters(folder) == configured(str(folder)) == own
    (folder / "model.safetensors").unlink()
    assert parameters(folder) is None
    assert configured(str(folder)) == own
    (folder / "broken.safetensors").write_bytes(b"none")
    assert parameters(folder) is None
    (folder / "config.json").write_text("{")
    assert configured(str(folder)) is None


# --- the script that trains one


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--steps", "0"], "from 1 up"),
        (["--steps", "-1"], "from 1 up"),
        (["--threads", "0"], "from 1 to 1024"),
        (["--threads", "99999999999"], "from 1 to 1024"),
        (["--seed", "9" * 30], "at most 18 digits"),
        (["--seed", "9" * 15], "a seed from 0"),
        (["--device", "bogus"], "unknown device 'bogus'"),
        (["--measure-only"], "no trained weights in 'out'"),
        (["--checkpoint", "garbage"], "garbage is no checkpoint: remove it to start anew"),
    ],
)
def test_training_refuses_in_one_line(flags, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)  # this process keeps its own
    (tmp_path / "garbage").write_bytes(b"no checkpoint")
    with pytest.raises(SystemExit) as stopped:
        cli.run(load("train_embedded_model").main, ["--out", "out", *flags])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert says in error
    assert not (tmp_path / "out").exists()
