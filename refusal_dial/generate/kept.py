"""Greedy replies of the unsteered model, kept for the next start: calibration asks for them anew.

    file name = SHA-256 of (model, revision, a sum over the weights in memory, number format,
                            device, tokens of the prompts, decoding, versions)

A large model takes a minute to reply to some hundred prompts, and replies alike at every start. The
replies are a file of token ids beside the models of the hub's cache. It is written whole or not at
all, holds a hash of its content, and is made anew where that does not fit. Small models reply as
fast as a file is read, and a model with hooks attached is another one: nothing is kept of these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import log, progress, write_whole
from refusal_dial.generate.decode import Completion, Decoding, end_tokens, generate
from refusal_dial.model.loading import LARGE, identity
from refusal_dial.model.tokens import Tokens, tokens_hash
from refusal_dial.model.unhooked import has_hooks

EDITION = 1
"""Of the file, and of what decodes: replies of another are not read."""


def unsteered_replies(
    model: TransformerBridge, tokens: Tokens, decoding: Decoding, batch_size: int
) -> list[Completion]:
    """`generate` without hooks, greedy, one a prompt in order, `batch_size` prompts at a time.
    Those that were kept are read."""
    path = kept_at(model, tokens, decoding)
    found = None if path is None else _read(model, path, len(tokens))
    if found is not None:
        log.info("its replies to %d prompts are those kept in %s", len(tokens), path)
        return found
    replies: list[Completion] = []
    for start in progress(range(0, len(tokens), batch_size), "what it replies"):
        some = tokens.rows(start, min(start + batch_size, len(tokens)))
        replies += generate(model, some, [[]], decoding)
    if path is not None:
        _write(path, replies)
    return replies


def kept_at(model: TransformerBridge, tokens: Tokens, decoding: Decoding) -> Path | None:
    """Where the replies of this model to these prompts are kept; None where none are."""
    from huggingface_hub import constants

    weights = list(model.original_model.parameters())
    attached = has_hooks(model)
    who = identity(model)
    if attached or not who.revision or sum(p.numel() for p in weights) < LARGE:
        return None
    key = {
        **who.as_dict(),
        "weights": f"{sum(float(p.detach().abs().sum(dtype=torch.float64)) for p in weights):.6g}",
        "tokens": tokens_hash(tokens),
        "ends": end_tokens(model),
        "decoding": asdict(decoding),
        "versions": [EDITION, torch.__version__, transformers.__version__],
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    folder = Path(constants.HF_HOME).expanduser().resolve() / "refusal_dial" / "replies"
    return folder / f"{name}.json"


def _read(model: TransformerBridge, path: Path, n: int) -> list[Completion] | None:
    """The replies in the file; None where it is not there, or not what was written."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        replies = found["replies"]
        whole = found["sha256"] == _digest(replies) and len(replies) == n
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if not whole:
        return None
    tokenizer: Any = model.tokenizer
    return [
        Completion(
            0, i, 0, str(tokenizer.decode(ids, skip_special_tokens=True)), tuple(ids), str(stop)
        )
        for i, (ids, stop) in enumerate(replies)
    ]


def _write(path: Path, replies: Sequence[Completion]) -> None:
    rows = [[list(one.ids), one.stop] for one in replies]
    try:
        write_whole(path, json.dumps({"sha256": _digest(rows), "replies": rows}))
    except OSError as error:  # a cache that cannot be written is no reason to end
        log.info("its replies are not kept: %s", error)


def _digest(rows: object) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
