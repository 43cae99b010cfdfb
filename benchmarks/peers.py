"""The dial beside other projects' ways to turn it: nnsight, pyvene and steering-vectors.

    pip install --target PEERS --no-deps nnsight pyvene steering-vectors   # and what they import
    PYTHONPATH=PEERS python benchmarks/peers.py [--model shape|embedded] [--rounds 3]

Each adds alpha times a direction to the same residual stream at the last position, once for every
cell, on a Hugging Face model of the same weights, and the scores must agree. A few cells are timed
and multiplied, in turns with ours, which runs every cell. A peer that cannot be imported or that
does not run on this model is named with its reason.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from sweeps import SAMPLE, timed
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from works import Work, model_of, qwen_weights, scorer, works

from refusal_dial.engine import score_grid
from refusal_dial.hooks import Edit
from refusal_dial.model import EMBEDDED

Cell = Callable[[int, Tensor], Tensor]  # (block whose output it changes, what is added) -> scores


def nnsight(model: nn.Module, work: Work) -> Cell:
    wrapped = import_module("nnsight").NNsight(model)
    ids, mask = work.tokens.ids, work.tokens.mask

    def cell(block: int, added: Tensor) -> Tensor:
        with wrapped.trace(input_ids=ids, attention_mask=mask):
            wrapped.model.layers[block].output[:, -1] += added
            logits = wrapped.lm_head.output[:, -1].save()
        return scorer(logits)

    return cell


def pyvene(model: nn.Module, work: Work) -> Cell:
    pv = import_module("pyvene")
    ids, mask = work.tokens.ids, work.tokens.mask
    made: dict[int, Any] = {}

    def cell(block: int, added: Tensor) -> Tensor:
        if block not in made:
            plan = {"layer": block, "component": "block_output"}
            plan["intervention_type"] = pv.AdditionIntervention
            made[block] = pv.IntervenableModel(pv.IntervenableConfig([plan]), model)
        one = made[block]
        (key,) = one.interventions
        _, changed = one(
            base={"input_ids": ids, "attention_mask": mask},
            unit_locations={"base": ids.shape[1] - 1},
            source_representations={key: added.expand(len(ids), 1, -1)},
        )
        return scorer(changed.logits[:, -1])

    return cell


def steering_vectors(model: nn.Module, work: Work) -> Cell:
    vector = import_module("steering_vectors").SteeringVector
    ids, mask = work.tokens.ids, work.tokens.mask

    def cell(block: int, added: Tensor) -> Tensor:
        with vector({block: added}).apply(model, token_indices=[-1]):
            return scorer(model(input_ids=ids, attention_mask=mask).logits[:, -1])

    return cell


PEERS = {"nnsight": nnsight, "pyvene": pyvene, "steering-vectors": steering_vectors}


@torch.no_grad()
def sampled(cell: Cell, work: Work, cells: list[int]) -> Tensor:
    rows = []
    for c in cells:
        ((_, edit),) = work.grid[c]
        if not isinstance(edit, Edit):
            raise TypeError("only edits can be given to a peer")
        rows.append(cell(edit.layer - 1, edit.operation.vector))  # type: ignore[attr-defined]
    return torch.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="shape", choices=["shape", "embedded"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bridge = model_of(args.model, "cpu", "float32")
    plain = (
        AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
        if args.model == "embedded"
        else qwen_weights("cpu").float()
    ).eval()
    for work in works(bridge, args.batch):
        if "alphas" not in work.name or f"x {len(bridge.blocks)}" in work.name:
            continue
        n = len(work.grid)
        cells = [n * i // SAMPLE + n // (2 * SAMPLE) for i in range(SAMPLE)]
        print(f"\n{work.name}, {n} cells")
        score_grid(bridge, work.tokens, work.grid[:1], scorer)
        for name, peer in PEERS.items():
            ratios, worst = [], 0.0
            try:
                cell = peer(plain, work)
                for _ in range(args.rounds):
                    ours, scores = timed(
                        lambda: score_grid(bridge, work.tokens, work.grid, scorer),  # noqa: B023
                        work.tokens.ids.device,
                    )
                    theirs, found = timed(
                        lambda: sampled(cell, work, cells),  # noqa: B023
                        work.tokens.ids.device,
                    )
                    ratios.append(theirs * n / len(cells) / ours)
                    worst = max(worst, float((found - scores[cells]).abs().max()))
            except Exception as error:  # a peer may fail in any way, and the others are measured
                print(f"{name}: not measured, {type(error).__name__}: {error}")
                continue
            print(
                f"{name} {version(name)}: ours {statistics.median(ratios):.1f} times as fast, "
                f"largest difference {worst:.1e}"
            )


if __name__ == "__main__":
    main()
