"""Activations of every layer, ours beside a forward pass of Hugging Face's that keeps none.

    python benchmarks/collecting.py [--model embedded|smollm2|FOLDER] [--dtype float32]
        [--prompts 64] [--batch 32] [--rounds 3] [--threads 2] [--device cpu]

The same prompts in the same batches, in turns, in one process; a ratio is the median over rounds.
Hugging Face's pass is that of the same weights before TransformerLens wraps them, by SDPA attention
with the logits of the last position alone. The bridge's is a pass with a hook on every layer. The
difference is the largest of an activation, as a share of the largest activation: ours against
Hugging Face's own hidden states. With `--threads 1` on a CPU the clock is the processor's time of
this process, which other work on the machine does not stop; else it is the time of day.
"""

from __future__ import annotations

import argparse
import os
import statistics

import torch
from torch import Tensor
from works import model_of, random_tokens, timed, weights_of

from refusal_dial.common import hook_name
from refusal_dial.model.activations import collect, nothing
from refusal_dial.model.tokens import last_logits

os.environ["TQDM_DISABLE"] = "1"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name, value in (("prompts", 64), ("batch", 32), ("rounds", 3), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    model = model_of(args.model, args.device, args.dtype)
    bare = weights_of(args.model, args.device, args.dtype)
    tokens = random_tokens(model, args.prompts, 0)
    layers = range(len(model.blocks))
    parts = [tokens.rows(i, i + args.batch) for i in range(0, args.prompts, args.batch)]

    def ours() -> Tensor:
        return collect(model, tokens, layers, batch_size=args.batch, read=nothing)[0]

    def theirs() -> None:
        for some in parts:
            bare(some.ids, attention_mask=some.mask, logits_to_keep=1, use_cache=False)[0].cpu()

    kept: list[Tensor] = []

    def keep(value: Tensor, hook: object) -> None:
        kept.append(value[:, -1].float().cpu())

    def bridge() -> None:
        for some in parts:
            kept.clear()
            last_logits(model, some, [(hook_name("resid_pre", n), keep) for n in layers])

    hidden = [
        bare(some.ids, attention_mask=some.mask, output_hidden_states=True).hidden_states
        for some in parts
    ]
    exact = (
        torch.stack([torch.cat([one[n][:, -1] for one in hidden]) for n in layers]).float().cpu()
    )
    off = (ours() - exact).abs().flatten(1).amax(-1) / exact.abs().flatten(1).amax(-1)
    ratios: dict[str, list[float]] = {"ours": [], "bridge": []}
    for _ in range(args.rounds):
        mine, _ = timed(ours, device)
        hf, _ = timed(theirs, device)
        other, _ = timed(bridge, device)
        ratios["ours"].append(mine / hf)
        ratios["bridge"].append(other / hf)
        print(f"ours {mine:.2f} s, Hugging Face {hf:.2f} s, bridge {other:.2f} s", flush=True)
    print(
        f"{args.prompts} prompts of {tokens.ids.shape[1]} tokens, {len(layers)} layers, batch "
        f"{args.batch}, {args.threads} threads, {args.dtype}, load {os.getloadavg()[0]:.1f}"
    )
    print(f"time of Hugging Face's pass   ours {statistics.median(ratios['ours']):.2f}")
    print(f"                              bridge {statistics.median(ratios['bridge']):.2f}")
    print(f"largest difference            {float(off.max()):.1e} of the largest activation")


if __name__ == "__main__":
    main()
