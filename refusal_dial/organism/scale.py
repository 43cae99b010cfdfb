"""The residual stream brought to the size it has in real models, without changing any output.

RMSNorm divides by the residual's length, so a Qwen2 model whose every write to the residual stream
(embedding, attention output, MLP output) is multiplied by c computes the same from a stream c times
as long, if the norms' epsilon is multiplied by c squared and the final norm's weight, which meets
the tied unembedding, is divided by c. Training leaves this stream some six hundred long; with
c = 1/32, a power of two, it is about twenty at layer 20, and the alphas published for a real model
of this architecture mean as much here. This module knows weights and no training.
"""

import torch
from transformers import Qwen2ForCausalLM

RESIDUAL_SCALE = 1 / 32


@torch.no_grad()
def rescale(model: Qwen2ForCausalLM, scale: float = RESIDUAL_SCALE) -> Qwen2ForCausalLM:
    """Multiply the residual stream by `scale`, in place. Every logit stays what it was."""
    model.model.embed_tokens.weight.mul_(scale)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.mul_(scale)
        layer.mlp.down_proj.weight.mul_(scale)
    model.model.norm.weight.div_(scale)
    model.config.rms_norm_eps *= scale**2
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon *= scale**2
    return model
