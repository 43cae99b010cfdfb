"""Whether the replay fits a model: tried on it, not assumed.

Before a model's first replay two prompts go both ways: unchanged but replayed from the first block,
and edited at every site that is asked for. The verdict holds until a weight changes. This module
knows what agreement is asked for. It does not choose what runs.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.fits import shape_of
from refusal_dial.hooks import Edit
from refusal_dial.operations import Add
from refusal_dial.replay.bare import Bare, UnfitError, is_out_of_memory
from refusal_dial.replay.plan import places, touches
from refusal_dial.replay.recording import record
from refusal_dial.replay.rectangles import Rectangle
from refusal_dial.replay.stream import Stream
from refusal_dial.tokens import Tokens, last_logits
from refusal_dial.types import hook_name, one_line

log = logging.getLogger("refusal_dial")

TOLERANCE = {torch.float32: 3e-4, torch.float64: 1e-6}
"""The largest difference in a logit, as a share of the largest logit. Half precision gets 0.05."""

_verdicts: weakref.WeakKeyDictionary[Any, tuple[int, dict[str, str]]]
_verdicts = weakref.WeakKeyDictionary()
_said: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()


def say_once(model: TransformerBridge, what: str) -> None:
    """To the log, once for each model."""
    said = _said.setdefault(model, set())
    if what not in said:
        said.add(what)
        log.info(what)


def misfit(model: TransformerBridge, tokens: Tokens, sites: Iterable[str]) -> str:
    """Why replay cannot serve edits at these sites of this model; empty where it can."""
    if any(isinstance(part, HookPoint) and part.fwd_hooks for part in model.modules()):
        return "the model has hooks attached"
    state = hash(tuple((id(p), p._version) for p in model.parameters() if not p.is_inference()))
    if model not in _verdicts or _verdicts[model][0] != state:
        _verdicts[model] = (state, {})
    verdicts = _verdicts[model][1]
    for site in ("resid_pre", *sites):
        if site not in verdicts:
            verdicts[site] = _tried(model, tokens, site)
        if verdicts[site]:
            return verdicts[site]
    return ""


def _tried(model: TransformerBridge, tokens: Tokens, site: str) -> str:
    try:
        worst, largest = _difference(model, tokens, site)
    except UnfitError as error:
        return str(error)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"the replay failed on it at {site} ({type(error).__name__}: {one_line(error)})"
    tolerance = TOLERANCE.get(next(model.original_model.parameters()).dtype, 0.05)
    if worst <= tolerance * largest:
        return ""
    return f"the replay differs from a forward pass by {worst:.2g} in a logit at {site}"


@torch.no_grad()
def _difference(model: TransformerBridge, tokens: Tokens, site: str) -> tuple[float, float]:
    """The largest difference between the two ways, and the largest logit."""
    shortest = int(tokens.mask.sum(-1).argmin())
    two = torch.tensor(sorted({0, shortest}), device=tokens.ids.device)
    some = Tokens(tokens.ids[two], tokens.mask[two])
    batch, length = some.ids.shape
    edit = _probe(model, some, site)
    cells = [[], touches([edit], batch, length, int(model.cfg.d_head))]
    bare, rows = Bare(model, places(cells)), torch.arange(batch)
    recording = record(model, some, wanted=places(cells))
    plain = [
        last_logits(model, some),
        last_logits(model, some, [(hook_name(site, edit.layer), edit)]),
    ]
    off = [recording.logits - plain[0]]
    for first in sorted({0, length // 2, max(0, length - len(edit.pos))}):
        used = np.ones((batch, 2), dtype=bool)
        area = Rectangle(first, tuple(range(batch)), (0, 1), (0, edit.layer), used)
        final = Stream(bare, recording, area, cells, rows).run()
        off += [bare.logits(final[:, cell]) - plain[cell] for cell in (0, 1)]
    ids = [0, plain[1].shape[-1] - 1]
    if bare.narrow(ids):
        off.append(bare.logits(final[:, 1]) - plain[1][:, ids])
    return (
        max(float(one.float().abs().max()) for one in off),
        max(float(one.float().abs().max()) for one in plain),
    )


def _probe(model: TransformerBridge, tokens: Tokens, site: str) -> Edit:
    """Noise as large as the embedding, added to the last two positions in the middle block."""
    width = shape_of(model, tokens, site)[-1]
    embedded = model.original_model.get_input_embeddings()(tokens.ids)
    size = float(embedded.float().pow(2).mean().sqrt())
    noise = torch.randn(width, generator=torch.Generator().manual_seed(0)) * size
    return Edit(
        layer=len(model.blocks) // 2,
        site=site,
        pos=(-2, -1)[-tokens.ids.shape[1] :],
        operation=Add(noise.to(tokens.ids.device)),
        head=0 if site == "z" else None,
    )
