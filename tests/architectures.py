"""Tiny random-weight models of the architectures that the replay engine is tested on.

Every weight is random, norms and biases too, and windows are shorter than the prompts, so that
nothing an architecture does is an identity by accident.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import tiny
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.model.tokens import Tokens

VOCABULARY = 64
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen2": SMALL,
    "Qwen3": SMALL | {"head_dim": 8, "num_hidden_layers": 2},
    "Llama": SMALL | {"num_hidden_layers": 4, "tie_word_embeddings": True},
    "Mistral": SMALL | {"sliding_window": 3},
    "Phi3": SMALL | {"partial_rotary_factor": 0.5, "sliding_window": 4},
    "Gemma2": SMALL
    | {
        "head_dim": 8,
        "sliding_window": 3,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 4.0,
    },
    "Gemma3": SMALL
    | {
        "head_dim": 8,
        "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "GPT2": GPT2 | {"bos_token_id": 0, "eos_token_id": 2},
    "GPTNeoX": SMALL | {"num_key_value_heads": 4, "rotary_pct": 0.5},
    "Olmo2": SMALL | {"num_hidden_layers": 2},
    "Mixtral": SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 3},
    "Qwen2Moe": SMALL | EXPERTS | {"shared_expert_intermediate_size": 40, "mlp_only_layers": [0]},
    "Qwen3Moe": SMALL | EXPERTS | {"head_dim": 8, "num_hidden_layers": 2},
    "Olmoe": SMALL | EXPERTS | {"num_hidden_layers": 2},
}
MIXTURES = ("Mixtral", "Qwen2Moe", "Qwen3Moe", "Olmoe")
PLAIN_ONLY = {
    "GraniteMoe": SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "GptOss": SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
}
"""Mixtures that the engine leaves to plain forward passes."""
CLASSES = {"GPT2": "GPT2LMHeadModel"}
TYPES = {"Gemma3": "Gemma3TextConfig"}


@cache
def bridge(architecture: str) -> TransformerBridge:
    """One model for the whole session: tests leave it as they find it."""
    return fresh(architecture)


def fresh(architecture: str) -> TransformerBridge:
    config = getattr(transformers, TYPES.get(architecture, f"{architecture}Config"))
    kind = CLASSES.get(architecture, f"{architecture}ForCausalLM")
    model = getattr(transformers, kind)(
        config(**(CONFIGS | PLAIN_ONLY)[architecture], architectures=[kind])
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(0.25 * noise if weight.ndim > 1 else weight + 0.2 * noise)
    wrapped = TransformerBridge.boot_transformers(
        "tiny/model", hf_model=model.eval(), tokenizer=tiny.tokenizer(), device="cpu"
    )
    wrapped.requires_grad_(False)
    return wrapped.eval()


def prompts(lengths: tuple[int, ...], seed: int = 0) -> Tokens:
    """Random prompts of these lengths, padded on the left."""
    width = max(lengths)
    ids = torch.randint(3, VOCABULARY, (len(lengths), width), generator=_seeded(seed))
    real = torch.arange(width)[None] >= width - torch.tensor(lengths)[:, None]
    return Tokens(torch.where(real, ids, 0), real.long())


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
