"""Small models made on the spot: random weights, real architectures, a byte-level tokenizer.

`folder(architecture, path)` saves one the way a hub model is saved, so that tests load it through
the same path as a real one.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerFast

CHAT = (
    "{% if messages[0]['role'] == 'system' %}<|im_start|>system\n{{ messages[0]['content'] }}"
    "<|im_end|>\n{% endif %}{% for m in messages if m['role'] == 'user' %}<|im_start|>user\n"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = CHAT.replace(
    "<|im_start|>assistant\n",
    "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}",
)
TIGHT = THINKING.replace("</think>\n\n", "</think>")
OPENED = CHAT.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Llama": {},
    "Mistral": {"sliding_window": 8},
    "Phi3": {"partial_rotary_factor": 0.5, "rope_theta": 10000.0},
    "GPTNeoX": {"num_key_value_heads": 4},
    "Gemma2": {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
}


def hf_model(architecture: str, seed: int = 0) -> Any:
    """A random-weight causal model, with weights large enough that layers matter."""
    config = getattr(transformers, f"{architecture}Config")(**{**SMALL, **CONFIGS[architecture]})
    torch.manual_seed(seed)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return model


def tokenizer(template: str | None = CHAT, bos: str | None = None) -> PreTrainedTokenizerFast:
    """One token a byte, three control tokens; encodes any text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=bos,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL[1:2],
    )
    fast.chat_template = template
    return fast


def folder(architecture: str, path: Path, template: str | None = CHAT) -> Path:
    """Save a random-weight model with its tokenizer as a hub folder."""
    hf_model(architecture).save_pretrained(path)
    tokenizer(template).save_pretrained(path)
    return path


def speaker(path: Path, says: dict[str, str], template: str | None = THINKING) -> Path:
    """A Llama whose next token is the one that `says` names for the last (a byte or a tag), saved
    as a hub folder with think tags as Qwen3 has them: tokens that are added and not special. Its
    attention is random and small, so that prompts differ inside and no word does."""
    words = tokenizer(template)
    words.add_tokens(["<think>", "</think>"])
    config = transformers.LlamaConfig(
        **{**SMALL, "hidden_size": 512, "num_hidden_layers": 2, "tie_word_embeddings": False}
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    (end,) = words.encode("<|im_end|>")
    following = torch.full((config.vocab_size,), end)
    for one, other in says.items():
        (first,), (second,) = words.encode(one), words.encode(other)
        following[first] = second
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(0.01)
            layer.mlp.down_proj.weight.mul_(0.01)
        model.model.embed_tokens.weight.copy_(torch.eye(config.vocab_size))
        model.lm_head.weight.zero_()
        model.lm_head.weight[following, torch.arange(config.vocab_size)] = 1.0
    model.generation_config.eos_token_id = end
    model.save_pretrained(path)
    words.save_pretrained(path)
    return path


def reconfigured(folder: Path, **changes: Any) -> Path:
    """The folder with other values in its config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def bridge(architecture: str) -> TransformerBridge:
    """A random-weight model wrapped in memory."""
    return TransformerBridge.boot_transformers(
        "tiny/model", hf_model=hf_model(architecture), tokenizer=tokenizer(), device="cpu"
    )


def sentences(n: int) -> list[str]:
    """n different short texts of different lengths."""
    letters = string.ascii_lowercase
    return [
        " ".join(letters[(i + j) % 26] * (1 + j % 4) for j in range(2 + i % 5)) for i in range(n)
    ]
