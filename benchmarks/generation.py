"""Steered generation, ours beside one call a cell and beside plain Hugging Face `generate`.

    python benchmarks/generation.py [--prompts 8] [--alphas 17] [--layers 20] [--new 32]
        [--rounds 3] [--threads 2]
        [--model embedded|FOLDER] [--device cpu] [--dtype float32]

On one model, in turns, in one process; ratios are medians over rounds. `grid`: every layer
and alpha in one call of ours against one call of ours a cell, and against TransformerLens's way,
Hugging Face `generate` inside `model.hooks`, once a cell. `--layers all --alphas 3` is the toxicity
study's sweep. `plain`: one cell without hooks, ours against
Hugging Face's own `generate` on the same rows of the same model before TransformerLens wraps it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from works import weights_of

from refusal_dial import load_model, load_prompts, steer, tokenize
from refusal_dial.generate.decode import Decoding, generate


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = run()  # ends on the processor: tokens are read there
    return time.perf_counter() - start, found


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
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
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

    def theirs(where: Any) -> torch.Tensor:
        return where.generate(
            tokens.ids, attention_mask=tokens.mask, max_new_tokens=args.new, do_sample=False
        ).cpu()

    def in_hooks() -> list[torch.Tensor]:
        found = []
        for cell in grid:
            with model.hooks(fwd_hooks=cell):
                found.append(theirs(model.original_model)[:, tokens.ids.shape[1] :])
        return found

    ratios: dict[str, list[float]] = {"one call a cell": [], "generate in hooks": [], "plain": []}
    same = True
    for _ in range(args.rounds):
        ours, whole = timed(lambda: generate(model, tokens, grid, decoding))
        cells, single = timed(lambda: [generate(model, tokens, [c], decoding) for c in grid])
        hooked, rows = timed(in_hooks)
        same &= [o.ids for o in whole] == [o.ids for cell in single for o in cell]
        same &= all(
            one.ids == tuple(rows[one.cell][one.prompt, : len(one.ids)].tolist()) for one in whole
        )
        ratios["one call a cell"].append(cells / ours)
        ratios["generate in hooks"].append(hooked / ours)
        one, _ = timed(lambda: generate(model, tokens, [[]], decoding))
        hf, _ = timed(lambda: theirs(bare))
        ratios["plain"].append(one / hf)
    print(
        f"{len(texts)} prompts x {len(every)} layers x {len(alphas)} alphas, "
        f"{args.new} new tokens, {args.threads} threads"
    )
    print(f"grid against one call a cell      {statistics.median(ratios['one call a cell']):.1f}x")
    print(
        f"grid against generate in hooks    {statistics.median(ratios['generate in hooks']):.1f}x"
    )
    print(f"time of plain Hugging Face        {statistics.median(ratios['plain']):.2f}")
    print(f"tokens identical                  {same}")


if __name__ == "__main__":
    main()
