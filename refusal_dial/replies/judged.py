"""Replies under every cell, judged: a row per cell, prompt and sample.

Two readings stand side by side: `score`, the refusal score of the logits at the last prompt token
(what the model is about to say), and `label`, what the judge makes of what it said. Nothing is
written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.engine import Scorer, score_grid
from refusal_dial.judges import Judge, judge_all, substring
from refusal_dial.prompts import Prompt
from refusal_dial.sampling import Decoding
from refusal_dial.spoken import say
from refusal_dial.sweep import Budget, Cell
from refusal_dial.tokens import Tokens
from refusal_dial.types import DialError

ORDER = ["direction", "seed", "layer", "site", "pos", "alpha", "prompt_id", "subset", "split"]
ORDER += ["score", "alpha_relative", "strength", "system", "category", "sample", "label", "phrase"]
ORDER += ["nll", "repeated", "stop", "completion"]


def judged_batches(
    model: TransformerBridge,
    tokens: Mapping[str, Tokens],
    prompts: Sequence[Prompt],
    judge: Judge,
    scorer: Scorer,
    rows: pd.DataFrame,
    cells: Sequence[Cell],
    decoding: Decoding,
    budget: Budget,
    skip: int = 0,
) -> Iterator[pd.DataFrame]:
    """A frame per batch of prompts: by system message, then cell, prompt and sample.

    `tokens` are the prompts under each system message, which a cell's label `system` names; `rows`
    the prompts' columns. The first `skip` batches are left out: they were computed before. Raises
    `DialError` for a cell under a system message that is not there.
    """
    unknown = {str(cell.labels["system"]) for cell in cells} - set(tokens)
    if unknown:
        raise DialError(f"no system message is called {sorted(unknown)[0]!r} here")
    size = budget.batch_size
    for start in range(skip * size, len(rows), size):
        some, parts = rows.iloc[start : start + size], []
        for system, whole in tokens.items():
            mine = [cell for cell in cells if cell.labels["system"] == system]
            if mine:
                here = whole.on(model).rows(start, start + size)
                said = say(model, here, some, mine, decoding)
                grid = [cell.hooks for cell in mine]
                scores = score_grid(
                    model, here, grid, scorer, engine=budget.engine, memory_gb=budget.memory_gb
                )
                said["score"] = scores.flatten().repeat_interleave(decoding.samples).numpy()
                parts.append(said)
        asked = {prompt.id: prompt.text for prompt in prompts[start : start + size]}
        yield _judged(judge, asked, pd.concat(parts, ignore_index=True))[ORDER]


def _judged(judge: Judge, asked: Mapping[str, str], said: pd.DataFrame) -> pd.DataFrame:
    """With `label` and `phrase`; equal replies to a prompt are judged once."""
    pairs = list(dict.fromkeys(zip(said["prompt_id"], said["text"], strict=True)))
    told = judge_all(judge, [text for _, text in pairs], [asked[who] for who, _ in pairs])
    labels = {pair: one.label for pair, one in zip(pairs, told, strict=True)}
    return said.assign(
        label=[labels[pair] for pair in zip(said["prompt_id"], said["text"], strict=True)],
        phrase=[int(substring(text)) for text in said["text"]],
    )
