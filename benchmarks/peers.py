"""The dial beside other projects' ways to turn it: nnsight, pyvene and steering-vectors.

    pip install --target PEERS --no-deps nnsight pyvene steering-vectors   # and what they import
    PYTHONPATH=PEERS python benchmarks/peers.py [--model shape|embedded|FOLDER]
        [--dtype float32] [--rounds 3]

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
from sweeps import SAMPLE
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from works import Work, model_of, scorer, timed, weights_of, works

from refusal_dial.engine.score import score_grid
from refusal_dial.hooks import Edit

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
        with vector({block: added}).apply(model, min_token_index=None, token_indices=[-1]):
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
    parser.add_argument("--model", default="shape", help="shape, or a model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bridge = model_of(args.model, "cpu", args.dtype)
    asked = [
        work
        for work in works(bridge, args.batch)
        if "alphas" in work.name and f"x {len(bridge.blocks)}" not in work.name
    ]
    for name, peer in PEERS.items():
        plain = weights_of(
            args.model, "cpu", args.dtype
        )  # peers leave things of their own in a model
        for work in asked:
            try:
                said = beside(bridge, work, peer(plain, work), args.rounds)
            except Exception as error:  # a peer may fail in any way, and the others are measured
                cause = error.__context__ or error
                said = f"not measured, {type(cause).__name__}: {cause}"
            print(
                f"{name} {version(name)}, {work.name}, {len(work.grid)} cells: {said}", flush=True
            )


def beside(bridge: TransformerBridge, work: Work, cell: Cell, rounds: int) -> str:
    """How many times as fast ours is, in turns, and the largest difference of a score."""
    n, device = len(work.grid), work.tokens.ids.device
    cells = [n * i // SAMPLE + n // (2 * SAMPLE) for i in range(SAMPLE)]
    sampled(cell, work, cells[:1])
    score_grid(bridge, work.tokens, work.grid[:1], scorer)
    ratios, worst = [], 0.0
    for _ in range(rounds):
        ours, scores = timed(lambda: score_grid(bridge, work.tokens, work.grid, scorer), device)
        theirs, found = timed(lambda: sampled(cell, work, cells), device)
        ratios.append(theirs * n / len(cells) / ours)
        worst = max(worst, float((found - scores[cells]).abs().max()))
    return f"ours {statistics.median(ratios):.1f} times as fast, largest difference {worst:.1e}"


if __name__ == "__main__":
    main()
