"""Weights of 8 and 4 bits by bitsandbytes and torchao: named in runs, replayed where the check
lets them, and not exported."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import tiny
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from refusal_dial.common import DialError, hook_name
from refusal_dial.engine.score import misfit, score_grid
from refusal_dial.hooks import ablate, steer
from refusal_dial.model import loading
from refusal_dial.model.activations import collect
from refusal_dial.model.loading import QUANTIZED, QUANTIZER, identity, load_model, quantised_as
from refusal_dial.model.tokens import last_logits, tokenize
from refusal_dial.studies.export import orthogonalised, rank_one_lora

installed = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install bitsandbytes"
)
THERE = [
    pytest.param(
        dtype,
        marks=pytest.mark.skipif(
            find_spec(library) is None, reason=f"needs {library}: pip install {library}"
        ),
    )
    for dtype, library in QUANTIZER.items()
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Qwen2 whose rows are whole blocks of 64 weights, which 4 bits on a CPU need."""
    path = tmp_path_factory.mktemp("plain")
    config = Qwen2Config(**{**tiny.SMALL, "hidden_size": 64, "intermediate_size": 128})
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    model.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_without_the_library_one_line_names_the_command(dtype, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(DialError) as error:
        load_model("embedded", "cpu", dtype)
    library = {"8bit": "bitsandbytes", "4bit": "bitsandbytes", "int8": "torchao"}[dtype]
    assert str(error.value) == f"--dtype {dtype} needs {library}: pip install {library}"


@pytest.mark.parametrize("dtype", THERE)
def test_hooks_and_the_engine_on_quantised_weights(dtype, folder, caplog):
    plain = load_model(str(folder), "cpu", "float32")
    model = load_model(str(folder), "cpu", dtype)
    # 1. it is what was asked for, recorded, and near the plain model but not it
    assert (identity(model).dtype, identity(plain).dtype) == (dtype, "float32")
    tokens = tokenize(model, tiny.sentences(5))
    whole, few = last_logits(plain, tokens), last_logits(model, tokens)
    assert 1e-3 < (whole - few).abs().max() < 0.5 * whole.abs().max()
    # 2. hooks do what they say: no component along the direction is left
    unit = torch.nn.functional.normalize(torch.arange(1.0, 65.0), dim=0)
    kept, _ = collect(model, tokens, (2,))
    seen = []
    read = (hook_name("resid_pre", 2), lambda value, hook: seen.append(value[:, -1]))
    last_logits(model, tokens, [ablate(unit, layer=2), read])
    assert (seen[0] @ unit).abs().max() < 1e-4 < 0.01 < (kept[0] @ unit).abs().max()
    # 3. the engine replays it, or says in one line why it does not; either way as the plain pass
    grid = [[], *([steer(unit, a, layer=layer)] for a in (-2.0, 2.0) for layer in (0, 1, 2))]
    with caplog.at_level("INFO", "refusal_dial"):
        scores = score_grid(model, tokens, grid, lambda logits: logits.double()[:, 7])
    expected = score_grid(model, tokens, grid, lambda logits: logits.double()[:, 7], engine="plain")
    why = misfit(model, tokens, ["resid_pre"])
    said = [r.message for r in caplog.records if "plain forward passes" in r.message]
    assert said == ([f"plain forward passes for Qwen2ForCausalLM: {why}"] if why else [])
    torch.testing.assert_close(scores, expected, atol=1e-3, rtol=0)
    print(dtype, "replay:", why or "fits", float((scores - expected).abs().max()))
    # 4. no weights are exported
    for export in (orthogonalised, rank_one_lora):
        with pytest.raises(DialError, match=rf"weights are quantised \({dtype}\), and what is"):
            export(model, unit)
    assert quantised_as(plain) == ""


@installed
def test_rows_that_are_no_whole_blocks_are_one_line_before_the_weights_load(tmp_path, monkeypatch):
    folder = tiny.folder("Qwen2", tmp_path / "narrow")  # 32 columns
    monkeypatch.setattr(loading, "_packs_on", lambda device: device == "cpu")
    (folder / "model.safetensors").write_bytes(b"")  # its weights are never read
    monkeypatch.setattr(loading, "source_of", lambda name, revision: str(folder))
    with pytest.raises(DialError, match=r"4 bits on this CPU: model\.layers\.0\.self_attn\.q_proj"):
        load_model(str(folder), "cpu", "4bit")


@pytest.mark.parametrize("dtype", THERE)
def test_a_model_without_linear_layers_is_not_called_quantised(dtype, tmp_path):
    config = GPT2Config(vocab_size=512, n_embd=32, n_layer=1, n_head=4, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(DialError, match=r"has no linear layers that \w+ could .*GPT2LMHeadModel"):
        load_model(str(tmp_path), "cpu", dtype)
