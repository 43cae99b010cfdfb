"""Completions under every cell: a row per cell, prompt and sample, before anyone has read them.

Samples are paired: the random numbers of a prompt's sample are the same under every cell, and a
cell without hooks takes the unsteered model's own completions, so that alpha = 0 is the baseline by
construction. Beside each completion stand `nll`, its mean negative log-likelihood a token under
the *unsteered* model given the prompt (text that falls apart is unlikely, and an effect bought with
it is no success), and `repeated`, the share of its trigrams that are repeats. Of a model that
thinks, `completion` is the reply after the think block, `thought` what stood in it, and `nll` the
cost of both. Who reads the words, and what they are worth, is a caller's business. Nothing is
written here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.cells import Cell
from refusal_dial.generate.decode import Completion, Decoding, generate
from refusal_dial.generate.likelihood import nll, repeated
from refusal_dial.generate.thoughts import after_thought
from refusal_dial.model.tokens import ThinkBlock, Tokens


def completion_rows(
    model: TransformerBridge,
    tokens: Tokens,
    rows: pd.DataFrame,
    cells: Sequence[Cell],
    decoding: Decoding,
    block: ThinkBlock | None = None,
) -> pd.DataFrame:
    """A row per cell, prompt and sample, in this order: the cell's labels, the prompt's columns
    (`rows`, a line a prompt, with `prompt_id`), then `sample`, `nll`, `repeated`, `stop`,
    `completion` (a JSON string), `text`, which is the completion itself, and of what stood in the
    think `block` before it `thought` (a JSON string), `thought_tokens` and `thought_end`
    (`thoughts.THOUGHT_ENDS`)."""
    acting = [cell for cell in cells if cell.hooks]
    place = {id(cell): i for i, cell in enumerate(acting, 1)}
    grid = [(), *(cell.hooks for cell in acting)]
    generated = generate(model, tokens, grid, decoding, keys=list(rows["prompt_id"]))
    divided = [after_thought(model.tokenizer, one, block, decoding) for one in generated]
    completions, thoughts = [one for one, _ in divided], [thought for _, thought in divided]
    whole = [replace(one, ids=(*thought.ids, *one.ids)) for one, thought in divided]
    frame = pd.DataFrame(
        {
            "grid": [one.cell for one in completions],
            "prompt": [one.prompt for one in completions],
            "sample": [one.sample for one in completions],
            "nll": unsteered_nll(model, tokens, whole),
            "repeated": [repeated(one.ids) for one in completions],
            "stop": [one.stop for one in completions],
            "completion": [json.dumps(one.text) for one in completions],
            "text": [one.text for one in completions],
            "thought": [json.dumps(one.text) for one in thoughts],
            "thought_tokens": [len(one.ids) for one in thoughts],
            "thought_end": [one.end for one in thoughts],
        }
    )
    by_cell = dict(list(frame.groupby("grid")))
    parts = []
    for cell in cells:
        part = by_cell[place.get(id(cell), 0)]
        about = rows.iloc[part["prompt"]].reset_index(drop=True)
        part = pd.concat(
            [part.drop(columns=["grid", "prompt"]).reset_index(drop=True), about], axis=1
        )
        parts.append(part.assign(**dict(cell.labels)))
    table = pd.concat(parts, ignore_index=True)
    return table.astype({"seed": "Int64", "layer": "Int64", "pos": "Int64"})


def unsteered_nll(
    model: TransformerBridge, tokens: Tokens, completions: Sequence[Completion]
) -> list[float]:
    """`likelihood.nll` of every completion; equal ones of a prompt are computed once."""
    todo = list(dict.fromkeys((one.prompt, one.ids, one.stop) for one in completions))
    index = [prompt for prompt, _, _ in todo]
    mine = Tokens(tokens.ids[index], tokens.mask[index])
    found = nll(model, mine, [ids for _, ids, _ in todo], [stop for _, _, stop in todo])
    by_key = dict(zip(todo, found.tolist(), strict=True))
    return [by_key[one.prompt, one.ids, one.stop] for one in completions]


def completion_text(completion: str) -> str:
    """The text of a row's `completion`."""
    return str(json.loads(completion))
