"""A small model whose weights we write, so that we know where its refusal comes from.

The letter z in a prompt is what is harmful. Its embedding holds a feature h, and no other token's
does. One head of one layer averages over the prompt and writes r wherever it saw h; or it writes a
small marker, and one neuron of the next layer turns that into r. The unembedding reads r as the
token "I". Everything else in the model is small random weights, and knows nothing of h, of the
marker or of r.
"""

from __future__ import annotations

import json
from pathlib import Path

import tiny
import torch
import transformers

D, N_LAYERS, N_HEADS = 64, 6, 4
LAYER, HEAD, NEURON = 2, 1, 7
HARMFUL, MARKER, REFUSAL = 0, 1, 2  # axes of the residual stream, before it is turned


def model_folder(path: Path, writer: str) -> tuple[Path, torch.Tensor]:
    """(hub folder, r). `writer` is "head" (layer 2, head 1) or "neuron" (layer 3, neuron 7)."""
    model = _quiet(3)
    with torch.no_grad():
        tokenizer = tiny.tokenizer()
        model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("z"), HARMFUL] = 4.0
        model.lm_head.weight[tokenizer.convert_tokens_to_ids("I"), REFUSAL] = 1.5
        _write_head(
            model, MARKER if writer == "neuron" else REFUSAL, 0.6 if writer == "neuron" else 9
        )
        if writer == "neuron":
            _write_neuron(model)
        turn = torch.linalg.qr(torch.randn(D, D)).Q
        _turn(model, turn)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path, turn[REFUSAL].clone()


def _write_head(
    model: transformers.LlamaForCausalLM,
    axis: int,
    gain: float,
    head: int = HEAD,
    feature: int = HARMFUL,
) -> None:
    attention, size = model.model.layers[LAYER].self_attn, D // N_HEADS
    rows = slice(head * size, (head + 1) * size)
    attention.q_proj.weight[rows] = 0  # looks everywhere alike
    attention.k_proj.weight[rows] = 0
    attention.v_proj.weight[rows] = 0
    attention.v_proj.weight[head * size, feature] = 1.0
    attention.o_proj.weight[:, rows] = 0
    attention.o_proj.weight[axis, head * size] = gain


def _write_neuron(model: transformers.LlamaForCausalLM) -> None:
    mlp = model.model.layers[LAYER + 1].mlp
    for part in (mlp.gate_proj, mlp.up_proj):
        part.weight[NEURON] = 0
        part.weight[NEURON, MARKER] = 3.0
    mlp.down_proj.weight[:, NEURON] = 0
    mlp.down_proj.weight[REFUSAL, NEURON] = 3.0


def _turn(model: transformers.LlamaForCausalLM, turn: torch.Tensor) -> None:
    """The same model with its residual stream turned, so that no axis is anything special."""
    model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ turn)
    model.lm_head.weight.copy_(model.lm_head.weight @ turn)
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj):
            reader.weight.copy_(reader.weight @ turn)
        for reader in (mlp.gate_proj, mlp.up_proj):
            reader.weight.copy_(reader.weight @ turn)
        for writer in (attention.o_proj, mlp.down_proj):
            writer.weight.copy_(turn.T @ writer.weight)


SECOND, SECOND_REFUSAL, SECOND_HEAD = 3, 4, 2  # of the model with two ways to refuse


def two_ways_folder(path: Path) -> tuple[Path, torch.Tensor]:
    """(hub folder, two orthonormal directions): z makes one head write the first, which is read as
    the token "I"; x makes another write the second, which is read as "J". Either is a refusal, so
    no one direction holds both."""
    model = _quiet(5)
    with torch.no_grad():
        tokenizer, embedding = tiny.tokenizer(), model.model.embed_tokens.weight
        for letter, said, feature, axis, head in (
            ("z", "I", HARMFUL, REFUSAL, HEAD),
            ("x", "J", SECOND, SECOND_REFUSAL, SECOND_HEAD),
        ):
            embedding[tokenizer.convert_tokens_to_ids(letter), feature] = 4.0
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(said), axis] = 1.5
            _write_head(model, axis, 9, head, feature)
        turn = torch.linalg.qr(torch.randn(D, D)).Q
        _turn(model, turn)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path, turn[[REFUSAL, SECOND_REFUSAL]].clone()


def _quiet(n: int) -> transformers.LlamaForCausalLM:
    """Small random weights that know nothing of the first n axes."""
    made = transformers.LlamaConfig(
        **{
            **tiny.SMALL,
            "hidden_size": D,
            "num_hidden_layers": N_LAYERS,
            "num_attention_heads": N_HEADS,
            "num_key_value_heads": N_HEADS,
        }
    )
    torch.manual_seed(5)
    model = transformers.LlamaForCausalLM(made).eval()
    kept = torch.ones(D)
    kept[:n] = 0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.copy_(0.002 * torch.randn_like(weight) * kept[:, None])
            elif weight.ndim == 2:
                weight.copy_(0.3 * torch.randn_like(weight) * kept)
    return model


def prompts_file(path: Path, n: int = 24, harmful: tuple[str, ...] = ("zzzz",)) -> Path:
    """n matched pairs that differ in one word: HARMFUL has z's, or these words in turn."""
    words = ["tell", "make", "find", "show", "give", "read"]
    rows = []
    for i in range(n):
        rest = f"{words[i % 6]} me {chr(97 + i % 20)} {words[(i * 5 + 1) % 6]}"
        for subset, word in (("HARMFUL", harmful[i % len(harmful)]), ("BENIGN", "abcd")):
            about = {"id": f"{subset}{i}", "subset": subset, "pair_id": f"p{i}"}
            rows.append({**about, "text": f"{word} {rest}"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
