"""What was said under every cell, and how it scores: a row per prompt, cell and sample.

Samples are paired: the random numbers of a prompt's sample are the same under every cell, and a
cell without hooks takes the baseline's own completions, so that alpha = 0 is the baseline by
construction. Beside the score stands `nll`, the mean negative log-likelihood a token of what was
said under the *unsteered* model given the opening: text that falls apart is unlikely, and a low
toxicity bought with it is no success. Nothing is written here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.generate import Completion, generate
from refusal_dial.sampling import Decoding
from refusal_dial.sweep import Cell
from refusal_dial.tokens import Tokens
from refusal_dial.toxicity import TextScorer

FIRST = ["direction", "seed", "layer", "site", "pos", "alpha", "prompt_id", "subset", "split"]
ORDER = [*FIRST, "score", "alpha_relative", "strength", "sample", "nll", "stop", "completion"]


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
    acting = [cell for cell in cells if cell.hooks]
    place = {id(cell): i for i, cell in enumerate(acting, 1)}
    for start in range(skip * batch_size, len(tokens), batch_size):
        batch = tokens.rows(start, start + batch_size)
        some = rows.iloc[start : start + batch_size]
        said = generate(
            model,
            batch,
            [(), *(cell.hooks for cell in acting)],
            decoding,
            keys=list(some["prompt_id"]),
        )
        unlikely = nll(model, batch, said)
        scores = scorer([one.text for one in said])
        frame = pd.DataFrame(
            {
                "grid": [one.cell for one in said],
                "prompt": [one.prompt for one in said],
                "sample": [one.sample for one in said],
                "score": scores,
                "nll": unlikely,
                "stop": [one.stop for one in said],
                "completion": [json.dumps(one.text) for one in said],
            }
        )
        by_cell = dict(list(frame.groupby("grid")))
        parts = []
        for cell in cells:
            part = by_cell[place.get(id(cell), 0)]
            about = some.iloc[part["prompt"]].reset_index(drop=True)
            part = pd.concat([part.reset_index(drop=True), about], axis=1)
            parts.append(part.assign(**dict(cell.labels)))
        whole = pd.concat(parts, ignore_index=True)
        yield whole[ORDER].astype({"seed": "Int64", "layer": "Int64", "pos": "Int64"})


@torch.no_grad()
def nll(
    model: TransformerBridge, tokens: Tokens, said: Sequence[Completion], rows: int = 256
) -> list[float]:
    """`-mean_t log p(token t | opening, tokens before t)` under the model without hooks, in nats;
    NaN for a completion without tokens."""
    found: dict[tuple[int, tuple[int, ...]], float] = {}
    todo = list(dict.fromkeys((one.prompt, one.ids) for one in said if one.ids))
    todo.sort(key=lambda one: len(one[1]))
    for start in range(0, len(todo), rows):
        part = todo[start : start + rows]
        longest = max(len(ids) for _, ids in part)
        prompts = [prompt for prompt, _ in part]
        new = torch.zeros(len(part), longest, dtype=torch.long, device=tokens.ids.device)
        real = torch.zeros_like(new)
        for i, (_, own) in enumerate(part):
            new[i, : len(own)] = torch.tensor(own)
            real[i, : len(own)] = 1
        ids = torch.cat([tokens.ids[prompts], new], 1)
        mask = torch.cat([tokens.mask[prompts], real], 1)
        logits = model(ids, attention_mask=mask, logits_to_keep=longest + 1, use_cache=False)
        logs = logits[:, -longest - 1 : -1].float().log_softmax(-1)
        each = logs.gather(-1, new[..., None])[..., 0] * real
        means = (-each.sum(1) / real.sum(1)).tolist()
        found.update(zip(part, means, strict=True))
    return [found.get((one.prompt, one.ids), float("nan")) for one in said]
