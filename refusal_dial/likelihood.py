"""How likely a reply is under the unsteered model, and how far steering moves its next tokens.

Both are means a token, in nats, over replies that are given. This module runs the model on them; it
does not generate, and what makes a reply good it leaves to `quality`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.generate import follow
from refusal_dial.sampling import end_tokens
from refusal_dial.tokens import Tokens
from refusal_dial.types import Hook

LOGITS = 5e7
"""Logits held at once, at most: what bounds a batch where the vocabulary is large."""


@torch.no_grad()
def nll(
    model: TransformerBridge,
    tokens: Tokens,
    said: Sequence[Sequence[int]],
    stops: Sequence[str],
) -> Float64[Tensor, " batch"]:
    """`-mean_k log p(token_k | prompt, tokens before)` in nats under the unsteered model.

    Of a reply that ended, its end counts as a token: the summed probability of every end token; so
    it does where text was cut, `stops` being "end" for both. NaN for a reply of no tokens at all
    that did not end either.
    """
    out = torch.full((len(said),), float("nan"), dtype=torch.float64)
    ends = end_tokens(model)
    ended = torch.tensor([stop == "end" and bool(ends) for stop in stops], dtype=torch.bool)
    order = sorted(range(len(said)), key=lambda i: len(said[i]))
    while order:
        longest = len(said[order[-1]])
        size = max(1, int(LOGITS // ((longest + 1) * int(model.cfg.d_vocab))))
        part, order = order[-size:], order[:-size]
        device = tokens.ids.device
        length = torch.tensor([len(said[i]) for i in part])
        new = torch.tensor([[*said[i], *[0] * (longest - len(said[i]))] for i in part])
        new = new.to(device).long().reshape(len(part), longest)
        real = (torch.arange(longest) < length[:, None]).long()
        ids = torch.cat([tokens.ids[part], new], 1)
        mask = torch.cat([tokens.mask[part], real.to(device)], 1)
        logits = model(ids, attention_mask=mask, logits_to_keep=longest + 1, use_cache=False)
        logp = logits[:, -longest - 1 :].double().log_softmax(-1)
        each = logp[:, :longest].gather(-1, new[..., None])[..., 0].cpu()
        total, count = -(each * real).sum(1), length.clone()
        if ends:
            last = logp[torch.arange(len(part)), length.to(device)][:, ends].logsumexp(-1).cpu()
            total, count = total - last * ended[part], count + ended[part]
        out[part] = total / count
    return out


def kl_per_token(
    model: TransformerBridge,
    tokens: Tokens,
    hooks: Sequence[Hook],
    said: Sequence[Sequence[int]],
) -> Float64[Tensor, " batch"]:
    """`mean_k KL(p_unsteered || p_hooks)` in nats over every token of the replies `said`, the end
    included, each after the same words. 0 for hooks that do nothing."""
    total = torch.zeros(len(tokens), dtype=torch.float64)
    length = torch.tensor([len(row) for row in said])
    pairs = zip(follow(model, tokens, [], said), follow(model, tokens, hooks, said), strict=True)
    for step, (plain, steered) in enumerate(pairs):
        p, q = (x.double().log_softmax(-1).cpu() for x in (plain, steered))
        kl = (p.exp() * (p - q)).sum(-1)
        total += torch.where(step <= length, kl, torch.zeros_like(kl))
    return total / (length + 1)
