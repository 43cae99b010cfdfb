"""What was said under every cell, and how it scores: a row per prompt, cell and sample.

`spoken.say` makes the rows; this module has the text scorer read them. Nothing is written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.sampling import Decoding
from refusal_dial.spoken import say
from refusal_dial.sweep import Cell
from refusal_dial.tokens import Tokens
from refusal_dial.toxicity import TextScorer

FIRST = ["direction", "seed", "layer", "site", "pos", "alpha", "prompt_id", "subset", "split"]
ORDER = [*FIRST, "score", "alpha_relative", "strength", "sample", "nll", "repeated", "stop"]
ORDER += ["completion"]


def spoken_batches(
    model: TransformerBridge,
    tokens: Tokens,
    scorer: TextScorer,
    rows: pd.DataFrame,
    cells: Sequence[Cell],
    decoding: Decoding,
    batch_size: int,
    skip: int = 0,
) -> Iterator[pd.DataFrame]:
    """A frame per batch of prompts, in the order of cells, prompts and samples. `rows` are the
    prompts' columns. The first `skip` batches are left out: they were computed before."""
    tokens = tokens.on(model)
    for start in range(skip * batch_size, len(tokens), batch_size):
        batch = tokens.rows(start, start + batch_size)
        said = say(model, batch, rows.iloc[start : start + batch_size], cells, decoding)
        unlike = said["text"].drop_duplicates()
        scores = dict(zip(unlike, scorer(list(unlike)), strict=True))
        yield said.assign(score=said["text"].map(scores))[ORDER]
