"""Steered generation, ours beside one call a cell and beside plain Hugging Face `generate`.

    python benchmarks/generation.py [--prompts 8] [--alphas 17] [--layers 20] [--new 32]
        [--rounds 3] [--threads 2] [--peers rows,cells,hooks,plain]
        [--model embedded|smollm2|FOLDER] [--device cpu] [--dtype float32]

On one model, in turns, in one process; ratios are medians over rounds. The grid is every layer and
alpha, in one call of ours; `--layers all --alphas 3` is the toxicity study's sweep. Beside it:

    rows    one call of Hugging Face's `generate`, unsteered, on as many rows
    cells   one call of ours a cell
    hooks   TransformerLens's way, `generate` inside `model.hooks`, once a cell
    plain   one cell without hooks, ours against Hugging Face's own `generate`

Hugging Face's own is that of the same weights before TransformerLens wraps them, by SDPA attention.
With `--threads 1` on a CPU the clock is the processor's time of this process, which other work on
the machine does not stop; else it is the time of day.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from typing import Any

import torch
from works import timed, weights_of

from refusal_dial import load_model, load_prompts, steer, tokenize
from refusal_dial.generate.decode import Decoding, generate

PEERS = ("rows", "cells", "hooks", "plain")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name, value in (("prompts", 8), ("alphas", 17), ("new", 32), ("rounds", 3), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", default="", help="a layer (the middle one), or all")
    parser.add_argument("--peers", default=",".join(PEERS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    model = load_model(args.model, args.device, args.dtype)
    texts = [p.text for p in load_prompts("embedded") if p.subset == "EDGE"][: args.prompts]
    tokens = tokenize(model, texts).on(model)
    unit = torch.nn.functional.normalize(torch.randn(int(model.cfg.d_model)), dim=0)
    unit = unit.to(model.cfg.device)
    alphas = torch.linspace(-8, 8, args.alphas).tolist()
    middle = int(args.layers) if args.layers.isdigit() else int(model.cfg.n_layers) // 2
    every = range(int(model.cfg.n_layers)) if args.layers == "all" else [middle]
    grid = [[steer(unit, alpha, layer=n, pos=-1)] for n in every for alpha in alphas]
    decoding = Decoding(args.new, rows=len(grid) * len(texts))
    bare = weights_of(args.model, args.device, args.dtype)

    def theirs(where: Any, times: int = 1) -> torch.Tensor:
        ids, mask = (x.repeat(times, 1) for x in (tokens.ids, tokens.mask))
        return where.generate(
            ids, attention_mask=mask, max_new_tokens=args.new, do_sample=False
        ).cpu()

    def in_hooks() -> list[torch.Tensor]:
        found = []
        for cell in grid:
            with model.hooks(fwd_hooks=cell):
                found.append(theirs(model.original_model)[:, tokens.ids.shape[1] :])
        return found

    print(
        f"{len(texts)} prompts x {len(every)} layers x {len(alphas)} alphas, {args.new} new "
        f"tokens, {args.threads} threads, {args.dtype}, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    runs: dict[str, Callable[[], Any]] = {
        "rows": lambda: theirs(bare, len(grid)),
        "cells": lambda: [generate(model, tokens, [c], decoding) for c in grid],
        "hooks": in_hooks,
        "plain": lambda: theirs(bare),
    }
    wanted = [name for name in PEERS if name in args.peers.split(",")]
    ratios: dict[str, list[float]] = {name: [] for name in wanted}
    same = {"cells": True, "hooks": True}
    generate(model, tokens, grid[:1], Decoding(2))  # the trial, once a model
    for _ in range(args.rounds):
        ours, whole = timed(lambda: generate(model, tokens, grid, decoding), device)
        made = sum(len(one.ids) for one in whole)
        print(f"ours {ours:.1f} s for {made} tokens in {decoding.rows} rows", flush=True)
        for name in wanted:
            took, found = timed(runs[name], device)
            print(f"{name} {took:.1f} s", flush=True)
            if name == "cells":
                same[name] &= [o.ids for o in whole] == [o.ids for cell in found for o in cell]
            if name == "hooks":
                same[name] &= all(
                    one.ids == tuple(found[one.cell][one.prompt, : len(one.ids)].tolist())
                    for one in whole
                )
            if name == "plain":
                mine, _ = timed(lambda: generate(model, tokens, [[]], decoding), device)
                ratios[name].append(mine / took)
            else:
                ratios[name].append(ours / took if name == "rows" else took / ours)
    middle_of = {name: statistics.median(found) for name, found in ratios.items()}
    for name, what in (
        ("rows", "time of Hugging Face on as many rows   {:.2f}"),
        ("cells", "grid against one call a cell           {:.1f}x"),
        ("hooks", "grid against generate in hooks         {:.1f}x"),
        ("plain", "time of plain Hugging Face             {:.2f}"),
    ):
        if name in middle_of:
            print(what.format(middle_of[name]))
        if name in middle_of and name in same:
            print(f"tokens identical                       {same[name]}")


if __name__ == "__main__":
    main()
