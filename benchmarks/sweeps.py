"""Sweeps, ours beside plain TransformerLens hooks and its patching functions, in one run.

    python benchmarks/sweeps.py [--model shape|shape-7b|embedded|both|FOLDER] [--device cpu]
        [--dtype float32] [--batch 8] [--threads 2] [--rounds 2] [--only "17 alphas"] [--json FILE]

Ours runs every cell. Peers run one forward pass a cell, every cell alike, so a few cells spread
over the grid are timed and extrapolated. Ours and the peers take turns within each round; a ratio
is the median over rounds. Cost a cell is shown for a quarter of the cells too. The difference is
the largest in a score (a logit difference) on the cells that both ran. `bound` is the ratio of
operation counts (works.operations), `share` the part of it that was reached.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformer_lens
import transformers
from torch import Tensor, nn
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from works import Work, model_of, operations, scorer, timed, weights_of, works

from refusal_dial.common import hook_name
from refusal_dial.engine.score import score_grid
from refusal_dial.hooks import Edit

os.environ["TQDM_DISABLE"] = "1"
SAMPLE = 3


@torch.no_grad()
def by_hooks(model: TransformerBridge, work: Work, cells: Sequence[int]) -> Tensor:
    """One `run_with_hooks` a cell, the way the TransformerLens demos do it."""
    rows = []
    for c in cells:
        logits = model.run_with_hooks(
            work.tokens.ids, fwd_hooks=work.grid[c], attention_mask=work.tokens.mask
        )
        rows.append(scorer(logits[:, -1]).cpu())
    return torch.stack(rows)


@torch.no_grad()
def by_patching(model: TransformerBridge, work: Work, cells: Sequence[int]) -> Tensor:
    """`transformer_lens.patching.generic_activation_patch` on the same cells."""
    edits = [edit for c in cells for _, edit in work.grid[c] if isinstance(edit, Edit)]
    rows: list[Tensor] = []
    index = pd.DataFrame(
        {"layer": [e.layer for e in edits], "pos": [e.pos for e in edits], "n": range(len(edits))}
    )

    def setter(activation: Tensor, at: Sequence[int], clean: Tensor) -> Tensor:
        return edits[at[2]](activation)

    def metric(logits: Tensor) -> Tensor:
        rows.append(scorer(logits[:, -1]).cpu())
        return rows[-1].mean()

    cache = {hook_name(work.patched_from, e.layer): torch.empty(0) for e in edits}
    patching.generic_activation_patch(
        model, work.tokens.ids, cache, metric, setter, work.patched_from, index_df=index
    )
    return torch.stack(rows[-len(edits) :])


@torch.no_grad()
def by_forward(weights: nn.Module, work: Work) -> Tensor:
    """A loop of plain Hugging Face forward passes (SDPA), one a cell, that steer nothing: what any
    way of hooking them costs at least."""
    logits = [
        weights(
            input_ids=work.tokens.ids,
            attention_mask=work.tokens.mask,
            logits_to_keep=1,
            use_cache=False,
        ).logits[:, -1]
        for _ in range(SAMPLE)
    ]
    return torch.stack([scorer(one).cpu() for one in logits])


def measure(
    model: TransformerBridge, work: Work, rounds: int, weights: nn.Module
) -> dict[str, Any]:
    device = work.tokens.ids.device
    n = len(work.grid)
    cells = [n * i // SAMPLE + n // (2 * SAMPLE) for i in range(SAMPLE)]
    peers = {"hooks": by_hooks}
    if work.patched_from:
        peers["patching"] = by_patching
    quarter = work.thinned()
    score_grid(model, work.tokens, work.grid[:1], scorer)  # the trial, once a model
    times: dict[str, list[float]] = {
        "ours": [],
        "quarter": [],
        "HF": [],
        **{name: [] for name in peers},
    }
    worst = dict.fromkeys(peers, 0.0)
    for _ in range(rounds):
        took, ours = timed(lambda: score_grid(model, work.tokens, work.grid, scorer), device)
        times["ours"].append(took)
        for name, peer in peers.items():
            took, theirs = timed(lambda peer=peer: peer(model, work, cells), device)
            times[name].append(took * n / len(cells))
            worst[name] = max(worst[name], float((theirs - ours[cells]).abs().max()))
        took, _ = timed(lambda: by_forward(weights, work), device)
        times["HF"].append(took * n / SAMPLE)
        took, _ = timed(lambda: score_grid(model, quarter.tokens, quarter.grid, scorer), device)
        times["quarter"].append(took)
    plain, least = operations(model, work)
    row: dict[str, Any] = {"work": work.name, "cells": n, "target": work.target}
    row["seconds"] = statistics.median(times["ours"])
    row["ms/cell"] = 1e3 * row["seconds"] / n
    row["ms/cell at quarter"] = 1e3 * statistics.median(times["quarter"]) / len(quarter.grid)
    for name in peers:
        ratios = [a / b for a, b in zip(times[name], times["ours"], strict=True)]
        row[f"x {name}"] = statistics.median(ratios)
        row[f"diff {name}"] = worst[name]
    ratios = [a / b for a, b in zip(times["HF"], times["ours"], strict=True)]
    row["x HF forward (SDPA)"] = statistics.median(ratios)
    row["bound"] = plain / least
    row["share"] = row["x hooks"] / row["bound"]
    return row


def peak(model: TransformerBridge, engine: str, batch: int) -> int:
    """Bytes at the peak of a process that has loaded the model and run one engine."""
    rows = works(model, batch)
    if engine == "hooks":
        by_hooks(model, rows[0], [0])
    else:
        few = [cell for cell in rows[0].grid if cell[0][1].pos in (-40, -20, -1)]  # type: ignore[attr-defined]
        score_grid(model, rows[0].tokens, few, scorer)
        score_grid(model, rows[6].tokens, rows[6].grid, scorer)
    if next(model.original_model.parameters()).is_cuda:
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()  # getrusage's peak is inherited from the parent
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def peaks(args: argparse.Namespace, name: str) -> dict[str, int]:
    found = {}
    for engine in ("hooks", "ours"):
        flags = [f"--model={name}", f"--device={args.device}", f"--dtype={args.dtype}"]
        flags += [f"--batch={args.batch}", f"--threads={args.threads}", f"--peak={engine}"]
        done = subprocess.run(
            [sys.executable, __file__, *flags], check=True, capture_output=True, text=True
        )
        found[engine] = int(done.stdout.strip().splitlines()[-1])
    return found


def table(rows: list[dict[str, Any]]) -> str:
    frame = pd.DataFrame(rows)
    shown = frame.map(lambda v: f"{v:.3g}" if isinstance(v, float) else str(v))
    lines = ["| " + " | ".join(shown.columns) + " |", "|" + "---|" * len(shown.columns)]
    lines += ["| " + " | ".join(row) + " |" for row in shown.to_numpy().tolist()]
    return "\n".join(lines).replace("nan", "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="both", help="a shape, embedded, both, or a model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", choices=["hooks", "ours"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(peak(model_of(args.model, args.device, args.dtype), args.peak, args.batch))
        return
    where = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor()
    print(f"load {os.getloadavg()[0]:.1f}")
    print(
        f"{date.today()}, {where or platform.machine()}, {args.threads} threads, {args.dtype}, "
        f"batch {args.batch}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"transformer-lens {getattr(transformer_lens, '__version__', '')}"
    )
    found: dict[str, Any] = {}
    for name in ("embedded", "shape") if args.model == "both" else (args.model,):
        model = model_of(name, args.device, args.dtype)
        rows, weights = [], weights_of(name, args.device, args.dtype)
        for work in works(model, args.batch):
            if args.only in work.name:
                rows.append(measure(model, work, args.rounds, weights))
                print(f"\n{name}\n{table(rows[-1:])}", flush=True)
        del model
        found[name] = {"rows": rows, "peak": {} if args.only else peaks(args, name)}
        print(f"\n{name}\n{table(rows)}\npeak bytes: {found[name]['peak']}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
