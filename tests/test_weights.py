"""Weights without a direction do what the hooks do, in plain transformers, biases and ties too."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file
from tool_env import tool_python
from transformers import AutoModelForCausalLM

from refusal_dial.common import DialError
from refusal_dial.directions.learning import Direction, Provenance, save
from refusal_dial.hooks import ablate_everywhere
from refusal_dial.model.loading import load_model
from refusal_dial.model.tokens import last_logits, tokenize
from refusal_dial.studies.export import (
    difference,
    orthogonalised,
    rank_one_lora,
    save_lora,
    save_model,
)

sys.path.insert(0, "scripts")
import export_model


def unit(width=32, seed=0):
    vector = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()


def saved(path, architecture, **config):
    """A random model with nonzero biases, saved as a hub folder."""
    made = getattr(transformers, f"{architecture}Config")(
        **{**tiny.SMALL, **tiny.CONFIGS.get(architecture, {}), **config}
    )
    torch.manual_seed(1)
    model = getattr(
        transformers,
        f"{architecture}{'LMHead' * (architecture == 'GPT2')}"
        f"{'ForCausalLM' * (architecture != 'GPT2')}"
        f"{'Model' * (architecture == 'GPT2')}",
    )(made).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
            elif name.endswith("bias"):
                parameter.normal_()
    model.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512, "num_key_value_heads": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MODELS = {
    "Qwen2 tied": ("Qwen2", {"tie_word_embeddings": True}),
    "Llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "Phi3": ("Phi3", {}),
    "GPTNeoX, parallel": ("GPTNeoX", {}),
    "GPT2, transposed": ("GPT2", GPT2),
    "Mixtral, a mixture": ("Mixtral", {"num_local_experts": 4, "tie_word_embeddings": True}),
    "Qwen2Moe, shared expert, dense layer": (
        "Qwen2Moe",
        EXPERTS | {"shared_expert_intermediate_size": 40, "mlp_only_layers": [1]},
    ),
    "Qwen3Moe": ("Qwen3Moe", EXPERTS | {"head_dim": 8}),
    "Olmoe": ("Olmoe", EXPERTS),
    "GraniteMoe, scaled": ("GraniteMoe", {"num_local_experts": 4, "residual_multiplier": 0.5}),
    "GptOss, transposed, biases": ("GptOss", {"num_local_experts": 4, "head_dim": 8}),
}


@pytest.mark.parametrize("name", MODELS)
def test_plain_transformers_gives_the_logits_of_the_hooks(name, tmp_path):
    architecture, config = MODELS[name]
    source = saved(tmp_path / "model", architecture, **config)
    model = load_model(str(source), device="cpu", dtype="float32")
    r = unit()
    tokens = tokenize(model, tiny.sentences(4))
    folder = save_model(orthogonalised(model, r), model.tokenizer, tmp_path / "without")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        position = tokens.mask.cumsum(-1).sub(1).clamp(min=0)
        logits = plain(tokens.ids, attention_mask=tokens.mask, position_ids=position).logits[:, -1]
    hooked = last_logits(model, tokens, ablate_everywhere(r, 3))
    size = float(hooked.abs().max())
    assert float((logits - hooked).abs().max()) < 1e-4 * max(1, size)
    untouched = last_logits(model, tokens)
    assert float((untouched - hooked).abs().max()) > 0.01 * size  # the direction mattered
    off, largest = difference(model, load_model(str(folder), "cpu", "float32"), r, tokens)
    assert off < 1e-4 * max(1, largest)
    assert largest == pytest.approx(size)


def test_a_shared_unembedding_stays_as_it_was(tmp_path):
    source = saved(tmp_path / "model", "Qwen2", tie_word_embeddings=True)
    model, r = load_model(str(source), device="cpu", dtype="float32"), unit()
    plain = orthogonalised(model, r)
    head, rows = plain.get_output_embeddings().weight, plain.get_input_embeddings().weight
    before = AutoModelForCausalLM.from_pretrained(source).get_output_embeddings().weight
    assert torch.equal(head, before)
    assert (rows @ r).abs().max() < 1e-6 < (head @ r).abs().max()
    folder = save_model(plain, model.tokenizer, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(again.get_output_embeddings().weight, before)
    assert not again.config.tie_word_embeddings


@pytest.mark.parametrize("name", ["Mixtral, a mixture", "Qwen2Moe, shared expert, dense layer"])
def test_of_a_mixture_every_expert_loses_it_and_the_router_is_left_alone(name, tmp_path):
    architecture, config = MODELS[name]
    model = load_model(str(saved(tmp_path / "model", architecture, **config)), "cpu", "float32")
    r, plain = unit(), orthogonalised(model, unit())
    before = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "model").named_parameters())
    assert any("experts.down_proj" in key for key in before)
    for key, weight in plain.named_parameters():
        if key.endswith(("down_proj", "down_proj.weight")):  # routed, shared and dense
            assert (r @ weight).abs().max() < 1e-6 < (r @ before[key]).abs().max()
        elif ".mlp." in key:
            assert torch.equal(weight, before[key]), key
    with pytest.raises(DialError, match="keeps its experts in one tensor, down_proj, and a LoRA"):
        rank_one_lora(model, r)


def test_what_weights_cannot_say_is_refused(tmp_path):
    gemma = load_model(str(saved(tmp_path / "g", "Gemma2")), device="cpu", dtype="float32")
    with pytest.raises(DialError, match="Gemma2ForCausalLM normalises what attention and the MLP"):
        orthogonalised(gemma, unit())
    qwen = load_model(str(saved(tmp_path / "q", "Qwen2")), device="cpu", dtype="float32")
    with pytest.raises(DialError, match="direction is 7 wide and this model's residual stream is"):
        orthogonalised(qwen, unit(7))
    (tmp_path / "there").mkdir()
    with pytest.raises(DialError, match="is there already: choose another --out"):
        save_model(None, None, tmp_path / "there")


def test_the_script_keeps_only_what_equals_the_hooks(tmp_path, capsys, monkeypatch):
    source = saved(tmp_path / "model", "Qwen2")
    save(Direction(unit(), 1.0), tmp_path / "d.safetensors")
    out = tmp_path / "out"
    flags = export_model.Flags(str(tmp_path / "d.safetensors"), model=str(source), out=str(out))
    export_model.main(flags)
    assert f"exported: {out}, float32 (largest difference to the hooks" in capsys.readouterr().out
    assert (out / "model.safetensors").is_file()
    kept = set(tmp_path.iterdir())
    flags = export_model.Flags(flags.direction, model=str(source), out=str(tmp_path / "other"))
    real = orthogonalised(load_model(str(source), "cpu", "float32"), unit(seed=9))
    monkeypatch.setattr("refusal_dial.studies.export.orthogonalised", lambda *_: real)
    with pytest.raises(DialError, match=r"differs from the hooks by .* and is not kept"):
        export_model.main(flags)
    assert set(tmp_path.iterdir()) == kept


def test_the_script_refuses_a_direction_of_another_model_unless_asked(tmp_path):
    source, out = saved(tmp_path / "model", "Qwen2"), tmp_path / "out"
    other = Direction(unit(), 1.0, Provenance(1, "resid_pre", -1, model="a/b", revision="abc"))
    save(other, tmp_path / "d.safetensors")
    flags = export_model.Flags(str(tmp_path / "d.safetensors"), str(source), str(out))
    with pytest.raises(DialError, match=r"learned on a/b \(revision abc\).*or --any-model"):
        export_model.main(flags)
    assert not out.exists()
    export_model.main(replace(flags, any_model=True))
    assert out.is_dir()


def test_files_that_changed_since_the_model_was_loaded_are_an_error_and_no_random_numbers(tmp_path):
    source = saved(tmp_path / "model", "Qwen2")
    model = load_model(str(source), device="cpu", dtype="float32")
    weights = load_file(source / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(DialError, match=r"its files lack model\.norm\.weight"):
        orthogonalised(model, unit())
    (source / "model.safetensors").write_bytes(b"none")
    with pytest.raises(DialError, match="could not be loaded again"):
        orthogonalised(model, unit())


LORAS = ["Qwen2 tied", "Phi3"]


@pytest.mark.parametrize("name", LORAS)
def test_an_adapter_of_rank_one_beside_the_plain_model_gives_the_logits_of_the_hooks(
    name, tmp_path
):
    """The adapter is applied as its equation has it, by hooks on the modules that it names."""
    architecture, config = MODELS[name]
    source = saved(tmp_path / "model", architecture, **config)
    model = load_model(str(source), device="cpu", dtype="float32")
    folder = save_lora(rank_one_lora(model, unit()), "org/m", tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    targets = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert len(targets) == 1 + 2 * 3  # the embedding, and two writers a block
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()

    def add(key):
        def hook(module, args, out):
            if f"{key}.lora_A.weight" in tensors:
                a, b = tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"]
                return out + args[0] @ a.T @ b.T
            a, b = tensors[f"{key}.lora_embedding_A"], tensors[f"{key}.lora_embedding_B"]
            return out + a.T[args[0]] @ b.T

        return hook

    for target in targets:
        plain.get_submodule(target).register_forward_hook(add(f"base_model.model.{target}"))
    tokens = tokenize(model, ["one prompt alone"])
    with torch.no_grad():
        logits = plain(tokens.ids).logits[:, -1]
    hooked = last_logits(model, tokens, ablate_everywhere(unit(), 3))
    size = float(hooked.abs().max())
    assert float((logits - hooked).abs().max()) < 1e-4 * max(1, size)
    assert float((last_logits(model, tokens) - hooked).abs().max()) > 0.01 * size


@pytest.mark.slow
@pytest.mark.parametrize("name", LORAS)
def test_plain_peft_loads_the_adapter_and_gives_the_logits_of_the_hooks(name, tmp_path, request):
    architecture, config = MODELS[name]
    python = tool_python(request.config.cache, ("peft==0.21.2",))
    source = saved(tmp_path / "model", architecture, **config)
    model = load_model(str(source), device="cpu", dtype="float32")
    folder = save_lora(rank_one_lora(model, unit()), str(source), tmp_path / "adapter")
    tokens = tokenize(model, ["one prompt alone"])
    script, out = Path(__file__).with_name("interchange_tools.py"), tmp_path / "logits.npy"
    ids = json.dumps(tokens.ids[0].tolist())
    typed = [str(python), str(script), "peft", str(source), str(folder), ids, str(out)]
    made = subprocess.run(typed, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stderr[-2000:]
    logits = torch.from_numpy(np.load(out)).float()
    hooked = last_logits(model, tokens, ablate_everywhere(unit(), 3))[0]
    size, off = float(hooked.abs().max()), float((logits - hooked).abs().max())
    print(f"peft, {name}: largest logit difference {off:.2g} of {size:.2g}")
    assert off < 1e-4 * max(1, size)
    assert float((last_logits(model, tokens)[0] - logits).abs().max()) > 0.01 * size


def test_an_adapter_takes_away_no_bias(tmp_path):
    architecture, config = MODELS["Llama, biases"]
    source = saved(tmp_path / "model", architecture, **config)
    model = load_model(str(source), device="cpu", dtype="float32")
    with pytest.raises(DialError, match=r"o_proj of LlamaForCausalLM has a bias, and a LoRA"):
        rank_one_lora(model, unit())


def test_the_script_writes_an_adapter_that_equals_the_hooks(tmp_path, capsys):
    source = saved(tmp_path / "model", "Qwen2")
    save(Direction(unit(), 1.0), tmp_path / "d.safetensors")
    out = tmp_path / "adapter"
    flags = export_model.Flags(str(tmp_path / "d.safetensors"), str(source), str(out), lora=True)
    export_model.main(flags)
    assert f"exported: {out}, float32 (largest difference to the hooks" in capsys.readouterr().out
    assert {one.name for one in out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
