"""The rows of a grid over two dials: openings continued and scored for toxicity, then prompts
scored for refusal.

`score` is toxicity for an opening and the refusal score for a prompt; the subset says which.
Nothing is written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.continuation.spoken import spoken_batches
from refusal_dial.engine import Scorer
from refusal_dial.sampling import Decoding
from refusal_dial.sweep import Budget, Cell, sweep_batches
from refusal_dial.tokens import Tokens
from refusal_dial.toxicity import TextScorer

ORDER = ["direction", "seed", "layer", "site", "pos", "alpha", "prompt_id", "subset", "split"]
ORDER += ["score", "alpha_relative", "strength", "refusal_strength", "sample", "nll", "stop"]
ORDER += ["completion"]


def objective_batches(
    model: TransformerBridge,
    openings: Tokens,
    opening_rows: pd.DataFrame,
    prompts: Tokens,
    prompt_rows: pd.DataFrame,
    toxicity: TextScorer,
    refusal: Scorer,
    cells: Sequence[Cell],
    decoding: Decoding,
    batch_size: int,
    skip: int = 0,
) -> Iterator[pd.DataFrame]:
    """A frame per batch of openings, then per batch of prompts, in the order of cells and prompts.
    The first `skip` batches are left out: they were computed before."""
    first = -(-len(openings) // batch_size)
    columns = [cell.labels["refusal_strength"] for cell in cells]
    spoken = spoken_batches(
        model, openings, toxicity, opening_rows, cells, decoding, batch_size, skip
    )
    for batch in spoken:
        each = len(batch) // len(cells)
        yield batch.assign(refusal_strength=[b for b in columns for _ in range(each)])[ORDER]
    budget, done = Budget(batch_size), max(0, skip - first)
    for batch in sweep_batches(model, prompts, prompt_rows, cells, refusal, budget, done):
        unsaid = batch.assign(sample=0, nll=float("nan"), stop="", completion="")
        yield unsaid[ORDER]
